//! Q2_K to Q6_K: 256 elements in runs of 16 or 32, whose scales (and minima) are whole multiples of one f16 for all of the block.

// Blocks are arrays of a fixed length; what indexes them counts up to it.
#![allow(clippy::indexing_slicing)]

use super::block::{Block, Importance, each, f16, half, multiples, nibbles, number, to_nibbles};
use super::fit::{
    self, Runs, Search, affine, again, by_moves, codes, extreme, map, nearest, positive, runs, square_sum, sums,
    symmetric, weighted,
};
use super::packing::{
    add_bits, four_bits, q3_scales, scales_and_minima, to_bits, to_four_bits, to_q3_scales, to_scales_and_minima,
    to_two_bits, two_bits,
};
use crate::formats::{Choices, Levels};
use crate::simd::lanes::LANES;

pub(super) struct Q2K;
pub(super) struct Q3K;
pub(super) struct Q4K;
pub(super) struct Q5K;
pub(super) struct Q6K;

/// A scale and whole multiples of it that come near to all of some scales: the largest gets `top`.
#[inline(always)]
fn shared<const L: usize>(scales: &[f32; L], top: i32) -> (f32, [i32; L]) {
    let most = scales.iter().fold(0.0, |most: f32, &scale| if scale > most { scale } else { most });
    if most > 0.0 {
        let inverse = top as f32 / most;
        (most / top as f32, scales.map(|scale| nearest(inverse * scale)))
    } else {
        (0.0, [0; L])
    }
}

/// The codes of runs, by the blocks that they are.
#[inline(always)]
fn block_codes<const N: usize, const BLOCKS: usize>(found: &Runs<N>) -> [[u8; 256]; BLOCKS] {
    let mut all = [[0; 256]; BLOCKS];
    all.as_flattened_mut().copy_from_slice(codes(found).as_flattened());
    all
}

/// The weights of values where inputs are known.
#[inline(always)]
fn by_importance(x: &Runs<16>, weights: &[f32; 256], square: f32) -> Runs<16> {
    weighted(x, &runs(weights), &[square; LANES])
}

/// The same of one or two blocks of runs of 32, the first of which has that number among those of `importance`; `square` makes its block's of Σ x².
#[inline(always)]
pub(super) fn by_importance_of_pair(
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

/// What is searched where inputs are known.
#[inline(always)]
fn known(top: i32) -> Search {
    Search { top, first: -0.9, step: 0.05, steps: 36, absolute: false }
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
