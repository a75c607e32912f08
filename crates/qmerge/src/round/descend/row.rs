//! The moves of one row in one block of columns.

use std::ops::Range;

use super::super::matrix::Matrix;
use super::{Buffers, State};
use crate::formats::{Choices, Grid};
use crate::simd::vectors::{axpy, axpys, beyond, dot, outer, within};

/// A scale move costs a run's worth of value moves, so it must pay: by this share of a run's part of the objective, times the number of inputs.
/// (At 576 inputs that leaves out 0.03 of the part, at 4096 0.2, which halves the moves and costs 2 % of the objective.)
const PAYS: f32 = 5e-5;
/// Elements that are looked at together.
const BLOCK: usize = 64;

impl State<'_, '_> {
    /// A row in a block. Returns the number of moves.
    pub(super) fn row(&mut self, r: usize, block: &Range<usize>) -> usize {
        let (place, own) = (self.place(r, block), self.delta.own(r));
        let length = 1.0 + self.mu * self.lengths[r];
        let directions = self.delta.directions;
        let shared = &mut self.shared[directions * block.start..directions * block.end];
        let Buffers { pull, before, steps, factors, .. } = &mut self.buffers;
        pull.copy_from_slice(&self.products[place.clone()]);
        if self.mu != 0.0 {
            factors.clear();
            factors.extend(own.iter().map(|u| self.mu * u));
            axpys(factors, shared, pull);
        }
        before.copy_from_slice(pull);
        steps.copy_from_slice(&self.values[place.clone()]);
        let moved = self.move_values(r, block, length) + self.move_scales(r, block, length);
        if moved > 0 {
            let inverse = 1.0 / length;
            let shared = &mut self.shared[directions * block.start..directions * block.end];
            let Buffers { pull, before, steps, .. } = &mut self.buffers;
            for ((product, before), pull) in self.products[place.clone()].iter_mut().zip(&mut *before).zip(pull) {
                *before = (*pull - *before) * inverse;
                *product += *before;
            }
            steps.iter_mut().zip(&self.values[place]).for_each(|(step, value)| *step = value - *step);
            if self.mu != 0.0 {
                outer(own, before, shared, 0..block.len());
            }
            self.own.push(r, block.start, steps);
        }
        moved
    }

    fn move_values(&mut self, r: usize, block: &Range<usize>, length: f32) -> usize {
        let (width, place) = (block.len(), self.place(r, block));
        let first = r * self.matrix.cols + block.start;
        let Matrix { grid, metric, .. } = &*self.matrix;
        let (diagonal, inverse) = (&metric.diagonal[block.clone()], &self.inverse[block.clone()]);
        let values = &mut self.values[place];
        let Buffers { pull, low, high, square, .. } = &mut self.buffers;
        let scale =
            grid.scales_of(first..first + width).iter().fold(f32::INFINITY, |least, scale| least.min(scale.abs()));
        if self.half_gap > 0.0 && within(pull, inverse, 1.0 / length, self.half_gap * scale) {
            return 0;
        }
        grid.neighbours(first, values, low, high);
        low.iter_mut().zip(&mut *high).zip(&*values).for_each(|((low, high), value)| {
            (*low, *high) = (0.5 * (*low + value), 0.5 * (*high + value));
        });
        let mut moved = 0;
        for start in (0..width).step_by(BLOCK) {
            let some = start..(start + BLOCK).min(width);
            let look = |values: &[f32], pull: &[f32], low: &[f32], high: &[f32]| {
                let s = some.clone();
                beyond(
                    &values[s.clone()],
                    &pull[s.clone()],
                    &inverse[s.clone()],
                    1.0 / length,
                    &low[s.clone()],
                    &high[s],
                )
            };
            let mut mask = look(values, pull, low, high);
            while mask != 0 {
                let bit = mask.trailing_zeros();
                mask &= mask - 1;
                let j = start + bit as usize;
                let curvature = length * diagonal[j];
                let value = grid.nearest(first + j, values[j] - pull[j] / curvature);
                let step = value - values[j];
                let gain = step * (pull[j] + 0.5 * curvature * step);
                if step == 0.0 || gain >= 0.0 {
                    continue;
                }
                self.objective += 2.0 * f64::from(gain);
                values[j] = value;
                let (mut below, mut above) = ([0.0], [0.0]);
                grid.neighbours(first + j, &[value], &mut below, &mut above);
                (low[j], high[j]) = (0.5 * (below[0] + value), 0.5 * (above[0] + value));
                axpy(length * step, &square[j * width..(j + 1) * width], pull);
                moved += 1;
                if let Some(len) = self.run {
                    self.curvatures[(first + j) / len] = f32::NAN;
                }
                let later = u64::MAX.checked_shl(bit + 1).unwrap_or(0);
                mask = look(values, pull, low, high) & later;
            }
        }
        moved
    }

