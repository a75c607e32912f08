//! Attention, as data.

use super::{Fields, Norm};
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
    /// Queries, keys and values are held between its negative and itself.
    pub clip: Option<f32>,
    /// Norms of queries and keys.
    pub qk_norm: Option<QkNorm>,
    /// Number of the rotary embedding in [`Spec::ropes`](super::Spec::ropes).
    pub rope: Option<usize>,
    /// Values are normalized, each head by itself and without weights (Gemma 4).
    pub norms_values: bool,
    /// How queries grow with their position.
    pub growth: Option<Growth>,
    /// A query sees this many positions, itself included.
    pub window: Option<usize>,
    /// Positions are cut into runs of so many, and a query sees those of its own only.
    pub chunk: Option<usize>,
    /// Factor on query · key.
    pub scale: f32,
    /// `cap · tanh(score / cap)` on scores.
    pub cap: Option<f32>,
    /// Name of the scores, one for each head, that take a share of every softmax and give no value for it.
    pub sinks: Option<&'static str>,
    /// The queries' matrix has a gate behind each head's query, and its sigmoid is a factor on what the head gives.
    pub gated: bool,
    /// Later layers borrow its keys and values, under this number.
    pub lends: Option<usize>,
}

/// How the projections of attention are stored: names below a layer.
#[derive(Clone, Copy, Debug)]
pub enum Projections {
    /// One matrix each.
    Apart {
        /// Queries, keys, values, output.
        names: [&'static str; 4],
    },
    /// One matrix each, of which the keys' serves values too (Gemma 4).
    KeysAsValues {
        /// Queries, keys, output.
        names: [&'static str; 3],
    },
    /// Of queries alone: keys and values are those of a layer before, as they are there (Gemma 4's small models).
    Borrowed {
        /// Queries, output.
        names: [&'static str; 2],
        /// The number that the layer lends them under.
        from: usize,
    },
    /// Queries, keys and values in one.
    Fused {
        /// All three, output.
        names: [&'static str; 2],
    },
    /// The same in groups, one for each key head: the queries that it serves, the key, the value (GPT-NeoX, Falcon).
    Grouped {
        /// All groups, output.
        names: [&'static str; 2],
    },
}

/// Norms of queries and keys.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct QkNorm {
    /// Of queries, of keys: names below a layer.
    pub names: [&'static str; 2],
    /// What a norm is over.
    pub over: Over,
    /// What it does, where that is not what the model's other norms do.
    pub norm: Option<Norm>,
    /// Behind the rotary embedding, not before it.
    pub after_rope: bool,
}

/// What a norm of queries or keys is over.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Over {
    /// Each head, with the same weights for all.
    Head,
    /// Each head, with weights of its own in one tensor (Cohere).
    OwnHead,
    /// Each head, with weights of its own, each head's in a tensor `norms.N` (StableLM).
    OwnHeadApart,
    /// All heads together (OLMo 2).
    Whole,
}

impl QkNorm {
    /// Over each head, as the model's other norms.
    pub(crate) const fn per_head(names: [&'static str; 2]) -> Self {
        Self { names, over: Over::Head, norm: None, after_rope: false }
    }
}

/// Queries at position p are multiplied with `1 + rate · ln(1 + ⌊p / every⌋)` (Ministral 3, Llama 4).
#[derive(Clone, Copy, Debug)]
pub struct Growth {
    /// How fast.
    pub rate: f32,
    /// Positions that share a factor.
    pub every: usize,
    /// Number of the first position.
    pub first: usize,
}

/// No head is wider.
const WIDEST: usize = 1 << 16;

impl Attention {
    /// True if keys and values are another layer's.
    pub fn borrows(&self) -> bool {
        matches!(self.projections, Projections::Borrowed { .. })
    }

    pub(super) fn check(&self, fields: &Fields<'_>, ropes: usize) -> Result<()> {
        let (heads, kv_heads, head_dim) = (self.heads, self.kv_heads, self.head_dim);
        if !heads.is_multiple_of(kv_heads) {
            return Err(fields.misfit(format!(
                "`num_attention_heads` is {heads}, and `num_key_value_heads`, which must divide it, is {kv_heads}"
            )));
        }
        debug_assert!(self.growth.is_none_or(|growth| growth.every > 0));
        debug_assert!(self.rope.is_none_or(|rope| rope < ropes));
        heads_of(fields, heads, head_dim)
    }
}

/// Errors if there are more heads, or wider ones, than any model has.
pub(super) fn heads_of(fields: &Fields<'_>, heads: usize, width: usize) -> Result<()> {
    if width > WIDEST || heads * width > MOST {
        return Err(fields.misfit(format!("no model has {heads} heads of {width} features")));
    }
    Ok(())
}
