//! Where descent begins.
//!
//! At the base's codes, where a step of the grid is large against the delta: there E = −D, and few values have to move. Where most of the delta is more than half a step,
//! as on 8 bits, nearly all values have to, one by one and each in view of what the others still lack; that ends further from the best than the nearest levels
//! to the target already are. Both are tried by their error, and the less begins. Where the adapter's output is asked for, errors are carried from column to column first
//! (`carried.rs`), which did better than either where moments are those of a text.
//!
//! What multiplies outputs, which no few directions hold, has the base's codes under other scales, as far as these can be stored: such runs begin so, and where that is
//! nearly all of the delta no value has to move.

use super::super::matrix::{Delta, Matrix};
use super::carried::{carry_errors, sample};
use super::{AT_ONCE, SETTLED};
use crate::formats::Choices;
use crate::parallel::spread;
use crate::simd::vectors::dot;

/// Fewer values than one in so many that are nearer to another level than to the base's: the base it is.
const FEW: usize = 8;
/// Under other scales a run may lack this share of its delta's squares.
const TAKEN_IN: f64 = 0.5;
/// One row of so many is looked at for that.
const SAMPLE: usize = 16;

/// What descent goes back to, if it ends above it.
pub(super) struct Start {
    scales: Vec<f32>,
    offsets: Vec<f32>,
    pub(super) values: Values,
}

/// The values of a start.
pub(super) enum Values {
    /// The base's.
    Base,
    /// What carrying errors makes of the target, with what it began with to go back to.
    Carried(Begun),
    /// The levels of the base's grid that are nearest to the target.
    Nearest,
    /// Those that another format begins with, or the base's under other scales.
    Given(Vec<f32>),
}

/// What errors are carried from.
pub(super) enum Begun {
    Base,
    /// The base's values under other scales, and the share of ‖D‖²_H that these leave, by rows that stand for all.
    Rescaled(Vec<f32>, f64),
}

impl Start {
    /// Chooses `matrix.values`.
    pub(super) fn of(matrix: &mut Matrix<'_>, delta: &Delta, at_base: bool, asks: bool) -> Self {
        let is_rescaled = at_base && matrix.rank.is_none() && rescale(matrix);
        let (scales, offsets) = (matrix.grid.scales.clone(), matrix.grid.offsets.clone());
        let values = match (at_base, is_rescaled) {
            (true, true) => match if asks { left(matrix, delta) } else { 0.0 } {
                little if little < SETTLED => Values::Given(matrix.values.clone()),
                left => Values::Carried(Begun::Rescaled(matrix.values.clone(), left)),
            },
            (true, false) if asks => Values::Carried(Begun::Base),
            (true, false) if is_nearest_better(matrix, delta) => Values::Nearest,
            (true, false) => Values::Base,
            (false, _) => Values::Given(matrix.values.clone()),
        };
        match values {
            Values::Carried(_) => carry_errors(matrix, delta),
            Values::Nearest => take_nearest(matrix),
            Values::Base | Values::Given(_) => {}
        }
        Self { scales, offsets, values }
    }

    pub(super) fn go_back(self, matrix: &mut Matrix<'_>) {
        (matrix.grid.scales, matrix.grid.offsets) = (self.scales, self.offsets);
        match self.values {
            Values::Base | Values::Carried(Begun::Base) => matrix.values.copy_from_slice(matrix.base),
            Values::Nearest => take_nearest(matrix),
            Values::Given(values) | Values::Carried(Begun::Rescaled(values, _)) => matrix.values = values,
        }
    }
}

impl Start {
    /// Has rows take the levels nearest to their target whose values have gone too far from it for any text but the one that the moments are of. Returns their number.
    ///
    /// For deltas that the adapter's directions do not hold. Of some layers a few tokens make up most of H: those on which a model puts what attention rests on, a
    /// thousand times as long as others. A row whose output they are would give up all else for what the adapter does to them.
    pub(super) fn hold(&mut self, matrix: &mut Matrix<'_>) -> usize {
        let n = matrix.cols.max(1);
        let mut far = vec![false; matrix.rows];
        // Steps are those of the scales that it began with.
        self.swap(matrix);
        let begun = &*matrix;
        spread(far.iter_mut().enumerate(), |(r, far)| *far = is_far(begun, r));
        self.swap(matrix);
        let count = far.iter().filter(|far| **far).count();
        let Matrix { grid, target, values, .. } = matrix;
        for r in far.iter().enumerate().filter(|(_, far)| **far).map(|(r, _)| r) {
            let at = r * n..(r + 1) * n;
            // Scales that may have been moved are those of no other row.
            if n.is_multiple_of(grid.run) && !grid.scales.is_empty() {
                let runs = at.start / grid.run..at.end / grid.run;
                grid.scales[runs.clone()].copy_from_slice(&self.scales[runs.clone()]);
                if !grid.offsets.is_empty() {
                    grid.offsets[runs.clone()].copy_from_slice(&self.offsets[runs]);
                }
            }
            for i in at {
                values[i] = grid.nearest(i, target[i]);
            }
        }
        count
    }

    fn swap(&mut self, matrix: &mut Matrix<'_>) {
        std::mem::swap(&mut self.scales, &mut matrix.grid.scales);
        std::mem::swap(&mut self.offsets, &mut matrix.grid.offsets);
    }
}

