//! A whole weight that is rounded at once, and what its delta spans.

use std::ops::Range;

use super::moments::Metric;
use crate::formats::Grid;
use crate::linalg::{self, hash, span};
use crate::parallel::spread;
use crate::simd::matmul::{Columns, HEIGHT, matmul};
use crate::simd::vectors::{axpy, axpys, dot, outer};

/// A weight of which every value is chosen with all others in sight. Matrices are (rows, cols).
#[derive(Debug)]
pub struct Matrix<'m> {
    /// Outputs.
    pub rows: usize,
    /// Inputs.
    pub cols: usize,
    /// The decoded base: on the grid.
    pub base: &'m [f32],
    /// What the values should be: base + D.
    pub target: &'m [f32],
    /// The chosen values; they begin as the base, or as what another format makes of the target.
    pub values: Vec<f32>,
    /// The grid of all rows; scales may be changed to others of its choices.
    pub grid: Grid,
    /// Rank of D, at most, where it is known.
    pub rank: Option<usize>,
    /// Moments of the inputs.
    pub metric: &'m Metric,
}

/// What became of the adapter's output. ‖X‖²_H = tr(X H Xᵀ), the mean square of what X adds to the layer's output.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct OutputKept {
    /// ⟨Wq − W0, D⟩_H / ‖D‖²_H: 1 where the adapter's output is kept in full strength.
    pub output: f64,
    /// ‖E‖²_H / ‖D‖²_H.
    pub noise: f64,
}

impl OutputKept {
    /// Where there was nothing to keep.
    pub(crate) const ALL: Self = Self { output: 1.0, noise: 0.0 };
}

/// That, and what it is measured by.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Judged {
    /// What became of the adapter's output.
    pub kept: OutputKept,
    /// ‖D‖²_H.
    pub delta: f64,
}

impl Judged {
    /// Where there was nothing to keep.
    pub(super) fn nothing(delta: &Delta) -> Self {
        Self { kept: OutputKept::ALL, delta: delta.norm }
    }

    /// ‖E‖²_H.
    pub(crate) fn error(&self) -> f64 {
        self.kept.noise * self.delta
    }
}

/// What became of a matrix, computed from its values alone.
pub(super) fn judged(matrix: &Matrix<'_>, delta: &Delta) -> Judged {
    if delta.norm <= 0.0 || !delta.norm.is_finite() {
        return Judged::nothing(delta);
    }
    if matrix.at_base() {
        // E = −D.
        return Judged { kept: OutputKept { output: 0.0, noise: 1.0 }, delta: delta.norm };
    }
    let n = matrix.cols;
    let error = matrix.error();
    let product = matrix.error_products(&error);
    let noise: f64 = error.chunks(n).zip(product.chunks(n)).map(|(e, p)| f64::from(dot(e, p))).sum();
    Judged { kept: OutputKept { output: delta.kept(matrix), noise: noise / delta.norm }, delta: delta.norm }
}

/// Columns of a row that are done together where rows are summed up.
const WIDE: usize = 512;
/// Rows that read a matrix together.
const ROWS: usize = 16 * HEIGHT;

/// `left · x`, so many rows at a time.
pub(super) fn product(left: &[f32], x: &Columns, rows: usize) -> Vec<f32> {
    let mut out = vec![0.0; left.len() / x.inputs().max(1) * x.tokens()];
    let parts = out.chunks_mut((rows * x.tokens()).max(1)).zip(left.chunks((rows * x.inputs()).max(1)));
    spread(parts, |(out, left)| matmul(left, x, false, out));
    out
}

/// What `of` says of each row.
fn by_row<T: Copy + Default + Send>(rows: usize, of: impl Fn(usize) -> T + Sync) -> Vec<T> {
    let mut found = vec![T::default(); rows];
    spread(found.chunks_mut(ROWS).enumerate(), |(number, found)| {
        found.iter_mut().enumerate().for_each(|(r, found)| *found = of(number * ROWS + r));
    });
    found
}

