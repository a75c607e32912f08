//! Causal attention over one sequence or several beside each other, with what came before in a cache.

use std::ops::Range;
use std::sync::Arc;

use qmerge::arch::spec::{self, Growth, Norm, Over, Projections, QkNorm, Spec};
use qmerge::error::Result;
use qmerge::simd::matmul::{Columns, matmul};
use rayon::prelude::*;

use super::paid::Paid;
use super::{Mixer, Pass, Sequence, State};
use crate::activation::{exponentials, sigmoid, softcap};
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

/// Keys (kv_heads, capacity, width) and values (kv_heads · width, capacity) of one layer, for each sequence; or of a pass that keeps none, with as many positions as it has tokens.
#[derive(Clone, Debug, Default)]
pub(super) struct Past {
    keys: Vec<f32>,
    values: Vec<f32>,
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
        };
        let (mut mixed, paid) = match self.spec.projections {
            Projections::Borrowed { from, .. } => attend_lent(&how, q, from, pass, state.is_some(), watch.weighs()),
            _ => attend(&how, q, k, v, pass, state, self.spec.lends, watch.weighs()),
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

/// Attention of softmax, once there are queries, keys and values.
pub(super) struct Softmax<'s> {
    pub(super) heads: usize,
    pub(super) kv_heads: usize,
    /// Features of a head's query and key.
    pub(super) key: usize,
    /// Features of a head's value.
    pub(super) value: usize,
    pub(super) scale: f32,
    pub(super) window: Option<usize>,
    pub(super) chunk: Option<usize>,
    pub(super) cap: Option<f32>,
    /// A score that gives nothing, for each head; empty for none.
    pub(super) sinks: &'s [f32],
}

impl Softmax<'_> {
    /// The first position that a query sees.
    fn first(&self, own: usize) -> usize {
        let window = self.window.map_or(0, |window| (own + 1).saturating_sub(window));
        window.max(self.chunk.map_or(0, |chunk| own / chunk * chunk))
    }
}

/// Weighted sums of values (heads · value, tokens) for queries (heads · key, tokens), over keys and values of these columns, and of those before where there is
/// a state. Where there is none and it `weighs`, what was paid to each token. Keys and values are lent under the number `lends`.
#[expect(clippy::too_many_arguments, reason = "what attention is over, and where it is kept")]
pub(super) fn attend(
    how: &Softmax<'_>,
    q: &[f32],
    k: &[f32],
    v: &[f32],
    pass: &Pass,
    state: Option<&mut State>,
    lends: Option<usize>,
    weighs: bool,
) -> (Vec<f32>, Paid) {
    let tokens = q.len() / (how.heads * how.key).max(1);
    let keys = turned(k, how.key, tokens);
    let Some(state) = state else {
        let view =
            |_, sequence: &Sequence| View { keys: &keys, values: v, width: tokens, first: sequence.columns.start };
        let mixed = mix(how, q, tokens, &pass.sequences, view, weighs);
        if let Some(number) = lends {
            pass.lend(number, Arc::new(Past { keys, values: v.to_vec() }));
        }
        return mixed;
    };
    // Whoever borrowed it in the pass before is done with it.
    let past: &mut Arc<Past> = state.own();
    Arc::make_mut(past).append(&keys, v, how.kv_heads, tokens, &pass.sequences, pass.capacity);
    if let Some(number) = lends {
        pass.lend(number, Arc::clone(past));
    }
    mix(how, q, tokens, &pass.sequences, past.views(how, pass.capacity), false)
}

/// The same over what a layer before has lent.
fn attend_lent(
    how: &Softmax<'_>,
    q: &[f32],
    number: usize,
    pass: &Pass,
    is_kept: bool,
    weighs: bool,
) -> (Vec<f32>, Paid) {
    let tokens = q.len() / (how.heads * how.key).max(1);
    let past = pass.borrowed(number);
    if is_kept {
        return mix(how, q, tokens, &pass.sequences, past.views(how, pass.capacity), false);
    }
    let view = |_, sequence: &Sequence| View {
        keys: &past.keys,
        values: &past.values,
        width: tokens,
        first: sequence.columns.start,
    };
    mix(how, q, tokens, &pass.sequences, view, weighs)
}

impl Past {
    /// What each sequence has in it.
    fn views<'p>(
        &'p self,
        how: &Softmax<'_>,
        capacity: usize,
    ) -> impl Fn(usize, &Sequence) -> View<'p> + Sync + use<'p> {
        let (keys, values) = (how.kv_heads * how.key * capacity, how.kv_heads * how.value * capacity);
        move |number, _| View {
            keys: &self.keys[number * keys..(number + 1) * keys],
            values: &self.values[number * values..(number + 1) * values],
            width: capacity,
            first: 0,
        }
    }

    fn append(
        &mut self,
        k: &[f32],
        v: &[f32],
        kv_heads: usize,
        tokens: usize,
        sequences: &[Sequence],
        capacity: usize,
    ) {
        // A row of keys is a head, of a feature's worth of values for each position; a row of values is a feature.
        let features = v.len() / tokens.max(1);
        let dim = k.len() / (tokens * kv_heads).max(1);
        for (past, new, rows, each) in [(&mut self.keys, k, kv_heads, dim), (&mut self.values, v, features, 1)] {
            past.resize(sequences.len() * rows * capacity * each, 0.0);
            for (past, sequence) in past.chunks_exact_mut(rows * capacity * each).zip(sequences) {
                let (columns, at) = (&sequence.columns, sequence.past);
                for (past, new) in past.chunks_exact_mut(capacity * each).zip(new.chunks_exact(tokens * each)) {
                    past[at * each..(at + columns.len()) * each]
                        .copy_from_slice(&new[columns.start * each..columns.end * each]);
                }
            }
        }
    }
}

