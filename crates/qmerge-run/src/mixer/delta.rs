//! The gated delta rule: each head keeps a matrix S (key, value), which at each position fades, is corrected, and is read.
//!
//! ```text
//! S ← exp(g) S;   S ← S + k (β (v − Sᵀ k))ᵀ;   out = Sᵀ q
//! ```
//!
//! Queries, keys and values pass a short causal convolution first, queries and keys are made of unit length, and what is read is normalized and
//! gated. S and the last inputs of the convolution are all that a cache holds, whatever the number of positions.

use qmerge::arch::spec::{self, Activation, DeltaInputs, Norm, Spec};
use qmerge::error::Result;
use rayon::prelude::*;

use super::{Mixer, Pass, Sequence, State};
use crate::activation::{activate, sigmoid};
use crate::layer::{Block, Visit};
use crate::linear::{Input, Linear, Watch};
use crate::norm::Normalize;
use crate::tensors::Tensors;
use crate::work;

/// The delta rule of one layer.
#[derive(Debug)]
pub(super) struct Delta<'a> {
    spec: spec::Delta,
    inputs: Vec<Linear<'a>>,
    /// (features, kernel).
    convolution: Vec<f32>,
    /// How fast each head fades.
    rates: Vec<f32>,
    /// Added to the step.
    steps: Vec<f32>,
    norm: Normalize,
    output: Linear<'a>,
}

/// What is kept of each sequence.
#[derive(Debug, Default)]
struct Past {
    /// (sequences, features, kernel − 1): the last inputs of the convolution.
    inputs: Vec<f32>,
    /// (sequences, value heads, key, value).
    memory: Vec<f32>,
}

/// Outputs of the matrices at the entry, as (features, tokens).
struct Entered {
    /// Queries, keys, values.
    mixed: Vec<f32>,
    /// By value heads.
    gates: Vec<f32>,
    strengths: Vec<f32>,
    fading: Vec<f32>,
}

/// Added to a query's or a key's sum of squares.
const EPS: f32 = 1e-6;

impl<'a> Delta<'a> {
    pub(super) fn new(tensors: &Tensors<'a>, spec: &Spec, delta: &spec::Delta, layer: &str) -> Result<Self> {
        let (hidden, heads, values) = (spec.hidden, delta.value_heads, delta.value_heads * delta.value);
        let linear = |name: &str, outputs, inputs| Linear::new(tensors, &format!("{layer}.{name}"), outputs, inputs);
        let mixed = delta.convolved();
        let inputs = match delta.inputs {
            DeltaInputs::Apart { names: [qkv, z, b, a] } => {
                vec![
                    linear(qkv, mixed, hidden)?,
                    linear(z, values, hidden)?,
                    linear(b, heads, hidden)?,
                    linear(a, heads, hidden)?,
                ]
            }
            DeltaInputs::ByHead { names: [qkvz, ba] } => {
                vec![linear(qkvz, mixed + values, hidden)?, linear(ba, 2 * heads, hidden)?]
            }
        };
        let vector = |name: &str, len| tensors.needed(&format!("{layer}.{name}"), len);
        let ([rates, steps], [norm, output]) = (delta.fading, delta.names);
        Ok(Self {
            spec: *delta,
            inputs,
            convolution: vector(&format!("{}.weight", delta.convolution), mixed * delta.kernel)?,
            rates: vector(rates, heads)?.into_iter().map(libm::expf).collect(),
            steps: vector(steps, heads)?,
            norm: Normalize::new(tensors, &format!("{layer}.{norm}"), delta.value, Norm::Rms, spec.eps)?,
            output: linear(output, hidden, values)?,
        })
    }