/// Random vectors that a delta is multiplied with, at least. As many as its rank span its outputs; where that is not known, these are what is tried.
pub(crate) const LEAST_PROBES: usize = 64;
/// Share of ‖D‖² outside of the directions that is taken for the rounding of sums in f32, and not for a part of D.
const UNREACHED: f64 = 1e-6;
/// Where this share of D's output lies in no direction, the directions' own counts half.
const HALF_WORTH: f64 = 0.05;
/// A direction of which the others leave less than this share of the longest one's length is made of them and of rounding.
const NEW: f64 = 1e-4;
/// Rounds in which directions that do not cover D turn towards those of its largest outputs.
const ROUNDS: usize = 2;

/// D with an orthonormal basis U of the outputs it reaches, along which its outputs are uncorrelated: Uᵀ D H Dᵀ U is diagonal.
#[derive(Debug)]
pub(super) struct Delta {
    /// Number of directions.
    pub(super) directions: usize,
    /// U (rows, directions).
    pub(super) basis: Vec<f32>,
    /// Uᵀ D (directions, cols).
    pub(super) coefficients: Vec<f32>,
    /// Uᵀ D H (directions, cols).
    pub(super) moments: Vec<f32>,
    /// The diagonal of Uᵀ D H Dᵀ U: the mean square of the adapter's output along each direction, largest first.
    pub(super) strengths: Vec<f64>,
    /// D H (rows, cols), where D = U Uᵀ D does not hold.
    pub(super) dense: Option<Vec<f32>>,
    /// ‖D‖²_H.
    pub(super) norm: f64,
    /// ‖D − U Uᵀ D‖²_H.
    pub(super) rest: f64,
}

impl Matrix<'_> {
    /// E = Wq − (W0 + D).
    pub(super) fn error(&self) -> Vec<f32> {
        self.error_of(0..self.values.len())
    }

    /// The same of some elements.
    pub(super) fn error_of(&self, some: Range<usize>) -> Vec<f32> {
        self.values[some.clone()].iter().zip(&self.target[some]).map(|(value, target)| value - target).collect()
    }

    /// E H.
    pub(super) fn error_products(&self, error: &[f32]) -> Vec<f32> {
        product(error, &self.metric.columns, ROWS)
    }

    /// What a row should be.
    pub(super) fn target_of(&self, r: usize) -> &[f32] {
        &self.target[r * self.cols..(r + 1) * self.cols]
    }

    /// D of one row.
    pub(super) fn change_of(&self, r: usize) -> Vec<f32> {
        self.target_of(r).iter().zip(&self.base[r * self.cols..]).map(|(target, base)| target - base).collect()
    }

    /// True if rounding begins at the base's own codes.
    pub(super) fn at_base(&self) -> bool {
        self.values == self.base
    }
}

impl Delta {
    /// Finds the basis of `matrix.target − matrix.base` from its products with random vectors, which span its outputs. Of a delta of higher rank than their number, as
    /// one is that multiplies weights, it has the directions of the largest outputs.
    pub(super) fn new(matrix: &Matrix<'_>) -> Self {
        let (rows, cols) = (matrix.rows, matrix.cols);
        let delta: Vec<f32> = matrix.target.iter().zip(matrix.base).map(|(target, base)| target - base).collect();
        let probes = LEAST_PROBES.max(matrix.rank.unwrap_or(0)).min(rows).min(cols);
        let signs: Vec<f32> = (0..cols * probes).map(|i| if hash(i as u64) & 1 == 0 { 1.0 } else { -1.0 }).collect();
        let sketch = product(&delta, &Columns::new(&signs, cols, probes), ROWS);
        let (mut basis, mut directions) = span(&sketch, rows, probes, NEW);
        let of_row = |r: usize, part: &Range<usize>| &delta[r * cols..][part.clone()];
        let mut coefficients = against(&basis, directions, cols, of_row);
        let mut moments = product(&coefficients, &matrix.metric.columns, HEIGHT);
        // The part of D outside of U. Where the directions cover D's rank it is rounding, and U Uᵀ D stands for D; else D H is computed whole.
        let squares = by_row(rows, |r| {
            let mut row = delta[r * cols..(r + 1) * cols].to_vec();
            let all = f64::from(dot(&row, &row));
            let against: Vec<f32> = basis[r * directions..(r + 1) * directions].iter().map(|u| -u).collect();
            axpys(&against, &coefficients, &mut row);
            (all, f64::from(dot(&row, &row)))
        });
        let (all, rest) = squares.iter().fold((0.0, 0.0), |sum, row| (sum.0 + row.0, sum.1 + row.1));
        let is_covered = rest <= UNREACHED * all;
        for _ in 0..if is_covered { 0 } else { ROUNDS } {
            // D H Dᵀ U.
            let inputs: Vec<f32> =
                (0..cols * directions).map(|at| moments[at % directions * cols + at / directions]).collect();
            let sketch = product(&delta, &Columns::new(&inputs, cols, directions), ROWS);
            (basis, directions) = span(&sketch, rows, directions, NEW);
            coefficients = against(&basis, directions, cols, of_row);
            moments = product(&coefficients, &matrix.metric.columns, HEIGHT);
        }
        let (strengths, turn) = axes(&coefficients, &moments, directions, cols);
        let coefficients = turned(&turn, &coefficients, cols);
        let moments = turned(&turn, &moments, cols);
        let basis: Vec<f32> = basis.chunks_exact(directions.max(1)).flat_map(|own| turned(&turn, own, 1)).collect();
        if is_covered {
            let norm = coefficients.chunks(cols).zip(moments.chunks(cols)).map(|(a, b)| f64::from(dot(a, b))).sum();
            return Self { directions, basis, coefficients, moments, strengths, dense: None, norm, rest: 0.0 };
        }
        let dense = product(&delta, &matrix.metric.columns, ROWS);
        let norm: f64 = delta.chunks(cols).zip(dense.chunks(cols)).map(|(a, b)| f64::from(dot(a, b))).sum();
        let rest = (norm - strengths.iter().sum::<f64>()).max(0.0);
        Self { directions, basis, coefficients, moments, strengths, dense: Some(dense), norm, rest }
    }

