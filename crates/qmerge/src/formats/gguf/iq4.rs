//! IQ4_NL and IQ4_XS: 16 levels that lie closer around 0, under an f16 for 32 values, or a scale of 6 bits under an f16 for 256.

// Blocks are arrays of a fixed length; what indexes them counts up to it, or is a code that was masked.
#![allow(clippy::indexing_slicing)]

use super::block::{Block, Importance, each, f16, half, inverse, multiples, nibbles, number, to_nibbles};
use super::fit::{Runs, extreme, extremes, map, nearest, runs, square_sum, weighted};
use crate::formats::{Choices, Levels};

pub(super) struct Iq4Nl;
pub(super) struct Iq4Xs;

static LEVELS: [f32; 16] =
    [-127.0, -104.0, -83.0, -65.0, -49.0, -35.0, -22.0, -10.0, 1.0, 13.0, 25.0, 38.0, 53.0, 69.0, 89.0, 113.0];

/// The code of the level nearest to a number, of two the upper; of what is no number the last.
#[inline(always)]
fn code(x: f32) -> u8 {
    let mut code = 0;
    for pair in LEVELS.windows(2) {
        code += u8::from(!is_below(x, 0.5 * (pair[0] + pair[1])));
    }
    code
}

/// The level nearest to a number: what [`code`] stands for, without looking it up.
#[inline(always)]
fn level(x: f32) -> f32 {
    let mut level = LEVELS[0];
    for pair in LEVELS.windows(2) {
        level += if is_below(x, 0.5 * (pair[0] + pair[1])) { 0.0 } else { pair[1] - pair[0] };
    }
    level
}

#[inline(always)]
fn is_below(x: f32, middle: f32) -> bool {
    x < middle
}

/// Σ w·level·x and Σ w·level² of each run, under the inverse of its scale.
#[inline(always)]
fn sums<const L: usize>(x: &Runs<32, L>, weights: &Runs<32, L>, inverse: &[f32; L]) -> ([f32; L], [f32; L]) {
    let (mut products, mut squares) = ([0.0; L], [0.0; L]);
    for (x, w) in x.iter().zip(weights) {
        for l in 0..L {
            let level = level(inverse[l] * x[l]);
            products[l] += w[l] * level * x[l];
            squares[l] += w[l] * level * level;
        }
    }
    (products, squares)
}

/// The scales under which the weighted error of runs is least.
#[inline(always)]
fn fit<const L: usize>(x: &Runs<32, L>, weights: &Runs<32, L>) -> [f32; L] {
    let (_, extremes) = extremes(x);
    let (products, squares) = sums(x, weights, &extremes.map(|extreme| 1.0 / (-extreme / LEVELS[0])));
    let (mut scale, mut best) = ([0.0; L], [0.0; L]);
    for l in 0..L {
        scale[l] = if squares[l] > 0.0 { products[l] / squares[l] } else { 0.0 };
        best[l] = scale[l] * products[l];
    }
    for step in -7..=7 {
        let (products, squares) = sums(x, weights, &extremes.map(|extreme| (step as f32 + LEVELS[0]) / extreme));
        for l in 0..L {
            let better = squares[l] > 0.0 && products[l] * products[l] > best[l] * squares[l];
            let found = products[l] / squares[l];
            scale[l] = if better { found } else { scale[l] };
            best[l] = if better { found * products[l] } else { best[l] };
        }
    }
    std::array::from_fn(|l| if extremes[l].abs() < 1e-15 { 0.0 } else { scale[l] })
}

impl Block<32, 18, 1> for Iq4Nl {
    const LEVELS: Levels = Levels::Table(&LEVELS);

    #[inline(always)]
    fn level(code: u8) -> f32 {
        LEVELS[usize::from(code & 15)]
    }

    #[inline(always)]
    fn code(x: f32) -> u8 {
        code(x)
    }

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
        let all = runs::<32, 8>(x.as_flattened());
        let weights = match importance {
            None => map(&all, |x| x * x),
            Some(importance) => {
                let mut squares = [0.0; 8];
                squares.iter_mut().zip(x).for_each(|(square, x)| *square = square_sum(x) * (2.0 / 32.0));
                weighted(&all, &runs(importance.weights.as_flattened()), &squares)
            }
        };
        for ((x, block), scale) in x.iter().zip(blocks).zip(fit(&all, &weights)) {
            let inverse = inverse(scale);
            let mut codes = [0; 32];
            codes.iter_mut().zip(x).for_each(|(stored, x)| *stored = code(x * inverse));
            block[..2].copy_from_slice(&half(scale));
            Self::pack(&codes, block);
        }
    }
}

