//! What a grid says is what is stored.

use proptest::prelude::*;

use super::*;
use crate::edit::{Change, Edit, Place, Product, Reach};
use crate::formats::Choices;
use crate::round::{Detail, Directions, InputMoments, Matrix, Metric, Position, ROUNDINGS};

const COLS: usize = 512;

fn values(weight: &dyn Weight, bytes: &[u8]) -> Vec<f32> {
    let mut values = vec![f32::NAN; weight.geometry().elements()];
    weight.decode(&[bytes], 0..weight.geometry().rows, &mut values);
    values
}

fn store(weight: &dyn Weight, bytes: &[u8], values: &[f32], moved: Option<&Grid>) -> Vec<u8> {
    let mut out = vec![Vec::new()];
    weight.on_grid().unwrap().store(&[bytes], 0..weight.geometry().rows, values, moved, &mut out);
    out.remove(0)
}

/// Blocks of such bytes, with scales that are numbers of ordinary size in place of any.
fn tamed(format: &Gguf, mut bytes: Vec<u8>) -> Vec<u8> {
    let size = format.dtype.block().1 as usize;
    let places: &[usize] = match format.id {
        "q4_1" | "q5_1" | "q4_k" | "q5_k" => &[0, 2],
        "q2_k" => &[80, 82],
        "q3_k" => &[108],
        "q6_k" => &[208],
        "tq1_0" => &[52],
        "tq2_0" => &[64],
        "gguf-mxfp4" | "gguf-nvfp4" => &[],
        _ => &[0],
    };
    for block in bytes.chunks_exact_mut(size) {
        for &at in places {
            // Of either sign, from 2⁻¹⁴ to 2⁻³.
            block[at + 1] = (block[at + 1] & 0x83) | (4 * (1 + block[at + 1] % 12));
        }
        if format.id == "gguf-mxfp4" {
            block[0] = 110 + block[0] % 20;
        }
    }
    bytes
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 24, ..ProptestConfig::default() })]

    /// Whatever the bytes: nothing panics, what is not moved keeps its bytes, and where values are numbers they lie on the grid.
    #[test]
    fn any_bytes_are_on_their_grid(seed in 0..u64::MAX, tame in any::<bool>()) {
        for format in TYPES {
            let weight = weight_of(format);
            let size = weight.parts()[0].bytes as usize;
            let bytes: Vec<u8> = numbers(size, seed).iter().map(|x| (x.to_bits() >> 9) as u8).collect();
            let bytes = if tame { tamed(format, bytes) } else { bytes };
            let have = values(&*weight, &bytes);
            let Some(on_grid) = weight.on_grid() else { continue };
            let grid = on_grid.grid(&[&bytes], 0..weight.geometry().rows);
            let finite = |x: &[f32]| x.iter().all(|x| x.is_finite());
            if finite(&have) {
                prop_assert_eq!(&store(&*weight, &bytes, &have, None), &bytes, "{}", format.id);
            }
            let moved = store(&*weight, &bytes, &have, Some(&grid));
            if finite(&have) && finite(&grid.scales) && finite(&grid.offsets) {
                prop_assert_eq!(&moved, &bytes, "{}", format.id);
                for (i, &x) in have.iter().enumerate() {
                    prop_assert_eq!(grid.around(i, x), (x, x), "{} {}", format.id, i);
                }
            }
            // Values that are far from all levels, and no numbers at all.
            let wild: Vec<f32> = numbers(have.len(), seed ^ 1).iter().enumerate().map(|(i, x)| match i % 5 {
                0 => x * 1e30,
                1 => f32::NAN,
                2 => f32::INFINITY,
                _ => *x,
            }).collect();
            prop_assert_eq!(store(&*weight, &bytes, &wild, Some(&grid)).len(), size);
            weight.writer().unwrap().encode(&[], 0..weight.geometry().rows, &wild, &mut [Vec::new()]);
        }
    }

    /// Values on a grid with other scales of its choices are stored as they are.
    #[test]
    fn other_choices_are_stored(seed in 0..u64::MAX) {
        for format in written() {
            let weight = weight_of(format);
            let bytes: Vec<u8> = numbers(weight.parts()[0].bytes as usize, seed).iter().map(|x| (x.to_bits() >> 9) as u8).collect();
            let bytes = tamed(format, bytes);
            let mut grid = weight.on_grid().unwrap().grid(&[&bytes], 0..weight.geometry().rows);
            let factors = numbers(grid.scales.len(), seed ^ 2);
            for (run, factor) in factors.iter().enumerate() {
                let (scale, offset) = (grid.scales[run], grid.offset(run));
                grid.scales[run] = grid.choice(run, scale * (1.0 + 0.5 * factor));
                if !grid.offsets.is_empty() {
                    grid.offsets[run] = grid.offset_choice(run, offset * (1.0 - 0.5 * factor));
                }
                if let Choices::Rounded(_) = grid.choices {
                    prop_assert!(scale == 0.0 || grid.scales[run] != scale || factor.abs() < 0.01);
                }
            }
            let wanted: Vec<f32> =
                numbers(weight.geometry().elements(), seed ^ 3).iter().enumerate().map(|(i, x)| grid.nearest(i, 0.2 * x)).collect();
            let stored = store(&*weight, &bytes, &wanted, Some(&grid));
            prop_assert_eq!(values(&*weight, &stored), wanted, "{}", format.id);
            let again = weight.on_grid().unwrap().grid(&[&stored], 0..weight.geometry().rows);
            prop_assert_eq!((&again.scales, &again.offsets), (&grid.scales, &grid.offsets), "{}", format.id);
        }
    }
}

