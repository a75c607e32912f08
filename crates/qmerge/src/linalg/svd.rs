//! Singular values of matrices of which one side is small.

use super::eigen::turn_rows;
use super::{dot, gram_schmidt};

/// Sweeps after which rows count as orthogonal; 5 to 8 are usual.
const SWEEPS: usize = 40;

/// A = Σ value · left · rightᵀ, the largest value first.
#[derive(Clone, Debug)]
pub struct Svd {
    /// Orthonormal, each of A's rows' length.
    pub left: Vec<Vec<f64>>,
    /// Above zero, falling.
    pub values: Vec<f64>,
    /// Orthonormal, each of A's columns' length.
    pub right: Vec<Vec<f64>>,
}

/// The singular values and vectors of `a` (rows, cols), as many as its rank.
///
/// A = Q T with few rows in T, which are then turned against each other until all are orthogonal (Hestenes; the rows of T in place of its columns, which
/// takes fewer sweeps). It takes 4 m n² operations for Q and about 30 n³ for the rest, n the smaller side. Vectors are orthonormal, and values right, to
/// about n units in the last place of the largest; what is 1e-12 of the largest and less may be left out.
pub fn svd<X: Copy + Into<f64>>(a: &[X], rows: usize, cols: usize) -> Svd {
    if rows < cols {
        let turned: Vec<f64> = (0..rows * cols).map(|at| a[at % rows * cols + at / rows].into()).collect();
        let Svd { left, values, right } = svd(&turned, cols, rows);
        return Svd { left: right, values, right: left };
    }
    let (basis, mut t) = gram_schmidt(a, rows, cols);
    let n = basis.len();
    // `turns` T is what stands in `t`; it is orthogonal.
    let mut turns: Vec<f64> = (0..n * n).map(|at| f64::from(u8::from(at / n == at % n))).collect();
    for _ in 0..SWEEPS {
        let mut turned = false;
        for p in 0..n {
            for q in p + 1..n {
                let (x, y) = (&t[p * cols..(p + 1) * cols], &t[q * cols..(q + 1) * cols]);
                let (xx, yy, xy) = (dot(x, x), dot(y, y), dot(x, y));
                if xy.abs() <= f64::EPSILON * (xx * yy).sqrt() {
                    continue;
                }
                turned = true;
                let theta = (yy - xx) / (2.0 * xy);
                let tan = theta.signum() / (theta.abs() + (theta * theta + 1.0).sqrt());
                let c = 1.0 / (tan * tan + 1.0).sqrt();
                turn_rows(&mut t, cols, (p, q), (c, c * tan));
                turn_rows(&mut turns, n, (p, q), (c, c * tan));
            }
        }
        if !turned {
            break;
        }
    }
    let lengths: Vec<f64> = t.chunks_exact(cols.max(1)).map(|row| dot(row, row).sqrt()).collect();
    let mut order: Vec<usize> = (0..n).filter(|&i| lengths[i] > 0.0).collect();
    order.sort_by(|&i, &j| lengths[j].total_cmp(&lengths[i]).then(i.cmp(&j)));
    let left = |i: usize| {
        let mut sum = vec![0.0; rows];
        for (weight, column) in turns[i * n..(i + 1) * n].iter().zip(&basis) {
            sum.iter_mut().zip(column).for_each(|(sum, x)| *sum += weight * x);
        }
        sum
    };
    Svd {
        left: order.iter().map(|&i| left(i)).collect(),
        values: order.iter().map(|&i| lengths[i]).collect(),
        right: order.iter().map(|&i| t[i * cols..(i + 1) * cols].iter().map(|x| x / lengths[i]).collect()).collect(),
    }
}

#[cfg(test)]
mod tests {
    use super::super::mixed;
    use super::*;

    fn orthonormal(vectors: &[Vec<f64>]) -> bool {
        let is = |i: usize, j: usize| (dot(&vectors[i], &vectors[j]) - f64::from(u8::from(i == j))).abs() < 1e-12;
        (0..vectors.len()).all(|i| (0..=i).all(|j| is(i, j)))
    }

    #[test]
    fn tall_and_wide_matrices_are_given_back() {
        for (rows, cols) in [(1, 1), (5, 1), (1, 5), (40, 12), (12, 40), (30, 30)] {
            let a = mixed(rows * cols);
            let Svd { left, values, right } = svd(&a, rows, cols);
            assert!(orthonormal(&left) && orthonormal(&right) && values.is_sorted_by(|a, b| a >= b));
            for (at, want) in a.iter().enumerate() {
                let sum: f64 = (0..values.len()).map(|k| values[k] * left[k][at / cols] * right[k][at % cols]).sum();
                assert!((sum - want).abs() < 1e-11, "{rows} × {cols}: {sum} {want}");
            }
        }
    }

    #[test]
    fn only_as_many_as_the_rank_are_returned() {
        // Of rank 2, with singular values that are known: orthogonal rows.
        let a = [[3.0_f32, 0.0, 0.0], [0.0, 4.0, 0.0], [6.0, 0.0, 0.0]].concat();
        let values = svd(&a, 3, 3).values;
        assert_eq!(values.len(), 2);
        assert!((values[0] - 45.0_f64.sqrt()).abs() < 1e-14 && (values[1] - 4.0).abs() < 1e-14, "{values:?}");
        assert!(svd(&[0.0_f32; 6], 2, 3).values.is_empty());
    }
}
