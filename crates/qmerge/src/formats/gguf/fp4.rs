//! MXFP4 and NVFP4: 4-bit floats under a scale that is a power of two for 32 of them, or an 8-bit float for 16.
//!
//! ggml doubles the levels and halves the scales. A second scale that NVFP4 files have lies in a tensor of its own and applies to a layer's outputs.

// Blocks are arrays of a fixed length; what indexes them counts up to it, or is a code that was masked.
#![allow(clippy::indexing_slicing)]

use super::block::{Block, Importance, each, nibbles, to_nibbles};
use super::fit::most;
use crate::formats::{Choices, Levels};

pub(super) struct Mxfp4;
pub(super) struct Nvfp4;

/// What codes stand for; 8, which would be −0, is 0.
static LEVELS: [f32; 16] = [0.0, 1.0, 2.0, 3.0, 4.0, 6.0, 8.0, 12.0, 0.0, -1.0, -2.0, -3.0, -4.0, -6.0, -8.0, -12.0];
static SORTED: [f32; 15] = [-12.0, -8.0, -6.0, -4.0, -3.0, -2.0, -1.0, 0.0, 1.0, 2.0, 3.0, 4.0, 6.0, 8.0, 12.0];
/// Between neighbours.
const MIDDLES: [f32; 7] = [0.5, 1.5, 2.5, 3.5, 5.0, 7.0, 10.0];

/// The code of the level nearest to `x / scale`, of two the smaller; nothing is divided, so that a tie is one.
#[inline(always)]
fn code(x: f32, scale: f32) -> u8 {
    let above: u8 = MIDDLES.iter().map(|middle| u8::from(x.abs() > middle * scale)).sum();
    // Under a scale of 0 all levels are one.
    let code = if scale == 0.0 { 0 } else { above };
    code | if x < 0.0 && code > 0 { 8 } else { 0 }
}

/// 2^(exponent − 128): never NaN, and exact where it is subnormal.
#[inline(always)]
fn power(exponent: u8) -> f32 {
    f32::from_bits(match exponent {
        0 => 0x0020_0000,
        1 => 0x0040_0000,
        _ => u32::from(exponent - 1) << 23,
    })
}

/// Half of an unsigned float of four bits of exponent and three of mantissa, whose sign bit says nothing. 0x7f, which would be NaN, is 0.
#[inline(always)]
fn half_e4m3(byte: u8) -> f32 {
    let (exponent, mantissa) = (u32::from(byte >> 3) & 15, u32::from(byte) & 7);
    let value = match exponent {
        0 => mantissa as f32 * f32::from_bits((127 - 10) << 23),
        _ => f32::from_bits(((exponent + 119) << 23) | (mantissa << 20)),
    };
    if byte == 0x7f { 0.0 } else { value }
}

/// The byte of such a float, of halves the larger; at most 448.
#[inline(always)]
fn e4m3(x: f32) -> u8 {
    if x <= 0.0 || x.is_nan() {
        return 0;
    }
    let x = x.min(448.0);
    let bits = x.to_bits();
    let exponent = ((bits >> 23) & 255).cast_signed() - 120;
    if exponent <= 0 {
        return ((x * 512.0 + 0.5) as u8).min(7);
    }
    // A carry out of the mantissa goes into the exponent.
    let rounded = (exponent << 3) as u32 + ((bits >> 20) & 7) + ((bits >> 19) & 1);
    rounded.min(0x7e) as u8
}

/// All finite scales, for every block.
fn choices(scales: Vec<f32>, runs: usize) -> Choices {
    Choices::Listed { lists: vec![scales], runs: runs.max(1), first: 0 }
}

/// The largest exponent under which all levels are finite.
const LARGEST: u8 = 252;

impl Block<32, 17, 1> for Mxfp4 {
    const LEVELS: Levels = Levels::Table(&SORTED);

    #[inline(always)]
    fn level(code: u8) -> f32 {
        LEVELS[usize::from(code & 15)]
    }

    #[inline(always)]
    fn code(x: f32) -> u8 {
        code(x, 1.0)
    }

