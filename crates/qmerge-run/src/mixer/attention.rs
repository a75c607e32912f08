//! Causal attention over one sequence or several beside each other, with what came before in a cache.

use qmerge::arch::spec::{self, Growth, Norm, Over, Projections, QkNorm, Spec};
use qmerge::error::Result;

use super::softmax::{Softmax, attend, attend_lent};
use super::{Mixer, Pass, State};
use crate::activation::sigmoid;
use crate::layer::{Block, Visit};
use crate::linear::{Input, Linear, Watch};
use crate::norm::Normalize;
use crate::tensors::Tensors;
use crate::work;

/// The attention of one layer.
#[derive(Debug)]
pub(super) struct Attention<'a> {
    spec: spec::Attention,
    /// Queries, keys, values; or all in one.
    inputs: Vec<Linear<'a>>,
    output: Linear<'a>,
    query_norm: Option<Normalize>,
    key_norm: Option<Normalize>,
    value_norm: Option<Normalize>,
    sinks: Vec<f32>,
}

impl<'a> Attention<'a> {
    pub(super) fn new(tensors: &Tensors<'a>, spec: &Spec, attention: &spec::Attention, layer: &str) -> Result<Self> {
        let (hidden, head_dim) = (spec.hidden, attention.head_dim);
        let (queries, keys) = (attention.heads * head_dim, attention.kv_heads * head_dim);
        let asked = if attention.gated { 2 * queries } else { queries };
        let linear = |name: &str, outputs, inputs| Linear::new(tensors, &format!("{layer}.{name}"), outputs, inputs);
        let (inputs, output) = match attention.projections {
            Projections::Apart { names: [q, k, v, o] } => {
                (vec![linear(q, asked, hidden)?, linear(k, keys, hidden)?, linear(v, keys, hidden)?], o)
            }
            Projections::KeysAsValues { names: [q, k, o] } => {
                (vec![linear(q, asked, hidden)?, linear(k, keys, hidden)?], o)
            }
            Projections::Borrowed { names: [q, o], .. } => (vec![linear(q, asked, hidden)?], o),
            Projections::Fused { names: [qkv, o] } | Projections::Grouped { names: [qkv, o] } => {
                (vec![linear(qkv, asked + 2 * keys, hidden)?], o)
            }
        };
        let norm = |qk: QkNorm, side: usize, heads: usize| -> Result<Normalize> {
            let (path, kind) = (format!("{layer}.{}", qk.names[side]), qk.norm.unwrap_or(spec.norm));
            let new = |path: &str, features| Normalize::new(tensors, path, features, kind, spec.eps);
            match qk.over {
                Over::Head => new(&path, head_dim),
                Over::OwnHead => Ok(new(&path, heads * head_dim)?.by_groups(head_dim)),
                Over::OwnHeadApart => {
                    let each = |head| new(&format!("{path}.norms.{head}"), head_dim);
                    (1..heads).try_fold(each(0)?, |joined, head| Ok(joined.joined(each(head)?)))
                }
                Over::Whole => new(&path, heads * head_dim),
            }
        };
        let query_norm = attention.qk_norm.map(|qk| norm(qk, 0, attention.heads)).transpose()?;
        let of_keys = attention.qk_norm.filter(|_| !attention.borrows());
        let key_norm = of_keys.map(|qk| norm(qk, 1, attention.kv_heads)).transpose()?;
        let bare = || Normalize::new(tensors, layer, head_dim, Norm::RmsWithoutWeight, spec.eps);
        let value_norm = attention.norms_values.then(bare).transpose()?;
        let sinks = attention.sinks.map(|name| tensors.needed(&format!("{layer}.{name}"), attention.heads));
        let (output, sinks) = (linear(output, hidden, queries)?, sinks.transpose()?.unwrap_or_default());
        Ok(Self { spec: *attention, inputs, output, query_norm, key_norm, value_norm, sinks })
    }
}

impl Block for Attention<'_> {
    fn together(&self) -> Vec<Vec<&Linear<'_>>> {
        vec![Vec::new(), self.inputs.iter().collect(), vec![&self.output]]
    }

    fn each(&mut self, visit: &mut Visit<'_>) -> Result<()> {
        self.inputs.iter_mut().chain([&mut self.output]).try_for_each(visit)
    }

    fn work(&self, tokens: usize, seen: usize) -> f64 {
        let most = self.spec.window.into_iter().chain(self.spec.chunk).min();
        let seen = most.map_or(seen, |most| most.min(seen));
        work::linears(&self.together(), tokens as f64) + work::attention(self.output.inputs(), tokens, seen)
    }

    fn activations(&self) -> usize {
        let (hidden, queries) = (self.output.outputs(), self.output.inputs());
        let gates = if self.spec.gated { 2 * queries } else { 0 };
        // At the end queries and their result, plain and packed; before that, the input as its tokens are paid for, plain and packed.
        let last = hidden + queries.max(hidden) + self.spec.heads;
        gates + 2 * hidden + 2 * queries + last + 3 * self.spec.kv_heads * self.spec.head_dim
    }
}

