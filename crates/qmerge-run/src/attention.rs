//! Causal attention over one sequence or several beside each other, with what came before in a cache.

use std::ops::Range;

use qmerge::error::Result;
use qmerge::simd::exp::exp;
use qmerge::simd::matmul::{Columns, matmul};
use qmerge::simd::tanh::tanh;
use rayon::prelude::*;

use crate::linear::{Input, Linear, Watch};
use crate::norm::Normalize;
use crate::rope::Angles;
use crate::spec::{self, Layer, QkNorm, Spec};
use crate::tensors::Tensors;

/// The attention of one layer.
#[derive(Debug)]
pub(crate) struct Attention<'a> {
    /// Queries, keys, values; or all in one.
    pub(crate) inputs: Vec<Linear<'a>>,
    pub(crate) output: Linear<'a>,
    norms: Option<[Normalize; 2]>,
}

/// Keys (kv_heads, capacity, head_dim) and values (kv_heads · head_dim, capacity) of one layer, for each sequence.
#[derive(Clone, Debug, Default)]
pub(crate) struct Past {
    keys: Vec<f32>,
    values: Vec<f32>,
}

/// Which columns of a batch are one sequence, and how many positions of it are cached.
#[derive(Clone, Debug)]
pub(crate) struct Sequence {
    pub(crate) columns: Range<usize>,
    pub(crate) past: usize,
}

impl<'a> Attention<'a> {
    pub(crate) fn new(tensors: &Tensors<'a>, spec: &Spec, layer: &str) -> Result<Self> {
        let (queries, keys) = (spec.heads * spec.head_dim, spec.kv_heads * spec.head_dim);
        let linear = |name: &str, outputs, inputs| {
            Linear::new(tensors, &format!("{layer}.{name}"), outputs, inputs, spec.transposed)
        };
        let (inputs, output) = match spec.attention {
            spec::Attention::Apart { names: [q, k, v, o] } => (
                vec![linear(q, queries, spec.hidden)?, linear(k, keys, spec.hidden)?, linear(v, keys, spec.hidden)?],
                o,
            ),
            spec::Attention::Fused { names: [qkv, o] } => (vec![linear(qkv, queries + 2 * keys, spec.hidden)?], o),
        };
        let norm = |name: &str, features| {
            Normalize::new(tensors, &format!("{layer}.self_attn.{name}"), features, spec.norm, spec.eps)
        };
        let norms = match spec.qk_norm {
            QkNorm::None => None,
            QkNorm::PerHead => Some([norm("q_norm", spec.head_dim)?, norm("k_norm", spec.head_dim)?]),
            QkNorm::Whole => Some([norm("q_norm", queries)?, norm("k_norm", keys)?]),
        };
        Ok(Self { inputs, output: linear(output, spec.hidden, queries)?, norms })
    }

    /// `x` is (hidden, tokens). `angles` are those of each sequence's new positions. Where there is a `past`, the sequences are its own.
    #[allow(clippy::too_many_arguments)]
    pub(crate) fn forward(
        &self,
        spec: &Spec,
        layer: &Layer,
        x: &[f32],
        sequences: &[Sequence],
        angles: Option<&[Angles]>,
        past: Option<(&mut Past, usize)>,
        watch: &mut dyn Watch,
    ) -> Result<Vec<f32>> {
        let input = Input::new(x, spec.hidden);
        let tokens = input.tokens();
        let (queries, keys) = (spec.heads * spec.head_dim * tokens, spec.kv_heads * spec.head_dim * tokens);
        let mut all = vec![0.0; queries + 2 * keys];
        let mut rest = all.as_mut_slice();
        Linear::show(&self.inputs, &input, watch)?;
        for linear in &self.inputs {
            let (own, others) = rest.split_at_mut(linear.outputs() * tokens);
            linear.forward_into(&input, own)?;
            rest = others;
        }
        let (q, rest) = all.split_at_mut(queries);
        let (k, v) = rest.split_at_mut(keys);
        if let Some([query, key]) = &self.norms {
            query.apply(q, tokens);
            key.apply(k, tokens);
        }
        if let Some(angles) = angles {
            for head in q.chunks_exact_mut(spec.head_dim * tokens).chain(k.chunks_exact_mut(spec.head_dim * tokens)) {
                for (sequence, angles) in sequences.iter().zip(angles) {
                    angles.turn(head, tokens, sequence.columns.start);
                }
            }
        }
        let k = turned(k, spec.head_dim, tokens);
        let mixed = match past {
            None => mix(spec, layer, q, tokens, sequences, |_, sequence| View {
                keys: &k,
                values: v,
                width: tokens,
                first: sequence.columns.start,
            }),
            Some((past, capacity)) => {
                past.append(&k, v, spec.kv_heads, tokens, sequences, capacity);
                let past = &*past;
                let size = spec.kv_heads * spec.head_dim * capacity;
                mix(spec, layer, q, tokens, sequences, |number, _| View {
                    keys: &past.keys[number * size..(number + 1) * size],
                    values: &past.values[number * size..(number + 1) * size],
                    width: capacity,
                    first: 0,
                })
            }
        };
        let mixed = Input::new(&mixed, spec.heads * spec.head_dim);
        Linear::show(std::slice::from_ref(&self.output), &mixed, watch)?;
        self.output.forward(&mixed)
    }
}

