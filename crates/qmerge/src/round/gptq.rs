//! GPTQ (Frantar et al. 2022): columns in the order of falling diagonal of H, the error of each carried to those that follow.
//!
//! In the form of LDLQ (Chee et al. 2023), which is the same: with H = (I + L)ᵀ D (I + L), L strictly lower in the order of work, column k takes the level nearest to
//! w_k + Σ_j (w_j − q_j)·L_kj over the columns j before it.

use super::matrix::{Delta, Kept, Matrix, judged};
use super::moments::Metric;
use super::{Rounding, Whole};
use crate::simd::vectors::axpy;

pub(super) struct Gptq;

impl Rounding for Gptq {
    fn id(&self) -> &'static str {
        "gptq"
    }

    fn about(&self) -> &'static str {
        "the base's scales stay, each column's error is carried to the next; needs calibration"
    }

    fn keeps_scales(&self) -> bool {
        true
    }

    // Weights without known inputs are rounded stochastically.
    fn is_random(&self) -> bool {
        true
    }

    fn whole(&self) -> Option<&dyn Whole> {
        Some(self)
    }
}

impl Whole for Gptq {
    fn round(&self, matrix: &mut Matrix<'_>) -> Kept {
        let n = matrix.cols;
        let mut order: Vec<usize> = (0..n).collect();
        order.sort_by(|&a, &b| matrix.metric.diagonal[b].total_cmp(&matrix.metric.diagonal[a]));
        let feedback = feedback(matrix.metric, &order);
        let mut wanted = vec![0.0; n];
        let start = matrix.values.clone();
        for r in 0..matrix.rows {
            let target = &matrix.target[r * n..(r + 1) * n];
            wanted.iter_mut().zip(&order).for_each(|(wanted, &j)| *wanted = target[j]);
            for (k, &j) in order.iter().enumerate() {
                let value = matrix.grid.nearest(r * n + j, wanted[k]);
                matrix.values[r * n + j] = value;
                let error = target[j] - value;
                axpy(error, &feedback[k * n + k + 1..(k + 1) * n], &mut wanted[k + 1..]);
            }
        }
        better(matrix, start)
    }
}

/// Row k holds, for the columns after the k-th, what its error adds to them: (n, n), of which the part above the diagonal is used.
fn feedback(metric: &Metric, order: &[usize]) -> Vec<f32> {
    let n = order.len();
    let mut h: Vec<f32> = order.iter().flat_map(|&i| order.iter().map(move |&j| metric.at(i, j))).collect();
    // From the last column to the first: its share of all before it is divided out.
    for k in (1..n).rev() {
        let (before, own) = h.split_at_mut(k * n);
        let pivot = own[k];
        if pivot <= 0.0 {
            // Rounding has eaten what damping left: such a column takes no feedback.
            (0..k).for_each(|i| before[i * n + k] = 0.0);
            continue;
        }
        // What is divided out is kept up below the diagonal only.
        let column = &own[..k];
        for (i, &x) in column.iter().enumerate() {
            axpy(-x / pivot, &column[..=i], &mut before[i * n..i * n + i + 1]);
            before[i * n + k] = x / pivot;
        }
    }
    h
}

/// What became of the output; the start again where that is better.
fn better(matrix: &mut Matrix<'_>, start: Vec<f32>) -> Kept {
    let delta = Delta::new(matrix);
    let found = judged(matrix, &delta);
    let values = std::mem::replace(&mut matrix.values, start);
    let before = judged(matrix, &delta);
    if before.noise < found.noise {
        return before;
    }
    matrix.values = values;
    found
}
