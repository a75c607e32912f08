//! What the types of ggml have in common: a block is some codes, by run of elements a scale and perhaps an offset, and both in so many bytes.
//!
//! A type says how its bytes are unpacked, and what lies here does the rest for all of them: decoding is `level · scale` or `level · scale + offset`,
//! each operation rounded to f32, which is what ggml computes. Products are exact (11 bits of an f16, 8 of a scale of the second level, 8 of a code),
//! so it does not matter whether a machine contracts them.

// Blocks are arrays of a fixed length; what indexes them counts up to it, or is a code that was masked.
#![allow(clippy::indexing_slicing)]

use super::fit;
use crate::dtype::Dtype;
use crate::formats::{Choices, Grid, Levels};

/// What is known of the inputs that blocks multiply, for types that are fitted to it.
#[derive(Clone, Copy)]
pub(super) struct Importance<'i, const N: usize> {
    /// By block and column.
    pub(super) weights: &'i [[f32; N]],
    /// The mean square of the values of its row.
    pub(super) row: f32,
}

/// A type: `N` elements in `B` bytes, in `R` runs that have a scale each.
pub(super) trait Block<const N: usize, const B: usize, const R: usize> {
    /// The levels that codes stand for.
    const LEVELS: Levels;
    /// True if levels are moved by an offset.
    const OFFSETS: bool = false;
    /// Where in a block its scale lies, an f16, and behind it its offset if it has one, of types whose elements share them.
    const SCALE: usize = 0;

    /// The level that a code stands for: of whole numbers the first has code 0.
    #[inline(always)]
    fn level(code: u8) -> f32 {
        (i32::from(code) + ends(&Self::LEVELS).0) as f32
    }

    /// The code of the level nearest to a number.
    #[inline(always)]
    fn code(x: f32) -> u8 {
        let (low, high) = ends(&Self::LEVELS);
        (x.round_ties_even().clamp(low as f32, high as f32) - low as f32) as u8
    }

    /// The codes of a block, in the order of its elements.
    fn unpack(block: &[u8; B]) -> [u8; N];

    /// Puts other codes into a block.
    fn pack(codes: &[u8; N], block: &mut [u8; B]);

    /// The scale of each run.
    #[inline(always)]
    fn scales(block: &[u8; B]) -> [f32; R] {
        [f16([block[Self::SCALE], block[Self::SCALE + 1]]); R]
    }

    /// The offset of each run, where there are offsets.
    #[inline(always)]
    fn offsets(block: &[u8; B]) -> [f32; R] {
        [f16([block[Self::SCALE + 2], block[Self::SCALE + 3]]); R]
    }

    /// The scales and the offsets that these blocks could have while what all of a block share stays.
    fn choices(_blocks: &[[u8; B]]) -> (Choices, Choices) {
        let any = Choices::Rounded(Dtype::F16);
        let offsets = if Self::OFFSETS { any.clone() } else { Choices::Fixed };
        (any, offsets)
    }

    /// Puts others of [`Block::choices`] into a block; what stays keeps its bytes.
    #[inline(always)]
    fn choose(block: &mut [u8; B], scales: &[f32; R], offsets: &[f32; R]) {
        choose_f16(&mut block[Self::SCALE..], scales[0]);
        if Self::OFFSETS {
            choose_f16(&mut block[Self::SCALE + 2..], offsets[0]);
        }
    }

