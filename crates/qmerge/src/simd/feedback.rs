//! Values chosen one column after another, so that what is left of a row cancels in a few directions of its inputs.

// Lanes are rows, in arrays of fixed size: indices say what happens, and compile to registers.
#![allow(clippy::needless_range_loop)]

use super::versions;
use crate::dtype::Dtype;
use crate::simd::floats::round_one;
use crate::simd::turned::{SIDE, turned};

/// Rows that are worked on together: two vectors of the widest level, so that one's sums do not wait for the other's.
pub(crate) const LANES: usize = 32;

type Lanes = [f32; LANES];

/// Rows whose sums stand in registers together, at any level.
const HALF: usize = LANES / 2;

/// The two values that each may take.
#[derive(Clone, Copy)]
pub(crate) enum Around<'a> {
    /// Those of a 16-bit type.
    Floats(Dtype),
    /// Given ones, (rows, cols) as the values.
    Given { low: &'a [f32], high: &'a [f32] },
}

/// Columns whose errors are added to what is left together, so that it is read and written once for all of them.
const STEP: usize = 4;

/// Directions of a row's inputs, V.
#[derive(Clone, Debug)]
pub(crate) struct Band {
    /// (cols, rank).
    directions: Vec<f32>,
    /// Of each column, V's row times those of the columns of its step up to itself.
    products: Vec<[f32; STEP]>,
}

impl Band {
    /// `directions` is (cols, rank).
    pub(crate) fn new(directions: Vec<f32>, rank: usize) -> Self {
        let rows: Vec<&[f32]> = directions.chunks_exact(rank.max(1)).collect();
        let product = |a: &[f32], b: &[f32]| a.iter().zip(b).map(|(a, b)| a * b).sum();
        let of = |step: &[&[f32]], own: usize| {
            std::array::from_fn(|other| if other <= own { product(step[other], step[own]) } else { 0.0 })
        };
        let products = rows.chunks(STEP).flat_map(|step| (0..step.len()).map(move |own| of(step, own))).collect();
        Self { directions, products }
    }

    /// Columns of the rows that are rounded.
    pub(crate) fn cols(&self) -> usize {
        self.products.len()
    }

    /// A row of V.
    pub(crate) fn of_input(&self, input: usize) -> &[f32] {
        let rank = self.rank();
        &self.directions[input * rank..(input + 1) * rank]
    }

    fn rank(&self) -> usize {
        self.directions.len() / self.cols().max(1)
    }
}

/// Rounds `values` (rows, cols), up to [`LANES`] rows. With e the error of a row so far and V those of `band`, each value takes the one of its two
/// neighbours that makes |eᵀV|² + `ridge` · |e|² least. A value whose neighbours are not both finite takes the nearest.
pub(crate) fn feed_back(values: &mut [f32], band: &Band, ridge: f32, around: Around<'_>) {
    match around {
        Around::Floats(Dtype::BF16) => bf16(values, band, ridge),
        Around::Floats(Dtype::F16) => f16(values, band, ridge),
        Around::Floats(_) => {}
        Around::Given { low, high } => given(values, band, ridge, low, high),
    }
}

versions! {
    fn bf16(values: &mut [f32], band: &Band, ridge: f32) = bf16_body;
}
versions! {
    fn f16(values: &mut [f32], band: &Band, ridge: f32) = f16_body;
}
versions! {
    fn given(values: &mut [f32], band: &Band, ridge: f32, low: &[f32], high: &[f32]) = given_body;
}

#[inline(always)]
fn bf16_body(values: &mut [f32], band: &Band, ridge: f32) {
    body(values, band, ridge, |x, _, _| around_bf16(x), |x| round_one(Dtype::BF16, x));
}

#[inline(always)]
fn f16_body(values: &mut [f32], band: &Band, ridge: f32) {
    body(values, band, ridge, |x, _, _| around_f16(x), |x| round_one(Dtype::F16, x));
}

