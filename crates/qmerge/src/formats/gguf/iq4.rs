//! IQ4_NL and IQ4_XS: 16 levels that lie closer around 0, under an f16 for 32 values, or a scale of 6 bits under an f16 for 256.

// Blocks are arrays of a fixed length; what indexes them counts up to it, or is a code that was masked.
#![allow(clippy::indexing_slicing)]

use super::block::{Block, Importance, f16, half, inverse, multiples, nibbles, number, to_nibbles};
use super::fit::{Runs, extreme, extremes, map, nearest, runs, square_sum, weighted};
use super::k::by_importance_of_pair;
use crate::formats::{Choices, Levels};
use crate::simd::lanes::{LANES, Lanes, by_lanes};

pub(super) struct Iq4Nl;
pub(super) struct Iq4Xs;

const LEVELS: [f32; 16] =
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

/// Between the level of a code and the one before it.
const fn middle(code: usize) -> f32 {
    0.5 * (LEVELS[code - 1] + LEVELS[code])
}

/// `of(first)`, `of(first + step)` … of codes; what is beyond the last is never looked up.
macro_rules! every {
    ($of:expr, $first:literal, $step:literal) => {{
        let mut table = [0.0; 8];
        let mut k = 0;
        while $first + $step * k < 16 {
            table[k] = $of($first + $step * k);
            k += 1;
        }
        table
    }};
}

const fn nth(code: usize) -> f32 {
    LEVELS[code]
}

static FOURTHS: [f32; 8] = every!(middle, 4, 8);
static EIGHTHS: [f32; 8] = every!(middle, 2, 4);
static SIXTEENTHS: [f32; 8] = every!(middle, 1, 2);
static EVEN: [f32; 8] = every!(nth, 0, 2);
static ODD: [f32; 8] = every!(nth, 1, 2);

/// The levels nearest to numbers, of two the upper: what [`code`] stands for, by halving.
#[inline(always)]
fn level<V: Lanes>(x: V) -> V {
    let (nothing, one) = (V::all(0.0), V::all(1.0));
    let mut code = V::pick(x.is_less(V::all(middle(8))), nothing, one);
    for table in [&FOURTHS, &EIGHTHS] {
        let below = x.is_less(code.entry(table));
        code = code + code + V::pick(below, nothing, one);
    }
    V::pick(x.is_less(code.entry(&SIXTEENTHS)), code.entry(&EVEN), code.entry(&ODD))
}

#[inline(always)]
fn is_below(x: f32, middle: f32) -> bool {
    x < middle
}

/// Σ w·level·x and Σ w·level² of each run, under the inverse of its scale.
#[inline(always)]
fn sums<V: Lanes, const N: usize>(x: &Runs<N>, weights: &Runs<N>, inverse: V) -> (V, V) {
    let (mut products, mut squares) = (V::all(0.0), V::all(0.0));
    for (x, w) in x.iter().zip(weights) {
        let (x, w) = (V::of(*x), V::of(*w));
        let level = level(inverse * x);
        products = products + w * level * x;
        squares = squares + w * level * level;
    }
    (products, squares)
}

by_lanes! {
    /// The scales under which the weighted error of runs is least.
    fn fit<const N: usize>(x: &Runs<N>, weights: &Runs<N>) -> [f32; LANES] = fit_body;
}

#[inline(always)]
fn fit_body<V: Lanes, const N: usize>(x: &Runs<N>, weights: &Runs<N>) -> [f32; LANES] {
    let nothing = V::all(0.0);
    let (most, extreme) = extremes::<V, N>(x);
    let (products, squares) = sums(x, weights, V::all(1.0) / ((nothing - extreme) / V::all(LEVELS[0])));
    let mut scale = V::pick(nothing.is_less(squares), products / squares, nothing);
    let mut best = scale * products;
    for step in -7..=7 {
        let (products, squares) = sums(x, weights, V::all(step as f32 + LEVELS[0]) / extreme);
        let better = V::both(nothing.is_less(squares), (best * squares).is_less(products * products));
        let found = products / squares;
        scale = V::pick(better, found, scale);
        best = V::pick(better, found * products, best);
    }
    V::pick(most.is_less(V::all(1e-15)), nothing, scale).array()
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
        let all = runs::<32>(x.as_flattened());
        let weights = match importance {
            None => map(&all, |x| x * x),
            Some(importance) => {
                let mut squares = [0.0; LANES];
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
        for (number, (x, blocks)) in x.chunks(2).zip(blocks.chunks_mut(2)).enumerate() {
            let all = runs::<32>(x.as_flattened());
            let weights = match importance {
                None => map(&all, |x| x * x),
                Some(importance) => by_importance_of_pair(&all, x, importance, 2 * number, |sum| sum * (2.0 / 256.0)),
            };
            let own = fit(&all, &weights);
            for ((x, block), own) in x.iter().zip(blocks).zip(own.as_chunks().0) {
                encode_xs(x, own, block);
            }
        }
    }
}

/// A block whose scales have been found.
#[inline(always)]
fn encode_xs(x: &[f32; 256], own: &[f32; 8], block: &mut [u8; 136]) {
    let d = -extreme(own) / 32.0;
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
    Iq4Xs::pack(&codes, block);
}