    /// Up to [`TOGETHER`] blocks of values of a row as ggml's reference encodes them, or with what is known of the inputs.
    fn encode(x: &[[f32; N]], importance: Option<Importance<'_, N>>, blocks: &mut [[u8; B]]);
}

/// The least and the greatest of levels that are whole numbers.
#[inline(always)]
fn ends(levels: &Levels) -> (i32, i32) {
    match *levels {
        Levels::Integers(low, high) => (low, high),
        _ => (0, 0),
    }
}

/// Blocks that go together: the loops over their values are long enough to be worth vectors.
const TOGETHER: usize = 16;
/// The most values of such.
const VALUES: usize = 256;

/// Decodes whole blocks.
#[inline(always)]
pub(super) fn decode<T: Block<N, B, R>, const N: usize, const B: usize, const R: usize>(bytes: &[u8], out: &mut [f32]) {
    let together = VALUES / N;
    let groups = bytes.as_chunks::<B>().0.chunks(together);
    for (blocks, out) in groups.zip(out.chunks_mut(VALUES)) {
        decode_blocks::<T, N, B, R>(blocks, out);
    }
}

/// Decodes blocks of up to [`VALUES`] values.
#[inline(always)]
fn decode_blocks<T: Block<N, B, R>, const N: usize, const B: usize, const R: usize>(
    blocks: &[[u8; B]],
    out: &mut [f32],
) {
    // Through memory: codes that stay in registers one by one are not made into vectors.
    let mut codes = [0; VALUES];
    for (codes, block) in codes.as_chunks_mut::<N>().0.iter_mut().zip(blocks) {
        *codes = T::unpack(block);
    }
    for ((block, codes), out) in blocks.iter().zip(codes.as_chunks::<N>().0).zip(out.as_chunks_mut::<N>().0) {
        let scales = T::scales(block);
        let offsets = if T::OFFSETS { T::offsets(block) } else { [0.0; R] };
        let run = if R == 1 { N } else { any(N / R) };
        for ((out, codes), (scale, offset)) in
            out.chunks_exact_mut(run).zip(codes.chunks_exact(run)).zip(scales.into_iter().zip(offsets))
        {
            for (out, &code) in out.iter_mut().zip(codes) {
                let product = T::level(code) * scale;
                // Adding nothing would turn −0 into 0.
                *out = if T::OFFSETS { product + offset } else { product };
            }
        }
    }
}

/// Encodes whole rows; of `importance`, where it is known, there is one for each column.
#[inline(always)]
pub(super) fn encode<T: Block<N, B, R>, const N: usize, const B: usize, const R: usize>(
    values: &[f32],
    importance: Option<&[f32]>,
    out: &mut [u8],
) {
    let cols = importance.map_or(values.len(), <[f32]>::len).max(N);
    let rows = values.chunks_exact(cols).zip(out.chunks_exact_mut(cols / N * B));
    for (row, out) in rows {
        let mean = importance.map_or(0.0, |_| fit::square_sum(row) / cols as f32);
        let groups = row.as_chunks::<N>().0.chunks(TOGETHER).zip(out.as_chunks_mut::<B>().0.chunks_mut(TOGETHER));
        for (number, (x, blocks)) in groups.enumerate() {
            let weights = importance.map(|all| &all.as_chunks::<N>().0[number * TOGETHER..][..x.len()]);
            T::encode(x, weights.map(|weights| Importance { weights, row: mean }), blocks);
        }
    }
}

/// The grid of whole blocks.
pub(super) fn grid<T: Block<N, B, R>, const N: usize, const B: usize, const R: usize>(bytes: &[u8]) -> Grid {
    let blocks = bytes.as_chunks::<B>().0;
    let scales = blocks.iter().flat_map(|block| T::scales(block)).collect();
    let offsets = if T::OFFSETS { blocks.iter().flat_map(|block| T::offsets(block)).collect() } else { Vec::new() };
    let (choices, offset_choices) = T::choices(blocks);
    Grid { offsets, choices, offset_choices, ..Grid::scaled(T::LEVELS, N / R, scales, Dtype::F32) }
}

/// Stores the nearest levels to values under the scales of `bytes`, or those of `moved`. A block whose values are those it has keeps its bytes.
#[inline(always)]
pub(super) fn store<T: Block<N, B, R>, const N: usize, const B: usize, const R: usize>(
    bytes: &[u8],
    values: &[f32],
    moved: Option<&Grid>,
    out: &mut [u8],
) {
    let blocks = bytes.as_chunks::<B>().0.iter().zip(out.as_chunks_mut::<B>().0);
    let mut own = [0.0; N];
    for (number, ((stored, out), values)) in blocks.zip(values.as_chunks::<N>().0).enumerate() {
        *out = *stored;
        let wanted = moved.map(|grid| of_block::<R>(&grid.scales, &grid.offsets, number));
        if let Some((scales, offsets)) = &wanted
            && (*scales != T::scales(stored) || T::OFFSETS && *offsets != T::offsets(stored))
        {
            T::choose(out, scales, offsets);
        } else {
            decode_blocks::<T, N, B, R>(std::slice::from_ref(stored), &mut own);
            if own == *values {
                continue;
            }
        }
        let (mut codes, scales) = (T::unpack(stored), T::scales(out));
        let offsets = if T::OFFSETS { T::offsets(out) } else { [0.0; R] };
        for (run, (codes, values)) in codes.chunks_exact_mut(N / R).zip(values.chunks_exact(N / R)).enumerate() {
            let (scale, offset) = (scales[run], offsets[run]);
            // Under a scale of 0 all levels are one.
            if scale == 0.0 {
                continue;
            }
            for (code, value) in codes.iter_mut().zip(values) {
                *code = T::code(if T::OFFSETS { value - offset } else { *value } / scale);
            }
        }
        T::pack(&codes, out);
    }
}

/// The scales and offsets of a grid's runs that a block has.
fn of_block<const R: usize>(scales: &[f32], offsets: &[f32], number: usize) -> ([f32; R], [f32; R]) {
    let of = |all: &[f32]| all.as_chunks::<R>().0.get(number).copied();
    // A grid of fewer runs would be a defect: NaN is no choice, and what is stored stays.
    (of(scales).unwrap_or([f32::NAN; R]), of(offsets).unwrap_or([0.0; R]))
}

/// By block, the whole multiples of a unit.
pub(super) fn multiples<const B: usize>(
    blocks: &[[u8; B]],
    runs: usize,
    numbers: std::ops::Range<i32>,
    unit: impl Fn(&[u8; B]) -> f32,
) -> Choices {
    let list = |block: &[u8; B]| {
        let unit = unit(block);
        let mut list: Vec<f32> = numbers.clone().map(|number| unit * number as f32).collect();
        if unit < 0.0 {
            list.reverse();
        }
        list
    };
    Choices::Listed { lists: blocks.iter().map(list).collect(), runs, first: 0 }
}

/// The number of a multiple of a unit that is wanted in place of `own`, or `own` where there is none.
#[inline(always)]
pub(super) fn number(unit: f32, own: i32, wanted: f32, mut numbers: std::ops::Range<i32>) -> i32 {
    if unit * own as f32 == wanted {
        return own;
    }
    numbers.find(|&number| unit * number as f32 == wanted).unwrap_or(own)
}

/// Values, weights and place of each block. (A closure for each would be compiled on its own, without the vectors of its caller.)
#[inline(always)]
pub(super) fn each<'x, const N: usize, const B: usize>(
    x: &'x [[f32; N]],
    importance: Option<Importance<'x, N>>,
    blocks: &'x mut [[u8; B]],
) -> impl Iterator<Item = (&'x [f32; N], Option<&'x [f32; N]>, &'x mut [u8; B])> {
    let weights = move |number: usize| importance.and_then(|importance| importance.weights.get(number));
    x.iter().zip(blocks).enumerate().map(move |(number, (x, block))| (x, weights(number), block))
}

