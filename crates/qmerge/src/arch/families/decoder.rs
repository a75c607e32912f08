//! What most families have in common: each layer has attention and a dense feed-forward.

use super::spec::{Attention, Dense, FeedForward, Layer, Mixer, Norms, Spec};

/// A decoder before it becomes a [`Spec`], for families to change what is theirs.
pub(super) struct Decoder {
    /// All but the layers.
    pub(super) spec: Spec,
    /// One for each layer.
    pub(super) attention: Vec<Attention>,
    pub(super) feed_forward: Dense,
    pub(super) norms: Norms,
}

impl Decoder {
    /// Gives a window to the layers that slide.
    pub(super) fn slide(&mut self, window: Option<usize>, sliding: impl IntoIterator<Item = bool>) {
        for (attention, sliding) in self.attention.iter_mut().zip(sliding) {
            attention.window = window.filter(|_| sliding);
        }
    }
}

impl From<Decoder> for Spec {
    fn from(decoder: Decoder) -> Self {
        let (norms, feed_forward) = (decoder.norms, FeedForward::Dense(decoder.feed_forward));
        let layer = |attention| Layer { norms, mixer: Mixer::Attention(attention), feed_forward };
        Self { layers: decoder.attention.into_iter().map(layer).collect(), ..decoder.spec }
    }
}
