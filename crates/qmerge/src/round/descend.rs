//! Coordinate descent on a weight's grid: what the methods `descent` and `adapter` share.
//!
//! Minimises J(E) = ½ tr(G E H Eᵀ) with E = Wq − (W0 + D), H the moments of the inputs and G = I + mu·U Uᵀ, U a basis of the outputs that
//! the adapter reaches. mu = 0 is the mean square error of the layer's output; a larger mu keeps the adapter's own directions in full
//! strength, which is what a loss of the model depends on. The start is the base, E = −D, or in another format what that encodes. Each move takes one
//! value to another level, or one run to another scale, and is made only if it lowers J, so the start is the worst case.
//!
//! P = E H (rows, cols) and S = Uᵀ P (directions, cols) are kept up to date. The gradient of row r is P_r + mu·U_r S, and moves within the row
//! add to it g·d·H_j with g = 1 + mu·|U_r|²; P and S take a row's moves at its end. Rows are done in order, so the result depends on nothing but
//! the input.

use super::matrix::{Delta, Kept, Matrix, judged, products};
use crate::formats::Choices;
use crate::simd::vectors::{axpy, axpys, beyond, dot};

/// Passes with one mu.
#[derive(Clone, Copy, Debug)]
pub(super) struct Stage {
    /// Weight of the adapter's own directions.
    pub(super) mu: f32,
    /// Most passes over all rows.
    pub(super) passes: usize,
}

/// A pass that moves fewer than this share of the values ends a stage.
const ENOUGH: f64 = 5e-6;
/// Longest run whose scale may be moved.
const LONGEST_RUN: usize = 256;
/// A scale move costs a run's worth of value moves, so it must pay: by this share of a run's part of its row's objective, times the number of inputs.
/// (At 576 inputs that leaves out 0.03 of the part, at 4096 0.2, which halves the moves and costs 2 % of the objective.)
const PAYS: f32 = 5e-5;
/// Elements that are looked at together.
const BLOCK: usize = 64;

/// Rounds `matrix.values` and `matrix.grid.scales`.
pub(super) fn descend(matrix: &mut Matrix<'_>, stages: &[Stage]) -> Kept {
    let delta = Delta::new(matrix);
    let at_base = matrix.at_base();
    if !delta.norm.is_finite() || at_base && delta.norm <= 0.0 {
        return Kept::ALL;
    }
    let n = matrix.cols;
    // P = E H, S = Uᵀ E H. From the base on E = −D, which is of low rank.
    let (products, shared) = if at_base { delta.lost(matrix.rows) } else { products(matrix, &delta) };
    let inverse = matrix.metric.diagonal.iter().map(|h| 1.0 / h).collect();
    let runs = Runs::new(matrix);
    let start = (matrix.grid.scales.clone(), (!at_base).then(|| matrix.values.clone()));
    let mut state = State { matrix, delta: &delta, products, shared, inverse, runs, row: Row::new(n), mu: 0.0 };
    let last = stages.last().map_or(0.0, |stage| stage.mu);
    let before = state.objective(last);
    for stage in stages {
        state.mu = stage.mu;
        for _ in 0..stage.passes {
            let moved: usize = (0..state.matrix.rows).map(|r| state.row(r)).sum();
            if (moved as f64) < ENOUGH * state.matrix.values.len() as f64 {
                break;
            }
        }
    }
    // Stages with another mu may have raised the last one's objective; then the start is better.
    if state.objective(last) > before {
        let (scales, values) = start;
        state.matrix.values.copy_from_slice(values.as_deref().unwrap_or(state.matrix.base));
        state.matrix.grid.scales = scales;
        return judged(state.matrix, &delta);
    }
    state.kept()
}

struct State<'s, 'm> {
    matrix: &'s mut Matrix<'m>,
    delta: &'s Delta,
    /// P.
    products: Vec<f32>,
    /// S.
    shared: Vec<f32>,
    /// 1 / H_jj.
    inverse: Vec<f32>,
    runs: Option<Runs>,
    row: Row,
    mu: f32,
}

