//! The best approximations of low rank to what adapters add, in the plain norm.

use crate::linalg::{Cholesky, Factors, dot, gram_schmidt, symmetric};
use crate::round::hash;
use crate::simd::gram::{combine, gram};
use crate::simd::matmul::{Columns, matmul};

/// Directions of which no more than this is left, of the square of the largest, are taken for the rounding of sums: 1e-7 of its length, as fine as f32.
const NEW: f64 = 1e-14;

/// The singular values of a product of factors, and what their vectors are made of. The product is never formed: with B = Q T its left vectors are those of
/// T (A Aᵀ) Tᵀ turned by Q, and Q is B with other weights, so Gram matrices of the factors are all that is summed, in f64.
pub(super) struct Spectrum {
    /// Singular values above 1e-7 of the largest, falling.
    pub(super) values: Vec<f64>,
    /// Turned, (inner, rows).
    left: Vec<f32>,
    /// (inner, cols).
    right: Vec<f32>,
    inner: usize,
    /// Columns of `left` and rows of `right` are equally long once multiplied with and divided by these.
    balance: Vec<f64>,
    cholesky: Cholesky,
    /// Rows, in the basis Q.
    vectors: Vec<f64>,
}

impl Spectrum {
    /// Of `left` (inner, rows), which is turned, and `right` (inner, cols).
    pub(super) fn new(left: Vec<f32>, right: Vec<f32>, inner: usize) -> Self {
        let grams = Grams::new(&left, &right, inner);
        let cholesky = Cholesky::new(&grams.left, inner, NEW);
        let found = cholesky.pivots.len();
        let row = |k: usize| &cholesky.t[k * inner..(k + 1) * inner];
        let half: Vec<f64> =
            (0..found * inner).map(|at| dot(row(at / inner), &grams.right[at % inner * inner..][..inner])).collect();
        let mut whole = vec![0.0; found * found];
        for i in 0..found {
            for j in 0..=i {
                let one = dot(&half[i * inner..(i + 1) * inner], row(j));
                (whole[i * found + j], whole[j * found + i]) = (one, one);
            }
        }
        let (squares, vectors) = symmetric(whole, found);
        // What cancels leaves the rounding of what it was made of.
        let parts = (0..inner).map(|i| grams.left[i * inner + i] * grams.right[i * inner + i]);
        let least = NEW * parts.chain(squares.first().copied()).fold(0.0, f64::max);
        let values = squares.iter().take_while(|square| **square > least).map(|square| square.sqrt()).collect();
        Self { values, left, right, inner, balance: grams.balance, cholesky, vectors }
    }

    /// The best approximation of that rank, with zeros where the product has less.
    pub(super) fn cut(&self, rank: usize) -> Factors {
        let (inner, found) = (self.inner, self.cholesky.pivots.len());
        let (rows, cols) = (self.left.len() / inner.max(1), self.right.len() / inner.max(1));
        let (mut of_left, mut of_right) = (Vec::new(), Vec::new());
        for vector in self.vectors.chunks_exact(found.max(1)).take(rank.min(self.values.len())) {
            let weights = self.cholesky.weights(vector.to_vec());
            of_left.extend(weights.iter().zip(&self.balance).map(|(weight, balance)| weight * balance));
            let turned = |i: usize| (0..found).map(|q| vector[q] * self.cholesky.t[q * inner + i]).sum::<f64>();
            of_right.extend((0..inner).map(|i| turned(i) / self.balance[i]));
        }
        let columns = combine(&of_left, &self.left, inner, rows);
        let right = combine(&of_right, &self.right, inner, cols);
        Factors::balanced(&columns, &right, rank, rows, cols)
    }

    /// The sum of the squares of the product's values.
    pub(super) fn energy(&self) -> f64 {
        dot(&self.values, &self.values)
    }

    /// The share of the product's energy that a cut keeps; none where it is zero.
    pub(super) fn kept(&self, rank: usize) -> Option<f64> {
        share(&self.values, rank)
    }
}

