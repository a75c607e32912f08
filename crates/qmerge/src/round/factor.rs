//! Low-rank matrices that are best in the metric of a layer's inputs, ‖X‖²_H = tr(X H Xᵀ): the mean square of what X adds to the layer's output.
//!
//! The best approximation of X of rank k in that norm is its projection U Uᵀ X on the first k eigenvectors of X H Xᵀ (Eckart and Young on X H^½). H^½ is
//! never needed, and for a product B·A neither is X: with B = Q T the eigenvectors are those of the small T (A H Aᵀ) Tᵀ, turned by Q.

use super::moments::Metric;
use crate::linalg::{Factors, dot, gram_schmidt, hash, symmetric};
use crate::simd::matmul::{Columns, matmul};
use crate::simd::vectors::axpy;

/// What is left of a matrix at a lower rank.
#[derive(Clone, Debug, PartialEq)]
pub struct Cut {
    /// The best approximation.
    pub factors: Factors,
    /// ‖X‖² of the whole matrix, where it is known.
    pub energy: Option<f64>,
    /// ‖X‖² of the approximation.
    pub kept: f64,
}

/// The best approximation of rank `rank` to `scale · left · right` in the metric, or in the plain norm without one. Its factors have exactly that rank, with zeros
/// where the matrix has less, and equally long pairs of columns and rows. Everything but A·H is f64.
pub fn cut(factors: &Factors, scale: f64, rank: usize, metric: Option<&Metric>) -> Cut {
    let inner = factors.rank;
    let (rows, cols) = (factors.left.len() / inner, factors.right.len() / inner);
    let (basis, t) = gram_schmidt(&factors.left, rows, inner);
    let found = basis.len();
    let gram = gram(&factors.right, cols, metric);
    // T G Tᵀ.
    let half: Vec<f64> = (0..found * inner)
        .map(|at| dot(&t[at / inner * inner..][..inner], &gram[at % inner * inner..][..inner]))
        .collect();
    let whole = (0..found * found)
        .map(|at| dot(&half[at / found * inner..][..inner], &t[at % found * inner..][..inner]))
        .collect();
    let (values, vectors) = symmetric(whole, found);
    let directions = rank.min(found);
    let columns: Vec<Vec<f64>> =
        (0..directions).map(|k| combined(&vectors[k * found..][..found], |q| basis[q].as_slice())).collect();
    let right: Vec<Vec<f64>> = (0..directions)
        .map(|k| {
            let weights: Vec<f64> = (0..inner)
                .map(|i| scale * (0..found).map(|q| vectors[k * found + q] * t[q * inner + i]).sum::<f64>())
                .collect();
            combined(&weights, |i| &factors.right[i * cols..(i + 1) * cols])
        })
        .collect();
    let energies: Vec<f64> = values.iter().map(|value| scale * scale * value.max(0.0)).collect();
    Cut {
        factors: Factors::balanced(&columns.concat(), &right.concat(), rank, rows, cols),
        energy: Some(energies.iter().sum()),
        kept: energies[..directions].iter().sum(),
    }
}

/// Directions beyond the rank that a sketch follows, and rounds in which it turns towards the largest.
const MORE: usize = 8;
const ROUNDS: usize = 4;

