//! Causal attention over one sequence or several beside each other, with what came before in a cache.

use std::ops::Range;

use qmerge::error::Result;
use rayon::prelude::*;

use crate::linear::{Input, Linear};
use crate::model::Watch;
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

/// Keys and values of one layer: (kv_heads · head_dim, capacity) each.
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

    /// `x` is (hidden, tokens). `angles` are those of each sequence's new positions. Where there is a `past`, there is one sequence.
    #[allow(clippy::too_many_arguments)]
    pub(crate) fn forward(
        &self,
        spec: &Spec,
        layer: &Layer,
        x: &[f32],
        sequences: &[Sequence],
        angles: Option<&[Angles]>,
        past: Option<(&mut Past, usize)>,
        watch: &mut Watch<'_>,
    ) -> Result<Vec<f32>> {
        let input = Input::new(x, spec.hidden);
        let tokens = input.tokens();
        let (queries, keys) = (spec.heads * spec.head_dim * tokens, spec.kv_heads * spec.head_dim * tokens);
        let mut all = Vec::with_capacity(queries + 2 * keys);
        for linear in &self.inputs {
            watch(linear.name(), &input);
            all.extend(linear.forward(&input)?);
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
        let mixed = match past {
            None => mix(spec, layer, q, tokens, sequences, |sequence| View {
                keys: k,
                values: v,
                width: tokens,
                first: sequence.columns.start,
            }),
            Some((past, capacity)) => {
                past.append(k, v, tokens, sequences[0].past, capacity);
                let past = &*past;
                mix(spec, layer, q, tokens, sequences, |_| View {
                    keys: &past.keys,
                    values: &past.values,
                    width: capacity,
                    first: 0,
                })
            }
        };
        let mixed = Input::new(&mixed, spec.heads * spec.head_dim);
        watch(self.output.name(), &mixed);
        self.output.forward(&mixed)
    }
}

impl Past {
    fn append(&mut self, k: &[f32], v: &[f32], tokens: usize, at: usize, capacity: usize) {
        let rows = k.len() / tokens.max(1);
        for (past, new) in [(&mut self.keys, k), (&mut self.values, v)] {
            past.resize(rows * capacity, 0.0);
            for (past, new) in past.chunks_exact_mut(capacity).zip(new.chunks_exact(tokens)) {
                past[at..at + tokens].copy_from_slice(new);
            }
        }
    }
}

/// Keys and values of a sequence: rows of `width`, of which columns from `first` on are its positions.
struct View<'v> {
    keys: &'v [f32],
    values: &'v [f32],
    width: usize,
    first: usize,
}

/// Weighted sums of values for all heads and sequences: (heads · head_dim, tokens).
fn mix<'v>(
    spec: &Spec,
    layer: &Layer,
    q: &[f32],
    tokens: usize,
    sequences: &[Sequence],
    view: impl Fn(&Sequence) -> View<'v> + Sync,
) -> Vec<f32> {
    let dim = spec.head_dim;
    let mut out = vec![0.0; q.len()];
    out.par_chunks_mut(dim * tokens).zip(q.par_chunks(dim * tokens)).enumerate().for_each(|(head, (out, q))| {
        let mut scores = Vec::new();
        for sequence in sequences {
            let view = view(sequence);
            let rows = head / (spec.heads / spec.kv_heads) * dim;
            let row = |x: &'v [f32], d: usize, seen: &Range<usize>| {
                let start = (rows + d) * view.width + view.first;
                &x[start + seen.start..start + seen.end]
            };
            for (new, t) in sequence.columns.clone().enumerate() {
                let position = sequence.past + new;
                let seen = layer.window.map_or(0, |window| (position + 1).saturating_sub(window))..position + 1;
                scores.clear();
                scores.resize(seen.len(), 0.0);
                for d in 0..dim {
                    let factor = q[d * tokens + t] * spec.attention_scale;
                    for (score, key) in scores.iter_mut().zip(row(view.keys, d, &seen)) {
                        *score += factor * key;
                    }
                }
                if let Some(cap) = spec.attention_cap {
                    scores.iter_mut().for_each(|score| *score = cap * (*score / cap).tanh());
                }
                softmax(&mut scores);
                for d in 0..dim {
                    out[d * tokens + t] = dot(&scores, row(view.values, d, &seen));
                }
            }
        }
    });
    out
}

/// Sums in eight chains, so that they can run side by side.
fn dot(a: &[f32], b: &[f32]) -> f32 {
    let mut sums = [0.0_f32; 8];
    let (a, a_tail) = a.as_chunks::<8>();
    let (b, b_tail) = b.as_chunks::<8>();
    for (a, b) in a.iter().zip(b) {
        for l in 0..8 {
            sums[l] += a[l] * b[l];
        }
    }
    let tail: f32 = a_tail.iter().zip(b_tail).map(|(a, b)| a * b).sum();
    sums.iter().sum::<f32>() + tail
}

/// Exponentials that sum to one.
pub(crate) fn softmax(x: &mut [f32]) {
    let largest = x.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    let mut sum = 0.0;
    for x in &mut *x {
        *x = (*x - largest).exp();
        sum += *x;
    }
    x.iter_mut().for_each(|x| *x /= sum);
}
