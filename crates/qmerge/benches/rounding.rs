//! What rounding a whole weight costs: seconds of one core per million weights, by the number of inputs.
//!
//! `cargo bench -p qmerge --bench rounding [-- METHOD...]`. The weight is random NF4 with double quantization, the delta a LoRA of rank 16 and 0.24 % of
//! the weight's size, the inputs correlated and of uneven strength, as those of trained models are.

use std::time::Instant;

use qmerge::dtype::Dtype;
use qmerge::formats::{Choices, Grid, Levels};
use qmerge::round::{self, InputMoments, Matrix, Metric};
use qmerge::simd::exp::exp;
use qmerge::simd::matmul::{Columns, matmul};

/// Close to NF4's.
static LEVELS: [f32; 16] =
    [-1.0, -0.696, -0.525, -0.395, -0.284, -0.185, -0.091, 0.0, 0.08, 0.161, 0.246, 0.338, 0.441, 0.563, 0.723, 1.0];
const ROWS: usize = 4096;
const RANK: usize = 16;
const TOKENS: usize = 2048;

#[allow(clippy::print_stdout)]
fn main() {
    let asked: Vec<String> = std::env::args().skip(1).filter(|arg| !arg.starts_with("--")).collect();
    for n in [576, 1536, 4096, 11008] {
        let moments = moments(n);
        for method in round::ROUNDINGS {
            let Some(whole) = method.whole() else { continue };
            if !asked.is_empty() && !asked.iter().any(|id| id == method.id()) {
                continue;
            }
            let mut metric = Metric::damped(moments.clone(), 0.03).expect("finite");
            let start = Instant::now();
            whole.prepare(&mut metric, true);
            let preparing = start.elapsed().as_secs_f64();
            let (base, target, grid) = weight(n);
            let mut matrix = Matrix {
                rows: ROWS,
                cols: n,
                base: &base,
                target: &target,
                values: base.clone(),
                grid,
                rank: Some(RANK),
                metric: &metric,
            };
            let start = Instant::now();
            let kept = whole.round(&mut matrix).kept;
            let seconds = start.elapsed().as_secs_f64() / (ROWS * n) as f64 * 1e6;
            let changed = base.iter().zip(&matrix.values).filter(|(a, b)| a != b).count() as f64 / base.len() as f64;
            println!(
                "{n:>6} inputs, {}: {seconds:.3} s per million weights, {preparing:.2} s for the inputs; kept output {:.3}, noise {:.3}, {:.1} % changed",
                method.id(),
                kept.output,
                kept.noise,
                100.0 * changed
            );
        }
    }
}

/// Numbers with mean 0 and variance 1.
fn numbers(count: usize, seed: u64) -> Vec<f32> {
    let mut state = seed;
    let mut uniform = move || {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (state >> 40) as f32 / (1 << 24) as f32 - 0.5
    };
    (0..count).map(|_| (0..4).map(|_| uniform()).sum::<f32>() * 3.0_f32.sqrt()).collect()
}

fn moments(n: usize) -> InputMoments {
    // Own noise of uneven strength, and 64 factors that all inputs share to some degree.
    let mut strength: Vec<f32> = numbers(n, 1).iter().map(|x| 0.8 * x).collect();
    exp(&mut strength);
    let (factors, loadings) = (numbers(64 * TOKENS, 2), numbers(n * 64, 3));
    let mut x = vec![0.0; n * TOKENS];
    matmul(&loadings, &Columns::new(&factors, 64, TOKENS), false, &mut x);
    for ((row, noise), strength) in x.chunks_mut(TOKENS).zip(numbers(n * TOKENS, 4).chunks(TOKENS)).zip(&strength) {
        row.iter_mut().zip(noise).for_each(|(x, noise)| *x = strength * (0.5 * *x + noise));
    }
    let mut turned = vec![0.0; n * TOKENS];
    for (i, row) in x.chunks(TOKENS).enumerate() {
        row.iter().enumerate().for_each(|(t, x)| turned[t * n + i] = *x);
    }
    let mut values = vec![0.0; n * n];
    matmul(&x, &Columns::new(&turned, TOKENS, n), false, &mut values);
    values.iter_mut().for_each(|x| *x /= TOKENS as f32);
    for i in 0..n {
        for j in 0..i {
            values[j * n + i] = values[i * n + j];
        }
    }
    InputMoments { features: n, tokens: TOKENS, values }
}

fn weight(n: usize) -> (Vec<f32>, Vec<f32>, Grid) {
    let runs = ROWS * n / 64;
    let list: Vec<f32> = (1..=256).map(|i| i as f32 / 256.0 * 0.08).collect();
    let scales: Vec<f32> =
        numbers(runs, 5).iter().map(|x| list[((0.5 + 0.1 * x) * 255.0).clamp(1.0, 255.0) as usize]).collect();
    let lists = vec![list; runs.div_ceil(256)];
    let choices = Choices::Listed { lists, runs: 256, first: 0 };
    let grid = Grid { choices, ..Grid::scaled(Levels::Table(&LEVELS), 64, scales, Dtype::BF16) };
    let base: Vec<f32> = numbers(ROWS * n, 6).iter().enumerate().map(|(i, x)| grid.nearest(i, 0.015 * x)).collect();
    let (left, right) = (numbers(ROWS * RANK, 7), numbers(RANK * n, 8));
    let mut delta = vec![0.0; ROWS * n];
    matmul(&left, &Columns::new(&right, RANK, n), false, &mut delta);
    let target = base.iter().zip(&delta).map(|(base, delta)| base + 0.0024 * 0.015 / 4.0 * delta).collect();
    (base, target, grid)
}
