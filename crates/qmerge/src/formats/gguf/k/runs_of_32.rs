//! Q4_K and Q5_K: eight runs of 32, each with a scale and a minimum; the rest of a block is codes.

// Blocks are arrays of a fixed length; what indexes them counts up to it.
#![allow(clippy::indexing_slicing)]

use super::super::block::{Block, Importance, f16, half, multiples, number};
use super::super::fit::{self, Runs, Search, affine, again, map, positive, runs, square_sum, sums, weighted};
use super::super::packing::{add_bits, four_bits, scales_and_minima, to_bits, to_four_bits, to_scales_and_minima};
use super::{block_codes, known, shared};
use crate::formats::{Choices, Levels};
use crate::simd::lanes::LANES;

pub(in super::super) struct Q4K;
pub(in super::super) struct Q5K;

/// The weights of values of one or two blocks where inputs are known, the first of which has that number among those of `importance`; `square` makes its block's of Σ x².
#[inline(always)]
pub(in super::super) fn by_importance_of_pair(
    runs: &Runs<32>,
    x: &[[f32; 256]],
    importance: Importance<'_, 256>,
    number: usize,
    square: impl Fn(f32) -> f32,
) -> Runs<32> {
    let mut squares = [0.0; LANES];
    squares.chunks_exact_mut(8).zip(x).for_each(|(squares, x)| squares.fill(square(square_sum(x))));
    weighted(runs, &fit::runs(importance.weights[number..][..x.len()].as_flattened()), &squares)
}

/// What the first sixteen bytes of Q4_K and Q5_K say: two units, and the scales and minima under them.
#[inline(always)]
fn scales_of(bytes: &[u8]) -> [f32; 8] {
    let d = f16([bytes[0], bytes[1]]);
    scales_and_minima(&bytes[4..16]).0.map(|scale| d * f32::from(scale))
}

#[inline(always)]
fn offsets_of(bytes: &[u8]) -> [f32; 8] {
    let d = f16([bytes[2], bytes[3]]);
    scales_and_minima(&bytes[4..16]).1.map(|minimum| -(d * f32::from(minimum)))
}

/// Other scales and minima of Q4_K and Q5_K under the two units that come before them.
#[inline(always)]
fn choose_scales_and_minima(bytes: &mut [u8], scales: &[f32; 8], offsets: &[f32; 8]) {
    let (d, dmin) = (f16([bytes[0], bytes[1]]), f16([bytes[2], bytes[3]]));
    let (mut own, mut minima) = scales_and_minima(&bytes[4..16]);
    for i in 0..8 {
        own[i] = number(d, own[i].into(), scales[i], 0..64) as u8;
        minima[i] = number(dmin, minima[i].into(), -offsets[i], 0..64) as u8;
    }
    to_scales_and_minima(&own, &minima, &mut bytes[4..16]);
}

/// The lists of them.
fn scales_and_minima_choices<const B: usize>(blocks: &[[u8; B]]) -> (Choices, Choices) {
    (
        multiples(blocks, 8, 0..64, |block| f16([block[0], block[1]])),
        multiples(blocks, 8, 0..64, |block| -f16([block[2], block[3]])),
    )
}

/// Q4_K and Q5_K: units, scales and minima, which are the first sixteen bytes, and codes, which `put` puts into the rest.
#[inline(always)]
fn encode_affine<const B: usize>(
    x: &[[f32; 256]],
    importance: Option<Importance<'_, 256>>,
    search: Search,
    blocks: &mut [[u8; B]],
    put: impl Fn(&[u8; 256], &mut [u8; B]),
) {
    for (number, (x, blocks)) in x.chunks(2).zip(blocks.chunks_mut(2)).enumerate() {
        let runs = runs::<32>(x.as_flattened());
        let (weights, search) = match importance {
            Some(importance) => {
                let weights = by_importance_of_pair(&runs, x, importance, 2 * number, |sum| 2.0 * sum / 256.0);
                (weights, known(search.top))
            }
            None => {
                let squares = sums(&map(&runs, |x| x * x)).map(|sum| (sum / 32.0).sqrt());
                let mut weights = map(&runs, f32::abs);
                for weights in &mut weights {
                    weights.iter_mut().zip(&squares).for_each(|(w, square)| *w += square);
                }
                (weights, search)
            }
        };
        let (own, own_minima, found) = affine(&runs, &weights, search);
        let totals = importance.map(|_| sums(&weights));
        let (mut scales, mut minima) = ([0.0; LANES], [0.0; LANES]);
        for (at, block) in blocks.iter_mut().enumerate() {
            let range = 8 * at..8 * at + 8;
            let totals = totals.as_ref().map(|totals| &totals[range.clone()]);
            put_scales_and_minima(&own[range.clone()], &own_minima[range.clone()], totals, block);
            scales[range.clone()].copy_from_slice(&scales_of(block));
            minima[range].copy_from_slice(&offsets_of(block).map(|offset| -offset));
        }
        let all: [_; 2] = block_codes(&again(&runs, &found, &scales, &minima, (0, search.top)));
        blocks.iter_mut().zip(&all).for_each(|(block, codes)| put(codes, block));
    }
}

