//! How long parts of a model take, in nanoseconds of one thread, for whoever watches (see [`Progress`](qmerge::progress::Progress)).
//!
//! The figures were measured on one machine; on another all of them are larger or smaller by about the same factor.

use qmerge::simd::matmul::multiplies_pairs;

use crate::linear::{Linear, Precision};

/// Per value of a weight that is decoded.
const DECODE: f64 = 0.5;
/// Per product with many columns, and with one.
const PRODUCT: f64 = 0.027;
const SINGLE: f64 = 0.09;
/// Per score of attention and feature of a head, with all that is done to it.
const ATTENTION: f64 = 0.08;
/// Per value of a recurrent memory, which is read and changed.
const MEMORY: f64 = 0.5;
/// Per logit that a token is drawn by, and that is scored.
pub(crate) const DRAW: f64 = 4.0;
pub(crate) const SCORE: f64 = 3.0;

/// What it takes where products are rounded, of what it takes where they are not.
const ROUNDED: f64 = 0.6;

impl Precision {
    /// What takes so long in full precision.
    pub(crate) fn work(self, full: u64) -> u64 {
        if self == Self::Bf16 && multiplies_pairs() { (ROUNDED * full as f64) as u64 } else { full }
    }
}

/// A linear layer of so many values, some of which serve so many columns each.
pub(crate) fn linear(values: usize, columns: f64) -> f64 {
    let each = if columns <= 1.0 { SINGLE } else { DECODE + (PRODUCT * columns).max(SINGLE) };
    values as f64 * each
}

/// Linear layers that serve so many columns each.
pub(crate) fn linears(linears: &[Vec<&Linear<'_>>], columns: f64) -> f64 {
    linears.iter().flatten().map(|layer| linear(layer.values(), columns)).sum()
}

/// Attention of `tokens` queries that see `seen` positions on average, over all heads.
pub(crate) fn attention(features: usize, tokens: usize, seen: usize) -> f64 {
    ATTENTION * features as f64 * tokens as f64 * seen as f64
}

/// A recurrent memory of so many values, which each token changes.
pub(crate) fn memory(values: usize, tokens: usize) -> f64 {
    MEMORY * values as f64 * tokens as f64
}

/// The second moments of some inputs.
pub(crate) fn moments(features: usize, tokens: usize) -> f64 {
    // Half of the products, since the matrix is symmetric, and the other half copied.
    (features * features) as f64 * (0.55 * PRODUCT * tokens as f64 + 0.5)
}