    /// Moves the scale and the offset of each run of a row to the best that can be stored, if that lowers the objective enough.
    fn move_scales(&mut self, r: usize, block: &Range<usize>, length: f32) -> usize {
        let Some(len) = self.run else { return 0 };
        let place = self.place(r, block);
        let (rows, n, width) = (self.matrix.rows, self.matrix.cols, block.len());
        let mut own = Own {
            grid: &mut self.matrix.grid,
            length,
            least: PAYS * len as f32 * 0.5 * (self.objective.max(0.0) / rows as f64) as f32,
            objective: &mut self.objective,
        };
        let Buffers { pull, square, runs, flat, direction, product, .. } = &mut self.buffers;
        let mut count = 0;
        for (number, moments) in runs.chunks_exact(len * len).enumerate() {
            let columns = number * len..(number + 1) * len;
            let run = (r * n + block.start + columns.start) / len;
            let curvature = &mut self.curvatures[run];
            let mut at = Run {
                number: run,
                values: &mut self.values[place.start + columns.start..][..len],
                moments,
                square: &square[columns.start * width..columns.end * width],
                columns,
                pull,
                direction,
                product,
            };
            count += usize::from(own.move_scale(&mut at, curvature));
            count += usize::from(own.move_offset(&mut at, flat[number]));
        }
        count
    }
}

/// What all runs of a row share.
struct Own<'o> {
    grid: &'o mut Grid,
    length: f32,
    /// What a move must gain.
    least: f32,
    objective: &'o mut f64,
}

/// A run of a row.
struct Run<'o> {
    number: usize,
    values: &'o mut [f32],
    /// H of its columns among themselves, and with all of the block.
    moments: &'o [f32],
    square: &'o [f32],
    /// Its columns in the block.
    columns: Range<usize>,
    /// Gradient of the row in the block.
    pull: &'o mut [f32],
    direction: &'o mut [f32],
    product: &'o mut [f32],
}

impl Run<'_> {
    /// dᵀ H d of the direction.
    fn curvature(&mut self) -> f32 {
        self.product.fill(0.0);
        axpys(self.direction, self.moments, self.product);
        dot(self.direction, self.product)
    }
}

impl Own<'_> {
    /// The scale; `curvature` is that of J along it, NaN where it is not known.
    fn move_scale(&mut self, run: &mut Run<'_>, curvature: &mut f32) -> bool {
        let (scale, offset) = (self.grid.scales[run.number], self.grid.offset(run.number));
        if scale == 0.0 || self.grid.choices == Choices::Fixed {
            return false;
        }
        if curvature.is_nan() {
            let pairs = run.direction.iter_mut().zip(&*run.values);
            pairs.for_each(|(direction, value)| *direction = (value - offset) / scale);
            *curvature = run.curvature();
        }
        let pull = &run.pull[run.columns.clone()];
        let mut slope = dot(run.values, pull);
        if offset != 0.0 {
            slope -= offset * pull.iter().sum::<f32>();
        }
        let Some(step) = self.step(slope / scale, self.length * *curvature) else { return false };
        let wanted = self.grid.choice(run.number, scale + step);
        // A scale never changes its sign, nor vanishes.
        if wanted == scale || wanted * scale <= 0.0 || !self.take(run, wanted, offset) {
            return false;
        }
        self.grid.scales[run.number] = wanted;
        *curvature = f32::NAN;
        true
    }

    fn move_offset(&mut self, run: &mut Run<'_>, curvature: f32) -> bool {
        if self.grid.offsets.is_empty() || self.grid.offset_choices == Choices::Fixed {
            return false;
        }
        let (scale, offset) = (self.grid.scales[run.number], self.grid.offset(run.number));
        let slope = run.pull[run.columns.clone()].iter().sum::<f32>();
        let Some(step) = self.step(slope, self.length * curvature) else { return false };
        let wanted = self.grid.offset_choice(run.number, offset + step);
        if wanted == offset || !self.take(run, scale, wanted) {
            return false;
        }
        self.grid.offsets[run.number] = wanted;
        true
    }

    /// By how much to move along a line; `None` if even the best place, stored or not, gains too little.
    fn step(&self, slope: f32, curvature: f32) -> Option<f32> {
        (curvature > 0.0 && slope * slope > 2.0 * curvature * self.least).then(|| -slope / curvature)
    }

    /// Gives the run's levels their values under another scale and offset, if that gains enough.
    fn take(&mut self, run: &mut Run<'_>, scale: f32, offset: f32) -> bool {
        self.grid.moved(run.number, run.values, scale, offset, run.direction);
        run.direction.iter_mut().zip(&*run.values).for_each(|(moved, value)| *moved -= value);
        let gain = dot(run.direction, &run.pull[run.columns.clone()]) + 0.5 * self.length * run.curvature();
        if gain >= -self.least || !gain.is_finite() {
            return false;
        }
        *self.objective += 2.0 * f64::from(gain);
        run.values.iter_mut().zip(&*run.direction).for_each(|(value, step)| *value += step);
        run.direction.iter_mut().for_each(|step| *step *= self.length);
        axpys(run.direction, run.square, run.pull);
        true
    }
}
