//! DoRA: the edited weight takes a trained norm per output.
//!
//! With V = W + scaling·B·A, `W' = (m / ‖V‖) · V`, the norm over each output's inputs. Source: PEFT 0.21,
//! `tuners/lora/dora.py`. V's base is the unedited weight even when other adapters came before. The norms are summed in
//! torch's order for x86, so they agree with PEFT to the bit.

use super::low_rank::LowRankPlan;
use crate::adapters::{ChangePlan, Loader};
use crate::edit::{Change, Map, Product, Reach, Tile};
use crate::error::Result;

/// A planned DoRA.
#[derive(Debug)]
pub(super) struct DoraPlan {
    pub(super) low_rank: LowRankPlan,
    pub(super) magnitude: String,
}

impl ChangePlan for DoraPlan {
    fn load(&self, loader: &Loader<'_>) -> Result<Change> {
        let magnitude = loader.floats(&self.magnitude)?;
        let dora =
            |product| -> Box<dyn Map> { Box::new(Dora { product, magnitude: magnitude.clone(), norms: Vec::new() }) };
        Ok(Change::Map(self.low_rank.products(loader)?.into_iter().map(dora).collect()))
    }

    fn matrices(&self) -> usize {
        self.low_rank.matrices
    }

    fn memory(&self) -> u64 {
        self.low_rank.memory() + 8 * self.low_rank.outputs as u64
    }

    fn reach(&self) -> Reach {
        Reach::Sums
    }

    fn scale(&self) -> Option<f64> {
        self.low_rank.scale()
    }
}

#[derive(Debug)]
struct Dora {
    product: Product,
    magnitude: Vec<f32>,
    /// ‖V‖ of each output, where a survey had to find it.
    norms: Vec<f32>,
}

impl Dora {
    fn delta(&self, tile: &Tile) -> Vec<f32> {
        let mut delta = vec![0.0; tile.len()];
        self.product.tile(tile, &mut delta);
        delta
    }
}

impl Map for Dora {
    fn apply(&self, tile: &Tile, base: &[f32], values: &mut [f32]) {
        let delta = self.delta(tile);
        let width = tile.inputs.len().max(1);
        let mut sum = vec![0.0; width];
        let base = base.chunks_exact(width).zip(delta.chunks_exact(width));
        for ((output, values), (base, delta)) in tile.outputs.clone().zip(values.chunks_exact_mut(width)).zip(base) {
            let norm = self.norms.get(output).copied().unwrap_or_else(|| {
                for ((sum, base), delta) in sum.iter_mut().zip(base).zip(delta) {
                    *sum = base + delta;
                }
                norm(&sum)
            });
            // As many magnitudes as outputs were planned; a NaN would not get past the checks of a chunk.
            let factor = self.magnitude.get(output).copied().unwrap_or(f32::NAN) / norm;
            for (value, delta) in values.iter_mut().zip(delta) {
                *value = factor * (*value + delta);
            }
        }
    }

    fn survey(&self, tile: &Tile, base: &[f32], sums: &mut Vec<f32>) {
        sums.resize(tile.outputs.end, 0.0);
        let delta = self.delta(tile);
        let width = tile.inputs.len().max(1);
        for (sum, (base, delta)) in sums.iter_mut().zip(base.chunks_exact(width).zip(delta.chunks_exact(width))) {
            for (base, delta) in base.iter().zip(delta) {
                let value = base + delta;
                *sum += value * value;
            }
        }
    }

    fn settle(&mut self, sums: Vec<f32>) {
        self.norms = sums.into_iter().map(f32::sqrt).collect();
    }
}

/// `torch.linalg.norm` of a row on x86: eight lanes of multiply-then-add, the lanes left to right, then the tail, whose last
/// one to three elements are fused.
fn norm(row: &[f32]) -> f32 {
    let mut lanes = [0.0_f32; 8];
    let chunks = row.chunks_exact(8);
    let tail = chunks.remainder();
    for chunk in chunks {
        for (lane, x) in lanes.iter_mut().zip(chunk) {
            *lane += x * x;
        }
    }
    let [first, others @ ..] = lanes;
    let mut sum = others.iter().fold(first, |sum, lane| sum + lane);
    let (plain, fused) = tail.split_at(tail.len() / 4 * 4);
    for x in plain {
        sum += x * x;
    }
    for x in fused {
        sum = x.mul_add(*x, sum);
    }
    sum.sqrt()
}
