//! Types of few levels under one f16: Q1_0 (a sign), Q2_0 (two bits), TQ1_0 (five digits of three in a byte) and TQ2_0 (two bits, of which three levels are used).

// Blocks are arrays of a fixed length; what indexes them counts up to it.
#![allow(clippy::indexing_slicing)]

use super::block::{Block, Importance, each, half, inverse, truncated};
use super::fit::most;
use super::packing::{to_two_bits, two_bits};
use crate::formats::Levels;

pub(super) struct Q1_0;
pub(super) struct Q2_0;
pub(super) struct TQ1_0;
pub(super) struct TQ2_0;

static SIGNS: [f32; 2] = [-1.0, 1.0];

/// The largest |x|, and codes of −1, 0 and 1 times it.
#[inline(always)]
fn thirds<const N: usize>(x: &[f32; N]) -> (f32, [u8; N]) {
    let scale = most(x);
    let inverse = inverse(scale);
    let mut codes = [0; N];
    codes.iter_mut().zip(x).for_each(|(code, x)| *code = third(x * inverse));
    (scale, codes)
}

/// What is no number, since the scale is next to nothing, is 0.
#[inline(always)]
fn third(x: f32) -> u8 {
    if x.is_finite() { (truncated(x.round()) + 1) as u8 & 3 } else { 1 }
}

impl Block<128, 18, 1> for Q1_0 {
    const LEVELS: Levels = Levels::Table(&SIGNS);

    #[inline(always)]
    fn level(code: u8) -> f32 {
        if code == 0 { -1.0 } else { 1.0 }
    }

    #[inline(always)]
    fn code(x: f32) -> u8 {
        u8::from(x >= 0.0)
    }

    #[inline(always)]
    fn unpack(block: &[u8; 18]) -> [u8; 128] {
        std::array::from_fn(|i| (block[2 + i / 8] >> (i % 8)) & 1)
    }

    #[inline(always)]
    fn pack(codes: &[u8; 128], block: &mut [u8; 18]) {
        for (byte, codes) in block[2..].iter_mut().zip(codes.chunks_exact(8)) {
            *byte = codes.iter().rev().fold(0, |byte, code| (byte << 1) | code);
        }
    }

    #[inline(always)]
    fn encode(x: &[[f32; 128]], _: Option<Importance<'_, 128>>, blocks: &mut [[u8; 18]]) {
        for (x, _, block) in each(x, None, blocks) {
            let sum = x.iter().fold(0.0, |sum, x| sum + x.abs());
            block[..2].copy_from_slice(&half(sum / 128.0));
            let mut codes = [0; 128];
            codes.iter_mut().zip(x).for_each(|(code, &x)| *code = u8::from(x >= 0.0));
            Self::pack(&codes, block);
        }
    }
}

impl Block<64, 18, 1> for Q2_0 {
    const LEVELS: Levels = Levels::Integers(-1, 2);

    #[inline(always)]
    fn unpack(block: &[u8; 18]) -> [u8; 64] {
        std::array::from_fn(|i| (block[2 + i / 4] >> (2 * (i % 4))) & 3)
    }

    #[inline(always)]
    fn pack(codes: &[u8; 64], block: &mut [u8; 18]) {
        for (byte, codes) in block[2..].iter_mut().zip(codes.chunks_exact(4)) {
            *byte = codes[0] | (codes[1] << 2) | (codes[2] << 4) | (codes[3] << 6);
        }
    }

    #[inline(always)]
    fn encode(x: &[[f32; 64]], _: Option<Importance<'_, 64>>, blocks: &mut [[u8; 18]]) {
        for (x, _, block) in each(x, None, blocks) {
            let scale = most(x);
            let inverse = inverse(scale);
            let mut codes = [0; 64];
            for (code, x) in codes.iter_mut().zip(x) {
                *code = truncated((x * inverse).round()).saturating_add(1).clamp(0, 3) as u8;
            }
            block[..2].copy_from_slice(&half(scale));
            Self::pack(&codes, block);
        }
    }
}

impl Block<256, 66, 1> for TQ2_0 {
    const LEVELS: Levels = Levels::Integers(-1, 2);
    const SCALE: usize = 64;

    #[inline(always)]
    fn unpack(block: &[u8; 66]) -> [u8; 256] {
        let mut codes = [0; 256];
        two_bits(&block[..64], &mut codes);
        codes
    }

    #[inline(always)]
    fn pack(codes: &[u8; 256], block: &mut [u8; 66]) {
        to_two_bits(codes, &mut block[..64]);
    }

    #[inline(always)]
    fn encode(x: &[[f32; 256]], _: Option<Importance<'_, 256>>, blocks: &mut [[u8; 66]]) {
        for (x, _, block) in each(x, None, blocks) {
            let (scale, codes) = thirds(x);
            block[64..].copy_from_slice(&half(scale));
            Self::pack(&codes, block);
        }
    }
}

/// Where the digits of TQ1_0 are: bytes, elements, digits of a byte. The k-th digits of all bytes come one after the other.
const PLACES: [(usize, usize, usize, usize); 3] = [(0, 32, 0, 5), (32, 48, 160, 5), (48, 52, 240, 4)];

impl Block<256, 54, 1> for TQ1_0 {
    const LEVELS: Levels = Levels::Integers(-1, 1);
    const SCALE: usize = 52;

    /// A byte is a fraction of 256; three times it is the next digit and the rest.
    #[inline(always)]
    fn unpack(block: &[u8; 54]) -> [u8; 256] {
        let mut codes = [0; 256];
        for (from, to, first, digits) in PLACES {
            let mut bytes: [u8; 32] = [0; 32];
            let width = to - from;
            bytes[..width].copy_from_slice(&block[from..to]);
            for codes in codes[first..].chunks_exact_mut(width).take(digits) {
                for (byte, code) in bytes[..width].iter_mut().zip(codes) {
                    let three = u16::from(*byte) * 3;
                    (*code, *byte) = ((three >> 8) as u8, three as u8);
                }
            }
        }
        codes
    }

    #[inline(always)]
    fn pack(codes: &[u8; 256], block: &mut [u8; 54]) {
        for (from, to, first, digits) in PLACES {
            let width = to - from;
            for (i, byte) in block[from..to].iter_mut().enumerate() {
                // The last byte's digits are one fewer: its last is 0.
                let number = (0..5).fold(0, |number, k| {
                    3 * number + if k < digits { u32::from(codes[first + k * width + i]) } else { 0 }
                });
                *byte = (number * 256).div_ceil(243) as u8;
            }
        }
    }

    #[inline(always)]
    fn encode(x: &[[f32; 256]], _: Option<Importance<'_, 256>>, blocks: &mut [[u8; 54]]) {
        for (x, _, block) in each(x, None, blocks) {
            let (scale, codes) = thirds(x);
            block[52..].copy_from_slice(&half(scale));
            Self::pack(&codes, block);
        }
    }
}
