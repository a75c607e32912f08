//! The tensors that a model consists of, with their dimensions: what `qmerge-run` looks for, without the weights.

use super::{
    Attention, Beside, Delta, DeltaInputs, Dense, FeedForward, Latent, Layer, Matrices, Mixer, Norm, Over, Projections,
    QkNorm, Queries, Routed, Spec,
};
use crate::arch::SWITCH;
use crate::error::Result;

/// What a tensor has to be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Wanted {
    /// A linear layer's, which may lie turned.
    Matrix { outputs: usize, inputs: usize },
    /// Such matrices, one behind another, which lie turned where the family's do.
    Stack { matrices: usize, outputs: usize, inputs: usize },
    /// So many values.
    Values(usize),
}

/// Who is told of tensors, by their names and what they have to be. A bias that need not be there is told of where it is.
pub(crate) struct Parts<'v> {
    /// The path that names of a layer stand below.
    layer: String,
    has: &'v dyn Fn(&str) -> bool,
    each: &'v mut dyn FnMut(&str, Wanted) -> Result<()>,
}

impl Spec {
    /// Tells of everything in the layers, which lie at `layers`, numbered.
    pub(crate) fn parts(
        &self,
        layers: &str,
        has: &dyn Fn(&str) -> bool,
        each: &mut dyn FnMut(&str, Wanted) -> Result<()>,
    ) -> Result<()> {
        for (number, layer) in self.layers.iter().enumerate() {
            let mut parts = Parts { layer: format!("{layers}.{number}"), has, each };
            parts.layer(self, layer)?;
        }
        Ok(())
    }

    /// Tells of what lies beside the embedding, where `beside` has it.
    pub(crate) fn parts_beside(
        &self,
        norm: &str,
        beside: &dyn Fn(&str) -> String,
        has: &dyn Fn(&str) -> bool,
        each: &mut dyn FnMut(&str, Wanted) -> Result<()>,
    ) -> Result<()> {
        let mut parts = Parts { layer: String::new(), has, each };
        parts.norm_at(&beside(norm), self.hidden, self.norm)?;
        if let Some(own) = &self.per_layer {
            let [_, matrix, norm] = own.names.map(beside);
            parts.linear_at(&matrix, self.layers.len() * own.width, self.hidden)?;
            parts.norm_at(&norm, own.width, self.norm)?;
        }
        if let Some(streams) = &self.streams {
            for name in streams.names {
                for number in 0..streams.count.saturating_sub(1) {
                    parts.linear_at(&format!("{}.{number}", beside(name)), self.hidden, self.hidden)?;
                }
            }
        }
        Ok(())
    }
}

