//! What a decoder consists of, as data. A family's file turns a `config.json` into a [`Spec`]; `qmerge-run` runs any spec.

mod attention;
mod delta;
mod feed_forward;
mod latent;
mod parts;
mod per_layer;
mod short_conv;
mod streams;

pub use attention::{Attention, Growth, Over, Projections, QkNorm};
pub use delta::{Delta, DeltaInputs};
pub use feed_forward::{Activation, Beside, Clamp, Dense, Groups, Matrices, Routed, Router, Scores, Shared};
pub use latent::{Latent, Queries};
pub(crate) use parts::Wanted;
pub use per_layer::{PerLayer, PerLayerEmbeddings};
pub use short_conv::ShortConv;
pub use streams::{Altered, Laurel, Streams};

use super::fields::Fields;
use super::rope::Rope;
use crate::error::Result;

/// A decoder-only transformer. Names of what stands outside the layers are the family's row's.
#[derive(Clone, Debug)]
pub struct Spec {
    /// Width of the residual stream.
    pub hidden: usize,
    /// Number of tokens known to the embedding.
    pub vocab: usize,
    /// Longest sequence that the model was made for.
    pub max_positions: usize,
    /// In the order of their use.
    pub layers: Vec<Layer>,
    /// Embeddings that layers have of their own.
    pub per_layer: Option<PerLayerEmbeddings>,
    /// Residual streams, where there are several.
    pub streams: Option<Streams>,
    /// Rotary embeddings that layers choose from.
    pub ropes: Vec<Rope>,
    /// What a norm does.
    pub norm: Norm,
    /// Added to the mean square before the root.
    pub eps: f32,
    /// Factor on embeddings.
    pub embed_scale: f32,
    /// Factor on what a block adds to the residual stream.
    pub residual_scale: f32,
    /// Factor on logits.
    pub logit_scale: f32,
    /// `cap · tanh(logit / cap)` on logits.
    pub logit_cap: Option<f32>,
}

/// Two blocks, each of which adds to the residual stream.
#[derive(Clone, Copy, Debug)]
pub struct Layer {
    /// What the feed-forward sees of the mixer.
    pub order: Order,
    /// Where norms stand.
    pub norms: Norms,
    /// By which a position sees others.
    pub mixer: Mixer,
    /// What is done to each position by itself.
    pub feed_forward: FeedForward,
    /// Adds what the layer's own embedding of a token lets through; where the model has such embeddings.
    pub per_layer: Option<PerLayer>,
    /// What goes around the mixer.
    pub laurel: Option<Laurel>,
    /// How the other streams follow; where the model has several.
    pub altered: Option<Altered>,
    /// Name of a factor on what leaves the layer, below it.
    pub scalar: Option<&'static str>,
}

/// How the two blocks of a layer stand to each other.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Order {
    /// The feed-forward sees what the mixer added.
    Sequential,
    /// Both see what came into the layer, each through its own norm.
    Parallel,
    /// Both see what came into the layer, through the norm before the mixer.
    ParallelOneNorm,
}

/// Names of the norms around a layer's two blocks, below the layer; `None` where there is none.
#[derive(Clone, Copy, Debug)]
pub struct Norms {
    /// Before the mixer.
    pub mixer_in: Option<&'static str>,
    /// After the mixer, before it is added.
    pub mixer_out: Option<&'static str>,
    /// Before the feed-forward.
    pub feed_forward_in: Option<&'static str>,
    /// After the feed-forward, before it is added.
    pub feed_forward_out: Option<&'static str>,
}

/// By which a position sees others.
#[derive(Clone, Copy, Debug)]
pub enum Mixer {
    /// Of softmax, over keys and values.
    Attention(Attention),
    /// Of a few positions before it, feature by feature.
    ShortConv(ShortConv),
    /// The same, over keys and values that are made of a narrower vector.
    Latent(Latent),
    /// A memory that each position reads and corrects.
    Delta(Delta),
}

/// What is done to each position by itself.
#[derive(Clone, Copy, Debug)]
#[expect(clippy::large_enum_variant, reason = "one per layer, and copied seldom")]
pub enum FeedForward {
    /// The same for all.
    Dense(Dense),
    /// Experts of which a few serve each.
    Routed(Routed),
}

/// A norm's arithmetic.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Norm {
    /// `x / rms(x) · weight`.
    Rms,
    /// `x / rms(x) · (1 + weight)` (Gemma).
    RmsPlusOne,
    /// `x / rms(x)`: nothing of it is stored.
    RmsWithoutWeight,
    /// `(x − mean) / std · weight + bias`.
    Layer,
    /// `(x − mean) / std · (1 + weight) + bias` (Nemotron).
    LayerPlusOne,
    /// `(x − mean) / std · weight`.
    LayerWithoutBias,
    /// `(x − mean) / std`: nothing of it is stored (OLMo).
    LayerWithoutWeight,
}

/// All layers together have no more experts. Each takes memory before it is used.
const MOST_EXPERTS: usize = 1 << 17;

impl Spec {
    /// Errors if fields do not fit each other, so that what is run has nothing to fear of them.
    pub(super) fn check(&self, fields: &Fields<'_>) -> Result<()> {
        for layer in &self.layers {
            match &layer.mixer {
                Mixer::Attention(attention) => attention.check(fields, self.ropes.len())?,
                Mixer::ShortConv(_) => {}
                Mixer::Latent(latent) => latent.check(fields, self.ropes.len())?,
                Mixer::Delta(delta) => delta.check(fields)?,
            }
            match &layer.feed_forward {
                FeedForward::Dense(_) => {}
                FeedForward::Routed(routed) => routed.router.check(fields)?,
            }
        }
        let experts = |layer: &Layer| match layer.feed_forward {
            FeedForward::Dense(_) => None,
            FeedForward::Routed(routed) => Some(routed.router.count),
        };
        let counts: Vec<usize> = self.layers.iter().filter_map(experts).collect();
        if counts.iter().sum::<usize>() > MOST_EXPERTS {
            let most = counts.iter().max().copied().unwrap_or(0);
            return Err(fields.misfit(format!("no model has {} layers of {most} experts", counts.len())));
        }
        Ok(())
    }
}
