//! Products of factors, which are never formed: Gram matrices of the factors are enough.

use super::{Best, NEW, Wanted, gram_of};
use crate::linalg::{Cholesky, Eigen, Factors, dot};
use crate::round::{Metric, products, weighted};
use crate::simd::gram::combine;

/// The singular values of a product of factors, and what their vectors are made of. The product is never formed: with B = Q T its left vectors are those of
/// T (A Aᵀ) Tᵀ turned by Q, and Q is B with other weights, so Gram matrices of the factors are all that is summed, in f64.
pub(in crate::arithmetic) struct Spectrum {
    /// Singular values above 1e-7 of the largest, falling.
    pub(in crate::arithmetic) values: Vec<f64>,
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
    pub(in crate::arithmetic) fn new(left: Vec<f32>, right: Vec<f32>, inner: usize, metric: Option<&Metric>) -> Self {
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
    pub(in crate::arithmetic) fn best(&self, wanted: Wanted) -> Best {
        let squares: Vec<f64> = self.values.iter().map(|value| value * value).collect();
        let rank = wanted.rank(&squares, self.energy()).unwrap_or(squares.len()).max(1);
        Best { factors: self.cut(rank), energy: self.energy(), kept: self.kept(rank).unwrap_or(1.0) }
    }

    /// The best approximation of that rank, with zeros where the product has less.
    pub(in crate::arithmetic) fn cut(&self, rank: usize) -> Factors {
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
    pub(in crate::arithmetic) fn energy(&self) -> f64 {
        dot(&self.values, &self.values)
    }

    /// The share of the product's energy that a cut keeps; none where it is zero.
    pub(in crate::arithmetic) fn kept(&self, rank: usize) -> Option<f64> {
        share(&self.values, rank)
    }
}

/// The share of the squares of falling values that the first of them have.
fn share(values: &[f64], rank: usize) -> Option<f64> {
    let energy = |values: &[f64]| dot(values, values);
    let all = energy(values);
    (all > 0.0).then(|| energy(&values[..rank.min(values.len())]) / all)
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

/// True if the product of `left` (inner, rows), which is turned, and `right` (inner, cols) has a lower rank than `inner`.
pub(in crate::arithmetic) fn is_dependent(left: &[f32], right: &[f32], inner: usize) -> bool {
    let narrow = left.len().min(right.len()) < inner * inner;
    narrow || {
        let grams = Grams::new(left, right, inner, None);
        [&grams.left, &grams.right].iter().any(|gram| Cholesky::new(gram, inner, NEW).pivots.len() < inner)
    }
}
