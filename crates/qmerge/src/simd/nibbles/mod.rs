//! Blocks of 4-bit codes from a table of 16 levels: bitsandbytes' NF4 and FP4.
//!
//! A weight is a flat run of elements cut into blocks of equal length (the last may be short), each with an `absmax`.
//! Two codes share a byte, the first in the high nibble. Decoding is `level[code] · absmax`. Encoding scales by
//! `1/absmax` and counts the thresholds below the value; source: bitsandbytes 0.50,
//! `backends/default/ops.py` (`quantize_4bit`).

#[cfg(target_arch = "x86_64")]
pub(super) mod x86;

use super::floats::round_bf16;
use super::versions;
#[cfg(target_arch = "x86_64")]
use super::{Level, level};
use crate::dtype::Dtype;

/// Smallest divisor of a block: f32(1e-38), a subnormal.
const TINY: f32 = f32::from_bits(0x006c_e3ee);

/// A table of 16 levels and the rule that picks one.
#[derive(Debug)]
pub(crate) struct Codebook {
    /// Level of each code.
    pub(crate) levels: [f32; 16],
    /// Ascending; a scaled value takes the position equal to the number of thresholds strictly below it.
    pub(crate) thresholds: [f32; 15],
    /// Code at each position.
    pub(crate) codes: [u8; 16],
    /// The fast path, where the codebook allows it; only AVX-512 has one.
    #[cfg_attr(not(target_arch = "x86_64"), allow(dead_code))]
    buckets: Option<Buckets>,
}

/// For each interval [k/16, (k+1)/16) of [−1, 1]: the threshold inside (or infinity), and the number of thresholds below.
///
/// One comparison then decides instead of fifteen. The interval of a value is found by rounding arithmetic; a value that rounds over an
/// edge still gets its right code, because no threshold lies near an edge (asserted in the tests).
#[derive(Debug)]
struct Buckets {
    threshold: [f32; 32],
    below: [i32; 32],
}

impl Codebook {
    /// Builds the thresholds as the reference does at run time: halves of rounded sums of neighbours. `bucketed` says that positions are
    /// codes and that no interval holds two thresholds.
    pub(crate) const fn new(levels: [u32; 16], codes: [u8; 16], bucketed: bool) -> Self {
        let mut values = [0.0; 16];
        let mut thresholds = [0.0; 15];
        let mut i = 0;
        while i < 16 {
            values[i] = f32::from_bits(levels[i]);
            i += 1;
        }
        i = 0;
        while i < 15 {
            thresholds[i] = (values[codes[i] as usize] + values[codes[i + 1] as usize]) / 2.0;
            i += 1;
        }
        let buckets = if bucketed { Some(Buckets::new(&thresholds)) } else { None };
        Self { levels: values, thresholds, codes, buckets }
    }

    /// The code of a value scaled to [−1, 1]; NaN takes the last position.
    #[inline(always)]
    pub(crate) fn code(&self, scaled: f32) -> u8 {
        self.codes[position(&self.thresholds, scaled) as usize & 15]
    }
}

impl Buckets {
    const fn new(thresholds: &[f32; 15]) -> Self {
        let mut buckets = Self { threshold: [f32::INFINITY; 32], below: [0; 32] };
        let mut bucket = 0;
        while bucket < 32 {
            let (low, high) = (bucket as f32 / 16.0 - 1.0, (bucket + 1) as f32 / 16.0 - 1.0);
            let mut i = 0;
            while i < 15 {
                if thresholds[i] < low {
                    buckets.below[bucket] += 1;
                } else if thresholds[i] < high {
                    buckets.threshold[bucket] = thresholds[i];
                }
                i += 1;
            }
            bucket += 1;
        }
        buckets
    }
}

#[inline(always)]
fn position(thresholds: &[f32; 15], scaled: f32) -> u32 {
    let below: u32 = thresholds.iter().map(|&t| u32::from(scaled > t)).sum();
    if scaled.is_nan() { 15 } else { below }
}

/// Decodes whole bytes: `out.len()` elements from the start of a block, rounded to `dtype`.
///
/// `absmax` holds one scale per block of `block` elements; `codes` holds `out.len().div_ceil(2)` bytes.
pub(crate) fn decode(book: &Codebook, codes: &[u8], absmax: &[f32], block: usize, dtype: Dtype, out: &mut [f32]) {
    let bf16 = dtype == Dtype::BF16;
    let whole = out.len() / block * block;
    let (head, tail) = out.split_at_mut(whole);
    decode_blocks(&book.levels, &codes[..whole / 2], absmax, block, bf16, head);
    if let Some(&scale) = absmax.get(whole / block) {
        decode_scalar(&book.levels, &codes[whole / 2..], scale, bf16, tail);
    }
    if dtype == Dtype::F16 {
        super::floats::round_to(Dtype::F16, out);
    }
}

