//! The best approximations of low rank to what adapters add, in the plain norm or in that of a layer's inputs, ‖X‖²_H = tr(X H Xᵀ).
//!
//! In the latter X H stands where a product with Xᵀ is taken: directions of outputs are those of X H Xᵀ, and the approximation is X projected on them.

use crate::error::{Result, usage};
use crate::linalg::{Cholesky, Eigen, Factors, dot, gram_schmidt, hash, symmetric};
use crate::round::{Metric, products, weighted};
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
    /// Of the product, in the basis Q.
    eigen: Eigen,
}

impl Spectrum {
    /// Of `left` (inner, rows), which is turned, and `right` (inner, cols).
    pub(super) fn new(left: Vec<f32>, right: Vec<f32>, inner: usize, metric: Option<&Metric>) -> Self {
        let grams = Grams::new(&left, &right, inner, metric);
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
        let eigen = Eigen::new(whole, found);
        // What cancels leaves the rounding of what it was made of.
        let parts = (0..inner).map(|i| grams.left[i * inner + i] * grams.right[i * inner + i]);
        let least = NEW * parts.chain(eigen.values.first().copied()).fold(0.0, f64::max);
        let values = eigen.values.iter().take_while(|square| **square > least).map(|square| square.sqrt()).collect();
        Self { values, left, right, inner, balance: grams.balance, cholesky, eigen }
    }

    /// The best approximation, its energy, and the share of the product's energy that it holds.
    pub(super) fn best(&self, wanted: Wanted) -> Best {
        let squares: Vec<f64> = self.values.iter().map(|value| value * value).collect();
        let rank = wanted.rank(&squares, self.energy()).unwrap_or(squares.len()).max(1);
        Best { factors: self.cut(rank), energy: self.energy(), kept: self.kept(rank).unwrap_or(1.0) }
    }