/// The share of the squares of falling values that the first of them have.
fn share(values: &[f64], rank: usize) -> Option<f64> {
    let energy = |values: &[f64]| dot(values, values);
    let all = energy(values);
    (all > 0.0).then(|| energy(&values[..rank.min(values.len())]) / all)
}

/// Sides of a matrix up to which its singular values are found from a Gram matrix, and the approximation is the best there is.
const SMALL: usize = 512;

/// The best approximation of that rank to a dense matrix (rows, cols), the matrix's energy, and the share of it that is kept. Of large matrices it is nearly the
/// best: subspaces are turned until a round adds less than a thousandth of what is missing.
pub(super) fn best(matrix: Vec<f32>, rows: usize, cols: usize, rank: usize, seed: u64) -> (Factors, f64, f64) {
    let energy = dot(&matrix, &matrix);
    if rows.min(cols) > SMALL.max(2 * rank) {
        let (factors, kept) = turned_subspace(matrix, cols, rank, seed);
        return (factors, energy, if energy > 0.0 { (kept / energy).min(1.0) } else { 1.0 });
    }
    let is_tall = rows > cols;
    let (wide, n, len) = if is_tall { (turned(&matrix, cols), cols, rows) } else { (matrix, rows, cols) };
    let (squares, vectors) = symmetric(gram(&wide, n, len), n);
    let least = NEW * squares.first().copied().unwrap_or(0.0);
    let count = squares.iter().take(rank).take_while(|square| **square > least).count();
    let short = &vectors[..count * n];
    let long = combine(short, &wide, n, len);
    let kept: f64 = squares[..count].iter().sum();
    let mut factors = Factors::balanced(short, &long, rank, n, len);
    if is_tall {
        factors = Factors { rank, left: turned(&factors.right, len), right: turned(&factors.left, rank) };
    }
    (factors, energy, if energy > 0.0 { (kept / energy).min(1.0) } else { 1.0 })
}

/// Most rounds, and the share of what is held that a round has to add to be followed by another.
const ROUNDS: usize = 12;
const LITTLE: f64 = 1e-4;

/// An approximation of that rank, and its energy: random combinations of columns, turned towards the first singular vectors (Halko, Martinsson and Tropp 2011).
fn turned_subspace(matrix: Vec<f32>, cols: usize, rank: usize, seed: u64) -> (Factors, f64) {
    let rows = matrix.len() / cols;
    let count = (rank + (rank / 4).max(8)).min(rows).min(cols);
    let over = turned(&matrix, cols);
    let product = |left: &[f32], inner: usize, right: &[f32], count: usize| {
        let mut out = vec![0.0; left.len() / inner * count];
        matmul(left, &Columns::new(right, inner, count), false, &mut out);
        out
    };
    let sign = |i: usize| if hash(seed ^ hash(i as u64)) & 1 == 0 { 1.0 } else { -1.0 };
    let probes: Vec<f32> = (0..cols * count).map(sign).collect();
    let mut columns = product(&matrix, cols, &probes, count);
    let mut before = 0.0;
    for round in 1.. {
        let (basis, _) = gram_schmidt(&columns, rows, columns.len() / rows);
        let found = basis.len();
        if found == 0 {
            break;
        }
        let of_basis: Vec<f32> = (0..rows * found).map(|at| basis[at % found][at / found] as f32).collect();
        let right = product(&over, rows, &of_basis, found);
        let rows_of = turned(&right, found);
        let (squares, vectors) = symmetric(gram(&rows_of, found, cols), found);
        let directions = rank.min(found);
        let held: f64 = squares[..directions].iter().map(|square| square.max(0.0)).sum();
        if round == ROUNDS || held - before <= LITTLE * held {
            let short = &vectors[..directions * found];
            let basis_rows = turned(&of_basis, found);
            let (columns, rows_of) = (combine(short, &basis_rows, found, rows), combine(short, &rows_of, found, cols));
            return (Factors::balanced(&columns, &rows_of, rank, rows, cols), held);
        }
        before = held;
        columns = product(&matrix, cols, &right, found);
    }
    (Factors { rank, left: vec![0.0; rows * rank], right: vec![0.0; rank * cols] }, 0.0)
}