/// Two rows.
fn weight_of(format: &Gguf) -> Arc<dyn Weight> {
    match format.kernels.coder {
        Some(_) => weight(format, 2, COLS),
        None => Arc::new(GgufWeight::new(of(format.dtype), "w.weight", &[2, COLS])),
    }
}

/// Rows that are no whole blocks are an error, a type that is only read is none to write, and other rows of the same bytes are as good.
#[test]
fn shapes_are_whole_blocks() {
    for format in TYPES {
        let block = format.block();
        let create = |shape: &[usize]| format.create("w", shape, Dtype::F32, &Settings::default());
        if format.kernels.coder.is_none() {
            assert!(create(&[2, block]).unwrap_err().to_string().contains("not written"), "{}", format.id);
            continue;
        }
        let weight = create(&[3, 2, 2 * block]).unwrap();
        let geometry = weight.geometry();
        assert_eq!((geometry.rows, geometry.cols, geometry.row_step), (6, 2 * block, 1));
        let row = 2 * format.dtype.block().1;
        assert_eq!(weight.part_rows(0, &(1..3)), Some(row..3 * row));
        assert_eq!(weight.parts()[0].bytes, 6 * row);
        assert!(weight.reshaped(12, block).is_some() && weight.reshaped(24, block / 2).is_none());
        assert!(create(&[2, block + 1]).is_err() && create(&[]).is_err() && create(&[usize::MAX / 2, block]).is_err());
        assert_eq!(create(&[0, block]).unwrap().parts()[0].bytes, 0);
        assert!(format.takes(Role::Linear, &[4, block]) && !format.takes(Role::Linear, &[4, block / 2]));
    }
}

/// How many blocks are the same once decoded values are encoded: all, but for some types whose search ends elsewhere.
#[test]
fn most_types_are_their_own_reference() {
    let source: Vec<f32> =
        numbers(64 * COLS, 5).chunks(3).flat_map(|x| [x[0] * x[x.len() - 1]; 3]).take(64 * COLS).collect();
    for format in written() {
        let weight = weight(format, 64, COLS);
        let blocks = encoded(format, &source, None);
        let size = format.dtype.block().1 as usize;
        let again = encoded(format, &values(&*weight, &blocks), None);
        let same = blocks.chunks(size).zip(again.chunks(size)).filter(|(a, b)| a == b).count() * size;
        let share = same as f32 / blocks.len() as f32;
        let least = match format.id {
            "q2_k" | "q5_k" | "q6_k" | "q3_k" => 0.2,
            "iq4_nl" | "iq4_xs" => 0.8,
            "q4_k" => 0.95,
            _ => 1.0,
        };
        assert!(share >= least, "{}: {share}", format.id);
    }
}

