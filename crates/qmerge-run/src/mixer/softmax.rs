//! Attention of softmax over keys and values: of a pass, of positions before in a cache, or of another layer.

use std::ops::Range;
use std::sync::Arc;

use qmerge::simd::matmul::{Columns, matmul};
use rayon::prelude::*;

use super::paid::Paid;
use super::{Pass, Sequence, State};
use crate::activation::{exponentials, softcap};

/// Keys (kv_heads, capacity, width) and values (kv_heads · width, capacity) of one layer, for each sequence; or of a pass that keeps none, with as many positions as it has tokens.
#[derive(Clone, Debug, Default)]
pub(super) struct Past {
    keys: Vec<f32>,
    values: Vec<f32>,
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
    /// The number under which later layers borrow keys and values.
    pub(super) lends: Option<usize>,
}

impl Softmax<'_> {
    /// The first position that a query sees.
    fn first(&self, own: usize) -> usize {
        let window = self.window.map_or(0, |window| (own + 1).saturating_sub(window));
        window.max(self.chunk.map_or(0, |chunk| own / chunk * chunk))
    }
}

/// Weighted sums of values (heads · value, tokens) for queries (heads · key, tokens), over keys and values of these columns, and of those before where there is
/// a state. Where there is none and it `weighs`, what was paid to each token. Keys and values are lent where that is said.
pub(super) fn attend(
    how: &Softmax<'_>,
    q: &[f32],
    k: &[f32],
    v: &[f32],
    pass: &Pass,
    state: Option<&mut State>,
    weighs: bool,
) -> (Vec<f32>, Paid) {
    let tokens = q.len() / (how.heads * how.key).max(1);
    let keys = turned(k, how.key, tokens);
    let Some(state) = state else {
        let view =
            |_, sequence: &Sequence| View { keys: &keys, values: v, width: tokens, first: sequence.columns.start };
        let mixed = mix(how, q, tokens, &pass.sequences, view, weighs);
        if let Some(number) = how.lends {
            pass.lend(number, Arc::new(Past { keys, values: v.to_vec() }));
        }
        return mixed;
    };
    // Whoever borrowed it in the pass before is done with it.
    let past: &mut Arc<Past> = state.own();
    Arc::make_mut(past).append(&keys, v, how.kv_heads, tokens, &pass.sequences, pass.capacity);
    if let Some(number) = how.lends {
        pass.lend(number, Arc::clone(past));
    }
    mix(how, q, tokens, &pass.sequences, past.views(how, pass.capacity), false)
}

/// The same over what a layer before has lent.
pub(super) fn attend_lent(
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