/// (rows, cols) to (cols, rows).
fn turned(x: &[f32], cols: usize) -> Vec<f32> {
    const BLOCK: usize = 32;
    let rows = x.len() / cols.max(1);
    let mut out = vec![0.0; x.len()];
    for first in (0..rows).step_by(BLOCK) {
        for start in (0..cols).step_by(BLOCK) {
            for r in first..rows.min(first + BLOCK) {
                for c in start..cols.min(start + BLOCK) {
                    out[c * rows + r] = x[r * cols + c];
                }
            }
        }
    }
    out
}

/// Gram matrices of factors, balanced.
struct Grams {
    left: Vec<f64>,
    right: Vec<f64>,
    balance: Vec<f64>,
}

impl Grams {
    fn new(left: &[f32], right: &[f32], inner: usize) -> Self {
        let (mut left, mut right) = (gram_of(left, inner), gram_of(right, inner));
        let balance: Vec<f64> = (0..inner)
            .map(|i| match (left[i * inner + i], right[i * inner + i]) {
                (own, other) if own > 0.0 && other > 0.0 => (other / own).sqrt().sqrt(),
                // One of them is zero, and with it their product.
                _ => 0.0,
            })
            .collect();
        for at in 0..inner * inner {
            let both = balance[at / inner] * balance[at % inner];
            left[at] *= both;
            right[at] = if both > 0.0 { right[at] / both } else { 0.0 };
        }
        // Where nothing is multiplied, nothing is divided either.
        let balance = balance.into_iter().map(|x| if x > 0.0 { x } else { 1.0 }).collect();
        Self { left, right, balance }
    }
}

fn gram_of(x: &[f32], inner: usize) -> Vec<f64> {
    gram(x, inner, x.len() / inner.max(1))
}