/// True if a row's error is larger than its delta and half a step at every value together.
fn is_far(matrix: &Matrix<'_>, r: usize) -> bool {
    let at = r * matrix.cols..(r + 1) * matrix.cols;
    let (target, base) = (&matrix.target[at.clone()], &matrix.base[at.clone()]);
    let (mut low, mut high) = (vec![0.0; matrix.cols], vec![0.0; matrix.cols]);
    matrix.grid.around_all(at.start, target, &mut low, &mut high);
    let squares = |a: &[f32], b: &[f32]| a.iter().zip(b).map(|(a, b)| f64::from((a - b) * (a - b))).sum::<f64>();
    squares(&matrix.values[at], target) > 0.25 * squares(&high, &low) + squares(target, base)
}

/// Gives runs of the base other scales and offsets where that takes most of the delta in. True if there were any.
fn rescale(matrix: &mut Matrix<'_>) -> bool {
    let Matrix { base, target, values, grid, metric, cols, .. } = matrix;
    let (n, run) = (*cols, grid.run);
    if grid.scales.is_empty() || grid.choices == Choices::Fixed || run < 2 || !n.is_multiple_of(run) {
        return false;
    }
    let mut any = false;
    let mut moved = vec![0.0; run];
    for (number, values) in values.chunks_exact_mut(run).enumerate() {
        let at = number * run;
        let (base, target, weights) =
            (&base[at..at + run], &target[at..at + run], &metric.diagonal[at % n..at % n + run]);
        let sum = |of: &dyn Fn(usize) -> f32| (0..run).map(|i| f64::from(weights[i]) * f64::from(of(i))).sum::<f64>();
        let factor = sum(&|i| target[i] * base[i]) / sum(&|i| base[i] * base[i]);
        if !(factor > 0.0 && factor.is_finite()) || factor == 1.0 {
            continue;
        }
        let (own, offset, factor) = (grid.scales[number], grid.offset(number), factor as f32);
        let scale = grid.choice(number, own * factor);
        let shifted = if offset == 0.0 { offset } else { grid.offset_choice(number, offset * factor) };
        if scale * own <= 0.0 {
            continue;
        }
        grid.moved(number, base, scale, shifted, &mut moved);
        let left = sum(&|i| (moved[i] - target[i]) * (moved[i] - target[i]));
        if left < TAKEN_IN * sum(&|i| (base[i] - target[i]) * (base[i] - target[i])) {
            values.copy_from_slice(&moved);
            grid.scales[number] = scale;
            if offset != 0.0 {
                grid.offsets[number] = shifted;
            }
            any = true;
        }
    }
    any
}

/// The share of ‖D‖²_H that the values have for an error, by rows that stand for all.
fn left(matrix: &Matrix<'_>, delta: &Delta) -> f64 {
    let n = matrix.cols;
    let some: Vec<usize> = sample(matrix.rows).collect();
    let error: Vec<f32> = some.iter().flat_map(|r| matrix.error_of(r * n..(r + 1) * n)).collect();
    let products = matrix.error_products(&error);
    let noise: f64 = error.chunks_exact(n).zip(products.chunks_exact(n)).map(|(e, p)| f64::from(dot(e, p))).sum();
    let mut all = 0.0;
    for r in some {
        let mut moments = vec![0.0; n];
        delta.add_row(r, 1.0, &mut moments);
        all += f64::from(dot(&matrix.change_of(r), &moments));
    }
    if all > 0.0 { noise / all } else { 1.0 }
}

/// True if the nearest levels have less error than the base, in the metric of the inputs; and so, where all of D lies along the adapter's outputs, at any weight of
/// these.
fn is_nearest_better(matrix: &Matrix<'_>, delta: &Delta) -> bool {
    let n = matrix.cols;
    let some = (0..matrix.rows).step_by(SAMPLE).flat_map(|r| r * n..(r + 1) * n);
    let moved = some.clone().filter(|&at| matrix.grid.nearest(at, matrix.target[at]) != matrix.base[at]).count();
    if moved * FEW < some.count() {
        return false;
    }
    let mut noise = 0.0;
    for start in (0..matrix.rows * n).step_by(AT_ONCE * n) {
        let mut error = matrix.target[start..(start + AT_ONCE * n).min(matrix.rows * n)].to_vec();
        spread(error.chunks_mut(n).enumerate(), |(number, row)| {
            for (k, value) in row.iter_mut().enumerate() {
                *value = matrix.grid.nearest(start + number * n + k, *value) - *value;
            }
        });
        let products = matrix.error_products(&error);
        noise += error.chunks_exact(n).zip(products.chunks_exact(n)).map(|(e, p)| f64::from(dot(e, p))).sum::<f64>();
    }
    noise < delta.norm
}

fn take_nearest(matrix: &mut Matrix<'_>) {
    let Matrix { grid, target, values, cols, .. } = matrix;
    let n = (*cols).max(1);
    spread(values.chunks_mut(n).zip(target.chunks(n)).enumerate(), |(r, (values, target))| {
        for (k, (value, target)) in values.iter_mut().zip(target).enumerate() {
            *value = grid.nearest(r * n + k, *target);
        }
    });
}
