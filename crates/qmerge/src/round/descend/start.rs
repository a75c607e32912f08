//! Where descent begins.
//!
//! At the base's codes, where a step of the grid is large against the delta: there E = −D, and few values have to move. Where most of the delta is more than half a step,
//! as on 8 bits, nearly all values have to, one by one and each in view of what the others still lack; that ends further from the best than the nearest levels
//! to the target already are. Both are tried by their error, and the less begins.

use super::super::matrix::{Delta, Matrix};
use super::AT_ONCE;
use crate::parallel::spread;
use crate::simd::vectors::dot;

/// Fewer values than one in so many that are nearer to another level than to the base's: the base it is.
const FEW: usize = 8;
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
    /// The levels of the base's grid that are nearest to the target.
    Nearest,
    /// Those that another format begins with.
    Given(Vec<f32>),
}

impl Start {
    /// Chooses `matrix.values`.
    pub(super) fn of(matrix: &mut Matrix<'_>, delta: &Delta, at_base: bool) -> Self {
        let values = match at_base {
            false => Values::Given(matrix.values.clone()),
            true if is_nearest_better(matrix, delta) => {
                take_nearest(matrix);
                Values::Nearest
            }
            true => Values::Base,
        };
        Self { scales: matrix.grid.scales.clone(), offsets: matrix.grid.offsets.clone(), values }
    }

    pub(super) fn go_back(self, matrix: &mut Matrix<'_>) {
        (matrix.grid.scales, matrix.grid.offsets) = (self.scales, self.offsets);
        match self.values {
            Values::Base => matrix.values.copy_from_slice(matrix.base),
            Values::Nearest => take_nearest(matrix),
            Values::Given(values) => matrix.values = values,
        }
    }
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
