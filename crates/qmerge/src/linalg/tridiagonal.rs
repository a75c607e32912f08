//! Eigenvalues of symmetric matrices of some hundred columns, by way of a tridiagonal one.

use super::{axpy, dot, turn};

/// Rounds per eigenvalue after which the rest counts as solved; 2 are usual.
const ROUNDS: usize = 60;

/// As [`symmetric`](super::symmetric), in about 8 n³ operations. Values, and vectors up to what nearly equal values leave open, are right to about n units in
/// the last place of the largest value.
pub(super) fn symmetric(mut a: Vec<f64>, n: usize) -> (Vec<f64>, Vec<f64>) {
    let largest = a.iter().fold(0.0_f64, |largest, x| largest.max(x.abs()));
    if largest > 0.0 {
        a.iter_mut().for_each(|x| *x /= largest);
    }
    let (mut diagonal, mut beside, reflections) = reduce(&mut a, n);
    let mut vectors = a;
    vectors.fill(0.0);
    (0..n).for_each(|i| vectors[i * n + i] = 1.0);
    solve(&mut diagonal, &mut beside, &mut vectors, n);
    for vector in vectors.chunks_exact_mut(n.max(1)) {
        for (k, v) in reflections.iter().enumerate().rev() {
            let own = &mut vector[n - v.len()..];
            debug_assert_eq!(v.len(), n - k - 1);
            let share = dot(v, own);
            axpy(-2.0 * share, v, own);
        }
    }
    let mut order: Vec<usize> = (0..n).collect();
    order.sort_by(|&i, &j| diagonal[j].total_cmp(&diagonal[i]).then(i.cmp(&j)));
    let values = order.iter().map(|&i| diagonal[i] * largest).collect();
    (values, order.iter().flat_map(|&i| vectors[i * n..(i + 1) * n].iter().copied()).collect())
}

/// Householder: the tridiagonal matrix's diagonal and what stands beside it, and for each column but the last the unit vector that it was reflected by.
fn reduce(a: &mut [f64], n: usize) -> (Vec<f64>, Vec<f64>, Vec<Vec<f64>>) {
    let (mut diagonal, mut beside, mut reflections) = (vec![0.0; n], vec![0.0; n], Vec::new());
    for k in 0..n {
        diagonal[k] = a[k * n + k];
        if k + 1 == n {
            break;
        }
        let mut v = a[k * n + k + 1..(k + 1) * n].to_vec();
        let length = dot(&v, &v).sqrt();
        beside[k] = if v[0] > 0.0 { -length } else { length };
        v[0] -= beside[k];
        let own = dot(&v, &v).sqrt();
        if own > 0.0 {
            v.iter_mut().for_each(|x| *x /= own);
            // A − 2 v wᵀ − 2 w vᵀ with w = A v − (vᵀ A v) v.
            let mut w: Vec<f64> = (k + 1..n).map(|i| dot(&a[i * n + k + 1..(i + 1) * n], &v)).collect();
            let share = dot(&v, &w);
            axpy(-share, &v, &mut w);
            for (i, row) in a[(k + 1) * n..].chunks_exact_mut(n).enumerate() {
                axpy(-2.0 * v[i], &w, &mut row[k + 1..]);
                axpy(-2.0 * w[i], &v, &mut row[k + 1..]);
            }
        }
        reflections.push(v);
    }
    (diagonal, beside, reflections)
}

/// QL with implicit shifts: `diagonal` becomes the eigenvalues, and the rows of `vectors` take every turn.
fn solve(diagonal: &mut [f64], beside: &mut [f64], vectors: &mut [f64], n: usize) {
    for l in 0..n {
        for _ in 0..ROUNDS {
            let is_small = |m: usize| {
                let scale = diagonal[m].abs() + diagonal[m + 1].abs();
                beside[m].abs() <= f64::EPSILON * scale.max(f64::EPSILON)
            };
            let m = (l..n - 1).find(|&m| is_small(m)).unwrap_or(n - 1);
            if m == l {
                break;
            }
            let half = (diagonal[l + 1] - diagonal[l]) / (2.0 * beside[l]);
            let root = (half * half + 1.0).sqrt();
            let mut g = diagonal[m] - diagonal[l] + beside[l] / (half + root.copysign(half));
            let (mut s, mut c, mut moved) = (1.0, 1.0, 0.0);
            let mut ended = false;
            for i in (l..m).rev() {
                let (f, b) = (s * beside[i], c * beside[i]);
                let length = (f * f + g * g).sqrt();
                beside[i + 1] = length;
                if length == 0.0 {
                    diagonal[i + 1] -= moved;
                    beside[m] = 0.0;
                    ended = true;
                    break;
                }
                (s, c) = (f / length, g / length);
                g = diagonal[i + 1] - moved;
                let r = (diagonal[i] - g) * s + 2.0 * c * b;
                moved = s * r;
                diagonal[i + 1] = g + moved;
                g = c * r - b;
                let (above, below) = vectors.split_at_mut((i + 1) * n);
                turn(&mut above[i * n..], &mut below[..n], (c, s));
            }
            if !ended {
                diagonal[l] -= moved;
                beside[l] = g;
                beside[m] = 0.0;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::mixed;
    use super::*;

    fn holds(a: &[f64], n: usize) {
        let (values, vectors) = symmetric(a.to_vec(), n);
        let largest = values.iter().fold(1e-300_f64, |most, x| most.max(x.abs()));
        assert!(values.is_sorted_by(|a, b| a >= b));
        for i in 0..n {
            for j in 0..n {
                let inner = dot(&vectors[i * n..(i + 1) * n], &vectors[j * n..(j + 1) * n]);
                assert!((inner - f64::from(u8::from(i == j))).abs() < 1e-12, "{n}: {i} {j} {inner}");
                let sum: f64 = (0..n).map(|k| values[k] * vectors[k * n + i] * vectors[k * n + j]).sum();
                assert!((sum - a[i * n + j]).abs() < 1e-12 * largest * n as f64, "{n}: {sum} {}", a[i * n + j]);
            }
        }
    }

    #[test]
    fn vectors_are_orthonormal_and_give_back_the_matrix() {
        for n in [1, 2, 3, 7, 40, 150] {
            let x = mixed(n * n);
            holds(&(0..n * n).map(|at| x[at] + x[at % n * n + at / n]).collect::<Vec<_>>(), n);
            // Of low rank, with equal values, graded, tiny and huge.
            holds(&(0..n * n).map(|at| x[at / n] * x[at % n]).collect::<Vec<_>>(), n);
            holds(&(0..n * n).map(|at| f64::from(u8::from(at / n == at % n))).collect::<Vec<_>>(), n);
            for scale in [1e-150, 1e150] {
                holds(&(0..n * n).map(|at| scale * (x[at] + x[at % n * n + at / n])).collect::<Vec<_>>(), n);
            }
            let graded = |i: usize| f64::from(2.0_f32).sqrt() * (0..i).fold(1.0, |x, _| x * 0.5);
            holds(
                &(0..n * n)
                    .map(|at| graded(at / n) * graded(at % n) * (x[at] + x[at % n * n + at / n]))
                    .collect::<Vec<_>>(),
                n,
            );
            holds(&vec![0.0; n * n], n);
        }
    }
}