    /// The best approximation of that rank, with zeros where the product has less.
    pub(super) fn cut(&self, rank: usize) -> Factors {
        let (inner, found) = (self.inner, self.cholesky.pivots.len());
        let (rows, cols) = (self.left.len() / inner.max(1), self.right.len() / inner.max(1));
        let (mut of_left, mut of_right) = (Vec::new(), Vec::new());
        let vectors = self.eigen.vectors(rank.min(self.values.len()));
        for vector in vectors.chunks_exact(found.max(1)) {
            let weights = self.cholesky.weights(vector.to_vec());
            of_left.extend(weights.iter().zip(&self.balance).map(|(weight, balance)| weight * balance));
            let mut turned = vec![0.0; inner];
            for (share, row) in vector.iter().zip(self.cholesky.t.chunks_exact(inner.max(1))) {
                turned.iter_mut().zip(row).for_each(|(sum, x)| *sum += share * x);
            }
            of_right.extend(turned.iter().zip(&self.balance).map(|(x, balance)| x / balance));
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

/// How many directions are wanted.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Wanted {
    /// So many; what a matrix has less is filled up with zeros.
    Rank(usize),
    /// As many as hold this share of the energy, at least 1.
    Share(f64),
}

impl Wanted {
    /// Errors if that is no number of directions.
    pub(super) fn refuse(self) -> Result<()> {
        match self {
            Self::Rank(0) => Err(usage("an adapter of rank 0 is none").with_hint("give --rank a number above 0")),
            Self::Share(share) if !(share > 0.0 && share <= 1.0) => {
                Err(usage(format!("energy {share}: a share above 0, up to 1, was expected")))
            }
            _ => Ok(()),
        }
    }

    /// The rank, by the falling squares of singular values; none if they do not hold enough.
    fn rank(self, squares: &[f64], energy: f64) -> Option<usize> {
        let share = match self {
            Self::Rank(rank) => return Some(rank),
            Self::Share(share) => share,
        };
        let mut held = 0.0;
        let enough = |square: &f64| {
            held += square;
            // Sums differ by their rounding.
            held >= (share - 1e-12) * energy
        };
        squares.iter().position(enough).map(|at| at + 1)
    }
}

/// A dense matrix's best approximation.
pub(super) struct Best {
    pub(super) factors: Factors,
    /// The sum of the squares of the matrix's values.
    pub(super) energy: f64,
    /// The share of it that the approximation holds.
    pub(super) kept: f64,
}

/// The best approximation to a dense matrix (rows, cols). Of large matrices a subspace is turned towards the largest directions until a round
/// adds little; what it holds is summed, not estimated.
pub(super) fn best(matrix: &[f32], cols: usize, wanted: Wanted, seed: u64, metric: Option<&Metric>) -> Best {
    let rows = matrix.len() / cols.max(1);
    // ‖X‖²_H, some rows at a time.
    let energy = match metric {
        None => dot(matrix, matrix),
        Some(_) => matrix.chunks(cols.max(1) * ROWS).map(|x| dot(x, &weighted(x, cols, metric)).max(0.0)).sum(),
    };
    if energy == 0.0 {
        // It has no directions.
        let rank = wanted.rank(&[], energy).unwrap_or(1);
        let factors = Factors { rank, left: vec![0.0; rows * rank], right: vec![0.0; rank * cols] };
        return Best { factors, energy, kept: 1.0 };
    }
    let least = rows.min(cols);
    let found = |directions: &Directions, rank: usize| {
        let kept = (directions.energy(rank) / energy).min(1.0);
        Best { factors: directions.cut(rank), energy, kept }
    };
    let over = turned(matrix, cols);
    let mut tried = match wanted {
        Wanted::Rank(rank) => rank,
        Wanted::Share(_) => 32,
    };
    while least > SMALL && 2 * tried < least {
        let directions = Directions::largest(matrix, &over, cols, tried, (seed, metric));
        if let Some(rank) = wanted.rank(&directions.squares[..tried.min(directions.squares.len())], energy) {
            return found(&directions, rank);
        }
        tried *= 2;
    }
    let directions = Directions::all(matrix, &over, cols, metric);
    let rank = wanted.rank(&directions.squares, energy).unwrap_or(directions.squares.len()).max(1);
    found(&directions, rank)
}

/// Singular directions of a dense matrix (rows, cols), the largest first.
struct Directions {
    /// Rows of an orthonormal basis, (found, rows) or (found, cols), and what the matrix makes of them.
    basis: Vec<f32>,
    image: Vec<f32>,
    found: usize,
    /// True if the basis is one of columns' space.
    is_left: bool,
    /// Squares of singular values, falling, above those that are rounding.
    squares: Vec<f64>,
    /// Each direction's shares of the basis.
    vectors: Vec<f64>,
}

impl Directions {
    /// All of them. `over` is the matrix turned.
    fn all(matrix: &[f32], over: &[f32], cols: usize, metric: Option<&Metric>) -> Self {
        let rows = matrix.len() / cols.max(1);
        let is_left = rows <= cols;
        if metric.is_some() && !is_left {
            // Directions of inputs would have to be those of H^½.
            let (basis, _) = gram_schmidt(matrix, rows, cols);
            return Self::of_basis(basis, over, rows, metric);
        }
        let (found, image) = if is_left { (rows, matrix) } else { (cols, over) };
        let basis = (0..found * found).map(|at| f32::from(u8::from(at / found == at % found))).collect();
        Self::new(basis, image.to_vec(), found, (is_left, metric))
    }

    /// Those in the span of some columns.
    fn of_basis(basis: Vec<Vec<f64>>, over: &[f32], rows: usize, metric: Option<&Metric>) -> Self {
        let found = basis.len();
        let basis: Vec<f32> = basis.into_iter().flatten().map(|x| x as f32).collect();
        let image = product(over, rows, &turned(&basis, rows), found);
        Self::new(basis, turned(&image, found), found, (true, metric))
    }

    fn new(basis: Vec<f32>, image: Vec<f32>, found: usize, (is_left, metric): (bool, Option<&Metric>)) -> Self {
        let cols = image.len() / found.max(1);
        let gram = match metric {
            None => gram_of(&image, found),
            Some(_) => products(&image, &weighted(&image, cols, metric), found, cols),
        };
        let (mut squares, vectors) = symmetric(gram, found);
        let least = NEW * squares.first().copied().unwrap_or(0.0);
        squares.truncate(squares.iter().take_while(|square| **square > least).count());
        Self { basis, image, found, is_left, squares, vectors }
    }

    /// The first of them, nearly: random combinations of columns, turned towards the first singular vectors (Halko, Martinsson and Tropp 2011).
    fn largest(matrix: &[f32], over: &[f32], cols: usize, rank: usize, (seed, metric): (u64, Option<&Metric>)) -> Self {
        let rows = matrix.len() / cols;
        let count = (rank + (rank / 4).max(8)).min(rows).min(cols);
        let sign = |i: usize| if hash(seed ^ hash(i as u64)) & 1 == 0 { 1.0 } else { -1.0 };
        let probes: Vec<f32> = (0..cols * count).map(sign).collect();
        let mut columns = product(matrix, cols, &probes, count);
        let mut before = 0.0;
        for round in 1.. {
            let (basis, _) = gram_schmidt(&columns, rows, columns.len() / rows);
            let directions = Self::of_basis(basis, over, rows, metric);
            let held = directions.energy(rank);
            if round == ROUNDS || held - before <= LITTLE * held {
                return directions;
            }
            before = held;
            let image = weighted(&directions.image, cols, metric);
            columns = product(matrix, cols, &turned(&image, cols), directions.found);
        }
        unreachable!("there is a last round")
    }

    /// What the first of them hold.
    fn energy(&self, rank: usize) -> f64 {
        self.squares.iter().take(rank).sum()
    }

    fn cut(&self, rank: usize) -> Factors {
        let own = &self.vectors[..rank.min(self.squares.len()) * self.found];
        let (short, long) = (self.basis.len() / self.found.max(1), self.image.len() / self.found.max(1));
        let (basis, image) =
            (combine(own, &self.basis, self.found, short), combine(own, &self.image, self.found, long));
        let Factors { left, right, .. } = Factors::balanced(&basis, &image, rank, short, long);
        if self.is_left {
            Factors { rank, left, right }
        } else {
            Factors { rank, left: turned(&right, long), right: turned(&left, rank) }
        }
    }
}

/// Sides of a matrix up to which all its directions are found, so that the approximation is the best there is.
const SMALL: usize = 512;

/// Rows that are weighed together.
const ROWS: usize = 256;

/// `left` (any, inner) · `right` (inner, count).
fn product(left: &[f32], inner: usize, right: &[f32], count: usize) -> Vec<f32> {
    let mut out = vec![0.0; left.len() / inner.max(1) * count];
    matmul(left, &Columns::new(right, inner, count), false, &mut out);
    out
}

/// Most rounds, and the share of what is held that a round has to add to be followed by another.
const ROUNDS: usize = 12;
const LITTLE: f64 = 1e-4;

/// (rows, cols) to (cols, rows).
pub(super) fn turned(x: &[f32], cols: usize) -> Vec<f32> {
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
    fn new(left: &[f32], right: &[f32], inner: usize, metric: Option<&Metric>) -> Self {
        let cols = right.len() / inner.max(1);
        let mut right = match metric {
            None => gram_of(right, inner),
            Some(_) => products(right, &weighted(right, cols, metric), inner, cols),
        };
        let mut left = gram_of(left, inner);
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
        let grams = Grams::new(left, right, inner, None);
        [&grams.left, &grams.right].iter().any(|gram| Cholesky::new(gram, inner, NEW).pivots.len() < inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::round::InputMoments;

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
            let spectrum = Spectrum::new(left, right, inner, None);
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
        let spectrum = Spectrum::new(twice.0.clone(), twice.1.clone(), 8, None);
        assert_eq!(spectrum.values.len(), 4);
        assert!(off(&spectrum.cut(4), &product(&twice.0, &twice.1, 8)) < 1e-12);
        // Minus itself, and zero.
        let none = Spectrum::new(
            [left.clone(), scaled(&left, -1.0)].concat(),
            [right.clone(), right.clone()].concat(),
            8,
            None,
        );
        assert!(none.values.is_empty(), "{:?}", none.values);
        let zero = Spectrum::new(vec![0.0; 120], right, 4, None);
        assert!(zero.values.is_empty() && zero.kept(1).is_none() && zero.cut(2).left == [0.0; 60]);
    }

    #[test]
    fn as_many_directions_are_taken_as_hold_the_share() {
        for (rows, cols) in [(600, 530), (60, 53), (53, 60)] {
            let inner = 12;
            let (left, mut right) = (values(inner * rows, 1), values(inner * cols, 50));
            let fall = |k: usize| (0..k).fold(1.0_f32, |x, _| x * 0.6);
            right.chunks_exact_mut(cols).enumerate().for_each(|(k, row)| row.iter_mut().for_each(|x| *x *= fall(k)));
            let dense: Vec<f32> = product(&left, &right, inner).iter().map(|x| *x as f32).collect();
            let exact = Spectrum::new(left, right, inner, None);
            for share in [0.3, 0.9, 0.99, 1.0] {
                let found = best(&dense, cols, Wanted::Share(share), 0, None);
                let rank = found.factors.rank;
                assert!(found.kept >= share - 1e-9 && rank <= 40, "{share}: {rank} {}", found.kept);
                assert!(share == 1.0 || rank == 1 || exact.kept(rank - 1).unwrap() < share, "{share}: {rank}");
            }
        }
    }

    /// A dense matrix whose singular values fall by halves, cut both ways.
    #[test]
    fn large_matrices_are_cut_nearly_as_well_as_small_ones() {
        let (rows, cols, inner) = (600, 530, 12);
        let (left, mut right) = (values(inner * rows, 1), values(inner * cols, 50));
        right
            .chunks_exact_mut(cols)
            .enumerate()
            .for_each(|(k, row)| row.iter_mut().for_each(|x| *x *= (0..k).fold(1.0, |x, _| x * 0.6)));
        let want = product(&left, &right, inner);
        let dense: Vec<f32> = want.iter().map(|x| *x as f32).collect();
        let exact = Spectrum::new(left, right, inner, None);
        for rank in [1, 5, 12, 30] {
            let Best { factors: cut, energy, kept } = best(&dense, cols, Wanted::Rank(rank), 3, None);
            assert!((energy / exact.energy() - 1.0).abs() < 1e-6);
            assert!(kept > exact.kept(rank).unwrap() - 1e-4, "{rank}: {kept}");
            assert!((off(&cut, &want) - (1.0 - kept)).abs() < 1e-5);
            assert_eq!(cut, best(&dense, cols, Wanted::Rank(rank), 3, None).factors);
        }
        for (rows, cols) in [(40, 30), (30, 40)] {
            let (left, right) = (values(5 * rows, 2), values(5 * cols, 7));
            let want = product(&left, &right, 5);
            let dense: Vec<f32> = want.iter().map(|x| *x as f32).collect();
            let Best { factors: cut, kept, .. } = best(&dense, cols, Wanted::Rank(2), 0, None);
            assert!((kept - Spectrum::new(left, right, 5, None).kept(2).unwrap()).abs() < 1e-6);
            assert!((off(&cut, &want) - (1.0 - kept)).abs() < 1e-6);
        }
        for (rows, cols) in [(600, 700), (4, 5)] {
            let Factors { left, right, .. } = best(&vec![0.0; rows * cols], cols, Wanted::Rank(2), 0, None).factors;
            assert!(left == vec![0.0; 2 * rows] && right == vec![0.0; 2 * cols]);
        }
    }

    /// H, and R with R Rᵀ = H once it is damped, as a metric damps it.
    fn metric(n: usize) -> (Metric, Vec<f64>) {
        let x = values(2 * n * n, 11);
        let moment =
            |at: usize| (0..2 * n).map(|t| x[t * n + at / n] * x[t * n + at % n]).sum::<f32>() / (2 * n) as f32;
        let values: Vec<f32> = (0..n * n).map(moment).collect();
        let mut damped: Vec<f64> = values.iter().map(|x| f64::from(*x)).collect();
        let mean = (0..n).map(|i| damped[i * n + i]).sum::<f64>() / n as f64;
        (0..n).for_each(|i| damped[i * n + i] += 0.003 * mean);
        let mut root = vec![0.0; n * n];
        for i in 0..n {
            for j in 0..=i {
                let rest = damped[i * n + j] - dot(&root[i * n..i * n + j], &root[j * n..j * n + j]);
                root[i * n + j] = if i == j { rest.sqrt() } else { rest / root[j * n + j] };
            }
        }
        (Metric::new(InputMoments { features: n, tokens: 2 * n, values }).unwrap(), root)
    }

    /// D R, whose plain norm is D's in the metric.
    fn weighed(d: &[f64], root: &[f64], n: usize) -> Vec<f64> {
        let one = |at: usize| (0..n).map(|k| d[at / n * n + k] * root[k * n + at % n]).sum();
        (0..d.len()).map(one).collect()
    }

    #[test]
    fn in_the_metric_of_inputs_as_much_is_kept_as_a_rank_can_hold() {
        // Small and whole, high and wide; a large one, of which a subspace is searched.
        for (rows, cols, inner) in [(30, 40, 12), (70, 40, 12), (530, 520, 24)] {
            let (metric, root) = metric(cols);
            let (left, right) = (values(inner * rows, 1), values(inner * cols, 50));
            let want = product(&left, &right, inner);
            let dense: Vec<f32> = want.iter().map(|x| *x as f32).collect();
            // With left = Q T the singular values are those of T · right · R.
            let (basis, t) = gram_schmidt(&turned(&left, rows), rows, inner);
            let one = |at: usize| (0..inner).map(|i| t[at / cols * inner + i] * f64::from(right[i * cols + at % cols]));
            let small: Vec<f64> = (0..basis.len() * cols).map(|at| one(at).sum()).collect();
            let singular = crate::linalg::svd(&weighed(&small, &root, cols), basis.len(), cols).values;
            let all = dot(&singular, &singular);
            let spectrum = Spectrum::new(left, right, inner, Some(&metric));
            assert!((spectrum.energy() / all - 1.0).abs() < 1e-5);
            for rank in [1, 4, 9] {
                let most = dot(&singular[..rank], &singular[..rank]) / all;
                let left_of = |cut: &Factors| {
                    let value = |at: usize, k: usize| {
                        f64::from(cut.left[at / cols * rank + k]) * f64::from(cut.right[k * cols + at % cols])
                    };
                    let rest: Vec<f64> =
                        (0..want.len()).map(|at| want[at] - (0..rank).map(|k| value(at, k)).sum::<f64>()).collect();
                    let rest = weighed(&rest, &root, cols);
                    dot(&rest, &rest) / all
                };
                assert!((spectrum.kept(rank).unwrap() - most).abs() < 1e-5, "{rows} {rank}");
                assert!((left_of(&spectrum.cut(rank)) - (1.0 - most)).abs() < 1e-5, "{rows} {rank}");
                let found = best(&dense, cols, Wanted::Rank(rank), 3, Some(&metric));
                assert!((found.energy / all - 1.0).abs() < 1e-5);
                assert!((found.kept - most).abs() < 1e-3, "{rows} {rank}: {} {most}", found.kept);
                assert!((left_of(&found.factors) - (1.0 - found.kept)).abs() < 1e-5, "{rows} {rank}");
                // In the plain norm less of it is kept.
                let plain = best(&dense, cols, Wanted::Rank(rank), 3, None);
                assert!(left_of(&plain.factors) > 1.0 - most + 1e-4, "{rows} {rank}");
            }
            let energy = best(&dense, cols, Wanted::Share(0.9), 3, Some(&metric));
            let rank = energy.factors.rank;
            assert!(dot(&singular[..rank], &singular[..rank]) >= 0.9 * all * (1.0 - 1e-6));
        }
    }
}