/// IQ4_XS's eight scales of six bits, less 32: four bits in nibbles, two in a word before.
#[inline(always)]
fn xs_scales(block: &[u8; 136]) -> [i32; 8] {
    let high = u16::from_le_bytes([block[2], block[3]]);
    std::array::from_fn(|i| {
        let low = (block[4 + i / 2] >> (4 * (i % 2))) & 15;
        i32::from(low) + (i32::from((high >> (2 * i)) & 3) << 4) - 32
    })
}

#[inline(always)]
fn to_xs_scales(scales: &[i32; 8], block: &mut [u8; 136]) {
    let scales = scales.map(|scale| (scale + 32) as u16);
    let high = scales.iter().enumerate().fold(0, |high, (i, scale)| high | ((scale >> 4) << (2 * i)));
    block[2..4].copy_from_slice(&high.to_le_bytes());
    for i in 0..4 {
        block[4 + i] = ((scales[2 * i] & 15) | ((scales[2 * i + 1] & 15) << 4)) as u8;
    }
}

impl Block<256, 136, 8> for Iq4Xs {
    const LEVELS: Levels = Levels::Table(&LEVELS);

    #[inline(always)]
    fn level(code: u8) -> f32 {
        LEVELS[usize::from(code & 15)]
    }

    #[inline(always)]
    fn code(x: f32) -> u8 {
        code(x)
    }

    #[inline(always)]
    fn unpack(block: &[u8; 136]) -> [u8; 256] {
        let mut codes = [0; 256];
        block[8..].chunks_exact(16).zip(codes.chunks_exact_mut(32)).for_each(|(bytes, codes)| nibbles(bytes, codes));
        codes
    }

    #[inline(always)]
    fn pack(codes: &[u8; 256], block: &mut [u8; 136]) {
        block[8..].chunks_exact_mut(16).zip(codes.chunks_exact(32)).for_each(|(bytes, codes)| to_nibbles(codes, bytes));
    }

    #[inline(always)]
    fn scales(block: &[u8; 136]) -> [f32; 8] {
        let d = f16([block[0], block[1]]);
        xs_scales(block).map(|scale| d * scale as f32)
    }

    fn choices(blocks: &[[u8; 136]]) -> (Choices, Choices) {
        (multiples(blocks, 8, -32..32, |block| f16([block[0], block[1]])), Choices::Fixed)
    }

    #[inline(always)]
    fn choose(block: &mut [u8; 136], scales: &[f32; 8], _: &[f32; 8]) {
        let d = f16([block[0], block[1]]);
        let mut own = xs_scales(block);
        for i in 0..8 {
            own[i] = number(d, own[i], scales[i], -32..32);
        }
        to_xs_scales(&own, block);
    }

    #[inline(always)]
    fn encode(x: &[[f32; 256]], importance: Option<Importance<'_, 256>>, blocks: &mut [[u8; 136]]) {
        for (x, importance, block) in each(x, importance, blocks) {
            let all = runs::<32, 8>(x);
            let weights = match importance {
                None => map(&all, |x| x * x),
                Some(weights) => weighted(&all, &runs(weights), &[square_sum(x) * (2.0 / 256.0); 8]),
            };
            let own = fit(&all, &weights);
            let d = -extreme(&own) / 32.0;
            let inverse_d = inverse(d);
            let scales = own.map(|scale| nearest(inverse_d * scale).clamp(-32, 31));
            block[..2].copy_from_slice(&half(d));
            to_xs_scales(&scales, block);
            let mut codes = [0; 256];
            for ((x, codes), scale) in x.chunks_exact(32).zip(codes.chunks_exact_mut(32)).zip(scales) {
                // Of the unit as it was found, not as it is stored.
                let inverse = inverse(d * scale as f32);
                codes.iter_mut().zip(x).for_each(|(stored, x)| *stored = code(x * inverse));
            }
            Self::pack(&codes, block);
        }
    }
}
