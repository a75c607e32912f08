//! Methods that round a weight as a whole, against sums computed directly in f64.

use proptest::prelude::*;
use qmerge::dtype::Dtype;
use qmerge::formats::{Choices, Grid, Levels};
use qmerge::round::{self, Detail, InputMoments, Matrix, Metric, OutputKept};

static LEVELS: [f32; 16] =
    [-1.0, -0.696, -0.525, -0.395, -0.284, -0.185, -0.091, 0.0, 0.08, 0.161, 0.246, 0.338, 0.441, 0.563, 0.723, 1.0];
const ROWS: usize = 12;
const RANK: usize = 2;

/// Numbers between −1 and 1.
fn numbers(count: usize, seed: u64) -> Vec<f32> {
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    let mut next = move || {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (state >> 40) as f32 / (1 << 23) as f32 - 1.0
    };
    (0..count).map(|_| next()).collect()
}

/// 8-bit floats: four bits of exponent, three of mantissa, without NaN.
static EIGHTS: std::sync::LazyLock<Vec<f32>> = std::sync::LazyLock::new(|| {
    let power = |exponent: i32| f32::from_bits(((exponent + 127) as u32) << 23);
    let value = |code: i32| match code >> 3 {
        0 => (code & 7) as f32 * power(-9),
        exponent => (8 + (code & 7)) as f32 * power(exponent - 10),
    };
    let up: Vec<f32> = (0..127).map(value).collect();
    up.iter().skip(1).rev().map(|x| -x).chain(up.iter().copied()).collect()
});

/// Kinds of grid, each as some format has it.
const KINDS: usize = 8;

/// Columns and grid of a kind, for values of about ±0.05.
fn grid(kind: usize, seed: u64) -> (usize, Grid) {
    // Scales within a factor of four.
    let scales = |runs: usize, most: f32| -> Vec<f32> {
        numbers(runs, seed + 1).iter().map(|x| most * (0.625 + 0.375 * x)).collect()
    };
    match kind {
        // Double quantized NF4: each scale one of a list.
        0 => {
            let list: Vec<f32> = (1..=256).map(|i| i as f32 / 2560.0).collect();
            let own = numbers(ROWS * 2, seed + 1).iter().map(|x| list[(128.0 + 60.0 * x) as usize]).collect();
            let choices = Choices::Listed { lists: vec![list], runs: 256, first: 0 };
            (128, Grid { choices, ..Grid::scaled(Levels::Table(&LEVELS), 64, own, Dtype::BF16) })
        }
        // Int8: one scale per row.
        1 => {
            let own = vec![0.05 / 127.0; ROWS];
            (40, Grid { choices: Choices::Any, ..Grid::scaled(Levels::Integers(-127, 127), 40, own, Dtype::F32) })
        }
        2 => (128, Grid::floats(Dtype::BF16)),
        // GPTQ: a zero per group, scales that are f16.
        3 => {
            let own: Vec<f32> = scales(ROWS * 4, 0.01).iter().map(|x| half::f16::from_f32(*x).to_f32()).collect();
            let zeros = numbers(ROWS * 4, seed + 9).iter().map(|x| (7.5 + 2.0 * x).round()).collect();
            let grid = Grid::scaled(Levels::Integers(0, 15), 32, own, Dtype::F16);
            (128, Grid { zeros, choices: Choices::Rounded(Dtype::F16), ..grid })
        }
        // MLX: scales of either sign, offsets that may move too.
        4 => {
            let mut own = scales(ROWS * 2, 0.01);
            own.iter_mut().step_by(3).for_each(|scale| *scale = -*scale);
            let offsets = own.iter().map(|scale| -7.0 * scale).collect();
            let grid = Grid::scaled(Levels::Integers(0, 15), 64, own, Dtype::BF16);
            (128, Grid { offsets, choices: Choices::Any, offset_choices: Choices::Any, ..grid })
        }
        // Q4_K: scales and minima from lists of 64 that eight runs share.
        5 => {
            let runs = ROWS * 8;
            let list = |unit: f32| -> Vec<Vec<f32>> {
                (0..ROWS).map(|row| (0..64).map(|i| unit * (1.0 + 0.1 * row as f32) * i as f32).collect()).collect()
            };
            let (up, down) = (list(0.0002), list(-0.001));
            let down: Vec<Vec<f32>> = down.into_iter().map(|list| list.into_iter().rev().collect()).collect();
            let pick = |lists: &[Vec<f32>], seed: u64| -> Vec<f32> {
                let code = |x: f32| (40.0 + 15.0 * x) as usize;
                numbers(runs, seed).iter().enumerate().map(|(run, &x)| lists[run / 8][code(x)]).collect()
            };
            let (own, offsets) = (pick(&up, seed + 1), pick(&down, seed + 9));
            let listed = |lists| Choices::Listed { lists, runs: 8, first: 0 };
            let grid = Grid::scaled(Levels::Integers(0, 15), 32, own, Dtype::F32);
            (256, Grid { offsets, choices: listed(up), offset_choices: listed(down), ..grid })
        }
        // FP8 in tiles: what all rows of a tile share stays, and a row's last run is shorter.
        6 => {
            let own = scales(ROWS * 3, 0.000_4);
            (40, Grid::scaled(Levels::Table(&EIGHTS), 16, own, Dtype::BF16).in_rows(40))
        }
        // HQQ: zeros between levels.
        _ => {
            let zeros = numbers(ROWS * 2, seed + 9).iter().map(|x| 7.5 + 2.0 * x).collect();
            let own = scales(ROWS * 2, 0.01).iter().map(|x| half::bf16::from_f32(*x).to_f32()).collect();
            let grid = Grid::scaled(Levels::Integers(0, 15), 64, own, Dtype::BF16);
            (128, Grid { zeros, choices: Choices::Rounded(Dtype::BF16), ..grid })
        }
    }
}

