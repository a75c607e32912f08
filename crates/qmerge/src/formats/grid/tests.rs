use super::*;
use crate::simd::forced::at_every_level;

static LEVELS: [f32; 4] = [-1.0, -0.25, 0.5, 1.0];

/// 8-bit levels: the finite values of a float with four bits of exponent and three of mantissa, and their negatives.
fn eights() -> &'static [f32] {
    static LEVELS: std::sync::OnceLock<Vec<f32>> = std::sync::OnceLock::new();
    LEVELS.get_or_init(|| {
        let value = |code: i32| match code >> 3 {
            0 => (code & 7) as f32 * 2.0_f32.powi(-9),
            exponent => (8 + (code & 7)) as f32 * 2.0_f32.powi(exponent - 10),
        };
        let up: Vec<f32> = (0..127).map(value).collect();
        up.iter().skip(1).rev().map(|x| -x).chain(up.iter().copied()).collect()
    })
}

fn grids() -> Vec<Grid> {
    let scaled = |levels, run, scales: &[f32], values| Grid::scaled(levels, run, scales.to_vec(), values);
    vec![
        scaled(Levels::Table(&LEVELS), 2, &[0.5, 2.0], Dtype::F32),
        scaled(Levels::Table(&LEVELS), 2, &[0.123_456, 1.7], Dtype::BF16),
        Grid { offsets: vec![0.05; 4], ..scaled(Levels::Integers(-8, 7), 1, &[0.1; 4], Dtype::F32) },
        Grid::floats(Dtype::BF16),
        Grid::floats(Dtype::F16),
        // GPTQ: codes 0 to 15 and a zero.
        Grid { zeros: vec![8.0, 3.0], ..scaled(Levels::Integers(0, 15), 2, &[0.031, 0.11], Dtype::F16) },
        // HQQ: a zero between two levels.
        Grid {
            zeros: vec![7.3, 2.9],
            rounds: Rounds::BeforeScale,
            ..scaled(Levels::Integers(0, 15), 2, &[0.031, 0.11], Dtype::BF16)
        },
        // MLX: an offset, and a scale that may be negative.
        Grid { offsets: vec![-0.4, 0.3], ..scaled(Levels::Integers(0, 15), 2, &[0.05, -0.04], Dtype::BF16) },
        // FP8 with one scale for a tile: rows of three are no whole number of runs.
        scaled(Levels::Table(eights()), 2, &[0.000_7, 0.001, 0.002, 0.000_4], Dtype::BF16).in_rows(3),
    ]
}

#[test]
fn values_are_bracketed_on_every_kind_of_grid() {
    for grid in &grids() {
        for i in 0..4 {
            for x in [0.123_f32, -0.1, 0.0, 0.061, -0.07, 1e-9, -1e-9] {
                let (low, high) = grid.around(i, x);
                assert!(low <= x && x <= high, "{grid:?} {x}: {low} {high}");
                for on in [low, high] {
                    assert_eq!(grid.around(i, on), (on, on), "{grid:?} {on}");
                }
            }
            let x = [-1e3, -0.3, 0.0, 0.061, f32::NAN, 0.5, 1e3, f32::INFINITY];
            let x = &x[..x.len().min(4 - i)];
            let (mut low, mut high) = (vec![7.0; x.len()], vec![7.0; x.len()]);
            grid.around_all(i, x, &mut low, &mut high);
            for (k, &x) in x.iter().enumerate() {
                let (one, other) = grid.around(i + k, x);
                assert_eq!((low[k].to_bits(), high[k].to_bits()), (one.to_bits(), other.to_bits()), "{grid:?} {x}");
            }
            let (low, high) = grid.around(i, 1e3);
            assert!(matches!(grid.levels, Levels::Floats(_)) || low == high);
        }
    }
}

