//! The best approximations of low rank to what adapters add, in the plain norm or in that of a layer's inputs, ‖X‖²_H = tr(X H Xᵀ).
//!
//! In the latter X H stands where a product with Xᵀ is taken: directions of outputs are those of X H Xᵀ, and the approximation is X projected on them.

mod dense;
mod spectrum;
#[cfg(test)]
mod tests;

pub(super) use dense::best;
pub(super) use spectrum::{Spectrum, is_dependent};

use crate::error::{Result, usage};
use crate::linalg::Factors;
use crate::simd::gram::gram;

/// Directions of which no more than this is left, of the square of the largest, are taken for the rounding of sums: 1e-7 of its length, as fine as f32.
const NEW: f64 = 1e-14;

/// How many directions are wanted.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Wanted {
    /// So many; what a matrix has less is filled up with zeros.
    Rank(usize),
    /// As many as hold this share of the energy, at least 1.
    Share(f64),
}

impl Wanted {
    /// Errors if that is no number of directions.
    pub(super) fn refuse(self) -> Result<()> {
        match self {
            Self::Rank(0) => Err(usage("an adapter of rank 0 is none").with_hint("give --rank a number above 0")),
            Self::Share(share) if !(share > 0.0 && share <= 1.0) => {
                Err(usage(format!("energy {share}: a share above 0, up to 1, was expected")))
            }
            _ => Ok(()),
        }
    }

    /// The rank, by the falling squares of singular values; none if they do not hold enough.
    fn rank(self, squares: &[f64], energy: f64) -> Option<usize> {
        let share = match self {
            Self::Rank(rank) => return Some(rank),
            Self::Share(share) => share,
        };
        let mut held = 0.0;
        let enough = |square: &f64| {
            held += square;
            // Sums differ by their rounding.
            held >= (share - 1e-12) * energy
        };
        squares.iter().position(enough).map(|at| at + 1)
    }
}

/// A best approximation of low rank.
pub(super) struct Best {
    pub(super) factors: Factors,
    /// The sum of the squares of the matrix's values.
    pub(super) energy: f64,
    /// The share of it that the approximation holds.
    pub(super) kept: f64,
}

/// X Xᵀ of some rows.
fn gram_of(x: &[f32], inner: usize) -> Vec<f64> {
    gram(x, inner, x.len() / inner.max(1))
}