fn decode_blocks(levels: &[f32; 16], codes: &[u8], absmax: &[f32], block: usize, bf16: bool, out: &mut [f32]) {
    #[cfg(target_arch = "x86_64")]
    match level() {
        // SAFETY: the level says the processor has these features.
        Level::Avx512 => return unsafe { x86::decode_avx512(levels, codes, absmax, block, bf16, out) },
        // SAFETY: as above.
        Level::Avx2 => return unsafe { x86::decode_avx2(levels, codes, absmax, block, bf16, out) },
        _ => {}
    }
    for ((out, codes), &scale) in out.chunks_exact_mut(block).zip(codes.chunks_exact(block / 2)).zip(absmax) {
        decode_scalar(levels, codes, scale, bf16, out);
    }
}

fn decode_scalar(levels: &[f32; 16], codes: &[u8], scale: f32, bf16: bool, out: &mut [f32]) {
    for (pair, &byte) in out.chunks_mut(2).zip(codes) {
        for (out, code) in pair.iter_mut().zip([byte >> 4, byte & 15]) {
            let product = levels[code as usize] * scale;
            *out = if bf16 { round_bf16(product) } else { product };
        }
    }
}

/// absmax of one block: max |x|, a NaN wins, not clamped.
#[inline(always)]
fn absmax_body(values: &[f32]) -> f32 {
    f32::from_bits(values.iter().map(|x| x.to_bits() & 0x7fff_ffff).fold(0, u32::max))
}

#[inline(always)]
fn blocks_absmax_body(values: &[f32], block: usize, out: &mut [f32]) {
    for (out, values) in out.iter_mut().zip(values.chunks_exact(block)) {
        *out = absmax_body(values);
    }
}

versions! {
    fn blocks_absmax(values: &[f32], block: usize, out: &mut [f32]) = blocks_absmax_body;
}

fn at_least_tiny(absmax: f32) -> f32 {
    // `max` would drop a NaN.
    if absmax < TINY { TINY } else { absmax }
}

/// The stored absmax of each block. A short last block stores its clamped value, a full block the bare one.
pub(crate) fn absmax(values: &[f32], block: usize, out: &mut Vec<f32>) {
    let full = values.len() / block * block;
    let first = out.len();
    out.resize(first + full / block, 0.0);
    blocks_absmax(&values[..full], block, &mut out[first..]);
    if full < values.len() {
        out.push(at_least_tiny(absmax_body(&values[full..])));
    }
}

/// Encodes from the start of a block with fresh scales, and appends the stored absmax of each block. A short last block is divided instead
/// of multiplied.
///
/// Writes `values.len().div_ceil(2)` bytes; an odd count is padded with the code of 0.
pub(crate) fn encode(book: &Codebook, values: &[f32], block: usize, codes: &mut [u8], absmax: &mut Vec<f32>) {
    let full = values.len() / block * block;
    let (head, tail) = codes.split_at_mut(full / 2);
    let first = absmax.len();
    absmax.resize(first + full / block, 0.0);
    encode_blocks(book, &values[..full], block, head, &mut absmax[first..]);
    if full < values.len() {
        let values = &values[full..];
        let scale = at_least_tiny(absmax_body(values));
        absmax.push(scale);
        pack(book, values, tail, |x| x / scale);
    }
}

/// Codes of values under given scales: the level nearest to `x / scale`.
pub(crate) fn encode_under(book: &Codebook, values: &[f32], absmax: &[f32], block: usize, codes: &mut [u8]) {
    for ((values, codes), &scale) in values.chunks(block).zip(codes.chunks_mut(block / 2)).zip(absmax) {
        // A restored absmax can be zero or negative: then every level is (close to) zero and the code is free.
        let divisor = if scale > 0.0 { scale } else { f32::INFINITY };
        pack(book, values, codes, |x| x / divisor);
    }
}

fn pack(book: &Codebook, values: &[f32], codes: &mut [u8], scaled: impl Fn(f32) -> f32) {
    for (byte, pair) in codes.iter_mut().zip(values.chunks(2)) {
        let high = book.code(scaled(pair[0]).clamp(-1.0, 1.0));
        let low = pair.get(1).map_or_else(|| book.code(0.0), |&x| book.code(scaled(x).clamp(-1.0, 1.0)));
        *byte = high << 4 | low;
    }
}

fn encode_blocks(book: &Codebook, values: &[f32], block: usize, codes: &mut [u8], absmax: &mut [f32]) {
    #[cfg(target_arch = "x86_64")]
    if let Some(buckets) = &book.buckets
        && level() == Level::Avx512
    {
        // SAFETY: the level says the processor has these features.
        return unsafe { x86::encode_avx512(buckets, values, block, codes, absmax) };
    }
    encode_counting(book, values, block, codes, absmax);
}

versions! {
    fn encode_counting(book: &Codebook, values: &[f32], block: usize, codes: &mut [u8], absmax: &mut [f32]) = encode_body;
}