impl Parts<'_> {
    fn path(&self, name: &str) -> String {
        format!("{}.{name}", self.layer)
    }

    fn linear(&mut self, name: &str, outputs: usize, inputs: usize) -> Result<()> {
        self.linear_at(&self.path(name), outputs, inputs)
    }

    fn linear_at(&mut self, path: &str, outputs: usize, inputs: usize) -> Result<()> {
        (self.each)(&format!("{path}.weight"), Wanted::Matrix { outputs, inputs })?;
        self.if_there(&format!("{path}.bias"), Wanted::Values(outputs))
    }

    fn if_there(&mut self, name: &str, wanted: Wanted) -> Result<()> {
        if (self.has)(name) { (self.each)(name, wanted) } else { Ok(()) }
    }

    fn norm(&mut self, name: &str, features: usize, kind: Norm) -> Result<()> {
        self.norm_at(&self.path(name), features, kind)
    }

    fn norm_at(&mut self, path: &str, features: usize, kind: Norm) -> Result<()> {
        if !matches!(kind, Norm::LayerWithoutWeight | Norm::RmsWithoutWeight) {
            (self.each)(&format!("{path}.weight"), Wanted::Values(features))?;
        }
        match kind {
            Norm::Layer | Norm::LayerPlusOne => (self.each)(&format!("{path}.bias"), Wanted::Values(features)),
            _ => Ok(()),
        }
    }

    fn values(&mut self, name: &str, len: usize) -> Result<()> {
        let path = self.path(name);
        (self.each)(&path, Wanted::Values(len))
    }

    fn layer(&mut self, spec: &Spec, layer: &Layer) -> Result<()> {
        let norms = &layer.norms;
        for name in [norms.mixer_in, norms.mixer_out, norms.feed_forward_in, norms.feed_forward_out] {
            name.map_or(Ok(()), |name| self.norm(name, spec.hidden, spec.norm))?;
        }
        match &layer.mixer {
            Mixer::Attention(attention) => self.attention(spec, attention)?,
            Mixer::Latent(latent) => self.latent(spec, latent)?,
            Mixer::Delta(delta) => self.delta(spec, delta)?,
            Mixer::ShortConv(conv) => {
                let [input, kernel, output] = conv.names;
                self.linear(input, 3 * spec.hidden, spec.hidden)?;
                self.linear(output, spec.hidden, spec.hidden)?;
                self.values(&format!("{kernel}.weight"), spec.hidden * conv.taps)?;
            }
        }
        match &layer.feed_forward {
            FeedForward::Dense(dense) => self.dense(spec, dense)?,
            FeedForward::Routed(routed) => self.routed(spec, routed)?,
        }
        if let (Some(all), Some(own)) = (&spec.per_layer, &layer.per_layer) {
            let [gate, out, norm] = own.names;
            self.linear(gate, all.width, spec.hidden)?;
            self.linear(out, spec.hidden, all.width)?;
            self.norm(norm, spec.hidden, spec.norm)?;
        }
        if let Some(laurel) = &layer.laurel {
            let [left, right, norm] = laurel.names;
            self.linear(left, laurel.rank, spec.hidden)?;
            self.linear(right, spec.hidden, laurel.rank)?;
            self.norm(norm, spec.hidden, spec.norm)?;
        }
        if let (Some(streams), Some(own)) = (&spec.streams, &layer.altered) {
            let (count, [norm, router], [predictions, corrections]) = (streams.count, own.router, own.coefficients);
            self.norm(norm, spec.hidden, spec.norm)?;
            self.linear(router, count, spec.hidden)?;
            self.linear(predictions, count * count, count)?;
            self.linear(corrections, count, count)?;
            own.scale.map_or(Ok(()), |name| self.values(name, spec.hidden))?;
        }
        layer.scalar.map_or(Ok(()), |name| self.values(name, 1))
    }

    fn attention(&mut self, spec: &Spec, own: &Attention) -> Result<()> {
        let (queries, keys) = (own.heads * own.head_dim, own.kv_heads * own.head_dim);
        let asked = if own.gated { 2 * queries } else { queries };
        let output = match own.projections {
            Projections::Apart { names: [q, k, v, o] } => {
                self.linear(q, asked, spec.hidden)?;
                self.linear(k, keys, spec.hidden)?;
                self.linear(v, keys, spec.hidden)?;
                o
            }
            Projections::KeysAsValues { names: [q, k, o] } => {
                self.linear(q, asked, spec.hidden)?;
                self.linear(k, keys, spec.hidden)?;
                o
            }
            Projections::Borrowed { names: [q, o], .. } => {
                self.linear(q, asked, spec.hidden)?;
                o
            }
            Projections::Fused { names: [all, o] } | Projections::Grouped { names: [all, o] } => {
                self.linear(all, asked + 2 * keys, spec.hidden)?;
                o
            }
        };
        self.linear(output, spec.hidden, queries)?;
        if let Some(norm) = own.qk_norm {
            let [of_queries, of_keys] = norm.names;
            self.qk_norm(spec, &norm, of_queries, own.heads, own.head_dim)?;
            if !own.borrows() {
                self.qk_norm(spec, &norm, of_keys, own.kv_heads, own.head_dim)?;
            }
        }
        own.sinks.map_or(Ok(()), |name| self.values(name, own.heads))
    }

    fn qk_norm(&mut self, spec: &Spec, norm: &QkNorm, name: &str, heads: usize, head_dim: usize) -> Result<()> {
        let kind = norm.norm.unwrap_or(spec.norm);
        match norm.over {
            Over::Head => self.norm(name, head_dim, kind),
            Over::OwnHead | Over::Whole => self.norm(name, heads * head_dim, kind),
            Over::OwnHeadApart => {
                (0..heads).try_for_each(|head| self.norm(&format!("{name}.norms.{head}"), head_dim, kind))
            }
        }
    }

    fn latent(&mut self, spec: &Spec, own: &Latent) -> Result<()> {
        let [down, norm, up, output] = own.names;
        let asked = own.heads * (own.straight + own.turned);
        match own.queries {
            Queries::Straight(name) => self.linear(name, asked, spec.hidden)?,
            Queries::Narrow { rank, names: [down, norm, up] } => {
                self.linear(down, rank, spec.hidden)?;
                self.norm(norm, rank, Norm::Rms)?;
                self.linear(up, asked, rank)?;
            }
        }
        self.linear(down, own.rank + own.turned, spec.hidden)?;
        self.norm(norm, own.rank, Norm::Rms)?;
        self.linear(up, own.heads * (own.straight + own.value), own.rank)?;
        self.linear(output, spec.hidden, own.heads * own.value)
    }

    fn delta(&mut self, spec: &Spec, own: &Delta) -> Result<()> {
        let (hidden, heads, values, mixed) =
            (spec.hidden, own.value_heads, own.value_heads * own.value, own.convolved());
        match own.inputs {
            DeltaInputs::Apart { names: [qkv, z, b, a] } => {
                for (name, outputs) in [(qkv, mixed), (z, values), (b, heads), (a, heads)] {
                    self.linear(name, outputs, hidden)?;
                }
            }
            DeltaInputs::ByHead { names: [qkvz, ba] } => {
                self.linear(qkvz, mixed + values, hidden)?;
                self.linear(ba, 2 * heads, hidden)?;
            }
        }
        self.values(&format!("{}.weight", own.convolution), mixed * own.kernel)?;
        own.fading.iter().try_for_each(|name| self.values(name, heads))?;
        let [norm, output] = own.names;
        self.norm(norm, own.value, Norm::Rms)?;
        self.linear(output, hidden, values)
    }

    fn dense(&mut self, spec: &Spec, own: &Dense) -> Result<()> {
        let (width, hidden) = (own.width, spec.hidden);
        let down = match own.matrices {
            Matrices::Gated { names: [gate, up, down] } => {
                self.linear(gate, width, hidden)?;
                self.linear(up, width, hidden)?;
                down
            }
            Matrices::FusedGated { names: [both, down] } => {
                self.linear(both, 2 * width, hidden)?;
                down
            }
            Matrices::Plain { names: [up, down] } => {
                self.linear(up, width, hidden)?;
                down
            }
        };
        self.linear(down, hidden, width)
    }

    fn routed(&mut self, spec: &Spec, own: &Routed) -> Result<()> {
        let (layout, count, width, hidden) = (&own.layout, own.router.count, own.width, spec.hidden);
        let beside = |module: &str, name: &str| match module.rsplit_once('.') {
            Some((before, _)) => format!("{before}.{name}"),
            None => name.to_owned(),
        };
        let router = |module: &str| beside(module, own.router.name);
        let is_there = |module: &&&str| (self.has)(&format!("{}.weight", self.path(&router(module))));
        let Some(module) = layout.modules.iter().find(is_there).or(layout.modules.first()) else { return Ok(()) };
        self.linear(&router(module), count, hidden)?;
        own.router.correction.map_or(Ok(()), |name| self.values(&beside(module, name), count))?;
        let of_mlx = |module: &&str| beside(module, SWITCH);
        let first = |switch: &String| (self.has)(&self.path(&format!("{switch}.gate_proj.weight")));
        let switch = layout.modules.iter().map(of_mlx).find(first);
        let names = |module: &&str| layout.stacked.map(|name| format!("{module}.{name}"));
        let stacked = layout.modules.iter().map(names).find(|[first, _]| (self.has)(&self.path(first)));
        if let Some(switch) = switch {
            for (name, outputs, inputs) in
                [("gate_proj", width, hidden), ("up_proj", width, hidden), ("down_proj", hidden, width)]
            {
                let path = self.path(&format!("{switch}.{name}.weight"));
                (self.each)(&path, Wanted::Stack { matrices: count, outputs, inputs })?;
            }
        } else if let Some([first, down]) = stacked {
            for (name, outputs, inputs) in [(first, 2 * width, hidden), (down, hidden, width)] {
                let wanted = Wanted::Stack { matrices: count, outputs, inputs };
                let path = self.path(&name);
                (self.each)(&path, wanted)?;
                self.if_there(&format!("{path}_bias"), Wanted::Values(count * outputs))?;
            }
        } else {
            let (first, last) = layout.projections();
            for number in 0..count {
                for name in first {
                    self.linear(&format!("{module}.{number}.{name}"), width, hidden)?;
                }
                self.linear(&format!("{module}.{number}.{last}"), hidden, width)?;
            }
        }
        if let Some(shared) = &own.shared {
            shared.gate.map_or(Ok(()), |name| self.linear(name, 1, hidden))?;
            self.dense(spec, &shared.dense)?;
        }
        own.beside.as_ref().map_or(Ok(()), |beside| self.beside(spec, beside, count))
    }

    fn beside(&mut self, spec: &Spec, own: &Beside, experts: usize) -> Result<()> {
        for name in own.shared.iter().chain(&own.experts) {
            self.norm(name, spec.hidden, spec.norm)?;
        }
        self.values(own.seen, spec.hidden)?;
        self.values(own.shares, experts)
    }
}
