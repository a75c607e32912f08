//! Norms over features, a column at a time.

use qmerge::arch::spec::Norm;
use qmerge::error::Result;

use crate::tensors::Tensors;

/// A norm with its weights.
#[derive(Debug)]
pub(crate) struct Normalize {
    /// The mean is taken away first.
    centers: bool,
    /// One for each feature; none where nothing is stored.
    weight: Vec<f32>,
    bias: Vec<f32>,
    /// Features with weights of their own.
    features: usize,
    /// Features that are normalized together.
    group: usize,
    eps: f32,
}

impl Normalize {
    pub(crate) fn new(tensors: &Tensors<'_>, path: &str, features: usize, kind: Norm, eps: f32) -> Result<Self> {
        let mut weight = match kind {
            Norm::LayerWithoutWeight | Norm::RmsWithoutWeight => Vec::new(),
            _ => tensors.needed(&format!("{path}.weight"), features)?,
        };
        if matches!(kind, Norm::RmsPlusOne | Norm::LayerPlusOne) {
            weight.iter_mut().for_each(|weight| *weight += 1.0);
        }
        let bias = match kind {
            Norm::Layer | Norm::LayerPlusOne => tensors.needed(&format!("{path}.bias"), features)?,
            _ => Vec::new(),
        };
        let centers = !matches!(kind, Norm::Rms | Norm::RmsPlusOne | Norm::RmsWithoutWeight);
        Ok(Self { centers, weight, bias, features, group: features, eps })
    }

    /// Normalizes so many features at a time, each group with its own weights.
    pub(crate) fn by_groups(self, group: usize) -> Self {
        Self { group, ..self }
    }

    /// Several norms over the same number of features, side by side.
    pub(crate) fn joined(self, other: Self) -> Self {
        let (mut weight, mut bias) = (self.weight, self.bias);
        weight.extend(other.weight);
        bias.extend(other.bias);
        Self { weight, bias, features: self.features + other.features, ..self }
    }

    /// What becomes of `x` (features, tokens).
    pub(crate) fn applied(&self, x: &[f32], tokens: usize) -> Vec<f32> {
        let mut x = x.to_vec();
        self.apply(&mut x, tokens);
        x
    }

    /// Normalizes `x` (features, tokens) in place; more features than weights are several groups, each normalized by itself.
    pub(crate) fn apply(&self, x: &mut [f32], tokens: usize) {
        for (number, group) in x.chunks_exact_mut((self.group * tokens).max(1)).enumerate() {
            self.one(group, tokens, number * self.group % self.features);
        }
    }

    /// One group, whose weights begin at `first`.
    fn one(&self, x: &mut [f32], tokens: usize, first: usize) {
        let count = self.group as f32;
        if self.centers {
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
        for (i, row) in (first..).zip(x.chunks_exact_mut(tokens)) {
            let weight = self.weight.get(i).copied().unwrap_or(1.0);
            let bias = self.bias.get(i).copied().unwrap_or(0.0);
            row.iter_mut().zip(&scale).for_each(|(x, scale)| *x = *x * scale * weight + bias);
        }
    }
}

fn add(sums: &mut [f32], row: &[f32], f: impl Fn(f32) -> f32) {
    sums.iter_mut().zip(row).for_each(|(sum, &x)| *sum += f(x));
}