/// A weight with a low-rank delta, correlated inputs, and a grid of some kind.
struct Case {
    cols: usize,
    base: Vec<f32>,
    target: Vec<f32>,
    grid: Grid,
    moments: InputMoments,
}

impl Case {
    fn new(kind: usize, seed: u64) -> Self {
        let (cols, grid) = grid(kind, seed);
        let base: Vec<f32> =
            numbers(ROWS * cols, seed + 2).iter().enumerate().map(|(i, x)| grid.nearest(i, 0.05 * x)).collect();
        let (left, right) = (numbers(ROWS * RANK, seed + 3), numbers(RANK * cols, seed + 4));
        let target = (0..ROWS * cols)
            .map(|i| {
                let delta: f32 = (0..RANK).map(|k| left[i / cols * RANK + k] * right[k * cols + i % cols]).sum();
                base[i] + 5e-4 * delta
            })
            .collect();
        let tokens = 3 * cols;
        let (own, shared) = (numbers(tokens * cols, seed + 5), numbers(tokens, seed + 6));
        let input = |t: usize, i: usize| f64::from(own[t * cols + i]) + 1.5 * f64::from(shared[t]);
        let moment = |i: usize, j: usize| (0..tokens).map(|t| input(t, i) * input(t, j)).sum::<f64>() / tokens as f64;
        let values = (0..cols * cols).map(|at| moment(at / cols, at % cols) as f32).collect();
        Self { cols, base, target, grid, moments: InputMoments { features: cols, tokens, values } }
    }

    /// Values, their grid and what the method says of them.
    fn round(&self, method: &str) -> (Vec<f32>, Grid, OutputKept) {
        let whole = round::by_id(method).unwrap().whole().unwrap();
        let mut metric = Metric::damped(self.moments.clone(), whole.damping(Detail::Full)).unwrap();
        // What is prepared is what a method computes by itself otherwise.
        if self.cols.is_multiple_of(128) {
            whole.prepare(&mut metric, true);
        }
        let mut matrix = Matrix {
            rows: ROWS,
            cols: self.cols,
            base: &self.base,
            target: &self.target,
            values: self.base.clone(),
            grid: self.grid.clone(),
            rank: None,
            metric: &metric,
        };
        let kept = whole.round(&mut matrix).kept;
        (matrix.values, matrix.grid, kept)
    }