/// Buffers of a row.
struct Row {
    /// Gradient, and what it was before the row's moves.
    pull: Vec<f32>,
    before: Vec<f32>,
    /// Middles between a value and its neighbours.
    low: Vec<f32>,
    high: Vec<f32>,
}

impl Row {
    fn new(n: usize) -> Self {
        Self { pull: vec![0.0; n], before: vec![0.0; n], low: vec![0.0; n], high: vec![0.0; n] }
    }
}

/// Runs whose scales may be moved.
struct Runs {
    len: usize,
    /// The blocks of H on its diagonal, (cols / len, len, len).
    moments: Vec<f32>,
}

impl Runs {
    fn new(matrix: &Matrix<'_>) -> Option<Self> {
        let len = matrix.grid.run;
        if matrix.grid.choices == Choices::Fixed
            || !(2..=LONGEST_RUN).contains(&len)
            || !matrix.cols.is_multiple_of(len)
        {
            return None;
        }
        let row = |i: usize| {
            let start = i / len * len;
            matrix.metric.row(i)[start..start + len].iter().copied()
        };
        Some(Self { len, moments: (0..matrix.cols).flat_map(row).collect() })
    }

    /// `out = H_bb · x` of block `number`.
    fn multiply(&self, number: usize, x: &[f32], out: &mut [f32]) {
        out.fill(0.0);
        let size = self.len * self.len;
        axpys(x, &self.moments[number * size..(number + 1) * size], out);
    }
}

impl State<'_, '_> {
    /// One pass over a row. Returns the number of moves.
    fn row(&mut self, r: usize) -> usize {
        let n = self.matrix.cols;
        let k = self.delta.directions;
        let own = &self.delta.basis[r * k..(r + 1) * k];
        let length = 1.0 + self.mu * dot(own, own);
        let at = r * n..(r + 1) * n;
        self.row.pull.copy_from_slice(&self.products[at.clone()]);
        if self.mu != 0.0 {
            let factors: Vec<f32> = own.iter().map(|u| self.mu * u).collect();
            axpys(&factors, &self.shared, &mut self.row.pull);
        }
        self.row.before.copy_from_slice(&self.row.pull);
        let moved = self.move_values(r, length) + self.move_scales(r, length);
        if moved > 0 {
            let inverse = 1.0 / length;
            for ((product, before), pull) in self.products[at].iter_mut().zip(&mut self.row.before).zip(&self.row.pull)
            {
                *before = (pull - *before) * inverse;
                *product += *before;
            }
            for (q, &u) in own.iter().enumerate() {
                axpy(u, &self.row.before, &mut self.shared[q * n..(q + 1) * n]);
            }
        }
        moved
    }

    fn move_values(&mut self, r: usize, length: f32) -> usize {
        let n = self.matrix.cols;
        let Matrix { values, grid, metric, .. } = &mut *self.matrix;
        let values = &mut values[r * n..(r + 1) * n];
        let Row { pull, low, high, .. } = &mut self.row;
        grid.neighbours(r * n, values, low, high);
        low.iter_mut().zip(&mut *high).zip(&*values).for_each(|((low, high), value)| {
            (*low, *high) = (0.5 * (*low + value), 0.5 * (*high + value));
        });
        let mut moved = 0;
        for start in (0..n).step_by(BLOCK) {
            let block = start..(start + BLOCK).min(n);
            let look = |values: &[f32], pull: &[f32], low: &[f32], high: &[f32]| {
                let b = block.clone();
                beyond(
                    &values[b.clone()],
                    &pull[b.clone()],
                    &self.inverse[b.clone()],
                    1.0 / length,
                    &low[b.clone()],
                    &high[b],
                )
            };
            let mut mask = look(values, pull, low, high);
            while mask != 0 {
                let bit = mask.trailing_zeros();
                mask &= mask - 1;
                let j = start + bit as usize;
                let curvature = length * metric.diagonal[j];
                let value = grid.nearest(r * n + j, values[j] - pull[j] / curvature);
                let step = value - values[j];
                if step == 0.0 || step * (pull[j] + 0.5 * curvature * step) >= 0.0 {
                    continue;
                }
                values[j] = value;
                let (mut below, mut above) = ([0.0], [0.0]);
                grid.neighbours(r * n + j, &[value], &mut below, &mut above);
                (low[j], high[j]) = (0.5 * (below[0] + value), 0.5 * (above[0] + value));
                axpy(length * step, metric.row(j), pull);
                moved += 1;
                let later = u64::MAX.checked_shl(bit + 1).unwrap_or(0);
                mask = look(values, pull, low, high) & later;
            }
        }
        moved
    }

