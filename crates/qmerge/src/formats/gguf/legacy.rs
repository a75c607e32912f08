//! Q4_0, Q4_1, Q5_0, Q5_1 and Q8_0: 32 elements, an f16 scale, and for the `_1` types an f16 minimum.

// Blocks are arrays of a fixed length; what indexes them counts up to it.
#![allow(clippy::indexing_slicing)]

use super::block::{Block, Importance, each, half, inverse, nibbles, to_nibbles, truncated};
use super::fit::{Runs, Search, affine, codes, ends, extreme_of_block, first_zero, most, runs, symmetric, weighted};
use crate::dtype::Dtype;
use crate::formats::Levels;
use crate::simd::floats;
use crate::simd::lanes::LANES;

pub(super) struct Q4_0;
pub(super) struct Q4_1;
pub(super) struct Q5_0;
pub(super) struct Q5_1;
pub(super) struct Q8_0;

/// The codes of 32 elements of five bits: four in nibbles, and the fifth of all of them in a word before.
#[inline(always)]
fn five_bits(bytes: &[u8]) -> [u8; 32] {
    let high = u32::from_le_bytes([bytes[0], bytes[1], bytes[2], bytes[3]]);
    let mut codes = [0; 32];
    nibbles(&bytes[4..], &mut codes);
    for (i, code) in codes.iter_mut().enumerate() {
        *code |= (((high >> i) & 1) << 4) as u8;
    }
    codes
}

#[inline(always)]
fn to_five_bits(codes: &[u8; 32], bytes: &mut [u8]) {
    let high = codes.iter().enumerate().fold(0, |high, (i, code)| high | (u32::from(code >> 4) << i));
    bytes[..4].copy_from_slice(&high.to_le_bytes());
    to_nibbles(codes, &mut bytes[4..]);
}

/// The whole part of a number that is a code; of any other 0, as C converts on x86-64.
#[inline(always)]
fn whole(x: f32) -> u8 {
    let x = if (0.0..256.0).contains(&x) { x } else { 0.0 };
    // SAFETY: the number is from 0 to 256.
    unsafe { x.to_int_unchecked::<i32>() as u8 }
}

/// Codes of levels around 0 under the inverse of a scale.
#[inline(always)]
fn around_zero(x: &[f32; 32], inverse: f32, half: u8) -> [u8; 32] {
    let (middle, mut codes) = (f32::from(half) + 0.5, [0; 32]);
    for (code, x) in codes.iter_mut().zip(x) {
        *code = whole(x * inverse + middle).min(2 * half - 1);
    }
    codes
}

/// Codes of levels from 0 up under a minimum and the inverse of a scale.
#[inline(always)]
fn from_minimum(x: &[f32; 32], low: f32, inverse: f32, top: u8) -> [u8; 32] {
    let mut codes = [0; 32];
    for (code, x) in codes.iter_mut().zip(x) {
        *code = whole((x - low) * inverse + 0.5).min(top);
    }
    codes
}

/// The bytes of the f16 nearest to the numbers of blocks.
#[inline(always)]
fn halves(x: [f32; LANES]) -> [[u8; 2]; LANES] {
    let mut bytes = [[0; 2]; LANES];
    floats::encode(Dtype::F16, &x, bytes.as_flattened_mut());
    bytes
}

/// Values and weights of blocks side by side.
#[inline(always)]
fn side_by_side(x: &[[f32; 32]], importance: Importance<'_, 32>) -> (Runs<32>, Runs<32>) {
    let (x, weights) = (runs(x.as_flattened()), runs(importance.weights.as_flattened()));
    (x, weighted(&x, &weights, &[importance.row; LANES]))
}

/// Calls `put` with scale and codes of levels around 0 for each block, of which there are sixteen at most.
#[inline(always)]
fn encode_around_zero<const B: usize>(
    x: &[[f32; 32]],
    half: u8,
    importance: Option<Importance<'_, 32>>,
    blocks: &mut [[u8; B]],
    put: impl Fn([u8; 2], &[u8; 32], &mut [u8; B]),
) {
    let Some(importance) = importance else {
        let mut scales = [0.0; LANES];
        for (scale, x) in scales.iter_mut().zip(x) {
            *scale = extreme_of_block(x) / -f32::from(half);
        }
        for (((block, scale), stored), x) in blocks.iter_mut().zip(scales).zip(halves(scales)).zip(x) {
            put(stored, &around_zero(x, inverse(scale), half), block);
        }
        return;
    };
    let (x, weights) = side_by_side(x, importance);
    let (scales, found) = symmetric(&x, half.into(), &weights);
    for ((block, scale), codes) in blocks.iter_mut().zip(halves(scales)).zip(&codes(&found)) {
        put(scale, codes, block);
    }
}