    /// GPTQ's values: each column's error over the inverse's diagonal is taken from the columns after it, in the order of falling diagonal of H.
    fn by_inverse(&self) -> Vec<f32> {
        let n = self.cols;
        let mut h = self.damped(0.003);
        let diagonal: Vec<f32> = (0..n).map(|i| h[i * n + i] as f32).collect();
        let mut order: Vec<usize> = (0..n).collect();
        order.sort_by(|&a, &b| diagonal[b].total_cmp(&diagonal[a]));
        let mut inverse: Vec<f64> = (0..n * n).map(|at| f64::from(u8::from(at / n == at % n))).collect();
        // Gauss and Jordan; H is positive definite, so that no pivot needs a search.
        for k in 0..n {
            let pivot = h[k * n + k];
            for j in 0..n {
                h[k * n + j] /= pivot;
                inverse[k * n + j] /= pivot;
            }
            for i in (0..n).filter(|&i| i != k) {
                let factor = h[i * n + k];
                for j in 0..n {
                    h[i * n + j] -= factor * h[k * n + j];
                    inverse[i * n + j] -= factor * inverse[k * n + j];
                }
            }
        }
        let mut wanted: Vec<f64> = self.target.iter().map(|&x| f64::from(x)).collect();
        let mut values = vec![0.0; wanted.len()];
        for (k, &j) in order.iter().enumerate() {
            let own = inverse[j * n + j];
            let column: Vec<f64> = (0..n).map(|i| inverse[i * n + j] / own).collect();
            for r in 0..ROWS {
                values[r * n + j] = self.grid.nearest(r * n + j, wanted[r * n + j] as f32);
                let error = wanted[r * n + j] - f64::from(values[r * n + j]);
                order[k + 1..].iter().for_each(|&i| wanted[r * n + i] -= error * column[i]);
            }
            // The inverse of H without this column.
            for i in order[k + 1..].iter().copied() {
                let row = inverse[j * n..(j + 1) * n].to_vec();
                order[k + 1..].iter().for_each(|&l| inverse[i * n + l] -= column[i] * row[l]);
            }
        }
        values
    }

    /// H with a share of its mean diagonal added.
    fn damped(&self, damping: f64) -> Vec<f64> {
        let n = self.cols;
        let mean = (0..n).map(|i| f64::from(self.moments.values[i * n + i])).sum::<f64>() / n as f64;
        let added = |at: usize| if at / n == at % n { damping * mean } else { 0.0 };
        self.moments.values.iter().enumerate().map(|(at, &x)| f64::from(x) + added(at)).collect()
    }

