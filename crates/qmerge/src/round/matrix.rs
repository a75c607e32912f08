//! A whole weight that is rounded at once, and what its delta spans.

use super::moments::Metric;
use crate::formats::Grid;
use crate::simd::matmul::{Columns, HEIGHT, matmul};
use crate::simd::vectors::{axpy, axpys, dot};

/// A weight of which every value is chosen with all others in sight. Matrices are (rows, cols).
#[derive(Debug)]
pub struct Matrix<'m> {
    /// Outputs.
    pub rows: usize,
    /// Inputs.
    pub cols: usize,
    /// The decoded base: on the grid.
    pub base: &'m [f32],
    /// What the values should be: base + D.
    pub target: &'m [f32],
    /// The chosen values; they begin as the base, or as what another format makes of the target.
    pub values: Vec<f32>,
    /// The grid of all rows; scales may be changed to others of its choices.
    pub grid: Grid,
    /// Moments of the inputs.
    pub metric: &'m Metric,
}

/// What became of the adapter's output. ‖X‖²_H = tr(X H Xᵀ), the mean square of what X adds to the layer's output.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Kept {
    /// ⟨Wq − W0, D⟩_H / ‖D‖²_H: 1 where the adapter's output is kept in full strength.
    pub output: f64,
    /// ‖E‖²_H / ‖D‖²_H.
    pub noise: f64,
}

impl Kept {
    /// Where there was nothing to keep.
    pub(super) const ALL: Self = Self { output: 1.0, noise: 0.0 };
}

/// What became of a matrix, computed from its values alone.
pub(super) fn judged(matrix: &Matrix<'_>, delta: &Delta) -> Kept {
    if delta.norm <= 0.0 || !delta.norm.is_finite() {
        return Kept::ALL;
    }
    if matrix.at_base() {
        // E = −D.
        return Kept { output: 0.0, noise: 1.0 };
    }
    let n = matrix.cols;
    let error = matrix.error();
    let product = matrix.error_products(&error);
    let noise: f64 = error.chunks(n).zip(product.chunks(n)).map(|(e, p)| f64::from(dot(e, p))).sum();
    Kept { output: delta.kept(matrix), noise: noise / delta.norm }
}

/// Most directions that are told apart in a delta's outputs.
pub(crate) const MOST_DIRECTIONS: usize = 64;
/// Share of ‖D‖² outside of the directions that is taken for the rounding of sums in f32, and not for a part of D.
const UNREACHED: f64 = 1e-6;
/// A direction of which the others leave less than this share of the longest one's length is made of them and of rounding.
const NEW: f64 = 1e-4;

/// D with an orthonormal basis U of the outputs it reaches.
#[derive(Debug)]
pub(super) struct Delta {
    /// Number of directions.
    pub(super) directions: usize,
    /// U (rows, directions).
    pub(super) basis: Vec<f32>,
    /// Uᵀ D H (directions, cols).
    pub(super) moments: Vec<f32>,
    /// D H (rows, cols), where D = U Uᵀ D does not hold.
    dense: Option<Vec<f32>>,
    /// ‖D‖²_H.
    pub(super) norm: f64,
}

impl Matrix<'_> {
    /// E = Wq − (W0 + D).
    pub(super) fn error(&self) -> Vec<f32> {
        self.values.iter().zip(self.target).map(|(value, target)| value - target).collect()
    }

    /// E H.
    pub(super) fn error_products(&self, error: &[f32]) -> Vec<f32> {
        /// Rows that read H together.
        const SOME: usize = 16 * HEIGHT;
        let mut out = vec![0.0; error.len()];
        let some = (SOME * self.cols).max(1);
        for (out, error) in out.chunks_mut(some).zip(error.chunks(some)) {
            matmul(error, &self.metric.columns, false, out);
        }
        out
    }

    /// True if rounding begins at the base's own codes.
    pub(super) fn at_base(&self) -> bool {
        self.values == self.base
    }
}