impl Past {
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
        let dim = features / kv_heads.max(1);
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

/// Keys (kv_heads, width, head_dim) and values (kv_heads · head_dim, width), of which positions from `first` on are a sequence's.
struct View<'v> {
    keys: &'v [f32],
    values: &'v [f32],
    width: usize,
    first: usize,
}

impl<'v> View<'v> {
    /// (positions, head_dim).
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

/// (kv_heads · head_dim, tokens) to (kv_heads, tokens, head_dim).
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

/// Weighted sums of values for all heads and sequences: (heads · head_dim, tokens).
fn mix<'v>(
    spec: &Spec,
    layer: &Layer,
    q: &[f32],
    tokens: usize,
    sequences: &[Sequence],
    view: impl Fn(usize, &Sequence) -> View<'v> + Sync,
) -> Vec<f32> {
    let dim = spec.head_dim;
    let mut out = vec![0.0; q.len()];
    out.par_chunks_mut(dim * tokens).zip(q.par_chunks(dim * tokens)).enumerate().for_each(|(head, (out, q))| {
        for (number, sequence) in sequences.iter().enumerate() {
            let view = view(number, sequence);
            let kv_head = head / (spec.heads / spec.kv_heads);
            for start in sequence.columns.clone().step_by(BLOCK) {
                let block = start..sequence.columns.end.min(start + BLOCK);
                let position = sequence.past + start - sequence.columns.start;
                // What the first column sees at the left, and the last at the right.
                let seen =
                    layer.window.map_or(0, |window| (position + 1).saturating_sub(window))..position + block.len();
                let some: Vec<f32> = (0..dim)
                    .flat_map(|d| q[d * tokens..][block.clone()].iter().map(|q| q * spec.attention_scale))
                    .collect();
                let columns = Columns::new(&some, dim, block.len());
                let mut scores = vec![0.0; seen.len() * block.len()];
                matmul(view.keys(kv_head, &seen, dim), &columns, false, &mut scores);
                if let Some(cap) = spec.attention_cap {
                    softcap(&mut scores, cap);
                }
                for (p, row) in seen.clone().zip(scores.chunks_exact_mut(block.len())) {
                    for (own, score) in (position..).zip(row) {
                        if p > own || layer.window.is_some_and(|window| p + window <= own) {
                            *score = f32::NEG_INFINITY;
                        }
                    }
                }
                let sums = exponentials(&mut scores, block.len());
                let shares = Columns::new(&scores, seen.len(), block.len());
                let some: Vec<f32> = (0..dim).flat_map(|d| view.values(kv_head * dim + d, &seen)).copied().collect();
                let mut mixed = vec![0.0; dim * block.len()];
                matmul(&some, &shares, false, &mut mixed);
                for (d, row) in mixed.chunks_exact(block.len()).enumerate() {
                    let out = &mut out[d * tokens..][block.clone()];
                    out.iter_mut().zip(row).zip(&sums).for_each(|((out, x), sum)| *out = x / sum);
                }
            }
        }
    });
    out
}

/// `cap · tanh(x / cap)`, in place.
pub(crate) fn softcap(x: &mut [f32], cap: f32) {
    x.iter_mut().for_each(|x| *x /= cap);
    tanh(x);
    x.iter_mut().for_each(|x| *x *= cap);
}

/// Exponentials of columns against each one's largest value, in place, and their sums.
fn exponentials(x: &mut [f32], columns: usize) -> Vec<f32> {
    let mut largest = vec![f32::NEG_INFINITY; columns];
    for row in x.chunks_exact(columns) {
        largest.iter_mut().zip(row).for_each(|(largest, &x)| *largest = largest.max(x));
    }
    for row in x.chunks_exact_mut(columns) {
        row.iter_mut().zip(&largest).for_each(|(x, largest)| *x -= largest);
    }
    exp(x);
    let mut sums = vec![0.0; columns];
    for row in x.chunks_exact(columns) {
        sums.iter_mut().zip(row).for_each(|(sum, x)| *sum += x);
    }
    sums
}

/// Exponentials that sum to one.
pub(crate) fn softmax(x: &mut [f32]) {
    let sums = exponentials(x, 1);
    x.iter_mut().for_each(|x| *x /= sums[0]);
}