/// An approximation of rank `rank` to a dense matrix (rows, cols) that is nearly as good as the best: of rounding errors it keeps 99 % of what the best keeps.
/// The range is found from random combinations, which are turned towards the first eigenvectors of X H Xᵀ (Halko, Martinsson and Tropp 2011, with H in place of the identity).
pub fn sketch(matrix: &[f32], cols: usize, rank: usize, metric: Option<&Metric>, seed: u64) -> Cut {
    let rows = matrix.len() / cols.max(1);
    let count = (rank + MORE).min(rows).min(cols);
    let product = |right: &[f32], count: usize| {
        let mut out = vec![0.0; rows * count];
        matmul(matrix, &Columns::new(right, cols, count), false, &mut out);
        out
    };
    // Random signs of few columns may well depend on each other: then all columns are taken as they are, or all rows are the basis.
    let sign = |i: usize| if hash(seed ^ hash(i as u64)) & 1 == 0 { 1.0 } else { -1.0 };
    let unit = |i: usize| f32::from(u8::from(i / count == i % count));
    let probes: Vec<f32> = (0..cols * count).map(|i| if count == cols { unit(i) } else { sign(i) }).collect();
    let mut basis = if count == rows {
        (0..rows).map(|k| (0..rows).map(|r| f64::from(u8::from(r == k))).collect()).collect()
    } else {
        gram_schmidt(&product(&probes, count), rows, count).0
    };
    let (mut coefficients, mut moments);
    let mut round = 0;
    loop {
        coefficients = against(&basis, matrix, cols);
        moments = weighted(&coefficients, cols, metric);
        if round == ROUNDS || basis.is_empty() {
            break;
        }
        round += 1;
        let found = basis.len();
        let turned: Vec<f32> = (0..cols * found).map(|at| moments[at % found * cols + at / found]).collect();
        (basis, _) = gram_schmidt(&product(&turned, found), rows, found);
    }
    let found = basis.len();
    let (values, vectors) = symmetric(products(&coefficients, &moments, found, cols), found);
    let directions = rank.min(found);
    let own = |k: usize| &vectors[k * found..][..found];
    let columns: Vec<Vec<f64>> = (0..directions).map(|k| combined(own(k), |q| basis[q].as_slice())).collect();
    let right: Vec<Vec<f64>> =
        (0..directions).map(|k| combined(own(k), |q| &coefficients[q * cols..(q + 1) * cols])).collect();
    Cut {
        factors: Factors::balanced(&columns.concat(), &right.concat(), rank, rows, cols),
        energy: metric.is_none().then(|| dot(matrix, matrix)),
        kept: values[..directions].iter().map(|value| value.max(0.0)).sum(),
    }
}

/// Qᵀ X (columns of Q, cols).
fn against(basis: &[Vec<f64>], x: &[f32], cols: usize) -> Vec<f32> {
    let mut out = vec![0.0; basis.len() * cols];
    for (r, row) in x.chunks_exact(cols).enumerate() {
        for (column, out) in basis.iter().zip(out.chunks_exact_mut(cols)) {
            axpy(column[r] as f32, row, out);
        }
    }
    out
}

/// X H.
pub(crate) fn weighted(x: &[f32], cols: usize, metric: Option<&Metric>) -> Vec<f32> {
    let Some(metric) = metric else { return x.to_vec() };
    assert_eq!(cols, metric.features, "the metric is of other inputs");
    let mut out = vec![0.0; x.len()];
    matmul(x, &metric.columns, false, &mut out);
    out
}

/// X H Xᵀ of `x` (rows, cols).
fn gram(x: &[f32], cols: usize, metric: Option<&Metric>) -> Vec<f64> {
    products(x, &weighted(x, cols, metric), x.len() / cols.max(1), cols)
}

/// X Yᵀ, which is symmetric but for the rounding of Y, made so.
pub(crate) fn products(x: &[f32], y: &[f32], n: usize, cols: usize) -> Vec<f64> {
    let one = |i: usize, j: usize| dot(&x[i * cols..(i + 1) * cols], &y[j * cols..(j + 1) * cols]);
    let mut out = vec![0.0; n * n];
    for i in 0..n {
        for j in 0..=i {
            let mean = 0.5 * (one(i, j) + one(j, i));
            (out[i * n + j], out[j * n + i]) = (mean, mean);
        }
    }
    out
}

/// Σ weight · row.
fn combined<'x, X: Copy + Into<f64> + 'x>(weights: &[f64], row: impl Fn(usize) -> &'x [X]) -> Vec<f64> {
    let mut sum = vec![0.0; if weights.is_empty() { 0 } else { row(0).len() }];
    for (i, weight) in weights.iter().enumerate() {
        sum.iter_mut().zip(row(i)).for_each(|(sum, &x)| *sum += weight * x.into());
    }
    sum
}