#[inline(always)]
fn given_body(values: &mut [f32], band: &Band, ridge: f32, low: &[f32], high: &[f32]) {
    let cols = band.cols();
    let at = |lane: usize, column: usize| lane * cols + column;
    let around = |_, lane, column| (low[at(lane, column)], high[at(lane, column)]);
    body(values, band, ridge, around, |x| x);
}

/// The bf16 values nearest to zero's side and beyond, of which one is `x` if it is on the grid.
#[inline(always)]
fn around_bf16(x: f32) -> (f32, f32) {
    let inner = x.to_bits() & 0xffff_0000;
    let outer = inner.wrapping_add(if inner == x.to_bits() { 0 } else { 0x1_0000 });
    (f32::from_bits(inner), f32::from_bits(outer))
}

/// The same of f16, whose values below 2⁻¹⁴ are multiples of 2⁻²⁴. What is out of its range has an infinite neighbour.
#[inline(always)]
fn around_f16(x: f32) -> (f32, f32) {
    let inner = x.to_bits() & 0xffff_e000;
    let outer = if inner == x.to_bits() { inner } else { inner.wrapping_add(0x2000) };
    let (inner, outer) = (f32::from_bits(inner), f32::from_bits(outer));
    const UNIT: f32 = 1.0 / 16_777_216.0;
    // Adding 2⁻¹ rounds to multiples of the unit.
    let small = x.abs();
    let near = (small + 0.5) - 0.5;
    let down = if near > small { near - UNIT } else { near };
    let up = if down == small { down } else { down + UNIT };
    let is_small = small < 1.0 / 16_384.0;
    let outer = if outer.abs() > 65_504.0 { f32::INFINITY.copysign(x) } else { outer };
    (if is_small { down.copysign(x) } else { inner }, if is_small { up.copysign(x) } else { outer })
}

/// Columns that are turned together, so that lanes lie side by side.
const TILE: usize = 16;

/// `around` gives the two values around one, from the value, its row and its column.
#[inline(always)]
fn body(
    values: &mut [f32],
    band: &Band,
    ridge: f32,
    around: impl Fn(f32, usize, usize) -> (f32, f32),
    nearest: impl Fn(f32) -> f32,
) {
    let (cols, rank) = (band.cols(), band.rank());
    let rows = values.len() / cols.max(1);
    debug_assert!(rows <= LANES, "{rows} rows");
    // eᵀV, (rank, rows).
    let mut left: Vec<Lanes> = vec![[0.0; LANES]; rank];
    let nothing = vec![0.0; rank];
    // Of the step before.
    let (mut before, mut errors): ([&[f32]; STEP], [Lanes; STEP]) = ([&nothing; STEP], [[0.0; LANES]; STEP]);
    let mut x = [[0.0; LANES]; TILE];
    for start in (0..cols).step_by(TILE) {
        let width = TILE.min(cols - start);
        lanes_of(&values[start..], cols, rows, width, &mut x);
        // What has no two finite neighbours leaves no error, and takes the nearest in the end.
        let mut unbounded = [0_u32; LANES];
        for first in (0..width).step_by(STEP) {
            let own: [&[f32]; STEP] = std::array::from_fn(|c| {
                let c = first + c;
                if c < width { band.of_input(start + c) } else { &nothing[..] }
            });
            let mut along = along(&mut left, &errors, before, own);
            errors = [[0.0; LANES]; STEP];
            for c in 0..STEP.min(width - first) {
                let products = &band.products[start + first + c];
                // Of what the step's own columns have left.
                for before in 0..c {
                    for lane in 0..LANES {
                        along[c][lane] = errors[before][lane].mul_add(products[before], along[c][lane]);
                    }
                }
                let weight = products[c] + ridge;
                for lane in 0..LANES {
                    let value = x[first + c][lane];
                    let (inner, outer) = around(value, lane.min(rows - 1), start + first + c);
                    let (down, up, step) = (inner - value, outer - value, outer - inner);
                    let fits = step.abs() < f32::INFINITY;
                    unbounded[lane] |= u32::from(!fits);
                    // How much more |eᵀV|² + ridge · |e|² is with `up` than with `down`.
                    let twice = along[c][lane] + along[c][lane];
                    let is_up = (twice + weight * (down + up)) * step < 0.0;
                    let error = if is_up { up } else { down };
                    errors[c][lane] = if fits { error } else { 0.0 };
                    x[first + c][lane] = if is_up { outer } else { inner };
                }
            }
            before = own;
        }
        if unbounded.iter().all(|&lane| lane == 0) {
            rows_of(&x, rows, width, &mut values[start..], cols);
            continue;
        }
        for lane in 0..rows {
            let row = &mut values[lane * cols + start..][..width];
            for (c, value) in row.iter_mut().enumerate() {
                let (inner, outer) = around(*value, lane, start + c);
                let fits = (outer - inner).abs() < f32::INFINITY;
                *value = if fits { x[c][lane] } else { nearest(*value) };
            }
        }
    }
}

