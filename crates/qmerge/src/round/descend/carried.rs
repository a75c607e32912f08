//! The start of descent that asks for the adapter's output: each column's error carried to the columns after it, as GPTQ does.
//!
//! Moves of single values find the next minimum, and where inputs go together there are many: the one next to the base's codes had twice the noise of what carrying errors came
//! to in one go (SmolLM2, an adapter on queries and values). But that loses a part of the adapter's output, and more of a weak one. So it is done for some of the rows first, to see
//! by how much, and then for all, to a target that has so much more of the adapter.

use super::super::gptq::carry;
use super::super::matrix::{Delta, Matrix, against};
use super::asked::more;
use crate::linalg;
use crate::simd::vectors::axpys;

/// Most columns that errors are carried along. To carry them along all did no better on a model's widest weights (4,864 inputs: as good in three groups, or in five); its memory grows
/// with their square, and the work of preparing with their cube.
pub(in super::super) const TOGETHER: usize = 2048;
/// Rows that stand for all, where a matrix has as many; one in so many does, at least.
const ENOUGH: usize = 128;
const SAMPLE: usize = 8;
/// Rows with less than this share of a direction's output say too little about it: half of what is to be expected of every eighth row.
const TOO_LITTLE: f64 = 1.0 / 16.0;

/// Rounds `matrix.values`, which are the base's, or these under other scales.
pub(super) fn carry_errors(matrix: &mut Matrix<'_>, delta: &Delta) {
    let Lost { along, rest } = lost(matrix, delta);
    let mut values = std::mem::take(&mut matrix.values);
    let rows: Vec<usize> = (0..matrix.rows).collect();
    let target = |r: usize, out: &mut [f32]| {
        out.copy_from_slice(matrix.target_of(r));
        if rest > 0.0 {
            out.iter_mut().zip(matrix.change_of(r)).for_each(|(out, change)| *out += rest * change);
        }
        let factors: Vec<f32> = delta.own(r).iter().zip(&along).map(|(u, lost)| u * (lost - rest)).collect();
        axpys(&factors, &delta.coefficients, out);
    };
    carry(matrix, TOGETHER, &rows, &target, &mut values);
    matrix.values = values;
}

/// Rows that stand for all.
pub(super) fn sample(rows: usize) -> impl Iterator<Item = usize> {
    (0..rows).step_by((rows / ENOUGH).clamp(1, SAMPLE))
}

/// The share of the adapter's output that is lost where errors are carried.
struct Lost {
    /// By direction.
    along: Vec<f32>,
    /// Of what lies in none.
    rest: f32,
}

/// By the errors of rows that stand for all.
fn lost(matrix: &Matrix<'_>, delta: &Delta) -> Lost {
    let (n, directions) = (matrix.cols, delta.directions);
    let some: Vec<usize> = sample(matrix.rows).collect();
    let mut error: Vec<f32> = some.iter().flat_map(|r| matrix.values[r * n..(r + 1) * n].iter().copied()).collect();
    let target = |r: usize, out: &mut [f32]| out.copy_from_slice(matrix.target_of(r));
    carry(matrix, TOGETHER, &some, &target, &mut error);
    for (&r, error) in some.iter().zip(error.chunks_exact_mut(n)) {
        error.iter_mut().zip(matrix.target_of(r)).for_each(|(value, target)| *value -= target);
    }
    // Uᵀ E of these rows, and how much of each direction's output is theirs.
    let basis: Vec<f32> = some.iter().flat_map(|&r| delta.own(r).iter().copied()).collect();
    let along = against(&basis, directions, n, |number, part| &error[number * n..(number + 1) * n][part.clone()]);
    let mut shares = vec![0.0; directions];
    for own in basis.chunks_exact(directions.max(1)) {
        shares.iter_mut().zip(own).for_each(|(share, u)| *share += f64::from(u * u));
    }
    let rest = rest_lost(matrix, delta, &some, &error);
    let pairs = along.chunks_exact(n).zip(delta.moments.chunks_exact(n)).zip(shares.iter().zip(&delta.strengths));
    let along = pairs
        .map(|((along, moments), (share, strength))| {
            let of = |share: f64| more(delta, (*strength, linalg::dot(along, moments) / share), 0.0).max(0.0) as f32;
            if *share < TOO_LITTLE { 0.0 } else { of(*share) }
        })
        .collect();
    Lost { along, rest }
}

/// Of what lies in no direction, by the errors of some rows.
fn rest_lost(matrix: &Matrix<'_>, delta: &Delta, some: &[usize], errors: &[f32]) -> f32 {
    if delta.dense.is_none() {
        return 0.0;
    }
    let n = matrix.cols;
    let (mut strength, mut lacking) = (0.0, 0.0);
    for (&r, error) in some.iter().zip(errors.chunks_exact(n)) {
        let mut moments = vec![0.0; n];
        delta.add_row(r, 1.0, &mut moments);
        let factors: Vec<f32> = delta.own(r).iter().map(|u| -u).collect();
        axpys(&factors, &delta.moments, &mut moments);
        strength += linalg::dot(&matrix.change_of(r), &moments);
        lacking += linalg::dot(error, &moments);
    }
    more(delta, (strength, lacking), 0.0).max(0.0) as f32
}
