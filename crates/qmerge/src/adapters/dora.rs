//! DoRA: the edited weight takes a trained norm per output.
//!
//! With V = W + scaling·B·A, `W' = (m / ‖V‖) · V`, the norm over each output's inputs. Source: PEFT 0.21,
//! `tuners/lora/dora.py`. V's base is the unedited weight even when other adapters came before. The norms are summed in
//! torch's order for x86, so they agree with PEFT to the bit.

use std::ops::Range;

use super::low_rank::LowRankPlan;
use super::{EditPlan, read_floats};
use crate::edit::{Delta, Edit, LowRank, Map};
use crate::error::Result;
use crate::open::Checkpoint;

/// A planned DoRA edit.
#[derive(Clone, Debug)]
pub(super) struct DoraPlan {
    pub(super) low_rank: LowRankPlan,
    pub(super) magnitude: String,
    /// True if outputs are the stored weight's rows, false if they are its columns (Conv1D, embeddings).
    pub(super) outputs_are_rows: bool,
}

impl EditPlan for DoraPlan {
    fn load(&self, tensors: &Checkpoint) -> Result<Edit> {
        Ok(Edit::Map(Box::new(Dora {
            low_rank: self.low_rank.load_factors(tensors)?,
            magnitude: read_floats(tensors, &self.magnitude)?,
            outputs_are_rows: self.outputs_are_rows,
            column_norms: Vec::new(),
        })))
    }

    fn memory(&self) -> u64 {
        self.low_rank.memory() + 8 * self.low_rank.outputs as u64
    }

    fn is_additive(&self) -> bool {
        false
    }

    fn needs_survey(&self) -> bool {
        !self.outputs_are_rows
    }

    fn scale(&self) -> Option<f64> {
        Some(self.low_rank.scale)
    }

    fn shape(&self) -> Option<(usize, usize)> {
        self.low_rank.shape()
    }
}

#[derive(Debug)]
struct Dora {
    low_rank: LowRank,
    magnitude: Vec<f32>,
    outputs_are_rows: bool,
    column_norms: Vec<f32>,
}

impl Dora {
    fn delta(&self, rows: &Range<usize>, cols: usize) -> Vec<f32> {
        let mut delta = vec![0.0; rows.len() * cols];
        self.low_rank.add(rows.clone(), cols, true, &mut delta);
        delta
    }
}

impl Map for Dora {
    fn apply(&self, rows: Range<usize>, cols: usize, base: &[f32], values: &mut [f32]) {
        let delta = self.delta(&rows, cols);
        let mut sum = vec![0.0; cols];
        let width = cols.max(1);
        let base = base.chunks_exact(width).zip(delta.chunks_exact(width));
        for ((row, values), (base, delta)) in rows.zip(values.chunks_exact_mut(width)).zip(base) {
            if self.outputs_are_rows {
                for ((sum, base), delta) in sum.iter_mut().zip(base).zip(delta) {
                    *sum = base + delta;
                }
                // As many magnitudes as outputs were planned; a NaN would not get past the checks of a chunk.
                let factor = self.magnitude.get(row).copied().unwrap_or(f32::NAN) / norm(&sum);
                for (value, delta) in values.iter_mut().zip(delta) {
                    *value = factor * (*value + delta);
                }
            } else {
                let factors = self.magnitude.iter().zip(&self.column_norms).map(|(magnitude, norm)| magnitude / norm);
                for ((value, delta), factor) in values.iter_mut().zip(delta).zip(factors) {
                    *value = factor * (*value + delta);
                }
            }
        }
    }

    fn needs_survey(&self) -> bool {
        !self.outputs_are_rows
    }

    fn survey(&self, rows: Range<usize>, cols: usize, base: &[f32], sums: &mut Vec<f32>) {
        sums.resize(cols, 0.0);
        let delta = self.delta(&rows, cols);
        for (base, delta) in base.chunks_exact(cols.max(1)).zip(delta.chunks_exact(cols.max(1))) {
            for ((sum, base), delta) in sums.iter_mut().zip(base).zip(delta) {
                let value = base + delta;
                *sum += value * value;
            }
        }
    }

    fn settle(&mut self, sums: Vec<f32>) {
        self.column_norms = sums.into_iter().map(f32::sqrt).collect();
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