    /// Outputs of the matrices at the entry.
    fn enter(&self, x: &Input<'_>) -> Result<Entered> {
        let tokens = x.tokens();
        let mut outputs = self.inputs.iter().map(|linear| linear.forward(x)).collect::<Result<Vec<_>>>()?.into_iter();
        let mut next = || outputs.next().unwrap_or_default();
        let spec::Delta { key_heads, value_heads, key, value, .. } = self.spec;
        match self.spec.inputs {
            DeltaInputs::Apart { .. } => {
                Ok(Entered { mixed: next(), gates: next(), strengths: next(), fading: next() })
            }
            DeltaInputs::ByHead { .. } => {
                let (all, small) = (next(), next());
                let each = value_heads / key_heads;
                // Parts of every head's rows, one behind another.
                let parts = |all: &[f32], rows: usize, part: std::ops::Range<usize>| -> Vec<f32> {
                    let heads = all.chunks_exact((rows * tokens).max(1));
                    heads.flat_map(|head| &head[part.start * tokens..part.end * tokens]).copied().collect()
                };
                let (rows, values) = (2 * key + 2 * each * value, each * value);
                let mixed = [0..key, key..2 * key, 2 * key..2 * key + values];
                Ok(Entered {
                    mixed: mixed.into_iter().flat_map(|part| parts(&all, rows, part)).collect(),
                    gates: parts(&all, rows, rows - values..rows),
                    strengths: parts(&small, 2 * each, 0..each),
                    fading: parts(&small, 2 * each, each..2 * each),
                })
            }
        }
    }

    /// The convolution over each sequence, behind what went before, and its activation. Leaves the last inputs in `past`.
    fn convolve(&self, mixed: &mut [f32], tokens: usize, sequences: &[Sequence], past: &mut [f32]) {
        let (kernel, before) = (self.spec.kernel, self.spec.kernel - 1);
        let features = self.spec.convolved();
        for (number, sequence) in sequences.iter().enumerate() {
            let past = &mut past[number * features * before..(number + 1) * features * before];
            let mut run = vec![0.0; before + sequence.columns.len()];
            for (feature, row) in mixed.chunks_exact_mut(tokens).enumerate() {
                let past = &mut past[feature * before..(feature + 1) * before];
                let row = &mut row[sequence.columns.clone()];
                run[..before].copy_from_slice(past);
                run[before..].copy_from_slice(row);
                past.copy_from_slice(&run[row.len()..]);
                row.fill(0.0);
                for (tap, weight) in self.convolution[feature * kernel..(feature + 1) * kernel].iter().enumerate() {
                    row.iter_mut().zip(&run[tap..]).for_each(|(row, x)| *row += weight * x);
                }
            }
        }
        mixed.par_chunks_mut(4096).for_each(|some| activate(Activation::Silu, some));
    }

    /// What one head of values reads: (value, tokens) of each sequence, into `out`, from its memory on.
    fn read(
        &self,
        head: usize,
        entered: &Entered,
        columns: &std::ops::Range<usize>,
        memory: &mut [f32],
        out: &mut [f32],
    ) {
        let spec::Delta { key_heads, value_heads, key, value, .. } = self.spec;
        let tokens = entered.strengths.len() / value_heads;
        let own = head / (value_heads / key_heads);
        let rows = |first: usize, count: usize, column: usize, to: &mut [f32]| {
            let from = entered.mixed[first * tokens + column..].iter().step_by(tokens);
            to.iter_mut().zip(from).take(count).for_each(|(to, from)| *to = *from);
        };
        let (mut q, mut k) = (vec![0.0; key], vec![0.0; key]);
        let (mut delta, mut read) = (vec![0.0; value], vec![0.0; value]);
        for t in columns.clone() {
            rows(own * key, key, t, &mut q);
            rows((key_heads + own) * key, key, t, &mut k);
            unit(&mut q, 1.0 / (key as f32).sqrt());
            unit(&mut k, 1.0);
            let step = softplus(entered.fading[head * tokens + t] + self.steps[head]);
            let (faded, strength) = (libm::expf(-self.rates[head] * step), entered.strengths[head * tokens + t]);
            // What the memory gives for the key, subtracted from what it should give.
            rows(2 * key_heads * key + head * value, value, t, &mut delta);
            for (row, k) in memory.chunks_exact_mut(value).zip(&k) {
                for (s, delta) in row.iter_mut().zip(&mut delta) {
                    *s *= faded;
                    *delta -= *s * k;
                }
            }
            delta.iter_mut().for_each(|delta| *delta *= strength);
            read.fill(0.0);
            for ((row, k), q) in memory.chunks_exact_mut(value).zip(&k).zip(&q) {
                for ((s, delta), read) in row.iter_mut().zip(&delta).zip(&mut read) {
                    *s += k * delta;
                    *read += *s * q;
                }
            }
            out[t..].iter_mut().step_by(tokens).zip(&read).for_each(|(out, read)| *out = *read);
        }
    }
}