impl Delta {
    /// Finds the basis of `matrix.target − matrix.base` from its products with random vectors, which span its outputs.
    pub(super) fn new(matrix: &Matrix<'_>) -> Self {
        let (rows, cols) = (matrix.rows, matrix.cols);
        let delta: Vec<f32> = matrix.target.iter().zip(matrix.base).map(|(target, base)| target - base).collect();
        let probes = MOST_DIRECTIONS.min(rows).min(cols);
        let signs: Vec<f32> = (0..cols * probes).map(|i| if hash(i as u64) & 1 == 0 { 1.0 } else { -1.0 }).collect();
        let mut sketch = vec![0.0; rows * probes];
        matmul(&delta, &Columns::new(&signs, cols, probes), false, &mut sketch);
        let (basis, directions) = orthonormal(&sketch, rows, probes);
        // Uᵀ D.
        let mut coefficients = vec![0.0; directions * cols];
        for r in 0..rows {
            for (q, &u) in basis[r * directions..(r + 1) * directions].iter().enumerate() {
                if u != 0.0 {
                    axpy(u, &delta[r * cols..(r + 1) * cols], &mut coefficients[q * cols..(q + 1) * cols]);
                }
            }
        }
        let mut moments = vec![0.0; directions * cols];
        matmul(&coefficients, &matrix.metric.columns, false, &mut moments);
        // The part of D outside of U. Where the directions cover D's rank it is rounding, and U Uᵀ D stands for D; else D H is computed whole.
        let (mut all, mut rest) = (0.0, 0.0);
        let mut row = vec![0.0; cols];
        for r in 0..rows {
            row.copy_from_slice(&delta[r * cols..(r + 1) * cols]);
            all += f64::from(dot(&row, &row));
            let against: Vec<f32> = basis[r * directions..(r + 1) * directions].iter().map(|u| -u).collect();
            axpys(&against, &coefficients, &mut row);
            rest += f64::from(dot(&row, &row));
        }
        if rest <= UNREACHED * all {
            let norm = coefficients.chunks(cols).zip(moments.chunks(cols)).map(|(a, b)| f64::from(dot(a, b))).sum();
            return Self { directions, basis, moments, dense: None, norm };
        }
        let mut dense = vec![0.0; rows * cols];
        matmul(&delta, &matrix.metric.columns, false, &mut dense);
        let norm = delta.chunks(cols).zip(dense.chunks(cols)).map(|(a, b)| f64::from(dot(a, b))).sum();
        Self { directions, basis, moments, dense: Some(dense), norm }
    }

    /// U_r.
    pub(super) fn own(&self, r: usize) -> &[f32] {
        &self.basis[r * self.directions..(r + 1) * self.directions]
    }

    /// ⟨Wq − W0, D⟩_H / ‖D‖²_H.
    pub(super) fn kept(&self, matrix: &Matrix<'_>) -> f64 {
        let n = matrix.cols;
        let (mut output, mut moments) = (0.0, vec![0.0; n]);
        for r in 0..matrix.rows {
            let at = r * n..(r + 1) * n;
            moments.fill(0.0);
            self.add_row(r, 1.0, &mut moments);
            let change: Vec<f32> = matrix.values[at.clone()].iter().zip(&matrix.base[at]).map(|(a, b)| a - b).collect();
            output += f64::from(dot(&change, &moments));
        }
        output / self.norm
    }

    /// D H of one row, added with a factor.
    pub(super) fn add_row(&self, r: usize, factor: f32, out: &mut [f32]) {
        match &self.dense {
            Some(dense) => axpy(factor, &dense[r * out.len()..(r + 1) * out.len()], out),
            None => {
                let own = &self.basis[r * self.directions..(r + 1) * self.directions];
                let factors: Vec<f32> = own.iter().map(|u| u * factor).collect();
                axpys(&factors, &self.moments, out);
            }
        }
    }
}

/// An orthonormal basis of the columns of `x` (rows, count), as (rows, directions): Gram and Schmidt, twice, in f64. Columns that lie in the span of those
/// before them, up to f32 rounding, are left out.
fn orthonormal(x: &[f32], rows: usize, count: usize) -> (Vec<f32>, usize) {
    let mut found: Vec<Vec<f64>> = Vec::new();
    let mut largest = 0.0_f64;
    for c in 0..count {
        let mut column: Vec<f64> = (0..rows).map(|r| f64::from(x[r * count + c])).collect();
        let length = |column: &[f64]| column.iter().map(|x| x * x).sum::<f64>().sqrt();
        let before = length(&column);
        largest = largest.max(before);
        for _ in 0..2 {
            for other in &found {
                let along: f64 = column.iter().zip(other).map(|(a, b)| a * b).sum();
                column.iter_mut().zip(other).for_each(|(x, other)| *x -= along * other);
            }
        }
        let after = length(&column);
        if after > NEW * largest && after.is_finite() {
            column.iter_mut().for_each(|x| *x /= after);
            found.push(column);
        }
    }
    let directions = found.len();
    let mut basis = vec![0.0; rows * directions];
    for (q, column) in found.iter().enumerate() {
        for (r, x) in column.iter().enumerate() {
            basis[r * directions + q] = *x as f32;
        }
    }
    (basis, directions)
}

/// splitmix64's mixing of a number (Steele, Lea, Flood 2014).
pub(super) fn hash(x: u64) -> u64 {
    let mut z = x.wrapping_add(1).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}
