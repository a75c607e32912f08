//! What is done to each position by itself: one file per feed-forward, and one line in [`new`].

mod dense;
mod routed;
mod router;

use qmerge::arch::spec::{self, Spec};
use qmerge::error::Result;

use crate::layer::Block;
use crate::linear::{Input, Watch};
use crate::tensors::Tensors;
use dense::Dense;
use routed::Routed;

/// What is done to each position by itself.
pub(crate) trait FeedForward: Block {
    /// What is added to the residual stream (hidden, tokens), from `x`, which is as large.
    fn forward(&self, x: &Input<'_>, watch: &mut dyn Watch) -> Result<Vec<f32>>;
}

/// The feed-forward of the layer at that path.
pub(crate) fn new<'a>(
    tensors: &Tensors<'a>,
    spec: &Spec,
    feed_forward: &spec::FeedForward,
    layer: &str,
) -> Result<Box<dyn FeedForward + 'a>> {
    Ok(match feed_forward {
        spec::FeedForward::Dense(dense) => Box::new(Dense::new(tensors, spec, dense, layer)?),
        spec::FeedForward::Routed(routed) => Box::new(Routed::new(tensors, spec, routed, layer)?),
    })
}