/// The same with scale, minimum and codes of levels from 0 up.
#[inline(always)]
fn encode_from_minimum<const B: usize>(
    x: &[[f32; 32]],
    top: u8,
    importance: Option<Importance<'_, 32>>,
    blocks: &mut [[u8; B]],
    put: impl Fn([u8; 2], [u8; 2], &[u8; 32], &mut [u8; B]),
) {
    let Some(importance) = importance else {
        let (mut scales, mut minima) = ([0.0; LANES], [0.0; LANES]);
        for ((scale, minimum), x) in scales.iter_mut().zip(&mut minima).zip(x) {
            let (low, high) = ends(x);
            // Of zeros of both signs the difference is 0, not −0.
            *scale = if high == low { 0.0 } else { (high - low) / f32::from(top) };
            *minimum = first_zero(low, x);
        }
        let stored = halves(scales).into_iter().zip(halves(minima));
        let found = x.iter().zip(scales.into_iter().zip(minima));
        for ((block, (scale, minimum)), (x, (own, low))) in blocks.iter_mut().zip(stored).zip(found) {
            put(scale, minimum, &from_minimum(x, low, inverse(own), top), block);
        }
        return;
    };
    let (x, weights) = side_by_side(x, importance);
    let search = Search { top: top.into(), first: -0.9, step: 0.05, steps: 36, absolute: false };
    let (scales, minima, found) = affine(&x, &weights, search);
    let stored = halves(scales).into_iter().zip(halves(minima.map(|minimum| -minimum)));
    for ((block, (scale, minimum)), codes) in blocks.iter_mut().zip(stored).zip(&codes(&found)) {
        put(scale, minimum, codes, block);
    }
}

impl Block<32, 18, 1> for Q4_0 {
    const LEVELS: Levels = Levels::Integers(-8, 7);

    #[inline(always)]
    fn unpack(block: &[u8; 18]) -> [u8; 32] {
        let mut codes = [0; 32];
        nibbles(&block[2..], &mut codes);
        codes
    }

    #[inline(always)]
    fn pack(codes: &[u8; 32], block: &mut [u8; 18]) {
        to_nibbles(codes, &mut block[2..]);
    }

    #[inline(always)]
    fn encode(x: &[[f32; 32]], importance: Option<Importance<'_, 32>>, blocks: &mut [[u8; 18]]) {
        encode_around_zero(x, 8, importance, blocks, |scale, codes, block| {
            block[..2].copy_from_slice(&scale);
            Self::pack(codes, block);
        });
    }
}

impl Block<32, 20, 1> for Q4_1 {
    const LEVELS: Levels = Levels::Integers(0, 15);
    const OFFSETS: bool = true;

    #[inline(always)]
    fn unpack(block: &[u8; 20]) -> [u8; 32] {
        let mut codes = [0; 32];
        nibbles(&block[4..], &mut codes);
        codes
    }

    #[inline(always)]
    fn pack(codes: &[u8; 32], block: &mut [u8; 20]) {
        to_nibbles(codes, &mut block[4..]);
    }

    #[inline(always)]
    fn encode(x: &[[f32; 32]], importance: Option<Importance<'_, 32>>, blocks: &mut [[u8; 20]]) {
        encode_from_minimum(x, 15, importance, blocks, |scale, minimum, codes, block| {
            block[..2].copy_from_slice(&scale);
            block[2..4].copy_from_slice(&minimum);
            Self::pack(codes, block);
        });
    }
}

impl Block<32, 22, 1> for Q5_0 {
    const LEVELS: Levels = Levels::Integers(-16, 15);

    #[inline(always)]
    fn unpack(block: &[u8; 22]) -> [u8; 32] {
        five_bits(&block[2..])
    }

    #[inline(always)]
    fn pack(codes: &[u8; 32], block: &mut [u8; 22]) {
        to_five_bits(codes, &mut block[2..]);
    }

    #[inline(always)]
    fn encode(x: &[[f32; 32]], importance: Option<Importance<'_, 32>>, blocks: &mut [[u8; 22]]) {
        encode_around_zero(x, 16, importance, blocks, |scale, codes, block| {
            block[..2].copy_from_slice(&scale);
            Self::pack(codes, block);
        });
    }
}

impl Block<32, 24, 1> for Q5_1 {
    const LEVELS: Levels = Levels::Integers(0, 31);
    const OFFSETS: bool = true;

    #[inline(always)]
    fn unpack(block: &[u8; 24]) -> [u8; 32] {
        five_bits(&block[4..])
    }

    #[inline(always)]
    fn pack(codes: &[u8; 32], block: &mut [u8; 24]) {
        to_five_bits(codes, &mut block[4..]);
    }

    #[inline(always)]
    fn encode(x: &[[f32; 32]], importance: Option<Importance<'_, 32>>, blocks: &mut [[u8; 24]]) {
        encode_from_minimum(x, 31, importance, blocks, |scale, minimum, codes, block| {
            block[..2].copy_from_slice(&scale);
            block[2..4].copy_from_slice(&minimum);
            Self::pack(codes, block);
        });
    }
}

impl Block<32, 34, 1> for Q8_0 {
    const LEVELS: Levels = Levels::Integers(-128, 127);

    #[inline(always)]
    fn level(code: u8) -> f32 {
        f32::from(code.cast_signed())
    }

    #[inline(always)]
    fn code(x: f32) -> u8 {
        (x.round_ties_even() as i8).cast_unsigned()
    }

    #[inline(always)]
    fn unpack(block: &[u8; 34]) -> [u8; 32] {
        let mut codes = [0; 32];
        codes.copy_from_slice(&block[2..]);
        codes
    }

    #[inline(always)]
    fn pack(codes: &[u8; 32], block: &mut [u8; 34]) {
        block[2..].copy_from_slice(codes);
    }

    #[inline(always)]
    fn encode(x: &[[f32; 32]], _: Option<Importance<'_, 32>>, blocks: &mut [[u8; 34]]) {
        for (x, _, block) in each(x, None, blocks) {
            let scale = most(x) / 127.0;
            let inverse = inverse(scale);
            block[..2].copy_from_slice(&half(scale));
            for (code, x) in block[2..].iter_mut().zip(x) {
                *code = truncated((x * inverse).round()) as u8;
            }
        }
    }
}
