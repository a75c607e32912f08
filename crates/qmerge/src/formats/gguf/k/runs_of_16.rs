//! Q2_K, Q3_K and Q6_K: sixteen runs of 16.

// Blocks are arrays of a fixed length; what indexes them counts up to it.
#![allow(clippy::indexing_slicing)]

use super::super::block::{Block, Importance, each, f16, half, multiples, nibbles, number, to_nibbles};
use super::super::fit::{
    self, Runs, Search, affine, again, by_moves, extreme, map, nearest, positive, runs, square_sum, sums, symmetric,
    weighted,
};
use super::super::packing::{add_bits, q3_scales, to_bits, to_q3_scales, to_two_bits, two_bits};
use super::{block_codes, known, shared};
use crate::formats::{Choices, Levels};
use crate::simd::lanes::LANES;

pub(in super::super) struct Q2K;
pub(in super::super) struct Q3K;
pub(in super::super) struct Q6K;

/// The weights of values where inputs are known.
#[inline(always)]
fn by_importance(x: &Runs<16>, weights: &[f32; 256], square: f32) -> Runs<16> {
    weighted(x, &runs(weights), &[square; LANES])
}

impl Block<256, 84, 16> for Q2K {
    const LEVELS: Levels = Levels::Integers(0, 3);
    const OFFSETS: bool = true;

    #[inline(always)]
    fn unpack(block: &[u8; 84]) -> [u8; 256] {
        let mut codes = [0; 256];
        two_bits(&block[16..80], &mut codes);
        codes
    }

    #[inline(always)]
    fn pack(codes: &[u8; 256], block: &mut [u8; 84]) {
        to_two_bits(codes, &mut block[16..80]);
    }

    #[inline(always)]
    fn scales(block: &[u8; 84]) -> [f32; 16] {
        let d = f16([block[80], block[81]]);
        std::array::from_fn(|i| d * f32::from(block[i] & 15))
    }

    #[inline(always)]
    fn offsets(block: &[u8; 84]) -> [f32; 16] {
        let d = f16([block[82], block[83]]);
        std::array::from_fn(|i| -(d * f32::from(block[i] >> 4)))
    }

    fn choices(blocks: &[[u8; 84]]) -> (Choices, Choices) {
        (
            multiples(blocks, 16, 0..16, |block| f16([block[80], block[81]])),
            multiples(blocks, 16, 0..16, |block| -f16([block[82], block[83]])),
        )
    }

    #[inline(always)]
    fn choose(block: &mut [u8; 84], scales: &[f32; 16], offsets: &[f32; 16]) {
        let (d, dmin) = (f16([block[80], block[81]]), f16([block[82], block[83]]));
        for i in 0..16 {
            let scale = number(d, (block[i] & 15).into(), scales[i], 0..16);
            let minimum = number(dmin, (block[i] >> 4).into(), -offsets[i], 0..16);
            block[i] = (scale | (minimum << 4)) as u8;
        }
    }

    #[inline(always)]
    fn encode(x: &[[f32; 256]], importance: Option<Importance<'_, 256>>, blocks: &mut [[u8; 84]]) {
        for (x, importance, block) in each(x, importance, blocks) {
            let runs = runs::<16>(x);
            let (weights, search) = match importance {
                Some(weights) => (by_importance(&runs, weights, square_sum(x) / 256.0), known(3)),
                None => {
                    let search = Search { top: 3, first: -0.5, step: 0.1, steps: 15, absolute: true };
                    (map(&runs, f32::abs), search)
                }
            };
            let (own, own_minima, mut found) = affine(&runs, &weights, search);
            let totals = importance.map(|_| sums(&weights));
            let shared = |own: &[f32; 16]| match &totals {
                Some(totals) => {
                    let (unit, numbers) = positive(own, 15, totals);
                    (unit, numbers.map(i32::from))
                }
                None => shared(own, 15),
            };
            let ((d, scales), (dmin, minima)) = (shared(&own), shared(&own_minima));
            for i in 0..16 {
                block[i] = (scales[i] | (minima[i] << 4)) as u8;
            }
            block[80..82].copy_from_slice(&half(d));
            block[82..].copy_from_slice(&half(dmin));
            found = again(&runs, &found, &Self::scales(block), &Self::offsets(block).map(|offset| -offset), (0, 3));
            let [codes] = block_codes(&found);
            Self::pack(&codes, block);
        }
    }
}

impl Block<256, 110, 16> for Q3K {
    const LEVELS: Levels = Levels::Integers(-4, 3);

    #[inline(always)]
    fn unpack(block: &[u8; 110]) -> [u8; 256] {
        let mut codes = [0; 256];
        two_bits(&block[32..96], &mut codes);
        add_bits(&block[..32], 2, &mut codes);
        codes
    }

    #[inline(always)]
    fn pack(codes: &[u8; 256], block: &mut [u8; 110]) {
        to_two_bits(codes, &mut block[32..96]);
        to_bits(codes, 2, &mut block[..32]);
    }

    #[inline(always)]
    fn scales(block: &[u8; 110]) -> [f32; 16] {
        let d = f16([block[108], block[109]]);
        q3_scales(&block[96..108]).map(|scale| d * scale as f32)
    }