    /// tr(X H Yᵀ), H damped as `method` damps it.
    fn product(&self, method: &str, x: impl Fn(usize) -> f64, y: impl Fn(usize) -> f64) -> f64 {
        let damping = if method == "adapter" { 0.03 } else { 0.003 };
        let (n, h) = (self.cols, self.damped(damping));
        let row = |r: usize| {
            (0..n).map(|i| (0..n).map(|j| x(r * n + i) * h[i * n + j] * y(r * n + j)).sum::<f64>()).sum::<f64>()
        };
        (0..ROWS).map(row).sum()
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 48, ..ProptestConfig::default() })]

    #[test]
    fn what_methods_say_is_what_they_did(kind in 0..KINDS, seed in 0..1000_u64) {
        let case = Case::new(kind, seed);
        let delta = |i: usize| f64::from(case.target[i]) - f64::from(case.base[i]);
        for method in ["descent", "gptq", "adapter"] {
            let norm = case.product(method, delta, delta);
            let (values, grid, kept) = case.round(method);
            let change = |i: usize| f64::from(values[i]) - f64::from(case.base[i]);
            let error = |i: usize| f64::from(values[i]) - f64::from(case.target[i]);
            let (output, noise) = (case.product(method, change, delta) / norm, case.product(method, error, error) / norm);
            // What is said is summed in f32, of 256 products at most: 256 · 2⁻²⁴, and some times that as a share of the delta (1e-5 at most was seen).
            prop_assert!((output - kept.output).abs() < 1e-4, "{method} {kind}: {output} {kept:?}");
            prop_assert!((noise - kept.noise).abs() < 1e-4 * noise.max(1.0), "{method} {kind}: {noise} {kept:?}");
            // Keeping the base has noise 1 and keeps nothing.
            if method != "adapter" {
                prop_assert!(noise <= 1.0 + 1e-6, "{method} {kind}: {noise}");
            }
            // Every value is on the grid of the new scales, every scale one that can be stored.
            for (i, &value) in values.iter().enumerate() {
                prop_assert_eq!(grid.nearest(i, value), value, "{} {}", method, kind);
            }
            for (run, &scale) in grid.scales.iter().enumerate() {
                prop_assert_eq!(case.grid.choice(run, scale), scale);
            }
            for (run, &offset) in grid.offsets.iter().enumerate() {
                prop_assert_eq!(case.grid.offset_choice(run, offset), offset);
            }
        }
    }
}

/// Scales and offsets that may move are moved, where they may not they stay.
#[test]
fn what_may_move_is_moved() {
    for kind in (0..KINDS).filter(|kind| *kind != 2) {
        let mut moved = [0, 0];
        for seed in 0..10 {
            let mut case = Case::new(kind, seed);
            // A delta that is far above the grid's steps, with a shift of each run.
            case.target
                .iter_mut()
                .zip(&case.base)
                .for_each(|(target, base)| *target = base + 20.0 * (*target - base) + 0.002);
            let (_, grid, _) = case.round("descent");
            let changed = |a: &[f32], b: &[f32]| a.iter().zip(b).filter(|(a, b)| a != b).count();
            moved[0] += changed(&grid.scales, &case.grid.scales);
            moved[1] += changed(&grid.offsets, &case.grid.offsets);
        }
        assert_eq!(moved[0] > 0, case_moves(kind), "{kind} {moved:?}");
        assert_eq!(moved[1] > 0, matches!(kind, 4 | 5), "{kind} {moved:?}");
    }
}

/// True if a kind's scales may move.
fn case_moves(kind: usize) -> bool {
    // Int8's rows are too long here: no whole number of them fills a panel.
    !matches!(kind, 1 | 6)
}

#[test]
fn the_adapter_keeps_more_of_its_output_than_the_error_alone_would() {
    let mean = |method: &str| (0..10).map(|seed| Case::new(0, seed).round(method).2.output).sum::<f64>() / 10.0;
    let (descent, adapter) = (mean("descent"), mean("adapter"));
    assert!(adapter > descent + 0.05, "{adapter} {descent}");
}

/// Of a delta that is larger than the steps, the nearest levels are a better start than the base, and what comes out is never worse than they are.
#[test]
fn on_a_fine_grid_no_more_is_lost_than_by_the_nearest_levels() {
    for (kind, seed) in [1, 6].into_iter().flat_map(|kind| (0..10).map(move |seed| (kind, seed))) {
        let mut case = Case::new(kind, seed);
        case.target.iter_mut().zip(&case.base).for_each(|(target, base)| *target = base + 20.0 * (*target - base));
        let delta = |i: usize| f64::from(case.target[i]) - f64::from(case.base[i]);
        let lost = |i: usize| f64::from(case.grid.nearest(i, case.target[i])) - f64::from(case.target[i]);
        for method in ["descent", "adapter"] {
            let nearest = case.product(method, lost, lost) / case.product(method, delta, delta);
            let (_, _, kept) = case.round(method);
            assert!(kept.noise < nearest, "{method} {kind} {seed}: {} {nearest}", kept.noise);
            assert!((kept.output - 1.0).abs() < 0.05, "{method} {kind} {seed}: {}", kept.output);
        }
    }
}

