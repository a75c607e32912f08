//! What a decoder consists of, as data. A family's file turns a `config.json` into a [`Spec`]; `model.rs` runs any spec.

#![cfg_attr(
    not(test),
    deny(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing, clippy::panic, clippy::unreachable)
)]

use qmerge::error::Result;

use crate::fields::{Fields, MOST};
use crate::rope::Rope;

/// A decoder-only transformer.
#[derive(Clone, Debug)]
pub struct Spec {
    /// Width of the residual stream.
    pub hidden: usize,
    /// Width of the (dense) feed-forward.
    pub intermediate: usize,
    /// Query heads.
    pub heads: usize,
    /// Key and value heads; each serves `heads / kv_heads` query heads.
    pub kv_heads: usize,
    /// Width of a head.
    pub head_dim: usize,
    /// Number of tokens known to the embedding.
    pub vocab: usize,
    /// Longest sequence that the model was made for.
    pub max_positions: usize,
    /// One entry per layer.
    pub layers: Vec<Layer>,
    /// Rotary embeddings that layers choose from.
    pub ropes: Vec<Rope>,
    /// Added to the mean square before the root.
    pub eps: f32,
    /// What a norm does.
    pub norm: Norm,
    /// Where norms stand.
    pub norms: Norms,
    /// Norms of queries and keys.
    pub qk_norm: QkNorm,
    /// Factor on query · key.
    pub attention_scale: f32,
    /// `cap · tanh(score / cap)` on attention scores.
    pub attention_cap: Option<f32>,
    /// The same on logits.
    pub logit_cap: Option<f32>,
    /// Factor on embeddings.
    pub embed_scale: f32,
    /// Factor on what a block adds to the residual stream.
    pub residual_scale: f32,
    /// Factor on logits.
    pub logit_scale: f32,
    /// Between the matrices of the feed-forward.
    pub activation: Activation,
    /// Names below a layer.
    pub attention: Attention,
    /// Names below a layer.
    pub feed_forward: FeedForward,
    /// Routed experts, in the layers that have them.
    pub experts: Option<Experts>,
    /// Names outside the layers.
    pub names: Names,
    /// Weights are stored (in, out), as GPT-2's Conv1D does.
    pub transposed: bool,
}

/// All layers together have no more experts. Each takes memory before it is used.
const MOST_EXPERTS: usize = 1 << 17;
/// No head is wider.
const WIDEST: usize = 1 << 16;

impl Spec {
    /// Errors if fields do not fit each other, so that what is run has nothing to fear of them.
    pub(crate) fn check(&self, fields: &Fields<'_>) -> Result<()> {
        let (heads, kv_heads, head_dim) = (self.heads, self.kv_heads, self.head_dim);
        if !heads.is_multiple_of(kv_heads) {
            return Err(fields.misfit(format!(
                "`num_attention_heads` is {heads}, and `num_key_value_heads`, which must divide it, is {kv_heads}"
            )));
        }
        if head_dim > WIDEST || heads * head_dim > MOST {
            return Err(fields.misfit(format!("no model has {heads} heads of {head_dim} features")));
        }
        if let Some(Experts { count, per_token, .. }) = self.experts {
            if per_token > count {
                return Err(
                    fields.misfit(format!("`num_experts_per_tok` is {per_token}, but there are {count} experts"))
                );
            }
            let layers = self.layers.iter().filter(|layer| layer.experts).count();
            if count * layers > MOST_EXPERTS {
                return Err(fields.misfit(format!("no model has {layers} layers of {count} experts")));
            }
        }
        debug_assert!(self.layers.iter().all(|layer| layer.rope.is_none_or(|rope| rope < self.ropes.len())));
        Ok(())
    }
}

/// What differs between layers.
#[derive(Clone, Copy, Debug, Default)]
pub struct Layer {
    /// A query sees this many positions, itself included.
    pub window: Option<usize>,
    /// Number of the rotary embedding in [`Spec::ropes`].
    pub rope: Option<usize>,
    /// Has routed experts.
    pub experts: bool,
}

/// A norm's arithmetic.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Norm {
    /// `x / rms(x) · weight`.
    Rms,
    /// `x / rms(x) · (1 + weight)` (Gemma).
    RmsPlusOne,
    /// `(x − mean) / std · weight + bias`.
    Layer,
}

/// Names of the norms around a layer's two blocks; `None` where there is none.
#[derive(Clone, Copy, Debug)]
pub struct Norms {
    /// Before attention.
    pub attention_in: Option<&'static str>,
    /// After attention, before it is added.
    pub attention_out: Option<&'static str>,
    /// Before the feed-forward.
    pub feed_forward_in: Option<&'static str>,
    /// After the feed-forward, before it is added.
    pub feed_forward_out: Option<&'static str>,
}

/// Norms of queries and keys.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum QkNorm {
    /// None.
    None,
    /// Over each head.
    PerHead,
    /// Over all heads together (OLMo 2).
    Whole,
}

/// A non-linearity.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Activation {
    /// `x · sigmoid(x)`.
    Silu,
    /// `x · Φ(x)`, with the error function.
    Gelu,
    /// The same with the tanh approximation.
    GeluTanh,
}

impl Activation {
    /// Reads its name in transformers.
    pub fn read(fields: &Fields<'_>, key: &str) -> Result<Self> {
        let Some(value) = fields.get(key) else { return Ok(Self::Silu) };
        match value.as_str() {
            Some("silu" | "swish") => Ok(Self::Silu),
            Some("gelu") => Ok(Self::Gelu),
            Some("gelu_pytorch_tanh" | "gelu_new" | "gelu_fast") => Ok(Self::GeluTanh),
            _ => Err(fields.unsupported(key, value)),
        }
    }
}

/// How the projections of attention are stored.
#[derive(Clone, Copy, Debug)]
pub enum Attention {
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

/// How the feed-forward is stored.
#[derive(Clone, Copy, Debug)]
pub enum FeedForward {
    /// `down(act(gate x) · up x)`.
    Gated {
        /// Gate, up, down.
        names: [&'static str; 3],
    },
    /// The same with gate and up in one matrix.
    FusedGated {
        /// Both, down.
        names: [&'static str; 2],
    },
    /// `down(act(up x))`.
    Plain {
        /// Up, down.
        names: [&'static str; 2],
    },
}

/// Routed experts, each a gated feed-forward.
#[derive(Clone, Copy, Debug)]
pub struct Experts {
    /// How many.
    pub count: usize,
    /// How many serve a token.
    pub per_token: usize,
    /// Width of one.
    pub intermediate: usize,
    /// The chosen experts' probabilities are scaled to sum to one.
    pub normalize: bool,
    /// Module that holds router and experts; several names, the first that exists counts.
    pub modules: &'static [&'static str],
    /// Gate, up, down of one expert.
    pub names: [&'static str; 3],
}

/// Names outside the layers, below one of the prefixes.
#[derive(Clone, Copy, Debug)]
pub struct Names {
    /// Token embedding.
    pub embed: &'static str,
    /// Learned positions.
    pub positions: Option<&'static str>,
    /// List of layers.
    pub layers: &'static str,
    /// Last norm.
    pub norm: &'static str,
}
