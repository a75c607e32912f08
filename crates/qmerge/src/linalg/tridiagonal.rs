//! Eigenvalues of symmetric matrices of some hundred columns, by way of a tridiagonal one.

use super::{axpy, dot, hash, turn};

/// Rounds per eigenvalue after which the rest counts as solved; 2 are usual.
const ROUNDS: usize = 60;

/// Steps by which a vector is found from its value; 2 are enough for nearly all.
const STEPS: usize = 4;

/// A symmetric matrix on the way to its eigenvalues.
#[derive(Debug)]
pub(super) struct Tridiagonal {
    n: usize,
    /// What the matrix was divided by.
    largest: f64,
    diagonal: Vec<f64>,
    /// What stands beside the diagonal.
    beside: Vec<f64>,
    /// For each column but the last the unit vector that it was reflected by.
    reflections: Vec<Vec<f64>>,
}

impl Tridiagonal {
    /// Of `a` (n, n), in about 4/3 n³ operations.
    pub(super) fn new(mut a: Vec<f64>, n: usize) -> Self {
        let largest = a.iter().fold(0.0_f64, |largest, x| largest.max(x.abs()));
        if largest > 0.0 {
            a.iter_mut().for_each(|x| *x /= largest);
        }
        let (diagonal, beside, reflections) = reduce(&mut a, n);
        Self { n, largest, diagonal, beside, reflections }
    }

    /// The eigenvalues, largest first, in some n² operations.
    pub(super) fn values(&self) -> Vec<f64> {
        let mut values = self.scaled_values();
        values.iter_mut().for_each(|value| *value *= self.largest);
        values
    }

    fn scaled_values(&self) -> Vec<f64> {
        let (mut diagonal, mut beside) = (self.diagonal.clone(), self.beside.clone());
        solve(&mut diagonal, &mut beside, &mut [], self.n, 0);
        diagonal.sort_by(|a, b| b.total_cmp(a));
        diagonal
    }

    /// Eigenvalues, largest first, and all vectors as rows, in about 7 n³ operations. Values, and vectors up to what nearly equal values leave open, are right to
    /// about n units in the last place of the largest value.
    pub(super) fn all(&self) -> (Vec<f64>, Vec<f64>) {
        let n = self.n;
        let (mut diagonal, mut beside) = (self.diagonal.clone(), self.beside.clone());
        let mut vectors = vec![0.0; n * n];
        (0..n).for_each(|i| vectors[i * n + i] = 1.0);
        solve(&mut diagonal, &mut beside, &mut vectors, n, n);
        self.turn_back(&mut vectors);
        let mut order: Vec<usize> = (0..n).collect();
        order.sort_by(|&i, &j| diagonal[j].total_cmp(&diagonal[i]).then(i.cmp(&j)));
        let values = order.iter().map(|&i| diagonal[i] * self.largest).collect();
        (values, order.iter().flat_map(|&i| vectors[i * n..(i + 1) * n].iter().copied()).collect())
    }

    /// The vectors of the `count` largest eigenvalues as rows, in about 2 n² operations for each: by inverse iteration, which finds a vector from its value. Where
    /// values are nearly equal it finds any of their space, so each is made orthogonal to those before.
    pub(super) fn largest_vectors(&self, count: usize) -> Vec<f64> {
        let n = self.n;
        let mut vectors: Vec<f64> = Vec::with_capacity(count * n);
        let mut above = f64::INFINITY;
        for (number, value) in self.scaled_values().into_iter().take(count).enumerate() {
            // Equal values are taken apart by a little, so that each begins from another matrix.
            let shift = value.min(above - 10.0 * f64::EPSILON);
            above = shift;
            let solver = Shifted::new(&self.diagonal, &self.beside, shift);
            let mut x: Vec<f64> =
                (0..n).map(|i| (hash((number * n + i) as u64) >> 11) as f64 / (1_u64 << 52) as f64 - 1.0).collect();
            for _ in 0..STEPS {
                solver.solve(&mut x);
                shorten(&mut x);
                // Twice is enough (Kahan, Parlett).
                for _ in 0..2 {
                    for other in vectors.chunks_exact(n.max(1)) {
                        let share = dot(other, &x);
                        axpy(-share, other, &mut x);
                    }
                }
                shorten(&mut x);
            }
            vectors.extend(x);
        }
        self.turn_back(&mut vectors);
        vectors
    }

