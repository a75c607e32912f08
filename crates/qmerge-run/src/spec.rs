//! What a decoder consists of, as data. A family's file turns a `config.json` into a [`Spec`]; `model.rs` runs any spec.

use qmerge::error::{Error, Kind, Result};
use qmerge::open::ModelConfig;
use serde_json::Value;

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

/// Fields of a `config.json`; errors name the file and the field.
#[derive(Clone, Copy, Debug)]
pub struct Fields<'c> {
    config: &'c ModelConfig,
}

/// No dimension of a model is larger than this.
const MOST: u64 = 1 << 24;

impl<'c> Fields<'c> {
    /// Looks into a model's configuration.
    pub fn new(config: &'c ModelConfig) -> Self {
        Self { config }
    }

    fn bad(&self, key: &str, problem: &str) -> Error {
        Error::new(Kind::Malformed, format!("`{key}` {problem}"))
            .in_file(&self.config.path)
            .with_hint("copy config.json again from where the model was published")
    }

    /// Any field.
    pub fn get(&self, key: &str) -> Option<&'c Value> {
        self.config.find(key)
    }

    /// A count, if it is there.
    pub fn count_if(&self, key: &str) -> Result<Option<usize>> {
        let Some(value) = self.get(key) else { return Ok(None) };
        match value.as_u64() {
            Some(n) if n <= MOST => Ok(Some(n as usize)),
            _ => Err(self.bad(key, "is not a count")),
        }
    }

    /// A count.
    pub fn count(&self, key: &str) -> Result<usize> {
        match self.count_if(key)? {
            Some(n) if n > 0 => Ok(n),
            Some(_) => Err(self.bad(key, "is zero")),
            None => Err(self.bad(key, "is missing")),
        }
    }

    /// A number, if it is there.
    pub fn number_if(&self, key: &str) -> Result<Option<f64>> {
        let Some(value) = self.get(key) else { return Ok(None) };
        match value.as_f64() {
            Some(x) if x.is_finite() => Ok(Some(x)),
            _ => Err(self.bad(key, "is not a number")),
        }
    }

    /// A number, or what it is by default.
    pub fn number(&self, key: &str, default: f64) -> Result<f64> {
        Ok(self.number_if(key)?.unwrap_or(default))
    }

    /// A truth value, or what it is by default.
    pub fn flag(&self, key: &str, default: bool) -> bool {
        self.get(key).and_then(Value::as_bool).unwrap_or(default)
    }

    /// A list, or an empty one.
    pub fn list(&self, key: &str) -> &'c [Value] {
        self.get(key).and_then(Value::as_array).map_or(&[], Vec::as_slice)
    }

    /// The non-linearity by its name in transformers.
    pub fn activation(&self, key: &str) -> Result<Activation> {
        match self.get(key).and_then(Value::as_str) {
            Some("silu" | "swish") | None => Ok(Activation::Silu),
            Some("gelu") => Ok(Activation::Gelu),
            Some("gelu_pytorch_tanh" | "gelu_new" | "gelu_fast") => Ok(Activation::GeluTanh),
            Some(other) => Err(Error::new(Kind::Unsupported, format!("`{key}` is `{other}`, which cannot be run"))
                .in_file(&self.config.path)),
        }
    }

    /// True for each layer that `layer_types` calls sliding; `None` where the field is missing.
    pub fn sliding(&self, layers: usize) -> Option<Vec<bool>> {
        let types = self.list("layer_types");
        (types.len() == layers).then(|| types.iter().map(|kind| kind.as_str() == Some("sliding_attention")).collect())
    }
}