/// A length that the compiler does not know: a short loop of known length is unrolled before it could become vectors.
#[inline(always)]
fn any(length: usize) -> usize {
    std::hint::black_box(length)
}

/// As C converts on x86-64, where no number fits: to the least.
#[inline(always)]
pub(super) fn truncated(x: f32) -> i32 {
    if x.abs() < 2_147_483_648.0 { x as i32 } else { i32::MIN }
}

/// 1 / x, or 0 for 0.
#[inline(always)]
pub(super) fn inverse(x: f32) -> f32 {
    if x == 0.0 { 0.0 } else { 1.0 / x }
}

/// The bytes of the f16 nearest to a number.
#[inline(always)]
pub(super) fn half(x: f32) -> [u8; 2] {
    half::f16::from_f32(x).to_le_bytes()
}

/// An f16 in its two bytes.
#[inline(always)]
pub(super) fn f16(bytes: [u8; 2]) -> f32 {
    let bits = u32::from(u16::from_le_bytes(bytes));
    let (sign, exponent, rest) = ((bits & 0x8000) << 16, bits & 0x7c00, bits & 0x7fff);
    let value = match exponent {
        // Whole numbers of 2⁻²⁴: converted as such, since a product of a subnormal would be slow.
        0 => (rest as f32 * f32::from_bits(0x3380_0000)).to_bits(),
        0x7c00 => (rest << 13) | 0x7f80_0000,
        _ => (rest << 13) + (112 << 23),
    };
    f32::from_bits(value | sign)
}

/// The low nibbles of some bytes, then the high ones.
#[inline(always)]
pub(super) fn nibbles(bytes: &[u8], codes: &mut [u8]) {
    let (low, high) = codes.split_at_mut(bytes.len());
    for ((byte, low), high) in bytes.iter().zip(low).zip(high) {
        (*low, *high) = (byte & 15, byte >> 4);
    }
}

/// Codes of four bits as [`nibbles`] reads them.
#[inline(always)]
pub(super) fn to_nibbles(codes: &[u8], bytes: &mut [u8]) {
    let (low, high) = codes.split_at(bytes.len());
    for ((byte, low), high) in bytes.iter_mut().zip(low).zip(high) {
        *byte = (low & 15) | (high << 4);
    }
}

/// Puts another f16 into the first two bytes of some.
#[inline(always)]
fn choose_f16(bytes: &mut [u8], wanted: f32) {
    if f16([bytes[0], bytes[1]]) != wanted && !wanted.is_nan() {
        bytes[..2].copy_from_slice(&half(wanted));
    }
}