/// True if the product of `left` (inner, rows), which is turned, and `right` (inner, cols) has a lower rank than `inner`.
pub(super) fn is_dependent(left: &[f32], right: &[f32], inner: usize) -> bool {
    let narrow = left.len().min(right.len()) < inner * inner;
    narrow || {
        let grams = Grams::new(left, right, inner);
        [&grams.left, &grams.right].iter().any(|gram| Cholesky::new(gram, inner, NEW).pivots.len() < inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn values(count: usize, seed: usize) -> Vec<f32> {
        (0..count).map(|i| (((i + seed) * (i + seed) * 7919 + i) % 1013) as f32 / 506.0 - 1.0).collect()
    }

    /// left · right, of a turned `left`.
    fn product(left: &[f32], right: &[f32], inner: usize) -> Vec<f64> {
        let (rows, cols) = (left.len() / inner, right.len() / inner);
        let one = |at: usize, i: usize| f64::from(left[i * rows + at / cols]) * f64::from(right[i * cols + at % cols]);
        (0..rows * cols).map(|at| (0..inner).map(|i| one(at, i)).sum()).collect()
    }

    fn off(cut: &Factors, want: &[f64]) -> f64 {
        let cols = cut.right.len() / cut.rank;
        let value = |at: usize, k: usize| {
            f64::from(cut.left[at / cols * cut.rank + k]) * f64::from(cut.right[k * cols + at % cols])
        };
        let errors = want.iter().enumerate().map(|(at, want)| (0..cut.rank).map(|k| value(at, k)).sum::<f64>() - want);
        errors.map(|error| error * error).sum::<f64>() / want.iter().map(|x| x * x).sum::<f64>()
    }

    #[test]
    fn products_are_given_back_and_cut_as_the_whole_matrix_is() {
        for (rows, cols, inner) in [(9, 7, 3), (5, 40, 8), (40, 5, 8), (200, 170, 140)] {
            let (left, right) = (values(inner * rows, 1), values(inner * cols, 50));
            let want = product(&left, &right, inner);
            let spectrum = Spectrum::new(left, right, inner);
            let all = crate::linalg::svd(&want, rows, cols).values;
            assert_eq!(spectrum.values.len(), inner.min(rows).min(cols));
            for (got, want) in spectrum.values.iter().zip(&all) {
                assert!((got - want).abs() < 1e-7 * all[0], "{got} {want}");
            }
            assert!(off(&spectrum.cut(inner), &want) < 1e-12);
            let kept = spectrum.kept(2).unwrap();
            assert!((off(&spectrum.cut(2), &want) - (1.0 - kept)).abs() < 1e-9);
        }
    }

    #[test]
    fn what_depends_on_the_rest_is_found_however_the_factors_are_scaled() {
        let (left, right) = (values(4 * 30, 3), values(4 * 20, 9));
        assert!(!is_dependent(&left, &right, 4));
        // The same twice, once with its factors of very different sizes.
        let scaled = |x: &[f32], by: f32| x.iter().map(|x| x * by).collect::<Vec<_>>();
        let twice = ([left.clone(), scaled(&left, 1e12)].concat(), [right.clone(), scaled(&right, 1e-12)].concat());
        assert!(is_dependent(&twice.0, &twice.1, 8));
        let spectrum = Spectrum::new(twice.0.clone(), twice.1.clone(), 8);
        assert_eq!(spectrum.values.len(), 4);
        assert!(off(&spectrum.cut(4), &product(&twice.0, &twice.1, 8)) < 1e-12);
        // Minus itself, and zero.
        let none =
            Spectrum::new([left.clone(), scaled(&left, -1.0)].concat(), [right.clone(), right.clone()].concat(), 8);
        assert!(none.values.is_empty(), "{:?}", none.values);
        let zero = Spectrum::new(vec![0.0; 120], right, 4);
        assert!(zero.values.is_empty() && zero.kept(1).is_none() && zero.cut(2).left == [0.0; 60]);
    }

    /// A dense matrix whose singular values fall by halves, cut both ways.
    #[test]
    fn large_matrices_are_cut_nearly_as_well_as_small_ones() {
        let (rows, cols, inner) = (600, 530, 12);
        let (left, mut right) = (values(inner * rows, 1), values(inner * cols, 50));
        right
            .chunks_exact_mut(cols)
            .enumerate()
            .for_each(|(k, row)| row.iter_mut().for_each(|x| *x *= 0.6_f32.powi(k as i32)));
        let want = product(&left, &right, inner);
        let dense: Vec<f32> = want.iter().map(|x| *x as f32).collect();
        let exact = Spectrum::new(left, right, inner);
        for rank in [1, 5, 12, 30] {
            let (cut, energy, kept) = best(dense.clone(), rows, cols, rank, 3);
            assert!((energy / exact.energy() - 1.0).abs() < 1e-6);
            assert!(kept > exact.kept(rank).unwrap() - 1e-4, "{rank}: {kept}");
            assert!((off(&cut, &want) - (1.0 - kept)).abs() < 1e-5);
            assert_eq!(cut, best(dense.clone(), rows, cols, rank, 3).0);
        }
        for (rows, cols) in [(40, 30), (30, 40)] {
            let (left, right) = (values(5 * rows, 2), values(5 * cols, 7));
            let want = product(&left, &right, 5);
            let (cut, _, kept) = best(want.iter().map(|x| *x as f32).collect(), rows, cols, 2, 0);
            assert!((kept - Spectrum::new(left, right, 5).kept(2).unwrap()).abs() < 1e-6);
            assert!((off(&cut, &want) - (1.0 - kept)).abs() < 1e-6);
        }
        assert_eq!(best(vec![0.0; 600 * 600], 600, 600, 2, 0).0.left, vec![0.0; 1200]);
    }
}
