//! What descent does to deltas that no few directions hold.

use super::super::matrix::{Matrix, OutputKept};
use super::super::moments::{InputMoments, Metric};
use crate::dtype::Dtype;
use crate::formats::{Choices, Grid, Levels};
use crate::linalg::hash;
use crate::simd::floats::round_bf16;

const RUN: usize = 64;

/// From -1 to 1.
fn number(i: usize) -> f32 {
    (hash(i as u64) >> 40) as f32 / (1 << 23) as f32 - 1.0
}

/// A grid of four bits whose scales have 16.
fn grid(elements: usize) -> Grid {
    let scales = (0..elements / RUN).map(|run| round_bf16(0.01 + 0.004 * number(run))).collect();
    let grid = Grid::scaled(Levels::Integers(0, 15), RUN, scales, Dtype::BF16);
    Grid { zeros: vec![8.0; elements / RUN], choices: Choices::Rounded(Dtype::BF16), ..grid }
}

fn squares(a: &[f32], b: &[f32]) -> f64 {
    a.iter().zip(b).map(|(a, b)| f64::from((a - b) * (a - b))).sum()
}

/// Rounds base + D, and returns the base, what should come out and what does.
fn rounded(rows: usize, cols: usize, target: impl Fn(usize, f32) -> f32, metric: &Metric) -> [Vec<f32>; 3] {
    rounded_by("adapter", None, (rows, cols), target, metric).0
}

/// The same by a method, of a delta of some rank, and what became of the adapter's output.
fn rounded_by(
    method: &str,
    rank: Option<usize>,
    (rows, cols): (usize, usize),
    target: impl Fn(usize, f32) -> f32,
    metric: &Metric,
) -> ([Vec<f32>; 3], OutputKept) {
    let grid = grid(rows * cols);
    let base: Vec<f32> = (0..rows * cols).map(|at| grid.nearest(at, 0.05 * number(at + 77))).collect();
    let target: Vec<f32> = base.iter().enumerate().map(|(at, x)| target(at, *x)).collect();
    let values = base.clone();
    let mut matrix = Matrix { rows, cols, base: &base, target: &target, values, grid, rank, metric };
    let whole = crate::round::by_id(method).unwrap().whole().unwrap();
    let kept = whole.round(&mut matrix).kept;
    let values = matrix.values;
    ([base, target, values], kept)
}

/// Inputs that go with each other, as those of a trained model do, where single values find but the next minimum.
#[test]
fn all_of_an_adapter_comes_out_with_little_more_noise() {
    let (rows, cols, rank, tokens) = (256, 128, 2, 512);
    let input = |t: usize, j: usize| {
        let shared = |k: usize| number(4_000_000 + t * 8 + k) * number(5_000_000 + k * cols + j);
        f64::from(0.3 * number(3_000_000 + t * cols + j) + (0..8).map(shared).sum::<f32>())
    };
    let moment = |at: usize| (0..tokens).map(|t| input(t, at / cols) * input(t, at % cols)).sum::<f64>();
    let values = (0..cols * cols).map(|at| (moment(at) / tokens as f64) as f32).collect();
    let metric = Metric::damped(InputMoments { features: cols, tokens, values }, 0.03).unwrap();
    let delta = |at: usize| {
        let product = |k: usize| number(6_000_000 + at / cols * rank + k) * number(8_000_000 + k * cols + at % cols);
        0.002 * (0..rank).map(product).sum::<f32>()
    };
    let by = |method| rounded_by(method, Some(rank), (rows, cols), |at, x| x + delta(at), &metric).1;
    let (adapter, descent) = (by("adapter"), by("descent"));
    // The error alone takes a part of the adapter's output for less noise.
    assert!(descent.output < 0.96 && (adapter.output - 1.0).abs() < 0.01, "{adapter:?} {descent:?}");
    assert!(adapter.noise < 1.1 * descent.noise, "{adapter:?} {descent:?}");
}

/// Outputs that are multiplied have their codes and other scales: what is left is the rounding of these.
#[test]
fn outputs_that_are_multiplied_keep_their_codes() {
    let (rows, cols) = (96, 128);
    let unit = (0..cols * cols).map(|at| if at / cols == at % cols { 1.0 } else { 0.1 }).collect();
    let metric = Metric::damped(InputMoments { features: cols, tokens: 500, values: unit }, 0.03).unwrap();
    let factor = |at: usize| 1.0 + 0.15 * number(9_000 + at / cols);
    let [base, target, values] = rounded(rows, cols, |at, x| factor(at) * x, &metric);
    let left = squares(&values, &target) / squares(&base, &target);
    // bf16 has eight bits: 0.1 % of a scale against 9 % that it moves by.
    assert!(left < 1e-3, "{left}");
}

/// Inputs of which one token has a thousand times the length of the others: a row that puts it out is not given up for it.
#[test]
fn no_row_is_given_up_for_one_token() {
    let (rows, cols, tokens) = (96, 128, 512);
    let long = |t: usize, j: usize| if t == 0 { 300.0 * if j == 5 { 1.0 } else { 0.1 } } else { 0.3 };
    let input = |t: usize, j: usize| f64::from(long(t, j) * number(1_000_000 + t * cols + j));
    let moment = |at: usize| (0..tokens).map(|t| input(t, at / cols) * input(t, at % cols)).sum::<f64>();
    let values = (0..cols * cols).map(|at| (moment(at) / tokens as f64) as f32).collect();
    let metric = Metric::damped(InputMoments { features: cols, tokens, values }, 0.03).unwrap();
    let factor = |at: usize| 1.0 + 0.1 * number(7_000 + at % cols);
    // Of one row the adapter changes what the long token makes of it.
    let one = |at: usize, x: f32| if at / cols == 7 && at % cols == 5 { x + 0.2 } else { factor(at) * x };
    let [base, target, values] = rounded(rows, cols, one, &metric);
    let half_steps = |r: usize| {
        grid(rows * cols).scales_of(r * cols..(r + 1) * cols).iter().map(|s| RUN as f32 * s * s).sum::<f32>()
    };
    for r in 0..rows {
        let at = r * cols..(r + 1) * cols;
        let (error, delta) =
            (squares(&values[at.clone()], &target[at.clone()]), squares(&base[at.clone()], &target[at]));
        assert!(error < 1.01 * (0.25 * f64::from(half_steps(r)) + delta), "row {r}: {error} {delta}");
    }
}