/// Every rounding method on every type: values on the grid that the method left, stored and read back.
#[test]
fn every_method_rounds_every_type() {
    const ROWS: usize = 12;
    const RANK: usize = 2;
    let (left, right) = (numbers(ROWS * RANK, 3), numbers(RANK * COLS, 4));
    let product = Product::new(RANK, left.clone(), right.clone(), 1.0, None);
    let edit = Edit::new(Change::Product(vec![product]), &Place::of_matrix(ROWS, COLS, false), Reach::Added);
    let directions = Directions::of(&[edit], 0..ROWS, COLS).unwrap();
    let shared = numbers(3 * COLS, 6);
    let own = numbers(3 * COLS * COLS, 7);
    let input = |t: usize, i: usize| own[t * COLS + i] + 1.5 * shared[t];
    let moment =
        |i: usize, j: usize| (0..3 * COLS).step_by(7).map(|t| input(t, i) * input(t, j)).sum::<f32>() / COLS as f32;
    let moments = InputMoments {
        features: COLS,
        tokens: 3 * COLS,
        values: (0..COLS * COLS).map(|at| moment((at / COLS).min(at % COLS), (at / COLS).max(at % COLS))).collect(),
    };
    for format in written() {
        let weight = weight(format, ROWS, COLS);
        let bytes = encoded(format, &numbers(ROWS * COLS, 8).iter().map(|x| 0.05 * x).collect::<Vec<_>>(), None);
        let base = values(&*weight, &bytes);
        let delta = |i: usize| (0..RANK).map(|k| left[i / COLS * RANK + k] * right[k * COLS + i % COLS]).sum::<f32>();
        let target: Vec<f32> = base.iter().enumerate().map(|(i, base)| base + 5e-3 * delta(i)).collect();
        let grid = weight.on_grid().unwrap().grid(&[&bytes], 0..ROWS);
        for method in ROUNDINGS {
            let name = format!("{} {}", format.id, method.id());
            if let Some(whole) = method.whole() {
                let mut metric = Metric::damped(moments.clone(), whole.damping(Detail::Full)).unwrap();
                whole.prepare(&mut metric, true);
                let (values_of, grid) = (base.clone(), grid.clone());
                let mut matrix = Matrix {
                    rows: ROWS,
                    cols: COLS,
                    base: &base,
                    target: &target,
                    values: values_of,
                    grid,
                    rank: Some(RANK),
                    metric: &metric,
                };
                let kept = whole.round(&mut matrix).kept;
                // Where there are three levels, little of a delta goes in.
                assert!(kept.output > 0.1 && (method.id() == "adapter" || kept.noise < 1.0), "{name}: {kept:?}");
                let stored = store(&*weight, &bytes, &matrix.values, Some(&matrix.grid));
                assert_eq!(values(&*weight, &stored), matrix.values, "{name}");
            } else if method.keeps_scales() {
                let mut wanted = target.clone();
                method.round(&grid, &mut wanted, Position { seed: 1, first: 0, directions: Some(&directions) });
                let stored = values(&*weight, &store(&*weight, &bytes, &wanted, None));
                for (i, (&stored, &target)) in stored.iter().zip(&target).enumerate() {
                    let (low, high) = grid.around(i, target);
                    assert!(stored == low || stored == high, "{name} {i}: {stored}, not {low} or {high}");
                }
            } else {
                let mut out = vec![Vec::new()];
                weight.writer().unwrap().encode(&[], 0..ROWS, &target, &mut out);
                let error = |have: &[f32]| have.iter().zip(&target).map(|(a, b)| (a - b) * (a - b)).sum::<f32>();
                assert!(error(&values(&*weight, &out[0])) < error(&vec![0.0; base.len()]), "{name}");
            }
        }
    }
}