/// Takes columns of `rows` rows, which begin `cols` values after each other, as lanes.
#[inline(always)]
fn lanes_of(values: &[f32], cols: usize, rows: usize, width: usize, x: &mut [Lanes; TILE]) {
    let blocks = if width == TILE { rows - rows % SIDE } else { 0 };
    for first in (0..blocks).step_by(SIDE) {
        for c in (0..TILE).step_by(SIDE) {
            let columns = turned(|row| block(&values[(first + row) * cols + c..]));
            x[c..c + SIDE].iter_mut().zip(columns).for_each(|(x, own)| x[first..first + SIDE].copy_from_slice(&own));
        }
    }
    for lane in blocks..rows {
        let row = &values[lane * cols..][..width];
        row.iter().zip(&mut *x).for_each(|(value, x)| x[lane] = *value);
    }
}

/// The way back.
#[inline(always)]
fn rows_of(x: &[Lanes; TILE], rows: usize, width: usize, values: &mut [f32], cols: usize) {
    let blocks = if width == TILE { rows - rows % SIDE } else { 0 };
    for first in (0..blocks).step_by(SIDE) {
        for c in (0..TILE).step_by(SIDE) {
            let own = turned(|column| block(&x[c + column][first..]));
            for (row, own) in own.iter().enumerate() {
                values[(first + row) * cols + c..][..SIDE].copy_from_slice(own);
            }
        }
    }
    for lane in blocks..rows {
        let row = &mut values[lane * cols..][..width];
        row.iter_mut().zip(x).for_each(|(value, x)| *value = x[lane]);
    }
}

/// The first values.
#[inline(always)]
fn block(values: &[f32]) -> &[f32; SIDE] {
    values.first_chunk().expect("a block is whole")
}

/// Adds the errors of a step's columns times their directions, `before`, to what is left, and returns what is left along each column of the next one.
#[inline(always)]
fn along(left: &mut [Lanes], errors: &[Lanes; STEP], before: [&[f32]; STEP], own: [&[f32]; STEP]) -> [Lanes; STEP] {
    let rank = left.len();
    let (before, own) = (before.map(|row| &row[..rank]), own.map(|row| &row[..rank]));
    let mut along = [[0.0; LANES]; STEP];
    for half in 0..2 {
        let mut part = [[0.0; HALF]; STEP];
        for c in 0..STEP {
            part[c] = errors[c].as_chunks().0[half];
        }
        let mut sums = [[0.0; HALF]; STEP];
        for k in 0..rank {
            let place = &mut left[k].as_chunks_mut().0[half];
            let mut now = *place;
            for c in 0..STEP {
                add(&mut now, &part[c], before[c][k]);
            }
            *place = now;
            for c in 0..STEP {
                add(&mut sums[c], &now, own[c][k]);
            }
        }
        for c in 0..STEP {
            along[c].as_chunks_mut().0[half] = sums[c];
        }
    }
    along
}