    fn choices(blocks: &[[u8; 110]]) -> (Choices, Choices) {
        (multiples(blocks, 16, -32..32, |block| f16([block[108], block[109]])), Choices::Fixed)
    }

    #[inline(always)]
    fn choose(block: &mut [u8; 110], scales: &[f32; 16], _: &[f32; 16]) {
        let d = f16([block[108], block[109]]);
        let mut own = q3_scales(&block[96..108]);
        for i in 0..16 {
            own[i] = number(d, own[i], scales[i], -32..32);
        }
        to_q3_scales(&own, &mut block[96..108]);
    }

    #[inline(always)]
    fn encode(x: &[[f32; 256]], importance: Option<Importance<'_, 256>>, blocks: &mut [[u8; 110]]) {
        for (x, importance, block) in each(x, importance, blocks) {
            let runs = runs::<16>(x);
            let (d, scales, mut found);
            if let Some(weights) = importance {
                let weights = by_importance(&runs, weights, 2.0 * square_sum(x) / 256.0);
                let (own, codes) = symmetric(&runs, 4, &weights);
                let totals = sums(&weights);
                // One run, beside which the other lanes are empty.
                let ([unit, ..], numbers) = symmetric::<16>(&fit::runs(&own), 32, &fit::runs(&totals));
                (d, scales) = (unit, numbers.map(|number| number[0] as i32 - 32));
                found = codes;
            } else {
                let (own, codes) = by_moves(&runs);
                let most = extreme(&own);
                let inverse = -32.0 / most;
                d = if most == 0.0 { 0.0 } else { 1.0 / inverse };
                scales = own.map(|scale| if most == 0.0 { -32 } else { nearest(inverse * scale).clamp(-32, 31) });
                found = codes;
            }
            block[108..].copy_from_slice(&half(d));
            to_q3_scales(&scales, &mut block[96..108]);
            found = again(&runs, &found, &Self::scales(block), &[0.0; 16], (-4, 3));
            let [codes] = block_codes(&found);
            Self::pack(&codes, block);
        }
    }
}

impl Block<256, 210, 16> for Q6K {
    const LEVELS: Levels = Levels::Integers(-32, 31);

    #[inline(always)]
    fn unpack(block: &[u8; 210]) -> [u8; 256] {
        let mut codes = [0; 256];
        let halves = block[..128].chunks_exact(64).zip(block[128..192].chunks_exact(32));
        for ((low, high), codes) in halves.zip(codes.chunks_exact_mut(128)) {
            nibbles(low, codes);
            for (field, codes) in codes.chunks_exact_mut(32).enumerate() {
                for (high, code) in high.iter().zip(codes) {
                    *code |= ((high >> (2 * field)) & 3) << 4;
                }
            }
        }
        codes
    }

    #[inline(always)]
    fn pack(codes: &[u8; 256], block: &mut [u8; 210]) {
        let (low, rest) = block.split_at_mut(128);
        let halves = low.chunks_exact_mut(64).zip(rest[..64].chunks_exact_mut(32));
        for ((low, high), codes) in halves.zip(codes.chunks_exact(128)) {
            to_nibbles(codes, low);
            for (i, byte) in high.iter_mut().enumerate() {
                let field = |k: usize| ((codes[32 * k + i] >> 4) & 3) << (2 * k);
                *byte = field(0) | field(1) | field(2) | field(3);
            }
        }
    }

    #[inline(always)]
    fn scales(block: &[u8; 210]) -> [f32; 16] {
        let d = f16([block[208], block[209]]);
        std::array::from_fn(|i| d * f32::from(block[192 + i].cast_signed()))
    }

    fn choices(blocks: &[[u8; 210]]) -> (Choices, Choices) {
        (multiples(blocks, 16, -128..128, |block| f16([block[208], block[209]])), Choices::Fixed)
    }

    #[inline(always)]
    fn choose(block: &mut [u8; 210], scales: &[f32; 16], _: &[f32; 16]) {
        let d = f16([block[208], block[209]]);
        for (own, &wanted) in block[192..208].iter_mut().zip(scales) {
            *own = number(d, own.cast_signed().into(), wanted, -128..128) as u8;
        }
    }

    #[inline(always)]
    fn encode(x: &[[f32; 256]], importance: Option<Importance<'_, 256>>, blocks: &mut [[u8; 210]]) {
        for (x, importance, block) in each(x, importance, blocks) {
            let runs = runs::<16>(x);
            let weights = importance.map_or_else(|| map(&runs, |x| x * x), |weights| fit::runs(weights));
            let (own, mut found) = symmetric(&runs, 32, &weights);
            let most = extreme(&own);
            block.fill(0);
            if most.abs() < 1e-15 {
                continue;
            }
            let inverse = -128.0 / most;
            block[208..].copy_from_slice(&half(1.0 / inverse));
            for (stored, scale) in block[192..208].iter_mut().zip(own) {
                *stored = nearest(inverse * scale).min(127) as u8;
            }
            found = again(&runs, &found, &Self::scales(block), &[0.0; 16], (-32, 31));
            let [codes] = block_codes(&found);
            Self::pack(&codes, block);
        }
    }
}