/// Scales to this length.
fn unit(x: &mut [f32], length: f32) {
    let scale = length / (x.iter().map(|x| x * x).sum::<f32>() + EPS).sqrt();
    x.iter_mut().for_each(|x| *x *= scale);
}

/// `ln(1 + exp(x))`.
fn softplus(x: f32) -> f32 {
    if x > 20.0 { x } else { libm::log1pf(libm::expf(x)) }
}

impl Block for Delta<'_> {
    fn together(&self) -> Vec<Vec<&Linear<'_>>> {
        vec![self.inputs.iter().collect(), vec![&self.output]]
    }

    fn each(&mut self, visit: &mut Visit<'_>) -> Result<()> {
        self.inputs.iter_mut().chain([&mut self.output]).try_for_each(visit)
    }

    fn work(&self, tokens: usize, _: usize) -> f64 {
        let memory = self.spec.value_heads * self.spec.key * self.spec.value;
        let convolved = self.spec.convolved() * self.spec.kernel;
        work::linears(&self.together(), tokens as f64) + work::memory(memory, tokens) + work::memory(convolved, tokens)
    }

    fn activations(&self) -> usize {
        3 * self.output.outputs() + 2 * self.spec.convolved() + 5 * self.output.inputs() + 4 * self.spec.value_heads
    }
}

impl Mixer for Delta<'_> {
    fn forward(
        &self,
        x: &Input<'_>,
        pass: &Pass,
        state: Option<&mut State>,
        watch: &mut dyn Watch,
    ) -> Result<Vec<f32>> {
        let spec::Delta { value_heads, key, value, kernel, .. } = self.spec;
        let (tokens, sequences) = (x.tokens(), pass.sequences.as_slice());
        Linear::show(&self.inputs, x, watch)?;
        let mut entered = self.enter(x)?;
        let mut fresh = Past::default();
        let past: &mut Past = state.map_or(&mut fresh, State::own);
        past.inputs.resize(sequences.len() * self.spec.convolved() * (kernel - 1), 0.0);
        past.memory.resize(sequences.len() * value_heads * key * value, 0.0);
        self.convolve(&mut entered.mixed, tokens, sequences, &mut past.inputs);
        sigmoid(&mut entered.strengths);
        let mut out = vec![0.0; value_heads * value * tokens];
        for (sequence, memory) in sequences.iter().zip(past.memory.chunks_exact_mut(value_heads * key * value)) {
            let heads = out.par_chunks_mut(value * tokens).zip(memory.par_chunks_mut(key * value));
            heads.enumerate().for_each(|(head, (out, memory))| {
                self.read(head, &entered, &sequence.columns, memory, out);
            });
        }
        self.norm.apply(&mut out, tokens);
        activate(Activation::Silu, &mut entered.gates);
        out.iter_mut().zip(&entered.gates).for_each(|(out, gate)| *out *= gate);
        drop(entered);
        let out = x.like(&out, value_heads * value);
        Linear::show(std::slice::from_ref(&self.output), &out, watch)?;
        self.output.forward(&out)
    }

    fn cached(&self, _: usize) -> usize {
        self.spec.convolved() * (self.spec.kernel - 1) + self.spec.value_heads * self.spec.key * self.spec.value
    }
}