    /// U_r.
    pub(super) fn own(&self, r: usize) -> &[f32] {
        &self.basis[r * self.directions..(r + 1) * self.directions]
    }

    /// What a weight of the directions counts, from 0 to 1: less where more of D's output lies in none of them, since noise there is then as dear.
    pub(super) fn worth_of_directions(&self) -> f32 {
        if self.rest == 0.0 { 1.0 } else { (1.0 / (1.0 + self.rest / (HALF_WORTH * self.norm))) as f32 }
    }

    /// ⟨Wq − W0, D⟩_H / ‖D‖²_H.
    pub(super) fn kept(&self, matrix: &Matrix<'_>) -> f64 {
        let n = matrix.cols;
        let rows = by_row(matrix.rows, |r| {
            let at = r * n..(r + 1) * n;
            let mut moments = vec![0.0; n];
            self.add_row(r, 1.0, &mut moments);
            let change: Vec<f32> = matrix.values[at.clone()].iter().zip(&matrix.base[at]).map(|(a, b)| a - b).collect();
            f64::from(dot(&change, &moments))
        });
        rows.iter().sum::<f64>() / self.norm
    }

    /// D H of one row, added with a factor.
    pub(super) fn add_row(&self, r: usize, factor: f32, out: &mut [f32]) {
        match &self.dense {
            Some(dense) => axpy(factor, &dense[r * out.len()..(r + 1) * out.len()], out),
            None => {
                let own = &self.basis[r * self.directions..(r + 1) * self.directions];
                let factors: Vec<f32> = own.iter().map(|u| u * factor).collect();
                axpys(&factors, &self.moments, out);
            }
        }
    }
}

/// Eigenvalues of C H Cᵀ, largest first, and its eigenvectors as rows.
fn axes(coefficients: &[f32], moments: &[f32], directions: usize, cols: usize) -> (Vec<f64>, Vec<f32>) {
    let pairs: Vec<f64> = by_row(directions * directions, |at| {
        linalg::dot(&coefficients[at / directions * cols..][..cols], &moments[at % directions * cols..][..cols])
    });
    let mean = |at: usize| 0.5 * (pairs[at] + pairs[at % directions * directions + at / directions]);
    let (values, vectors) = linalg::symmetric((0..directions * directions).map(mean).collect(), directions);
    (values, vectors.into_iter().map(|x| x as f32).collect())
}