/// The first sixteen bytes of Q4_K and Q5_K: eight scales and minima under two units, by the weights of runs where inputs are known.
#[inline(always)]
fn put_scales_and_minima(own: &[f32], own_minima: &[f32], totals: Option<&[f32]>, bytes: &mut [u8]) {
    let shared = |own: &[f32]| {
        let mut eight = [0.0; 8];
        eight.copy_from_slice(own);
        match totals.and_then(<[f32]>::first_chunk) {
            Some(totals) => positive(&eight, 63, totals),
            None => {
                let (unit, numbers) = shared(&eight, 63);
                (unit, numbers.map(|number| (number as u8).min(63)))
            }
        }
    };
    let ((d, scales), (dmin, minima)) = (shared(own), shared(own_minima));
    bytes[..2].copy_from_slice(&half(d));
    bytes[2..4].copy_from_slice(&half(dmin));
    to_scales_and_minima(&scales, &minima, &mut bytes[4..16]);
}

impl Block<256, 144, 8> for Q4K {
    const LEVELS: Levels = Levels::Integers(0, 15);
    const OFFSETS: bool = true;

    #[inline(always)]
    fn unpack(block: &[u8; 144]) -> [u8; 256] {
        let mut codes = [0; 256];
        four_bits(&block[16..], &mut codes);
        codes
    }

    #[inline(always)]
    fn pack(codes: &[u8; 256], block: &mut [u8; 144]) {
        to_four_bits(codes, &mut block[16..]);
    }

    #[inline(always)]
    fn scales(block: &[u8; 144]) -> [f32; 8] {
        scales_of(block)
    }

    #[inline(always)]
    fn offsets(block: &[u8; 144]) -> [f32; 8] {
        offsets_of(block)
    }

    fn choices(blocks: &[[u8; 144]]) -> (Choices, Choices) {
        scales_and_minima_choices(blocks)
    }

    #[inline(always)]
    fn choose(block: &mut [u8; 144], scales: &[f32; 8], offsets: &[f32; 8]) {
        choose_scales_and_minima(block, scales, offsets);
    }

    #[inline(always)]
    fn encode(x: &[[f32; 256]], importance: Option<Importance<'_, 256>>, blocks: &mut [[u8; 144]]) {
        let search = Search { top: 15, first: -1.0, step: 0.1, steps: 20, absolute: false };
        encode_affine(x, importance, search, blocks, Self::pack);
    }
}

impl Block<256, 176, 8> for Q5K {
    const LEVELS: Levels = Levels::Integers(0, 31);
    const OFFSETS: bool = true;

    #[inline(always)]
    fn unpack(block: &[u8; 176]) -> [u8; 256] {
        let mut codes = [0; 256];
        four_bits(&block[48..], &mut codes);
        add_bits(&block[16..48], 4, &mut codes);
        codes
    }

    #[inline(always)]
    fn pack(codes: &[u8; 256], block: &mut [u8; 176]) {
        to_four_bits(codes, &mut block[48..]);
        to_bits(codes, 4, &mut block[16..48]);
    }

    #[inline(always)]
    fn scales(block: &[u8; 176]) -> [f32; 8] {
        scales_of(block)
    }

    #[inline(always)]
    fn offsets(block: &[u8; 176]) -> [f32; 8] {
        offsets_of(block)
    }

    fn choices(blocks: &[[u8; 176]]) -> (Choices, Choices) {
        scales_and_minima_choices(blocks)
    }

    #[inline(always)]
    fn choose(block: &mut [u8; 176], scales: &[f32; 8], offsets: &[f32; 8]) {
        choose_scales_and_minima(block, scales, offsets);
    }

    #[inline(always)]
    fn encode(x: &[[f32; 256]], importance: Option<Importance<'_, 256>>, blocks: &mut [[u8; 176]]) {
        let search = Search { top: 31, first: -0.5, step: 0.1, steps: 15, absolute: false };
        encode_affine(x, importance, search, blocks, Self::pack);
    }
}