    /// Rows of the tridiagonal matrix's vectors to those of the matrix itself.
    fn turn_back(&self, vectors: &mut [f64]) {
        let n = self.n;
        for vector in vectors.chunks_exact_mut(n.max(1)) {
            for (k, v) in self.reflections.iter().enumerate().rev() {
                let own = &mut vector[n - v.len()..];
                debug_assert_eq!(v.len(), n - k - 1);
                let share = dot(v, own);
                axpy(-2.0 * share, v, own);
            }
        }
    }
}

/// To length 1; what is too long for its square is divided first.
fn shorten(x: &mut [f64]) {
    let largest = x.iter().fold(0.0_f64, |most, x| most.max(x.abs()));
    if largest > 0.0 {
        x.iter_mut().for_each(|x| *x /= largest);
        let length = dot(x, x).sqrt();
        x.iter_mut().for_each(|x| *x /= length);
    }
}

/// T − shift·I as a product of triangular matrices, rows exchanged where that is needed (LAPACK's `dgttrf`).
struct Shifted {
    /// Multipliers, and whether the row was exchanged with the next.
    steps: Vec<(f64, bool)>,
    /// Three diagonals of the upper matrix.
    upper: Vec<[f64; 3]>,
}

impl Shifted {
    fn new(diagonal: &[f64], beside: &[f64], shift: f64) -> Self {
        let n = diagonal.len();
        let tiny = f64::EPSILON * f64::EPSILON;
        let (mut steps, mut upper) = (Vec::with_capacity(n), Vec::with_capacity(n));
        let mut row = [diagonal.first().map_or(0.0, |x| x - shift), beside.first().copied().unwrap_or(0.0), 0.0];
        for i in 0..n {
            if i + 1 == n {
                row[0] = if row[0].abs() < tiny { tiny } else { row[0] };
                upper.push(row);
                break;
            }
            let next = [beside[i], diagonal[i + 1] - shift, if i + 2 < n { beside[i + 1] } else { 0.0 }];
            let exchanged = next[0].abs() > row[0].abs();
            let (mut pivot, other) =
                if exchanged { (next, [row[0], row[1], 0.0]) } else { ([row[0], row[1], 0.0], next) };
            pivot[0] = if pivot[0].abs() < tiny { tiny } else { pivot[0] };
            let factor = other[0] / pivot[0];
            steps.push((factor, exchanged));
            upper.push(pivot);
            row = [other[1] - factor * pivot[1], other[2] - factor * pivot[2], 0.0];
        }
        Self { steps, upper }
    }

    /// Solves for `x` in place.
    fn solve(&self, x: &mut [f64]) {
        for (i, (factor, exchanged)) in self.steps.iter().enumerate() {
            if *exchanged {
                x.swap(i, i + 1);
            }
            x[i + 1] -= factor * x[i];
        }
        for i in (0..x.len()).rev() {
            let [own, next, after] = self.upper[i];
            let mut sum = x[i];
            if i + 1 < x.len() {
                sum -= next * x[i + 1];
            }
            if i + 2 < x.len() {
                sum -= after * x[i + 2];
            }
            x[i] = sum / own;
        }
    }
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

/// QL with implicit shifts: `diagonal` becomes the eigenvalues, and the rows of `vectors` (n, width) take every turn.
fn solve(diagonal: &mut [f64], beside: &mut [f64], vectors: &mut [f64], n: usize, width: usize) {
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
                let (above, below) = vectors.split_at_mut((i + 1) * width);
                turn(&mut above[i * width..], &mut below[..width], (c, s));
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
        let matrix = Tridiagonal::new(a.to_vec(), n);
        let (values, vectors) = matrix.all();
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
        // The first of them alone: orthonormal, and A stretches each by its value.
        let count = n.div_ceil(3);
        let (alone, some) = (matrix.values(), matrix.largest_vectors(count));
        assert!(alone.iter().zip(&values).all(|(a, b)| (a - b).abs() < 1e-13 * largest * n as f64));
        for (i, (value, own)) in alone.iter().zip(some.chunks_exact(n)).enumerate() {
            for (j, other) in some.chunks_exact(n).enumerate() {
                let inner = dot(own, other) - f64::from(u8::from(i == j));
                assert!(inner.abs() < 1e-12, "{n}: {i} {j} {inner}");
            }
            for (k, row) in a.chunks_exact(n).enumerate() {
                let off = dot(row, own) - value * own[k];
                assert!(off.abs() < 1e-12 * largest * n as f64, "{n}: {i} {off}");
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