    #[inline(always)]
    fn unpack(block: &[u8; 17]) -> [u8; 32] {
        let mut codes = [0; 32];
        nibbles(&block[1..], &mut codes);
        codes
    }

    #[inline(always)]
    fn pack(codes: &[u8; 32], block: &mut [u8; 17]) {
        to_nibbles(codes, &mut block[1..]);
    }

    #[inline(always)]
    fn scales(block: &[u8; 17]) -> [f32; 1] {
        [power(block[0])]
    }

    fn choices(blocks: &[[u8; 17]]) -> (Choices, Choices) {
        (choices((0..=LARGEST).map(power).collect(), blocks.len()), Choices::Fixed)
    }

    #[inline(always)]
    fn choose(block: &mut [u8; 17], scales: &[f32; 1], _: &[f32; 1]) {
        if let Some(exponent) = (0..=255).find(|&exponent| power(exponent) == scales[0]) {
            block[0] = exponent;
        }
    }

    #[inline(always)]
    fn encode(x: &[[f32; 32]], _: Option<Importance<'_, 32>>, blocks: &mut [[u8; 17]]) {
        for (x, _, block) in each(x, None, blocks) {
            encode_mxfp4(x, block);
        }
    }
}

#[inline(always)]
fn encode_mxfp4(x: &[f32; 32], block: &mut [u8; 17]) {
    let most = most(x);
    // The logarithm is rounded to f32 before it is cut, as the C library does it: what is next to a power of two goes up.
    let exponent = if most > 0.0 { (libm::log2(f64::from(most)) as f32).floor() as i32 + 125 } else { 0 };
    block[0] = exponent as u8;
    let scale = power(block[0]);
    let mut codes = [0; 32];
    codes.iter_mut().zip(x).for_each(|(stored, &x)| *stored = code(x, scale));
    Mxfp4::pack(&codes, block);
}

impl Block<64, 36, 4> for Nvfp4 {
    const LEVELS: Levels = Levels::Table(&SORTED);

    #[inline(always)]
    fn level(code: u8) -> f32 {
        LEVELS[usize::from(code & 15)]
    }

    #[inline(always)]
    fn code(x: f32) -> u8 {
        code(x, 1.0)
    }

    #[inline(always)]
    fn unpack(block: &[u8; 36]) -> [u8; 64] {
        let mut codes = [0; 64];
        block[4..].chunks_exact(8).zip(codes.chunks_exact_mut(16)).for_each(|(bytes, codes)| nibbles(bytes, codes));
        codes
    }

    #[inline(always)]
    fn pack(codes: &[u8; 64], block: &mut [u8; 36]) {
        block[4..].chunks_exact_mut(8).zip(codes.chunks_exact(16)).for_each(|(bytes, codes)| to_nibbles(codes, bytes));
    }

    #[inline(always)]
    fn scales(block: &[u8; 36]) -> [f32; 4] {
        [block[0], block[1], block[2], block[3]].map(half_e4m3)
    }

    fn choices(blocks: &[[u8; 36]]) -> (Choices, Choices) {
        (choices((0..0x7f).map(half_e4m3).collect(), 4 * blocks.len()), Choices::Fixed)
    }

    #[inline(always)]
    fn choose(block: &mut [u8; 36], scales: &[f32; 4], _: &[f32; 4]) {
        for (own, &wanted) in block[..4].iter_mut().zip(scales) {
            if half_e4m3(*own) != wanted
                && let Some(byte) = (0..0x7f).find(|&byte| half_e4m3(byte) == wanted)
            {
                *own = byte;
            }
        }
    }

    #[inline(always)]
    fn encode(x: &[[f32; 64]], _: Option<Importance<'_, 64>>, blocks: &mut [[u8; 36]]) {
        for (x, _, block) in each(x, None, blocks) {
            let mut codes = [0; 64];
            for (run, (x, codes)) in x.chunks_exact(16).zip(codes.chunks_exact_mut(16)).enumerate() {
                block[run] = e4m3(most(x) / 6.0);
                let scale = half_e4m3(block[run]);
                codes.iter_mut().zip(x).for_each(|(stored, &x)| *stored = code(x, scale));
            }
            Self::pack(&codes, block);
        }
    }
}
