//! What most families have in common: each layer has attention and a dense feed-forward.

use super::spec::{Attention, Dense, FeedForward, Layer, Mixer, Norms, Order, QkNorm, Routed, Spec};

/// A decoder before it becomes a [`Spec`], for families to change what is theirs.
pub(super) struct Decoder {
    /// All but the layers.
    pub(super) spec: Spec,
    /// One for each layer.
    pub(super) attention: Vec<Attention>,
    pub(super) feed_forward: Dense,
    pub(super) norms: Norms,
    pub(super) order: Order,
}

impl Decoder {
    /// Gives all layers norms of queries and keys.
    pub(super) fn norm_queries_and_keys(&mut self, norm: QkNorm) {
        self.attention.iter_mut().for_each(|attention| attention.qk_norm = Some(norm));
    }

    /// Takes the rope from all layers but these.
    pub(super) fn keep_ropes(&mut self, kept: impl IntoIterator<Item = bool>) {
        for (attention, kept) in self.attention.iter_mut().zip(kept) {
            attention.rope = attention.rope.filter(|_| kept);
        }
    }

    /// Turns all ropes' pairs of neighbours instead of halves.
    pub(super) fn interleave(&mut self) {
        self.spec.ropes.iter_mut().for_each(|rope| rope.interleaved = true);
    }

    /// Gives a window to the layers that slide.
    pub(super) fn slide(&mut self, window: Option<usize>, sliding: impl IntoIterator<Item = bool>) {
        for (attention, sliding) in self.attention.iter_mut().zip(sliding) {
            attention.window = window.filter(|_| sliding);
        }
    }

    /// Puts experts into the layers that have them.
    pub(super) fn with_experts(self, routed: Routed, has: impl Fn(usize) -> bool) -> Spec {
        let mut spec = Spec::from(self);
        for (_, layer) in spec.layers.iter_mut().enumerate().filter(|(number, _)| has(*number)) {
            layer.feed_forward = FeedForward::Routed(routed);
        }
        spec
    }
}

impl From<Decoder> for Spec {
    fn from(decoder: Decoder) -> Self {
        let (order, norms, feed_forward) = (decoder.order, decoder.norms, FeedForward::Dense(decoder.feed_forward));
        let (per_layer, laurel, altered, scalar) = (None, None, None, None);
        let layer = |attention| {
            let mixer = Mixer::Attention(attention);
            Layer { order, norms, mixer, feed_forward, per_layer, laurel, altered, scalar }
        };
        Self { layers: decoder.attention.into_iter().map(layer).collect(), ..decoder.spec }
    }
}
