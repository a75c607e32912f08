//! A convolution over the last few positions, feature by feature, between two gates.

use qmerge::arch::spec::{self, Spec};
use qmerge::error::Result;
use rayon::prelude::*;

use super::{Mixer, Pass, State};
use crate::layer::{Block, Visit};
use crate::linear::{Input, Linear, Watch};
use crate::tensors::Tensors;
use crate::work;

/// The short convolution of one layer.
#[derive(Debug)]
pub(super) struct ShortConv<'a> {
    /// b, c and x in one.
    input: Linear<'a>,
    output: Linear<'a>,
    /// (hidden, taps), the last for the position itself.
    kernel: Vec<f32>,
    bias: Option<Vec<f32>>,
    taps: usize,
}

/// The last values that went into the convolution: (hidden, sequences, taps).
#[derive(Debug, Default)]
struct Last(Vec<f32>);

impl<'a> ShortConv<'a> {
    pub(super) fn new(tensors: &Tensors<'a>, spec: &Spec, conv: &spec::ShortConv, layer: &str) -> Result<Self> {
        let (hidden, taps) = (spec.hidden, conv.taps);
        let [input, kernel, output] = conv.names.map(|name| format!("{layer}.{name}"));
        Ok(Self {
            input: Linear::new(tensors, &input, 3 * hidden, hidden)?,
            output: Linear::new(tensors, &output, hidden, hidden)?,
            kernel: tensors.needed(&format!("{kernel}.weight"), hidden * taps)?,
            bias: tensors.vector(&format!("{kernel}.bias"), hidden)?,
            taps,
        })
    }

    /// One feature of all sequences: what `values` become, and `last` then.
    fn convolve(&self, feature: usize, values: &mut [f32], last: &mut [f32], pass: &Pass) {
        let kernel = &self.kernel[feature * self.taps..(feature + 1) * self.taps];
        let bias = self.bias.as_ref().map_or(0.0, |bias| bias[feature]);
        let mut seen = Vec::new();
        for (sequence, last) in pass.sequences.iter().zip(last.chunks_exact_mut(self.taps)) {
            let values = &mut values[sequence.columns.clone()];
            seen.clear();
            seen.extend_from_slice(last);
            seen.extend_from_slice(values);
            for (value, seen) in values.iter_mut().zip(seen[1..].windows(self.taps)) {
                *value = bias + kernel.iter().zip(seen).map(|(weight, x)| weight * x).sum::<f32>();
            }
            last.copy_from_slice(&seen[seen.len() - self.taps..]);
        }
    }
}

impl Block for ShortConv<'_> {
    fn together(&self) -> Vec<Vec<&Linear<'_>>> {
        vec![vec![&self.input], vec![&self.output]]
    }

    fn each(&mut self, visit: &mut Visit<'_>) -> Result<()> {
        [&mut self.input, &mut self.output].into_iter().try_for_each(visit)
    }

    fn work(&self, tokens: usize, _: usize) -> f64 {
        // A tap is to a projection as one is to the width of the model.
        work::linears(&self.together(), tokens as f64)
    }

    fn activations(&self) -> usize {
        // Twice what comes in, the projections, the output's input packed, and the result.
        8 * self.output.inputs()
    }
}

impl Mixer for ShortConv<'_> {
    fn forward(
        &self,
        x: &Input<'_>,
        pass: &Pass,
        state: Option<&mut State>,
        watch: &mut dyn Watch,
    ) -> Result<Vec<f32>> {
        let (tokens, hidden) = (x.tokens(), self.output.inputs());
        Linear::show(std::slice::from_ref(&self.input), x, watch)?;
        let mut all = self.input.forward(x)?;
        let (gates, values) = all.split_at_mut(2 * hidden * tokens);
        let (before, behind) = gates.split_at(hidden * tokens);
        let mut fresh = Last::default();
        let Last(last) = state.map_or(&mut fresh, State::own);
        let each = pass.sequences.len() * self.taps;
        last.resize(hidden * each, 0.0);
        let gates = before.par_chunks_exact(tokens).zip(behind.par_chunks_exact(tokens));
        let rows = values.par_chunks_exact_mut(tokens).zip(last.par_chunks_exact_mut(each)).zip(gates);
        rows.enumerate().for_each(|(feature, ((values, last), (before, behind)))| {
            values.iter_mut().zip(before).for_each(|(x, gate)| *x *= gate);
            self.convolve(feature, values, last, pass);
            values.iter_mut().zip(behind).for_each(|(x, gate)| *x *= gate);
        });
        let mixed = x.like(values, hidden);
        Linear::show(std::slice::from_ref(&self.output), &mixed, watch)?;
        self.output.forward(&mixed)
    }

    fn cached(&self, _: usize) -> usize {
        self.taps * self.output.inputs()
    }
}