    /// Moves the scale of each run of a row to the best that can be stored, if that lowers the objective.
    fn move_scales(&mut self, r: usize, length: f32) -> usize {
        let Some(runs) = &self.runs else { return 0 };
        let n = self.matrix.cols;
        let own = self.matrix.values[r * n..(r + 1) * n].iter().zip(&self.matrix.target[r * n..(r + 1) * n]);
        let error: Vec<f32> = own.map(|(value, target)| value - target).collect();
        let least = PAYS * runs.len as f32 * 0.5 * dot(&error, &self.row.pull).max(0.0);
        let Matrix { values, grid, metric, .. } = &mut *self.matrix;
        let pull = &mut self.row.pull;
        let (mut direction, mut product) = (vec![0.0; runs.len], vec![0.0; runs.len]);
        let mut moved = vec![0.0; runs.len];
        let mut count = 0;
        for number in 0..n / runs.len {
            let run = r * (n / runs.len) + number;
            let scale = grid.scales[run];
            let columns = number * runs.len..(number + 1) * runs.len;
            let own = &mut values[r * n..(r + 1) * n][columns.clone()];
            if scale == 0.0 {
                continue;
            }
            direction.iter_mut().zip(&*own).for_each(|(direction, value)| *direction = value / scale);
            runs.multiply(number, &direction, &mut product);
            let curvature = length * dot(&direction, &product);
            if curvature <= 0.0 {
                continue;
            }
            let wanted = grid.choice(run, scale - dot(&direction, &pull[columns.clone()]) / curvature);
            // A scale never changes its sign, nor vanishes.
            if wanted == scale || wanted * scale <= 0.0 {
                continue;
            }
            grid.rescaled(run, own, wanted, &mut moved);
            moved.iter_mut().zip(&*own).for_each(|(moved, value)| *moved -= value);
            runs.multiply(number, &moved, &mut product);
            let gain = dot(&moved, &pull[columns.clone()]) + 0.5 * length * dot(&moved, &product);
            if gain >= -least || !gain.is_finite() {
                continue;
            }
            grid.scales[run] = wanted;
            for (value, step) in own.iter_mut().zip(&moved) {
                *value += step;
            }
            moved.iter_mut().for_each(|step| *step *= length);
            axpys(&moved, &metric.values[columns.start * n..columns.end * n], pull);
            count += 1;
        }
        count
    }

    /// 2 J.
    fn objective(&self, mu: f32) -> f64 {
        let (n, k) = (self.matrix.cols, self.delta.directions);
        let mut total = 0.0;
        let mut along = vec![0.0; k * n];
        let mut error = vec![0.0; n];
        for r in 0..self.matrix.rows {
            self.error(r, &mut error);
            total += f64::from(dot(&error, &self.products[r * n..(r + 1) * n]));
            if mu != 0.0 {
                for (q, &u) in self.delta.basis[r * k..(r + 1) * k].iter().enumerate() {
                    axpy(u, &error, &mut along[q * n..(q + 1) * n]);
                }
            }
        }
        let shared: f64 =
            along.chunks_exact(n).zip(self.shared.chunks_exact(n)).map(|(a, s)| f64::from(dot(a, s))).sum();
        total + f64::from(mu) * shared
    }

    fn error(&self, r: usize, error: &mut [f32]) {
        let at = r * self.matrix.cols..(r + 1) * self.matrix.cols;
        let pairs = self.matrix.values[at.clone()].iter().zip(&self.matrix.target[at]);
        error.iter_mut().zip(pairs).for_each(|(error, (value, target))| *error = value - target);
    }

    fn kept(&self) -> Kept {
        if self.delta.norm <= 0.0 {
            return Kept::ALL;
        }
        Kept { output: self.delta.kept(self.matrix), noise: self.objective(0.0) / self.delta.norm }
    }
}
