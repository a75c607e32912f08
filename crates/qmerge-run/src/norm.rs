//! Norms over features, a column at a time.

use qmerge::arch::spec::Norm;
use qmerge::error::Result;

use crate::tensors::Tensors;

/// A norm with its weights.
#[derive(Debug)]
pub(crate) struct Normalize {
    kind: Norm,
    weight: Vec<f32>,
    bias: Vec<f32>,
    eps: f32,
}

impl Normalize {
    pub(crate) fn new(tensors: &Tensors<'_>, path: &str, features: usize, kind: Norm, eps: f32) -> Result<Self> {
        let mut weight = tensors.needed(&format!("{path}.weight"), features)?;
        if kind == Norm::RmsPlusOne {
            weight.iter_mut().for_each(|weight| *weight += 1.0);
        }
        let bias = match kind {
            Norm::Layer => tensors.needed(&format!("{path}.bias"), features)?,
            _ => Vec::new(),
        };
        Ok(Self { kind, weight, bias, eps })
    }

    /// Normalizes `x` (features, tokens) in place; more features than weights are several groups, each normalized by itself.
    pub(crate) fn apply(&self, x: &mut [f32], tokens: usize) {
        for group in x.chunks_exact_mut((self.weight.len() * tokens).max(1)) {
            self.one(group, tokens);
        }
    }

    fn one(&self, x: &mut [f32], tokens: usize) {
        let count = self.weight.len() as f32;
        if self.kind == Norm::Layer {
            let mut mean = vec![0.0; tokens];
            x.chunks_exact(tokens).for_each(|row| add(&mut mean, row, |x| x));
            mean.iter_mut().for_each(|mean| *mean /= count);
            for row in x.chunks_exact_mut(tokens) {
                row.iter_mut().zip(&mean).for_each(|(x, mean)| *x -= mean);
            }
        }
        let mut scale = vec![0.0; tokens];
        x.chunks_exact(tokens).for_each(|row| add(&mut scale, row, |x| x * x));
        scale.iter_mut().for_each(|sum| *sum = 1.0 / (*sum / count + self.eps).sqrt());
        for (i, row) in x.chunks_exact_mut(tokens).enumerate() {
            let (weight, bias) = (self.weight[i], self.bias.get(i).copied().unwrap_or(0.0));
            row.iter_mut().zip(&scale).for_each(|(x, scale)| *x = *x * scale * weight + bias);
        }
    }
}

fn add(sums: &mut [f32], row: &[f32], f: impl Fn(f32) -> f32) {
    sums.iter_mut().zip(row).for_each(|(sum, &x)| *sum += f(x));
}