impl Mixer for Attention<'_> {
    fn forward(
        &self,
        x: &Input<'_>,
        pass: &Pass,
        state: Option<&mut State>,
        watch: &mut dyn Watch,
    ) -> Result<Vec<f32>> {
        let spec::Attention { heads, kv_heads, head_dim, .. } = self.spec;
        let (tokens, sequences) = (x.tokens(), pass.sequences.as_slice());
        let queries = heads * head_dim * tokens;
        let keys = if self.spec.borrows() { 0 } else { kv_heads * head_dim * tokens };
        let asked = if self.spec.gated { 2 * queries } else { queries };
        let mut all = vec![0.0; asked + 2 * keys];
        let mut rest = all.as_mut_slice();
        watch.input(&[], x)?;
        for linear in &self.inputs {
            let (own, others) = rest.split_at_mut(linear.outputs() * tokens);
            linear.forward_into(x, own)?;
            rest = others;
        }
        let mut gates = if self.spec.gated { split_gates(&mut all, queries, head_dim * tokens) } else { Vec::new() };
        match self.spec.projections {
            Projections::Grouped { .. } => all = ungrouped(&all, kv_heads, heads / kv_heads, head_dim * tokens),
            Projections::KeysAsValues { .. } => all.copy_within(queries..queries + keys, queries + keys),
            Projections::Apart { .. } | Projections::Fused { .. } | Projections::Borrowed { .. } => {}
        }
        let (q, rest) = all.split_at_mut(queries);
        let (k, v) = rest.split_at_mut(keys);
        if let Some(norm) = &self.value_norm {
            norm.apply(v, tokens);
        }
        let after_rope = self.spec.qk_norm.is_some_and(|norm| norm.after_rope);
        if !after_rope {
            self.normalize(q, k, tokens);
        }
        if let Some(clip) = self.spec.clip {
            q.iter_mut().chain(&mut *k).chain(&mut *v).for_each(|x| *x = x.clamp(-clip, clip));
        }
        if let Some(rope) = self.spec.rope {
            for head in q.chunks_exact_mut(head_dim * tokens).chain(k.chunks_exact_mut(head_dim * tokens)) {
                for (sequence, angles) in sequences.iter().zip(&pass.angles[rope]) {
                    angles.turn(head, tokens, sequence.columns.start);
                }
            }
        }
        if after_rope {
            self.normalize(q, k, tokens);
        }
        if let Some(growth) = self.spec.growth {
            grow(q, growth, pass, tokens);
        }
        let how = Softmax {
            heads,
            kv_heads,
            key: head_dim,
            value: head_dim,
            scale: self.spec.scale,
            window: self.spec.window,
            chunk: self.spec.chunk,
            cap: self.spec.cap,
            sinks: &self.sinks,
            lends: self.spec.lends,
        };
        let (mut mixed, paid) = match self.spec.projections {
            Projections::Borrowed { from, .. } => attend_lent(&how, q, from, pass, state.is_some(), watch.weighs()),
            _ => attend(&how, q, k, v, pass, state, watch.weighs()),
        };
        paid.show(&self.inputs, x, pass, watch)?;
        if self.spec.gated {
            sigmoid(&mut gates);
            mixed.iter_mut().zip(&gates).for_each(|(x, gate)| *x *= gate);
        }
        let mixed = x.like(&mixed, heads * head_dim);
        Linear::show(std::slice::from_ref(&self.output), &mixed, watch)?;
        self.output.forward(&mixed)
    }

    fn cached(&self, positions: usize) -> usize {
        if self.spec.borrows() { 0 } else { 2 * self.spec.kv_heads * self.spec.head_dim * positions }
    }

    fn lent(&self) -> usize {
        if self.spec.lends.is_some() { 2 * self.spec.kv_heads * self.spec.head_dim } else { 0 }
    }
}

impl Attention<'_> {
    fn normalize(&self, q: &mut [f32], k: &mut [f32], tokens: usize) {
        self.query_norm.iter().for_each(|norm| norm.apply(q, tokens));
        self.key_norm.iter().for_each(|norm| norm.apply(k, tokens));
    }
}

/// Groups of some query heads, a key head and a value head to all queries, all keys, all values; a head is `size` values.
fn ungrouped(grouped: &[f32], groups: usize, queries: usize, size: usize) -> Vec<f32> {
    let (mut all, group) = (Vec::with_capacity(grouped.len()), (queries + 2) * size);
    for part in [0..queries, queries..queries + 1, queries + 1..queries + 2] {
        for number in 0..groups {
            all.extend_from_slice(&grouped[number * group + part.start * size..number * group + part.end * size]);
        }
    }
    all
}

/// Multiplies queries (features, tokens) by what grows with their position.
fn grow(q: &mut [f32], growth: Growth, pass: &Pass, tokens: usize) {
    let factor =
        |position: usize| 1.0 + growth.rate * libm::logf(1.0 + ((position + growth.first) / growth.every) as f32);
    let factors: Vec<f32> = pass.positions().map(factor).collect();
    for row in q.chunks_exact_mut(tokens) {
        row.iter_mut().zip(&factors).for_each(|(q, factor)| *q *= factor);
    }
}

/// Takes every second head's worth of rows, a gate, out of the queries' outputs, and moves what is behind them up. `size` is a head's values.
fn split_gates(all: &mut Vec<f32>, queries: usize, size: usize) -> Vec<f32> {
    let mut gates = Vec::with_capacity(queries);
    for head in 0..queries / size.max(1) {
        gates.extend_from_slice(&all[(2 * head + 1) * size..(2 * head + 2) * size]);
        all.copy_within(2 * head * size..(2 * head + 1) * size, head * size);
    }
    all.copy_within(2 * queries.., queries);
    all.truncate(all.len() - queries);
    gates
}