/// `turn` (directions, directions) times `x` (directions, cols).
fn turned(turn: &[f32], x: &[f32], cols: usize) -> Vec<f32> {
    let mut out = vec![0.0; x.len()];
    for (out, own) in out.chunks_exact_mut(cols.max(1)).zip(turn.chunks_exact((x.len() / cols.max(1)).max(1))) {
        axpys(own, x, out);
    }
    out
}

/// Uᵀ X (directions, cols), with some columns of a row of X from `row`: each element is one chain over the rows.
pub(super) fn against<'x>(
    basis: &[f32],
    directions: usize,
    cols: usize,
    row: impl Fn(usize, &Range<usize>) -> &'x [f32] + Sync,
) -> Vec<f32> {
    let mut parts: Vec<(Range<usize>, Vec<f32>)> =
        (0..cols).step_by(WIDE).map(|start| (start..(start + WIDE).min(cols), Vec::new())).collect();
    spread(&mut parts, |(part, out)| {
        out.resize(directions * part.len(), 0.0);
        for (r, own) in basis.chunks_exact(directions.max(1)).enumerate() {
            outer(own, row(r, part), out, 0..part.len());
        }
    });
    let mut out = vec![0.0; directions * cols];
    for (part, own) in &parts {
        for (out, own) in out.chunks_exact_mut(cols).zip(own.chunks_exact(part.len())) {
            out[part.clone()].copy_from_slice(own);
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::dtype::Dtype;
    use crate::formats::{Choices, Levels};
    use crate::round::InputMoments;

    /// D = L·R of a rank above what is tried where none is known.
    #[test]
    fn a_delta_of_any_rank_is_spanned_where_its_rank_is_known() {
        let (rows, cols, rank) = (110, 120, 90);
        let number = |i: usize| (hash(i as u64) >> 40) as f32 / (1 << 23) as f32 - 1.0;
        let target: Vec<f32> = (0..rows * cols)
            .map(|at| (0..rank).map(|k| number(at / cols * rank + k) * number(77_777 + k * cols + at % cols)).sum())
            .collect();
        let base = vec![0.0; rows * cols];
        let values = (0..cols * cols).map(|at| if at / cols == at % cols { 1.0 } else { 0.2 }).collect();
        let metric = Metric::new(InputMoments { features: cols, tokens: 500, values }).unwrap();
        let delta = |rank| {
            let (values, grid) = (base.clone(), Grid::floats(Dtype::BF16));
            Delta::new(&Matrix { rows, cols, base: &base, target: &target, values, grid, rank, metric: &metric })
        };
        let (known, guessed) = (delta(Some(rank)), delta(None));
        assert_eq!((known.directions, known.dense.is_none()), (rank, true));
        assert_eq!((guessed.directions, guessed.dense.is_none()), (LEAST_PROBES, false));
        assert!((known.norm - guessed.norm).abs() < 1e-4 * guessed.norm, "{} {}", known.norm, guessed.norm);
        // Where directions hold all of it, their weight counts whole; where a twentieth lies beside them, half.
        let (worth, beside) = (f64::from(guessed.worth_of_directions()), guessed.rest / guessed.norm);
        assert!(known.worth_of_directions() == 1.0 && beside > 0.0, "{beside}");
        assert!((worth - 0.05 / (0.05 + beside)).abs() < 1e-6, "{worth} {beside}");
    }

    /// Inputs that go with each other, so that few directions of a layer's outputs have most of what it puts out.
    fn correlated(cols: usize) -> Metric {
        let tokens = 2 * cols;
        let number = |i: usize| f64::from((hash(i as u64 ^ 0xabc) >> 40) as f32 / (1 << 23) as f32 - 1.0);
        let input = |t: usize, i: usize| number(t * cols + i) + 4.0 * number(9_000_000 + t) * number(8_000_000 + i);
        let moment = |at: usize| (0..tokens).map(|t| input(t, at / cols) * input(t, at % cols)).sum::<f64>();
        let values = (0..cols * cols).map(|at| (moment(at) / tokens as f64) as f32).collect();
        Metric::damped(InputMoments { features: cols, tokens, values }, 0.03).unwrap()
    }

    /// tr(X H Yᵀ) in f64.
    fn inner(metric: &Metric, x: &[f64], y: &[f64]) -> f64 {
        let n = metric.features;
        let h: Vec<f64> = (0..n * n).map(|at| f64::from(metric.at(at / n, at % n))).collect();
        let rows = x.chunks_exact(n).zip(y.chunks_exact(n));
        rows.map(|(x, y)| (0..n).map(|i| x[i] * linalg::dot(&h[i * n..(i + 1) * n], y)).sum::<f64>()).sum()
    }

    /// What multiplies outputs has as many directions as these: those of the largest are followed one by one, and what is left as one, of which all comes out and a little more.
    #[test]
    fn a_delta_that_multiplies_comes_out_whole() {
        let rest: Vec<f64> = (0..8).map(multiplied).collect();
        let mean = rest.iter().sum::<f64>() / rest.len() as f64;
        // One weight's rest is so weak that noise goes with it by chance, hence the mean; and mu does not hold it, so the passes after it was asked for carry it on.
        assert!(mean > 0.97 && mean < 1.12, "{rest:?}");
    }

    /// Holds a weight whose outputs are multiplied, and says how much comes out of what lies in no direction.
    fn multiplied(seed: u64) -> f64 {
        let (rows, cols) = (160, 128);
        let number = |i: usize| (hash(i as u64 ^ hash(seed)) >> 40) as f32 / (1 << 23) as f32 - 1.0;
        let scales =
            (0..rows * cols / 64).map(|run| crate::simd::floats::round_bf16(0.01 + 0.004 * number(run))).collect();
        let grid = Grid::scaled(Levels::Integers(0, 15), 64, scales, Dtype::BF16);
        let grid = Grid { zeros: vec![8.0; rows * cols / 64], choices: Choices::Rounded(Dtype::BF16), ..grid };
        let base: Vec<f32> = (0..rows * cols).map(|at| grid.nearest(at, 0.05 * number(at + 77))).collect();
        let factor = |r: usize| 1.0 + 0.04 * number(5_000_000 + r);
        let target: Vec<f32> = base.iter().enumerate().map(|(at, x)| factor(at / cols) * x).collect();
        let metric = correlated(cols);
        let mut matrix = Matrix {
            rows,
            cols,
            base: &base,
            target: &target,
            values: base.clone(),
            grid,
            rank: None,
            metric: &metric,
        };
        let wide = |x: &[f32], y: &[f32]| -> Vec<f64> {
            x.iter().zip(y).map(|(x, y)| f64::from(*x) - f64::from(*y)).collect()
        };
        let d = wide(&target, &base);
        let norm = inner(&metric, &d, &d);
        // The largest eigenvalues of D H Dᵀ, one by one.
        let delta = Delta::new(&matrix);
        let gram: Vec<f64> = (0..rows * rows)
            .map(|at| inner(&metric, &d[at / rows * cols..][..cols], &d[at % rows * cols..][..cols]))
            .collect();
        let most: f64 = linalg::symmetric(gram, rows).0[..LEAST_PROBES].iter().sum();
        let found: f64 = delta.strengths.iter().sum();
        assert!(delta.directions == LEAST_PROBES && found > 0.99 * most, "{found} of {most}");
        assert!((delta.norm / norm - 1.0).abs() < 1e-4 && (delta.rest / (norm - found) - 1.0).abs() < 1e-3);
        let whole = crate::round::by_id("adapter").unwrap().whole().unwrap();
        let kept = whole.round(&mut matrix).kept;
        let (change, error) = (wide(&matrix.values, &base), wide(&matrix.values, &target));
        let (output, noise) = (inner(&metric, &change, &d) / norm, inner(&metric, &error, &error) / norm);
        assert!((output - kept.output).abs() < 1e-3 && (noise - kept.noise).abs() < 1e-3 * noise.max(1.0), "{kept:?}");
        assert!((output - 1.0).abs() < 0.01, "{output} {noise}");
        let own: Vec<f64> = (0..rows)
            .flat_map(|r| {
                let mut row = d[r * cols..(r + 1) * cols].to_vec();
                for (k, u) in delta.own(r).iter().enumerate() {
                    let of = &delta.coefficients[k * cols..(k + 1) * cols];
                    row.iter_mut().zip(of).for_each(|(x, c)| *x -= f64::from(*u) * f64::from(*c));
                }
                row
            })
            .collect();
        inner(&metric, &change, &own) / inner(&metric, &own, &own)
    }
}
