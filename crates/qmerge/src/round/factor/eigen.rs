//! Eigenvalues of small symmetric matrices, and bases of few columns: f64, in one fixed order.

/// Sweeps after which an eigenproblem counts as solved; 6 to 10 are usual.
const SWEEPS: usize = 40;

/// Eigenvalues of the symmetric `a` (n, n), largest first, and their vectors as rows (n, n).
///
/// Cyclic Jacobi: a page of code, no dependency, the same bits everywhere, and small eigenvalues come out as exact as large ones. It takes about
/// 50 n³ operations, which at a LoRA's ranks is nothing (64: 10 ms; 256: 1 s).
pub(super) fn symmetric(mut a: Vec<f64>, n: usize) -> (Vec<f64>, Vec<f64>) {
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
                turn(&mut a, n, (p, q), (c, s));
                turn(&mut vectors, n, (p, q), (c, s));
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

/// Turns rows p < q of `x` (_, n) by the angle of cosine c and sine s.
fn turn(x: &mut [f64], n: usize, (p, q): (usize, usize), (c, s): (f64, f64)) {
    let (above, below) = x.split_at_mut(q * n);
    for (x, y) in above[p * n..(p + 1) * n].iter_mut().zip(&mut below[..n]) {
        (*x, *y) = (c * *x - s * *y, s * *x + c * *y);
    }
}

/// Q with orthonormal columns, each of `rows` values, and T (columns of Q, count) with Q T = the columns of `x` (rows, count): Gram and Schmidt, twice.
/// Columns that lie in the span of those before them are left out of Q.
pub(super) fn orthogonal(x: &[f32], rows: usize, count: usize) -> (Vec<Vec<f64>>, Vec<f64>) {
    let mut found: Vec<Vec<f64>> = Vec::new();
    let mut coefficients: Vec<Vec<f64>> = Vec::new();
    for c in 0..count {
        let mut column: Vec<f64> = (0..rows).map(|r| f64::from(x[r * count + c])).collect();
        let before = dot(&column, &column).sqrt();
        let mut own = vec![0.0; found.len()];
        for _ in 0..2 {
            for (other, own) in found.iter().zip(&mut own) {
                let along = dot(&column, other);
                *own += along;
                column.iter_mut().zip(other).for_each(|(x, other)| *x -= along * other);
            }
        }
        let after = dot(&column, &column).sqrt();
        if after > 1e-12 * before {
            column.iter_mut().for_each(|x| *x /= after);
            found.push(column);
            own.push(after);
        }
        coefficients.push(own);
    }
    let mut t = vec![0.0; found.len() * count];
    for (c, own) in coefficients.iter().enumerate() {
        own.iter().enumerate().for_each(|(q, &x)| t[q * count + c] = x);
    }
    (found, t)
}

/// In eight chains, which a compiler can do side by side.
pub(super) fn dot<X: Copy + Into<f64>, Y: Copy + Into<f64>>(x: &[X], y: &[Y]) -> f64 {
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

#[cfg(test)]
mod tests {
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

    #[test]
    fn dependent_columns_are_left_out() {
        // The third column is twice the first, the fourth is zero.
        let x: Vec<f32> = [[1.0, 0.0, 2.0, 0.0], [2.0, 1.0, 4.0, 0.0], [0.0, 3.0, 0.0, 0.0]].concat();
        let (basis, t) = orthogonal(&x, 3, 4);
        assert_eq!(basis.len(), 2);
        for (at, &x) in x.iter().enumerate() {
            let sum: f64 = (0..2).map(|q| basis[q][at / 4] * t[q * 4 + at % 4]).sum();
            assert!((sum - f64::from(x)).abs() < 1e-12);
        }
    }
}
