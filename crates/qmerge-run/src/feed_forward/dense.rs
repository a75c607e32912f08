//! Two or three matrices with an activation between them.

use qmerge::arch::spec::{self, Activation, Clamp, Matrices, Spec};
use qmerge::error::Result;
use rayon::prelude::*;

use super::FeedForward;
use crate::activation::{activate, clamped};
use crate::layer::{Block, Visit};
use crate::linear::{Input, Linear, Watch};
use crate::tensors::Tensors;
use crate::work;

/// `down(act(gate x) · up x)`, or without a gate `down(act(up x))`.
#[derive(Debug)]
pub(super) struct Dense<'a> {
    /// Gate and up, both in one, or up alone.
    pub(super) inputs: Vec<Linear<'a>>,
    pub(super) down: Linear<'a>,
    pub(super) width: usize,
    pub(super) gated: bool,
    /// Gate and up alternate.
    pub(super) interleaved: bool,
    pub(super) activation: Activation,
    pub(super) clamp: Option<Clamp>,
    pub(super) above: Option<f32>,
}

impl<'a> Dense<'a> {
    pub(super) fn new(tensors: &Tensors<'a>, spec: &Spec, dense: &spec::Dense, layer: &str) -> Result<Self> {
        let width = dense.width;
        let linear = |name: &str, outputs, inputs| Linear::new(tensors, &format!("{layer}.{name}"), outputs, inputs);
        let (inputs, down, gated) = match dense.matrices {
            Matrices::Gated { names: [gate, up, down] } => {
                (vec![linear(gate, width, spec.hidden)?, linear(up, width, spec.hidden)?], down, true)
            }
            Matrices::FusedGated { names: [both, down] } => (vec![linear(both, 2 * width, spec.hidden)?], down, true),
            Matrices::Plain { names: [up, down] } => (vec![linear(up, width, spec.hidden)?], down, false),
        };
        let down = linear(down, spec.hidden, width)?;
        Ok(Self {
            inputs,
            down,
            width,
            gated,
            interleaved: false,
            activation: dense.activation,
            clamp: None,
            above: dense.above,
        })
    }

    /// The same as [`FeedForward::forward`] where somebody has shown the input.
    pub(super) fn behind(&self, x: &Input<'_>, watch: &mut dyn Watch) -> Result<Vec<f32>> {
        let tokens = x.tokens();
        let size = self.width * tokens;
        let mut inner = vec![0.0; if self.gated { 2 * size } else { size }];
        let mut rest = inner.as_mut_slice();
        for linear in &self.inputs {
            let (own, others) = rest.split_at_mut(linear.outputs() * tokens);
            linear.forward_into(x, own)?;
            rest = others;
        }
        if self.interleaved {
            let rows = |first: usize| inner.chunks_exact(tokens).skip(first).step_by(2).flatten().copied();
            inner = rows(0).chain(rows(1)).collect();
        }
        let (gate, up) = inner.split_at_mut(size);
        if let Some(above) = self.above {
            largest(gate, above, tokens);
        }
        gate.par_chunks_mut(SHARE).enumerate().for_each(|(number, gate)| {
            let up = up.chunks(SHARE).nth(number);
            match (self.clamp, up) {
                (Some(clamp), Some(up)) => clamped(clamp, gate, up),
                (_, up) => {
                    activate(self.activation, gate);
                    gate.iter_mut().zip(up.into_iter().flatten()).for_each(|(gate, up)| *gate *= up);
                }
            }
        });
        let inner = x.like(&inner[..size], self.width);
        Linear::show(std::slice::from_ref(&self.down), &inner, watch)?;
        self.down.forward(&inner)
    }
}

impl Block for Dense<'_> {
    fn together(&self) -> Vec<Vec<&Linear<'_>>> {
        vec![self.inputs.iter().collect(), vec![&self.down]]
    }

    fn each(&mut self, visit: &mut Visit<'_>) -> Result<()> {
        self.inputs.iter_mut().chain([&mut self.down]).try_for_each(visit)
    }

    fn work(&self, tokens: usize, _: usize) -> f64 {
        work::linears(&self.together(), tokens as f64)
    }

    fn activations(&self) -> usize {
        3 * self.down.outputs() + 3 * self.width
    }
}

impl FeedForward for Dense<'_> {
    fn forward(&self, x: &Input<'_>, watch: &mut dyn Watch) -> Result<Vec<f32>> {
        Linear::show(&self.inputs, x, watch)?;
        self.behind(x, watch)
    }
}

/// Takes what is so many standard deviations above a token's mean away from its gates, and leaves what is above that.
fn largest(gate: &mut [f32], above: f32, tokens: usize) {
    let count = (gate.len() / tokens.max(1)) as f32;
    let (mut mean, mut squares) = (vec![0.0_f32; tokens], vec![0.0_f32; tokens]);
    gate.chunks_exact(tokens).for_each(|row| mean.iter_mut().zip(row).for_each(|(mean, x)| *mean += x));
    mean.iter_mut().for_each(|mean| *mean /= count);
    for row in gate.chunks_exact(tokens) {
        squares.iter_mut().zip(row.iter().zip(&mean)).for_each(|(sum, (x, mean))| *sum += (x - mean) * (x - mean));
    }
    let pairs = mean.iter().zip(&squares);
    let cut: Vec<f32> = pairs.map(|(mean, squares)| mean + (squares / count).sqrt() * above).collect();
    for row in gate.chunks_exact_mut(tokens) {
        row.iter_mut().zip(&cut).for_each(|(x, cut)| *x = (*x - cut).max(0.0));
    }
}

/// Values that are activated at a time; they stay in a first-level cache.
const SHARE: usize = 4096;