/// Keys (kv_heads, width, key) and values (kv_heads · value, width), of which positions from `first` on are a sequence's.
struct View<'v> {
    keys: &'v [f32],
    values: &'v [f32],
    width: usize,
    first: usize,
}

impl<'v> View<'v> {
    /// (positions, dim).
    fn keys(&self, kv_head: usize, positions: &Range<usize>, dim: usize) -> &'v [f32] {
        let start = kv_head * self.width + self.first;
        &self.keys[(start + positions.start) * dim..(start + positions.end) * dim]
    }

    /// One feature by position.
    fn values(&self, row: usize, positions: &Range<usize>) -> &'v [f32] {
        let start = row * self.width + self.first;
        &self.values[start + positions.start..start + positions.end]
    }
}

/// (kv_heads · dim, tokens) to (kv_heads, tokens, dim).
fn turned(keys: &[f32], dim: usize, tokens: usize) -> Vec<f32> {
    let mut turned = vec![0.0; keys.len()];
    turned.par_chunks_mut(dim * tokens).zip(keys.par_chunks(dim * tokens)).for_each(|(to, from)| {
        for (d, row) in from.chunks_exact(tokens).enumerate() {
            to[d..].iter_mut().step_by(dim).zip(row).for_each(|(to, &key)| *to = key);
        }
    });
    turned
}

/// Queries that attend together.
const BLOCK: usize = 64;

/// Weighted sums of values for all heads and sequences: (heads · value, tokens); and where it `weighs`, what was paid to each column, which then is all that its
/// sequence has so far.
fn mix<'v>(
    how: &Softmax<'_>,
    q: &[f32],
    tokens: usize,
    sequences: &[Sequence],
    view: impl Fn(usize, &Sequence) -> View<'v> + Sync,
    weighs: bool,
) -> (Vec<f32>, Paid) {
    let dim = how.key;
    let mut out = vec![0.0; how.heads * how.value * tokens];
    let heads = out.par_chunks_mut(how.value * tokens).zip(q.par_chunks(dim * tokens)).enumerate();
    let paid = heads.map(|(head, (out, q))| {
        let mut paid = vec![0.0_f32; if weighs { tokens } else { 0 }];
        for (number, sequence) in sequences.iter().enumerate() {
            let view = view(number, sequence);
            let kv_head = head / (how.heads / how.kv_heads);
            for start in sequence.columns.clone().step_by(BLOCK) {
                let block = start..sequence.columns.end.min(start + BLOCK);
                let position = sequence.past + start - sequence.columns.start;
                // What the first column sees at the left, and the last at the right.
                let seen = how.first(position)..position + block.len();
                let some: Vec<f32> =
                    (0..dim).flat_map(|d| q[d * tokens..][block.clone()].iter().map(|q| q * how.scale)).collect();
                let columns = Columns::new(&some, dim, block.len());
                let mut scores = vec![0.0; seen.len() * block.len()];
                matmul(view.keys(kv_head, &seen, dim), &columns, false, &mut scores);
                if let Some(cap) = how.cap {
                    softcap(&mut scores, cap);
                }
                for (p, row) in seen.clone().zip(scores.chunks_exact_mut(block.len())) {
                    for (own, score) in (position..).zip(row) {
                        if p > own || p < how.first(own) {
                            *score = f32::NEG_INFINITY;
                        }
                    }
                }
                if let Some(&sink) = how.sinks.get(head) {
                    scores.resize(scores.len() + block.len(), sink);
                }
                let sums = exponentials(&mut scores, block.len());
                scores.truncate(seen.len() * block.len());
                if weighs {
                    let paid = &mut paid[sequence.columns.start + seen.start..];
                    for (paid, row) in paid.iter_mut().zip(scores.chunks_exact(block.len())) {
                        let squares = row.iter().zip(&sums).map(|(x, sum)| (x / sum) * (x / sum));
                        *paid += squares.sum::<f32>();
                    }
                }
                let shares = Columns::new(&scores, seen.len(), block.len());
                let mut some = Vec::with_capacity(how.value * seen.len());
                (0..how.value).for_each(|d| some.extend_from_slice(view.values(kv_head * how.value + d, &seen)));
                let mut mixed = vec![0.0; how.value * block.len()];
                matmul(&some, &shares, false, &mut mixed);
                for (d, row) in mixed.chunks_exact(block.len()).enumerate() {
                    let out = &mut out[d * tokens..][block.clone()];
                    out.iter_mut().zip(row).zip(&sums).for_each(|((out, x), sum)| *out = x / sum);
                }
            }
        }
        paid
    });
    let paid: Vec<Vec<f32>> = paid.collect();
    (out, Paid::of_heads(paid))
}