#[test]
fn neighbours_are_the_next_values_at_every_vector_level() {
    for grid in &grids() {
        let on: Vec<f32> = (0..4).map(|i| grid.nearest(i, 0.1 - 0.2 * i as f32)).collect();
        for (level, (below, above)) in at_every_level(|| {
            let (mut below, mut above) = (vec![0.0; 4], vec![0.0; 4]);
            grid.neighbours(0, &on, &mut below, &mut above);
            (below, above)
        }) {
            for i in 0..4 {
                assert!(below[i] < on[i] && on[i] < above[i], "{level:?} {grid:?}");
                let middle = |a: f32, b: f32| a + (b - a) * 0.5;
                if above[i].is_finite() {
                    let near = grid.around(i, middle(on[i], above[i]));
                    assert!((near.0 - on[i]).abs() < 1e-6 && (near.1 - above[i]).abs() < 1e-6, "{grid:?}");
                }
                if below[i].is_finite() {
                    assert!((grid.around(i, middle(below[i], on[i])).0 - below[i]).abs() < 1e-6, "{grid:?}");
                }
            }
        }
    }
}

#[test]
fn no_two_levels_are_nearer_than_the_least_gap() {
    let integers = |values| Grid::scaled(Levels::Integers(-127, 127), 4, vec![0.0123], values);
    let scaled = [integers(Dtype::F32), integers(Dtype::F16)];
    assert!(scaled.iter().chain(&grids()[..2]).all(|grid| grid.half_gap() > 0.0));
    for grid in scaled.iter().chain(&grids()) {
        let gap = 2.0 * grid.half_gap();
        let scales = grid.scales.iter().map(|scale| scale.abs()).chain([1.0]);
        let scale = scales.fold(f32::INFINITY, f32::min);
        for (i, start) in (0..4).map(|i| (i, grid.nearest(i, f32::MIN))) {
            let (mut value, mut seen) = (start, 0);
            while seen < 300 {
                let (mut below, mut above) = ([0.0], [0.0]);
                grid.neighbours(i, &[value], &mut below, &mut above);
                if !above[0].is_finite() {
                    break;
                }
                assert!(above[0] - value >= gap * scale, "{value} {} {gap} {grid:?}", above[0]);
                (value, seen) = (above[0], seen + 1);
            }
            assert!(seen > 1, "{grid:?}");
        }
    }
}

#[test]
fn a_listed_scale_is_the_nearest_of_its_list() {
    let lists = vec![vec![0.1, 0.2, 0.4], vec![1.0, 2.0]];
    let grid = Grid {
        scales: vec![0.2; 4],
        choices: Choices::Listed { lists, runs: 3, first: 1 },
        ..Grid::floats(Dtype::F32)
    };
    assert_eq!([0.0, 0.16, 0.31, 9.0].map(|x| grid.choice(1, x)), [0.1, 0.2, 0.4, 0.4]);
    assert_eq!(grid.choice(2, 1.6), 2.0);
}

#[test]
fn runs_end_where_a_row_does() {
    let runs = |grid: &Grid| (0..6).map(|i| grid.run_of(i)).collect::<Vec<_>>();
    let grid = Grid::scaled(Levels::Integers(-8, 7), 2, vec![0.1; 4], Dtype::F32);
    assert_eq!(runs(&grid.clone().in_rows(3)), [0, 0, 1, 2, 2, 3]);
    assert_eq!(runs(&grid.clone().in_rows(2)), [0, 0, 1, 1, 2, 2]);
    assert_eq!(grid.clone().in_rows(3).scales_of(1..4).len(), 3);
    assert_eq!(grid.scales_of(1..4).len(), 2);
}

/// A run's values under another scale and offset are those of the same levels.
#[test]
fn a_run_that_moves_keeps_its_levels() {
    for grid in grids().iter().filter(|grid| !grid.scales.is_empty()) {
        let on: Vec<f32> = (0..2).map(|i| grid.nearest(i, 0.05 - 0.07 * i as f32)).collect();
        let (scale, offset) = (grid.scales[0] * 1.25, grid.offset(0) + 0.01);
        let mut moved = vec![0.0; 2];
        grid.moved(0, &on, scale, offset, &mut moved);
        let zero = grid.zeros.first().copied().unwrap_or(0.0);
        for (i, (&on, moved)) in on.iter().zip(moved).enumerate() {
            let above = grid.level(i, on) - zero;
            let above = if grid.rounds == Rounds::BeforeScale { round_one(grid.values, above) } else { above };
            let want = round_one(grid.values, above * scale + offset);
            assert_eq!(moved, want, "{grid:?}");
        }
    }
}