#[inline(always)]
fn add(sum: &mut [f32; HALF], x: &[f32; HALF], by: f32) {
    for lane in 0..HALF {
        sum[lane] = x[lane].mul_add(by, sum[lane]);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::formats::Grid;
    use crate::simd::forced::at_every_level;

    /// Numbers in (−1, 1).
    fn random(count: usize, seed: u32) -> Vec<f32> {
        let mut state = seed;
        let mut next = || {
            state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            (state >> 8) as f32 / 8_388_608.0 - 1.0
        };
        (0..count).map(|_| next()).collect()
    }

    #[test]
    fn neighbours_are_the_grids() {
        for dtype in [Dtype::BF16, Dtype::F16] {
            let grid = Grid::floats(dtype);
            let around = if dtype == Dtype::BF16 { around_bf16 } else { around_f16 };
            for bits in 0..=u16::MAX {
                let stored = if dtype == Dtype::BF16 {
                    half::bf16::from_bits(bits).to_f32()
                } else {
                    half::f16::from_bits(bits).to_f32()
                };
                for x in [stored, stored * 1.000_1, f32::from_bits(stored.to_bits() + 1), stored + 1e-9] {
                    if !x.is_finite() || round_one(dtype, x).is_infinite() {
                        continue;
                    }
                    let (low, high) = grid.around(0, x);
                    let (a, b) = around(x);
                    assert_eq!((a.min(b), a.max(b)), (low, high), "{dtype} {x:e}");
                }
            }
        }
    }

    /// The errors of a row cancel where they are looked at, at every level alike, for any number of rows.
    #[test]
    fn errors_cancel_in_the_directions() {
        let (cols, rank) = (300, 5);
        let (basis, rank) = crate::linalg::span(&random(cols * rank, 1), cols, rank, 1e-6);
        let band = Band::new(basis.clone(), rank);
        for rows in [1, 7, 32] {
            let target = random(rows * cols, 2);
            for dtype in [Dtype::BF16, Dtype::F16] {
                let results = at_every_level(|| {
                    let mut values = target.clone();
                    feed_back(&mut values, &band, 0.03, Around::Floats(dtype));
                    values
                });
                let (_, values) = &results[0];
                assert!(results.iter().all(|(_, other)| other == values));
                let along = |values: &[f32]| -> f64 {
                    let of = |row: usize, k: usize| -> f64 {
                        let at = |c: usize| f64::from(values[row * cols + c]) - f64::from(target[row * cols + c]);
                        (0..cols).map(|c| at(c) * f64::from(basis[c * rank + k])).sum()
                    };
                    (0..rows).flat_map(|row| (0..rank).map(move |k| (row, k))).map(|(row, k)| of(row, k).powi(2)).sum()
                };
                let nearest: Vec<f32> = target.iter().map(|x| round_one(dtype, *x)).collect();
                assert!(along(values) < 0.2 * along(&nearest), "{} {}", along(values), along(&nearest));
                // Given neighbours are no other thing.
                let grid = Grid::floats(dtype);
                let (mut low, mut high) = (vec![0.0; target.len()], vec![0.0; target.len()]);
                grid.around_all(0, &target, &mut low, &mut high);
                let mut given = target.clone();
                feed_back(&mut given, &band, 0.03, Around::Given { low: &low, high: &high });
                let same = given.iter().zip(values).filter(|(a, b)| a == b).count();
                assert!(same * 100 > 99 * values.len(), "{same} of {}", values.len());
            }
        }
    }

    #[test]
    fn what_is_out_of_range_is_left_to_the_check() {
        let mut values = [7e4_f32, -1e9, 65_519.0, f32::NAN];
        feed_back(&mut values, &Band::new(vec![0.5; 4], 1), 0.03, Around::Floats(Dtype::F16));
        assert!(values[0].is_infinite() && values[1] == f32::NEG_INFINITY && values[3].is_nan());
        assert_eq!(values[2], 65_504.0);
    }
}
