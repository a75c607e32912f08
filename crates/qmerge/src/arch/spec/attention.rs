//! Attention, as data.

use super::Fields;
use crate::arch::fields::MOST;
use crate::error::Result;

/// Causal attention of softmax, over keys and values.
#[derive(Clone, Copy, Debug)]
pub struct Attention {
    /// Query heads.
    pub heads: usize,
    /// Key and value heads; each serves `heads / kv_heads` query heads.
    pub kv_heads: usize,
    /// Width of a head.
    pub head_dim: usize,
    /// Its matrices.
    pub projections: Projections,
    /// Norms of queries and keys.
    pub qk_norm: Option<QkNorm>,
    /// Number of the rotary embedding in [`Spec::ropes`](super::Spec::ropes).
    pub rope: Option<usize>,
    /// A query sees this many positions, itself included.
    pub window: Option<usize>,
    /// Factor on query · key.
    pub scale: f32,
    /// `cap · tanh(score / cap)` on scores.
    pub cap: Option<f32>,
}

/// How the projections of attention are stored: names below a layer.
#[derive(Clone, Copy, Debug)]
pub enum Projections {
    /// One matrix each.
    Apart {
        /// Queries, keys, values, output.
        names: [&'static str; 4],
    },
    /// Queries, keys and values in one.
    Fused {
        /// All three, output.
        names: [&'static str; 2],
    },
}

/// Norms of queries and keys: names below a layer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum QkNorm {
    /// Over each head.
    PerHead([&'static str; 2]),
    /// Over all heads together (OLMo 2).
    Whole([&'static str; 2]),
}

/// No head is wider.
const WIDEST: usize = 1 << 16;

impl Attention {
    pub(super) fn check(&self, fields: &Fields<'_>, ropes: usize) -> Result<()> {
        let (heads, kv_heads, head_dim) = (self.heads, self.kv_heads, self.head_dim);
        if !heads.is_multiple_of(kv_heads) {
            return Err(fields.misfit(format!(
                "`num_attention_heads` is {heads}, and `num_key_value_heads`, which must divide it, is {kv_heads}"
            )));
        }
        if head_dim > WIDEST || heads * head_dim > MOST {
            return Err(fields.misfit(format!("no model has {heads} heads of {head_dim} features")));
        }
        debug_assert!(self.rope.is_none_or(|rope| rope < ropes));
        Ok(())
    }
}
