//! Values chosen one column after another, so that what is left of a row cancels in a few directions of its inputs.

// Lanes are rows, in arrays of fixed size: indices say what happens, and compile to registers.
#![allow(clippy::needless_range_loop)]

use crate::dtype::Dtype;
use crate::simd::floats::round_one;
use crate::simd::lanes::{self, Lanes, by_lanes};

/// Registers of rows that are worked on together, so that one's sums do not wait for the other's.
const SIDE_BY_SIDE: usize = 2;

/// Rows that are worked on together.
pub(crate) const LANES: usize = SIDE_BY_SIDE * lanes::LANES;

/// A value of each row.
type Column = [[f32; lanes::LANES]; SIDE_BY_SIDE];

/// What is left of each row along a direction. Read and written at every step, so that no register's worth may lie in two lines of the cache.
#[derive(Clone, Copy)]
#[repr(align(64))]
struct Left(Column);

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

by_lanes! {
    fn bf16(values: &mut [f32], band: &Band, ridge: f32) = bf16_body;
}
by_lanes! {
    fn f16(values: &mut [f32], band: &Band, ridge: f32) = f16_body;
}
by_lanes! {
    fn given(values: &mut [f32], band: &Band, ridge: f32, low: &[f32], high: &[f32]) = given_body;
}

#[inline(always)]
fn bf16_body<V: Lanes>(values: &mut [f32], band: &Band, ridge: f32) {
    body::<V>(values, band, ridge, Bf16);
}

#[inline(always)]
fn f16_body<V: Lanes>(values: &mut [f32], band: &Band, ridge: f32) {
    body::<V>(values, band, ridge, F16);
}

#[inline(always)]
fn given_body<V: Lanes>(values: &mut [f32], band: &Band, ridge: f32, low: &[f32], high: &[f32]) {
    let nothing = [[[0.0; lanes::LANES]; SIDE_BY_SIDE]; TILE];
    body::<V>(values, band, ridge, Given { low, high, tiles: (nothing, nothing) });
}

/// The two values around each.
trait Neighbours {
    /// Looks at a tile of columns.
    #[inline(always)]
    fn turn_to<V: Lanes>(&mut self, _start: usize, _cols: usize, _rows: usize, _width: usize) {}

    /// Those of a column of the tile, in one of its registers.
    fn of<V: Lanes>(&self, x: V, column: usize, register: usize) -> (V, V);

    /// What a value takes that has no two finite neighbours.
    fn nearest(&self, x: f32) -> f32;
}

/// The values towards zero and beyond, of which one is the value itself if it is on the grid.
struct Bf16;

impl Neighbours for Bf16 {
    #[inline(always)]
    fn of<V: Lanes>(&self, x: V, _: usize, _: usize) -> (V, V) {
        let inner = x.bits(0xffff_0000, 0);
        (inner, V::pick(x.differs(inner), inner.beyond(0x1_0000), inner))
    }

    #[inline(always)]
    fn nearest(&self, x: f32) -> f32 {
        round_one(Dtype::BF16, x)
    }
}

/// The same of f16, whose values below 2⁻¹⁴ are multiples of 2⁻²⁴. What is out of its range has an infinite neighbour.
struct F16;

impl Neighbours for F16 {
    #[inline(always)]
    fn of<V: Lanes>(&self, x: V, _: usize, _: usize) -> (V, V) {
        let (unit, half) = (V::all(1.0 / 16_777_216.0), V::all(0.5));
        let inner = x.bits(0xffff_e000, 0);
        let outer = V::pick(x.differs(inner), inner.beyond(0x2000), inner);
        let outer = V::pick(V::all(65_504.0).is_less(outer.abs()), V::all(f32::INFINITY).signed(x), outer);
        // Adding 2⁻¹ rounds to multiples of the unit.
        let small = x.abs();
        let near = (small + half) - half;
        let down = V::pick(small.is_less(near), near - unit, near);
        let up = V::pick(down.differs(small), down + unit, down);
        let is_small = small.is_less(V::all(1.0 / 16_384.0));
        (V::pick(is_small, down.signed(x), inner), V::pick(is_small, up.signed(x), outer))
    }