#[inline(always)]
fn encode_body(book: &Codebook, values: &[f32], block: usize, codes: &mut [u8], absmax: &mut [f32]) {
    for ((values, codes), absmax) in values.chunks_exact(block).zip(codes.chunks_exact_mut(block / 2)).zip(absmax) {
        *absmax = absmax_body(values);
        let inverse = 1.0 / at_least_tiny(*absmax);
        for (codes, values) in codes.chunks_exact_mut(8).zip(values.chunks_exact(16)) {
            let mut positions = [0_u32; 16];
            for (position, &x) in positions.iter_mut().zip(values) {
                *position = self::position(&book.thresholds, (x * inverse).clamp(-1.0, 1.0));
            }
            for (byte, pair) in codes.iter_mut().zip(positions.chunks_exact(2)) {
                *byte = book.codes[pair[0] as usize & 15] << 4 | book.codes[pair[1] as usize & 15];
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::formats::bnb4::{FP4_BOOK, NF4_BOOK};
    use crate::simd::forced::at_every_level;

    fn bits(values: &[f32]) -> Vec<u32> {
        values.iter().map(|x| x.to_bits()).collect()
    }

    #[test]
    fn no_threshold_of_nf4_is_near_an_edge_of_a_bucket() {
        for t in NF4_BOOK.thresholds {
            let place = t * 16.0;
            assert!((place - place.round()).abs() > 0.015, "{t}");
        }
    }

    /// Every threshold, its neighbours, every edge of a bucket and its neighbours.
    #[test]
    fn codes_are_equal_at_every_level_where_it_is_tight() {
        let mut values = vec![0.0, -0.0, 1.0, -1.0, f32::MIN_POSITIVE / 4.0, -f32::MIN_POSITIVE / 4.0];
        for book in [&NF4_BOOK, &FP4_BOOK] {
            for t in book.thresholds.into_iter().chain((-16..=16).map(|k| k as f32 / 16.0)) {
                values.extend([t, t.next_up(), t.next_down()]);
            }
        }
        values.retain(|x| x.abs() <= 1.0);
        let values: Vec<f32> = values
            .chunks(63)
            .flat_map(|chunk| chunk.iter().copied().chain(std::iter::repeat_n(0.3, 63 - chunk.len())).chain([1.0]))
            .collect();
        for book in [&NF4_BOOK, &FP4_BOOK] {
            let results = at_every_level(|| {
                let mut codes = vec![0; values.len() / 2];
                // Every block must hold a 1, so that its values are taken as they are; the NaN would swallow its block.
                let mut absmax = Vec::new();
                encode(book, &values, 64, &mut codes, &mut absmax);
                codes
            });
            for (i, &x) in values.iter().enumerate() {
                let code = results[0].1[i / 2] >> (4 * (1 - i % 2)) & 15;
                assert_eq!(code, book.code(x), "{x:e}");
            }
            for (level, codes) in &results {
                assert_eq!(codes, &results[0].1, "{level:?}");
            }
        }
    }

    #[test]
    fn nan_and_infinity_are_coded_alike_at_every_level() {
        let mut values = vec![0.5; 128];
        (values[3], values[70]) = (f32::NAN, f32::NEG_INFINITY);
        for book in [&NF4_BOOK, &FP4_BOOK] {
            for (level, (codes, absmax)) in at_every_level(|| {
                let (mut codes, mut absmax) = (vec![0; 64], Vec::new());
                encode(book, &values, 64, &mut codes, &mut absmax);
                (codes, absmax)
            }) {
                let last = book.codes[15];
                assert!(absmax[0].is_nan() && absmax[1] == f32::INFINITY, "{level:?}");
                assert!(codes[..32].iter().all(|&byte| byte == last << 4 | last), "{level:?}");
                assert_eq!(codes[35] >> 4, last, "infinity times zero is NaN: {level:?}");
            }
        }
    }

    #[test]
    fn decoding_is_equal_at_every_level() {
        let codes: Vec<u8> = (0..=255).collect();
        let absmax = [0.013, f32::INFINITY, 1e-41, -3.0, f32::NAN, 0.0, 7.5, 1.0];
        for (book, dtype) in [(&NF4_BOOK, Dtype::BF16), (&FP4_BOOK, Dtype::F32), (&NF4_BOOK, Dtype::F16)] {
            for n in [512, 511, 500, 65, 1] {
                let results = at_every_level(|| {
                    let mut out = vec![0.0; n];
                    decode(book, &codes[..n.div_ceil(2)], &absmax, 64, dtype, &mut out);
                    out
                });
                for (level, out) in &results {
                    let same = out
                        .iter()
                        .zip(&results[0].1)
                        .all(|(a, b)| a.to_bits() == b.to_bits() || a.is_nan() && b.is_nan());
                    assert!(same, "{level:?} {:?} {:?}", bits(out), bits(&results[0].1));
                }
            }
        }
    }
}
