//! Small dense linear algebra in f64: bases, eigenvalues, singular values, systems of equations.
//!
//! Matrices are row-major slices. All of it is plain loops in one fixed order on one thread, of operations that IEEE 754 fixes, so results are the same bits
//! on every machine and for any number of threads; what goes to all cores does so by weight. faer would be faster above some hundred columns, but chooses
//! its kernels, and with them the order of its sums, by the machine's vector instructions and by the number of threads.

mod basis;
mod cholesky;
mod eigen;
mod qr;
mod solve;
mod svd;
mod tridiagonal;

pub use basis::{gram_schmidt, span};
pub use cholesky::Cholesky;
pub use eigen::{Eigen, symmetric};
pub use qr::orthonormal;
pub use solve::Lu;
pub use svd::{Svd, svd};

/// A matrix of low rank: `left · right`.
#[derive(Clone, Debug, PartialEq)]
pub struct Factors {
    /// Inner dimension.
    pub rank: usize,
    /// (rows, rank).
    pub left: Vec<f32>,
    /// (rank, cols).
    pub right: Vec<f32>,
}

impl Factors {
    /// Factors of `rank` from orthonormal columns (any, rows), one after the other, and the rows (any, cols) that go with them, scaled so that a column is as
    /// long as its row: neither leaves the range of 16 bits alone.
    pub(crate) fn balanced(columns: &[f64], rows_of: &[f64], rank: usize, rows: usize, cols: usize) -> Self {
        let (mut left, mut right) = (vec![0.0; rows * rank], vec![0.0; rank * cols]);
        let pairs = columns.chunks_exact(rows.max(1)).zip(rows_of.chunks_exact(cols.max(1)));
        for (k, (column, row)) in pairs.enumerate() {
            let length = dot(row, row).sqrt().sqrt();
            if length > 0.0 {
                column.iter().enumerate().for_each(|(r, x)| left[r * rank + k] = (x * length) as f32);
                row.iter().zip(&mut right[k * cols..]).for_each(|(x, to)| *to = (x / length) as f32);
            }
        }
        Self { rank, left, right }
    }
}

/// A matrix (rows, cols) as (cols, rows).
pub fn transposed<T: Copy + Default>(x: &[T], cols: usize) -> Vec<T> {
    // Both sides of a square stay in the first-level cache.
    const SIDE: usize = 32;
    let rows = x.len() / cols.max(1);
    let mut out = vec![T::default(); rows * cols];
    for first in (0..rows).step_by(SIDE) {
        for start in (0..cols).step_by(SIDE) {
            for r in first..rows.min(first + SIDE) {
                for c in start..cols.min(start + SIDE) {
                    out[c * rows + r] = x[r * cols + c];
                }
            }
        }
    }
    out
}

/// Σ x·y in eight chains, which a compiler can do side by side.
pub fn dot<X: Copy + Into<f64>, Y: Copy + Into<f64>>(x: &[X], y: &[Y]) -> f64 {
    let mut sums = [0.0_f64; 8];
    let (x_chunks, y_chunks) = (x.chunks_exact(8), y.chunks_exact(8));
    let rest: f64 = x_chunks.remainder().iter().zip(y_chunks.remainder()).map(|(&x, &y)| x.into() * y.into()).sum();
    for (x, y) in x_chunks.zip(y_chunks) {
        for ((sum, &x), &y) in sums.iter_mut().zip(x).zip(y) {
            *sum += x.into() * y.into();
        }
    }
    sums.iter().sum::<f64>() + rest
}

/// `y += a · x`.
fn axpy(a: f64, x: &[f64], y: &mut [f64]) {
    y.iter_mut().zip(x).for_each(|(y, x)| *y += a * x);
}

/// Turns the pairs of values of two rows by the angle of cosine c and sine s.
fn turn(x: &mut [f64], y: &mut [f64], (c, s): (f64, f64)) {
    for (x, y) in x.iter_mut().zip(y) {
        (*x, *y) = (c * *x - s * *y, s * *x + c * *y);
    }
}

/// splitmix64's mixing of a number (Steele, Lea, Flood 2014): what probes and everything else that is drawn comes from.
pub(crate) fn hash(x: u64) -> u64 {
    mix(x.wrapping_add(1).wrapping_mul(0x9e37_79b9_7f4a_7c15))
}

/// What splitmix64 makes of its state.
pub fn mix(mut z: u64) -> u64 {
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}

/// Values in [−1, 1] that tests take for random ones.
#[cfg(test)]
fn mixed(count: usize) -> Vec<f64> {
    (0..count).map(|i| ((i * i * 7919 + i) % 1013) as f64 / 506.0 - 1.0).collect()
}