    #[inline(always)]
    fn nearest(&self, x: f32) -> f32 {
        round_one(Dtype::F16, x)
    }
}

/// What is given, and its columns that are worked on.
struct Given<'a> {
    low: &'a [f32],
    high: &'a [f32],
    tiles: ([Column; TILE], [Column; TILE]),
}

impl Neighbours for Given<'_> {
    #[inline(always)]
    fn turn_to<V: Lanes>(&mut self, start: usize, cols: usize, rows: usize, width: usize) {
        lanes_of::<V>(&self.low[start..], cols, rows, width, &mut self.tiles.0);
        lanes_of::<V>(&self.high[start..], cols, rows, width, &mut self.tiles.1);
    }

    #[inline(always)]
    fn of<V: Lanes>(&self, _: V, column: usize, register: usize) -> (V, V) {
        (V::of(self.tiles.0[column][register]), V::of(self.tiles.1[column][register]))
    }

    #[inline(always)]
    fn nearest(&self, x: f32) -> f32 {
        x
    }
}

/// Columns that are turned together, so that lanes lie side by side.
const TILE: usize = lanes::LANES;

#[inline(always)]
fn body<V: Lanes>(values: &mut [f32], band: &Band, ridge: f32, mut around: impl Neighbours) {
    let (cols, rank) = (band.cols(), band.rank());
    let rows = values.len() / cols.max(1);
    debug_assert!(rows <= LANES, "{rows} rows");
    // Of fewer rows, as where memory is short, some registers hold none.
    let registers = || (0..SIDE_BY_SIDE).take_while(|register| register * lanes::LANES < rows);
    let zero = V::all(0.0);
    // eᵀV, (rank, rows).
    let mut left = vec![Left([[0.0; lanes::LANES]; SIDE_BY_SIDE]); rank];
    let nothing = vec![0.0; rank];
    // Of the step before.
    let (mut before, mut errors): ([&[f32]; STEP], _) = ([&nothing; STEP], [[zero; STEP]; SIDE_BY_SIDE]);
    let mut x = [[[0.0; lanes::LANES]; SIDE_BY_SIDE]; TILE];
    for start in (0..cols).step_by(TILE) {
        let width = TILE.min(cols - start);
        lanes_of::<V>(&values[start..], cols, rows, width, &mut x);
        around.turn_to::<V>(start, cols, rows, width);
        // 1 where something has no two finite neighbours: it leaves no error, and takes the nearest in the end.
        let mut unbounded = [zero; SIDE_BY_SIDE];
        for first in (0..width).step_by(STEP) {
            let own: [&[f32]; STEP] = std::array::from_fn(|c| {
                let c = first + c;
                if c < width { band.of_input(start + c) } else { &nothing[..] }
            });
            let mut along = [[zero; STEP]; SIDE_BY_SIDE];
            for register in registers() {
                along[register] = moved_along(&mut left, register, &errors[register], before, own);
            }
            errors = [[zero; STEP]; SIDE_BY_SIDE];
            for c in 0..STEP.min(width - first) {
                let products = &band.products[start + first + c];
                let weight = V::all(products[c] + ridge);
                for register in registers() {
                    let mut along = along[register][c];
                    // Of what the step's own columns have left.
                    for before in 0..c {
                        along = errors[register][before].mul_add(V::all(products[before]), along);
                    }
                    let value = V::of(x[first + c][register]);
                    let (inner, outer) = around.of(value, first + c, register);
                    let (down, up, step) = (inner - value, outer - value, outer - inner);
                    let fits = step.abs().is_less(V::all(f32::INFINITY));
                    unbounded[register] = V::pick(fits, unbounded[register], V::all(1.0));
                    // How much more |eᵀV|² + ridge · |e|² is with `up` than with `down`.
                    let twice = along + along;
                    let is_up = ((twice + weight * (down + up)) * step).is_less(zero);
                    errors[register][c] = V::pick(fits, V::pick(is_up, up, down), zero);
                    x[first + c][register] = V::pick(is_up, outer, inner).array();
                }
            }
            before = own;
        }
        if unbounded.iter().all(|unbounded| !V::any(unbounded.differs(zero))) {
            rows_of::<V>(&x, rows, width, &mut values[start..], cols);
            continue;
        }
        for lane in 0..rows {
            let row = &mut values[lane * cols + start..][..width];
            for (c, value) in row.iter_mut().enumerate() {
                let (register, place) = (lane / lanes::LANES, lane % lanes::LANES);
                let of_all = around.of(lanes::Plain::all(*value), c, register);
                let (inner, outer) = (of_all.0.array()[place], of_all.1.array()[place]);
                let fits = (outer - inner).abs() < f32::INFINITY;
                *value = if fits { x[c][register][place] } else { around.nearest(*value) };
            }
        }
    }
}

