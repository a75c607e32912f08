//! Dense matrices, of which the largest directions are looked for.

use super::{Best, NEW, Wanted, gram_of};
use crate::linalg::{Factors, dot, gram_schmidt, hash, symmetric, transposed};
use crate::round::{Metric, products, weighted};
use crate::simd::gram::combine;
use crate::simd::matmul::{Columns, matmul};

/// The best approximation to a dense matrix (rows, cols). Of large matrices a subspace is turned towards the largest directions until a round
/// adds little; what it holds is summed, not estimated.
pub(in crate::arithmetic) fn best(
    matrix: &[f32],
    cols: usize,
    wanted: Wanted,
    seed: u64,
    metric: Option<&Metric>,
) -> Best {
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
    let over = transposed(matrix, cols);
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
        let image = product(over, rows, &transposed(&basis, rows), found);
        Self::new(basis, transposed(&image, found), found, (true, metric))
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
            columns = product(matrix, cols, &transposed(&image, cols), directions.found);
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
            Factors { rank, left: transposed(&right, long), right: transposed(&left, rank) }
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