/// The method as its paper states it, with the inverse of H, in f64: another form than the one that is tested.
#[test]
fn gptq_is_the_papers() {
    let (mut same, mut moved) = (0, 0);
    for seed in 0..10 {
        let mut case = Case::new(0, seed);
        // A stronger adapter, which moves more values.
        case.target.iter_mut().zip(&case.base).for_each(|(target, base)| *target = base + 8.0 * (*target - base));
        let (values, _, kept) = case.round("gptq");
        // Where it is worse than leaving the base alone, the base is left alone.
        if kept == (OutputKept { output: 0.0, noise: 1.0 }) {
            continue;
        }
        for ((&base, &value), want) in case.base.iter().zip(&values).zip(case.by_inverse()) {
            moved += usize::from(value != base || want != base);
            same += usize::from(value == want && want != base);
        }
    }
    // Sums in f32 may tip a value that lies between two levels, and with it what follows in its row.
    assert!(moved > 100 && same as f64 > 0.95 * moved as f64, "{same} of {moved}");
}

/// Large enough that threads share the work of one weight.
#[test]
fn the_number_of_threads_changes_nothing() {
    let (rows, cols) = (520, 640);
    let list: Vec<f32> = (1..=256).map(|i| i as f32 / 2560.0).collect();
    let own = numbers(rows * cols / 64, 1).iter().map(|x| list[(128.0 + 60.0 * x) as usize]).collect();
    let choices = Choices::Listed { lists: vec![list], runs: rows * cols / 64, first: 0 };
    let grid = Grid { choices, ..Grid::scaled(Levels::Table(&LEVELS), 64, own, Dtype::BF16) };
    let base: Vec<f32> = numbers(rows * cols, 2).iter().enumerate().map(|(i, x)| grid.nearest(i, 0.05 * x)).collect();
    let (left, right, x) = (numbers(rows * RANK, 3), numbers(RANK * cols, 4), numbers(8 * cols, 5));
    let product = |i: usize| (0..RANK).map(|k| left[i / cols * RANK + k] * right[k * cols + i % cols]).sum::<f32>();
    let target: Vec<f32> = base.iter().enumerate().map(|(i, base)| base + 0.002 * product(i)).collect();
    let h = |i: usize| (0..8).map(|t| x[t * cols + i / cols] * x[t * cols + i % cols]).sum::<f32>();
    let values = (0..cols * cols).map(|i| h(i) + f32::from(u8::from(i / cols == i % cols))).collect();
    let moments = InputMoments { features: cols, tokens: 8, values };
    for method in round::ROUNDINGS {
        let Some(whole) = method.whole() else { continue };
        let rounded = || {
            let mut metric = Metric::damped(moments.clone(), whole.damping(Detail::Full)).unwrap();
            whole.prepare(&mut metric, true);
            let values = base.clone();
            let mut matrix = Matrix {
                rows,
                cols,
                base: &base,
                target: &target,
                values,
                grid: grid.clone(),
                rank: None,
                metric: &metric,
            };
            let judged = whole.round(&mut matrix);
            (matrix.values, matrix.grid.scales, judged)
        };
        let alone = rounded();
        assert!(alone.0 != base, "{}", method.id());
        for threads in [1, 2, 5] {
            let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
            assert!(pool.install(rounded) == alone, "{} on {threads} threads", method.id());
        }
    }
}

#[test]
fn unfit_moments_are_refused() {
    let nan = InputMoments { features: 2, tokens: 5, values: vec![1.0, f32::NAN, f32::NAN, 1.0] };
    assert!(Metric::new(nan).unwrap_err().to_string().contains("NaN"));
    assert!(Metric::new(InputMoments { features: 3, tokens: 5, values: vec![1.0; 4] }).is_err());
}
