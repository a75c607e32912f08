//! The moves of one row in one block of columns.

use std::ops::Range;

use super::super::matrix::Matrix;
use super::{Buffers, State};
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
            self.moves.push(r, block.clone().zip(steps.iter().copied()).filter(|(_, step)| *step != 0.0));
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
        let scales = grid.scales.get(first / grid.run..(first + width).div_ceil(grid.run)).unwrap_or_default();
        let scale = scales.iter().fold(f32::INFINITY, |least, scale| least.min(scale.abs()));
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

    /// Moves the scale of each run of a row to the best that can be stored, if that lowers the objective enough.
    fn move_scales(&mut self, r: usize, block: &Range<usize>, length: f32) -> usize {
        let Some(len) = self.run else { return 0 };
        let place = self.place(r, block);
        let (rows, n, grid) = (self.matrix.rows, self.matrix.cols, &mut self.matrix.grid);
        let least = PAYS * len as f32 * 0.5 * (self.objective.max(0.0) / rows as f64) as f32;
        let Buffers { pull, square, runs, direction, product, .. } = &mut self.buffers;
        let mut multiply = |x: &[f32], moments: &[f32]| {
            product.fill(0.0);
            axpys(x, moments, product);
            dot(x, product)
        };
        let mut count = 0;
        for (number, moments) in runs.chunks_exact(len * len).enumerate() {
            let columns = number * len..(number + 1) * len;
            let first = r * n + block.start + columns.start;
            let run = first / len;
            let scale = grid.scales[run];
            let own = &mut self.values[place.start + columns.start..][..len];
            if scale == 0.0 {
                continue;
            }
            let curvature = &mut self.curvatures[run];
            if curvature.is_nan() {
                direction.iter_mut().zip(&*own).for_each(|(direction, value)| *direction = value / scale);
                *curvature = multiply(direction, moments);
            }
            let curvature = length * *curvature;
            let slope = dot(own, &pull[columns.clone()]) / scale;
            // The best scale of all, stored or not, gains as much as this.
            if curvature <= 0.0 || slope * slope <= 2.0 * curvature * least {
                continue;
            }
            let wanted = grid.choice(run, scale - slope / curvature);
            // A scale never changes its sign, nor vanishes.
            if wanted == scale || wanted * scale <= 0.0 {
                continue;
            }
            grid.rescaled(run, own, wanted, direction);
            direction.iter_mut().zip(&*own).for_each(|(moved, value)| *moved -= value);
            let gain = dot(direction, &pull[columns.clone()]) + 0.5 * length * multiply(direction, moments);
            if gain >= -least || !gain.is_finite() {
                continue;
            }
            self.objective += 2.0 * f64::from(gain);
            grid.scales[run] = wanted;
            self.curvatures[run] = f32::NAN;
            for (value, step) in own.iter_mut().zip(&*direction) {
                *value += step;
            }
            direction.iter_mut().for_each(|step| *step *= length);
            let width = block.len();
            axpys(direction, &square[columns.start * width..columns.end * width], pull);
            count += 1;
        }
        count
    }
}
