//! Eigenvalues of small symmetric matrices.

use super::tridiagonal::Tridiagonal;
use super::turn;

/// Columns from which on the way is by a tridiagonal matrix: five times as fast, and small values are only as exact as large ones.
const MANY: usize = 128;

/// Sweeps after which an eigenproblem counts as solved; 6 to 10 are usual.
const SWEEPS: usize = 40;

/// Eigenvalues of the symmetric `a` (n, n), largest first, and their vectors as rows (n, n).
///
/// Cyclic Jacobi: a page of code, no dependency, the same bits everywhere, and small eigenvalues come out as exact as large ones. It takes about
/// 50 n³ operations, which at a LoRA's ranks is nothing (64: 10 ms). Matrices of 128 columns and more are made tridiagonal first (`tridiagonal.rs`). Vectors are orthonormal, and they and the values give `a` back, to about
/// n units in the last place of the largest value.
pub fn symmetric(mut a: Vec<f64>, n: usize) -> (Vec<f64>, Vec<f64>) {
    if n >= MANY {
        return Tridiagonal::new(a, n).all();
    }
    let mut vectors = vec![0.0; n * n];
    (0..n).for_each(|i| vectors[i * n + i] = 1.0);
    for _ in 0..SWEEPS {
        let mut turned = false;
        for p in 0..n {
            for q in p + 1..n {
                let (app, aqq, apq) = (a[p * n + p], a[q * n + q], a[p * n + q]);
                if apq == 0.0 || apq.abs() <= f64::EPSILON * (app.abs() * aqq.abs()).sqrt() {
                    continue;
                }
                turned = true;
                let theta = (aqq - app) / (2.0 * apq);
                let t = theta.signum() / (theta.abs() + (theta * theta + 1.0).sqrt());
                let c = 1.0 / (t * t + 1.0).sqrt();
                let s = t * c;
                for k in 0..n {
                    let (x, y) = (a[k * n + p], a[k * n + q]);
                    (a[k * n + p], a[k * n + q]) = (c * x - s * y, s * x + c * y);
                }
                turn_rows(&mut a, n, (p, q), (c, s));
                turn_rows(&mut vectors, n, (p, q), (c, s));
                (a[p * n + q], a[q * n + p]) = (0.0, 0.0);
            }
        }
        if !turned {
            break;
        }
    }
    let mut order: Vec<usize> = (0..n).collect();
    order.sort_by(|&i, &j| a[j * n + j].total_cmp(&a[i * n + i]).then(i.cmp(&j)));
    let values = order.iter().map(|&i| a[i * n + i]).collect();
    let vectors = order.iter().flat_map(|&i| vectors[i * n..(i + 1) * n].iter().copied()).collect();
    (values, vectors)
}

/// Eigenvalues of a symmetric matrix, and vectors of as many of the largest as are asked for.
#[derive(Debug)]
pub struct Eigen {
    /// Largest first.
    pub values: Vec<f64>,
    n: usize,
    vectors: Vectors,
}

#[derive(Debug)]
enum Vectors {
    Found(Vec<f64>),
    ToBeFound(Tridiagonal),
}

impl Eigen {
    /// Of `a` (n, n).
    pub fn new(a: Vec<f64>, n: usize) -> Self {
        if n < MANY {
            let (values, vectors) = symmetric(a, n);
            return Self { values, n, vectors: Vectors::Found(vectors) };
        }
        let matrix = Tridiagonal::new(a, n);
        Self { values: matrix.values(), n, vectors: Vectors::ToBeFound(matrix) }
    }

    /// The vectors of the `count` largest values, as rows.
    pub fn vectors(&self, count: usize) -> Vec<f64> {
        let count = count.min(self.n);
        let all = |vectors: &[f64]| vectors[..count * self.n].to_vec();
        match &self.vectors {
            Vectors::Found(vectors) => all(vectors),
            // From about here on one after the other takes as long as all at once.
            Vectors::ToBeFound(matrix) if 2 * count > self.n => all(&matrix.all().1),
            Vectors::ToBeFound(matrix) => matrix.largest_vectors(count),
        }
    }
}

/// Turns rows p < q of `x` (_, n).
pub(super) fn turn_rows(x: &mut [f64], n: usize, (p, q): (usize, usize), angle: (f64, f64)) {
    let (above, below) = x.split_at_mut(q * n);
    turn(&mut above[p * n..(p + 1) * n], &mut below[..n], angle);
}

#[cfg(test)]
mod tests {
    use super::super::dot;
    use super::*;

    #[test]
    fn vectors_are_orthonormal_and_give_back_the_matrix() {
        for n in [1, 2, 7, 40] {
            let x: Vec<f64> = (0..n * n).map(|i| ((i * i * 7919 + i) % 1013) as f64 / 500.0 - 1.0).collect();
            let a: Vec<f64> = (0..n * n).map(|at| x[at] + x[at % n * n + at / n]).collect();
            let (values, vectors) = symmetric(a.clone(), n);
            assert!(values.is_sorted_by(|a, b| a >= b));
            for i in 0..n {
                for j in 0..n {
                    let inner = dot(&vectors[i * n..(i + 1) * n], &vectors[j * n..(j + 1) * n]);
                    assert!((inner - f64::from(u8::from(i == j))).abs() < 1e-12);
                    let sum: f64 = (0..n).map(|k| values[k] * vectors[k * n + i] * vectors[k * n + j]).sum();
                    assert!((sum - a[i * n + j]).abs() < 1e-11, "{n}: {sum} {}", a[i * n + j]);
                }
            }
        }
    }
}