/// Takes columns of `rows` rows, which begin `cols` values after each other, as lanes.
#[inline(always)]
fn lanes_of<V: Lanes>(values: &[f32], cols: usize, rows: usize, width: usize, x: &mut [Column; TILE]) {
    let whole = if width == TILE { rows / lanes::LANES } else { 0 };
    for register in 0..whole {
        let mut own = [V::all(0.0); TILE];
        for (lane, own) in own.iter_mut().enumerate() {
            *own = V::of(*block(&values[(register * lanes::LANES + lane) * cols..]));
        }
        for (x, own) in x.iter_mut().zip(V::turned(own)) {
            x[register] = own.array();
        }
    }
    for lane in whole * lanes::LANES..rows {
        let row = &values[lane * cols..][..width];
        row.iter().zip(&mut *x).for_each(|(value, x)| x.as_flattened_mut()[lane] = *value);
    }
}

/// The way back.
#[inline(always)]
fn rows_of<V: Lanes>(x: &[Column; TILE], rows: usize, width: usize, values: &mut [f32], cols: usize) {
    let whole = if width == TILE { rows / lanes::LANES } else { 0 };
    for register in 0..whole {
        let mut own = [V::all(0.0); TILE];
        own.iter_mut().zip(x).for_each(|(own, x)| *own = V::of(x[register]));
        for (lane, own) in V::turned(own).into_iter().enumerate() {
            values[(register * lanes::LANES + lane) * cols..][..TILE].copy_from_slice(&own.array());
        }
    }
    for lane in whole * lanes::LANES..rows {
        let row = &mut values[lane * cols..][..width];
        row.iter_mut().zip(x).for_each(|(value, x)| *value = x.as_flattened()[lane]);
    }
}

/// The first values.
#[inline(always)]
fn block(values: &[f32]) -> &[f32; TILE] {
    values.first_chunk().expect("a block is whole")
}

/// Adds the errors of a step's columns times their directions, `before`, to what is left, and returns what is left along each column of the next one.
#[inline(always)]
fn moved_along<V: Lanes>(
    left: &mut [Left],
    register: usize,
    errors: &[V; STEP],
    before: [&[f32]; STEP],
    own: [&[f32]; STEP],
) -> [V; STEP] {
    let rank = left.len();
    let (before, own) = (before.map(|row| &row[..rank]), own.map(|row| &row[..rank]));
    let mut along = [V::all(0.0); STEP];
    for k in 0..rank {
        let mut now = V::of(left[k].0[register]);
        for c in 0..STEP {
            now = errors[c].mul_add(V::all(before[c][k]), now);
        }
        left[k].0[register] = now.array();
        for c in 0..STEP {
            along[c] = now.mul_add(V::all(own[c][k]), along[c]);
        }
    }
    along
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::formats::Grid;
    use crate::simd::forced::at_every_level;
    use crate::simd::lanes::Plain;

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
            let around = |x: f32| {
                let x = Plain::all(x);
                let (a, b) = if dtype == Dtype::BF16 { Bf16.of(x, 0, 0) } else { F16.of(x, 0, 0) };
                (a.array()[0], b.array()[0])
            };
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
        for rows in [1, 7, 16, 17, 32] {
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
