//! Codes as numbers and numbers as codes: 8-bit and 4-bit floats, and signed bytes.
//!
//! Decoding gives levels, before any scale; `scale` makes values of them. Encoding takes levels that need not be whole and stores the nearest,
//! ties to even, within the range that a code has: never a NaN.

use super::versions;

/// Largest finite 8-bit float (four bits of exponent, three of mantissa, no infinities).
pub(crate) const E4M3_MAX: f32 = 448.0;

/// Adding and subtracting 1.5·2^23 rounds to the nearest integer, ties to even.
const MAGIC: f32 = 12_582_912.0;

/// The nearest integer, ties to even; for magnitudes below 2^22.
#[inline(always)]
pub(crate) fn round_even(x: f32) -> f32 {
    (x + MAGIC) - MAGIC
}

/// The value of an 8-bit float.
#[inline(always)]
pub(crate) fn e4m3(code: u8) -> f32 {
    let (sign, magnitude) = (u32::from(code & 0x80) << 24, u32::from(code & 0x7f));
    // The fields of an f32 lie in the same order; exponents differ by 120, and subnormals come out right too.
    let value = f32::from_bits(magnitude << 20) * f32::from_bits((127 + 120) << 23);
    let value = if magnitude == 0x7f { f32::NAN } else { value };
    f32::from_bits(value.to_bits() | sign)
}

/// Numbers whose last bit is 1/512 and 1/2, the steps of codes without an exponent.
const SMALL_E4M3: f32 = 16384.0;
const SMALL_E2M1: f32 = 4_194_304.0;

/// The nearest 8-bit float, ties to even. What is too large becomes ±448.
#[inline(always)]
pub(crate) fn to_e4m3(x: f32) -> u8 {
    let sign = (x.to_bits() >> 24) as u8 & 0x80;
    let magnitude = f32::from_bits(x.to_bits() & 0x7fff_ffff);
    // A NaN is not less.
    let magnitude = if magnitude < E4M3_MAX { magnitude } else { E4M3_MAX };
    // In numbers of this size the last bit is the step of the small codes, so that the sum is rounded to it.
    let small = (magnitude + SMALL_E4M3).to_bits().wrapping_sub(SMALL_E4M3.to_bits());
    let bits = magnitude.to_bits();
    let rounded = bits.wrapping_add(0x7_ffff + ((bits >> 20) & 1)) >> 20;
    let code = if magnitude < 1.0 / 64.0 { small } else { rounded.wrapping_sub(120 << 3) };
    sign | code as u8
}

/// The value of a 4-bit float (two bits of exponent, one of mantissa).
#[inline(always)]
pub(crate) fn e2m1(code: u8) -> f32 {
    let code = u32::from(code);
    let (exponent, mantissa) = ((code >> 1) & 3, code & 1);
    let twice = if exponent == 0 { mantissa } else { ((2 + mantissa) << exponent) >> 1 };
    let value = twice as i32 as f32 * 0.5;
    f32::from_bits(value.to_bits() | ((code & 8) << 28))
}

/// The nearest 4-bit float, ties to even. What is too large becomes ±6.
#[inline(always)]
pub(crate) fn to_e2m1(x: f32) -> u8 {
    let sign = (x.to_bits() >> 28) as u8 & 8;
    let magnitude = f32::from_bits(x.to_bits() & 0x7fff_ffff);
    let magnitude = if magnitude < 6.0 { magnitude } else { 6.0 };
    let small = (magnitude + SMALL_E2M1).to_bits().wrapping_sub(SMALL_E2M1.to_bits());
    let bits = magnitude.to_bits();
    let rounded = bits.wrapping_add(0x1f_ffff + ((bits >> 22) & 1)) >> 22;
    sign | if magnitude < 1.0 { small } else { rounded.wrapping_sub(126 << 1) } as u8
}

/// 2^(code − 127), a scale that is an exponent alone; 255 is NaN.
pub(crate) fn e8m0(code: u8) -> f32 {
    match code {
        0 => f32::from_bits(1 << 22),
        255 => f32::NAN,
        _ => f32::from_bits(u32::from(code) << 23),
    }
}

/// The code of a power of two.
pub(crate) fn to_e8m0(x: f32) -> u8 {
    (x.to_bits() >> 23) as u8
}

versions! {
    /// Levels of 8-bit floats.
    pub(crate) fn e4m3_levels(codes: &[u8], out: &mut [f32]) = e4m3_body;
}

#[inline(always)]
fn e4m3_body(codes: &[u8], out: &mut [f32]) {
    for (out, &code) in out.iter_mut().zip(codes) {
        *out = e4m3(code);
    }
}

versions! {
    /// Levels of signed bytes.
    pub(crate) fn byte_levels(codes: &[u8], out: &mut [f32]) = byte_body;
}

#[inline(always)]
fn byte_body(codes: &[u8], out: &mut [f32]) {
    for (out, &code) in out.iter_mut().zip(codes) {
        *out = f32::from(code as i8);
    }
}

/// Largest scale by which [`e4m3_scaled`] multiplies: beyond it a factor of 2^120 may overflow.
const E4M3_SCALE: f32 = 64.0;

/// Values of 8-bit floats under a scale for each run of a row, rounded to bfloat16 or not; false, and nothing done, where a code or a scale is of a kind that this does not
/// decode.
pub(crate) fn e4m3_values(codes: &[u8], run: usize, scales: &[f32], bf16: bool, out: &mut [f32]) -> bool {
    if any_nan(codes) || !scales.iter().all(|scale| scale.abs() <= E4M3_SCALE) {
        return false;
    }
    if bf16 {
        e4m3_bf16(codes, run, scales, out)
    } else {
        e4m3_f32(codes, run, scales, out)
    }
    true
}

versions! { fn any_nan(codes: &[u8]) -> bool = any_nan_body; }
versions! { fn e4m3_bf16(codes: &[u8], run: usize, scales: &[f32], out: &mut [f32]) = e4m3_scaled::<true>; }
versions! { fn e4m3_f32(codes: &[u8], run: usize, scales: &[f32], out: &mut [f32]) = e4m3_scaled::<false>; }

#[inline(always)]
fn any_nan_body(codes: &[u8]) -> bool {
    let largest = |codes: &[u8]| codes.iter().fold(0, |largest: u8, code| largest.max(code & 0x7f));
    codes.chunks(256).any(|codes| largest(codes) == 0x7f)
}

#[inline(always)]
fn e4m3_scaled<const BF16: bool>(codes: &[u8], run: usize, scales: &[f32], out: &mut [f32]) {
    for ((out, codes), &scale) in out.chunks_mut(run).zip(codes.chunks(run)).zip(scales) {
        // The fields of an f32 lie in the same order; its exponent is too small by 120.
        let scale = scale * f32::from_bits((127 + 120) << 23);
        for (out, &code) in out.iter_mut().zip(codes) {
            let bits = (i32::from(code as i8) << 20) as u32 & 0x87f0_0000;
            *out = rounded::<BF16>(f32::from_bits(bits) * scale);
        }
    }
}

/// Rounds what is no NaN to bfloat16, or not at all.
#[inline(always)]
fn rounded<const BF16: bool>(x: f32) -> f32 {
    let bits = x.to_bits();
    if BF16 { f32::from_bits(bits.wrapping_add(0x7fff + ((bits >> 16) & 1)) & 0xffff_0000) } else { x }
}

/// Values of bytes under a scale for each run of a row, rounded to bfloat16 or not; false, and nothing done, where a scale is not finite. A byte that stands for nothing
/// is `nothing`: 0 where bytes are signed, 128 where they count from the least level.
pub(crate) fn byte_values(codes: &[u8], nothing: u8, run: usize, scales: &[f32], bf16: bool, out: &mut [f32]) -> bool {
    if !scales.iter().all(|scale| scale.is_finite()) {
        return false;
    }
    if bf16 {
        bytes_bf16(codes, nothing, run, scales, out)
    } else {
        bytes_f32(codes, nothing, run, scales, out)
    }
    true
}

versions! { fn bytes_bf16(codes: &[u8], nothing: u8, run: usize, scales: &[f32], out: &mut [f32]) = bytes_scaled::<true>; }
versions! { fn bytes_f32(codes: &[u8], nothing: u8, run: usize, scales: &[f32], out: &mut [f32]) = bytes_scaled::<false>; }

#[inline(always)]
fn bytes_scaled<const BF16: bool>(codes: &[u8], nothing: u8, run: usize, scales: &[f32], out: &mut [f32]) {
    for ((out, codes), &scale) in out.chunks_mut(run).zip(codes.chunks(run)).zip(scales) {
        for (out, &code) in out.iter_mut().zip(codes) {
            *out = rounded::<BF16>(f32::from((code ^ nothing) as i8) * scale);
        }
    }
}

versions! {
    /// Levels of 4-bit floats, two in a byte, the first in the low half.
    pub(crate) fn e2m1_levels(codes: &[u8], out: &mut [f32]) = e2m1_body;
}

#[inline(always)]
fn e2m1_body(codes: &[u8], out: &mut [f32]) {
    for (pair, &code) in out.as_chunks_mut::<2>().0.iter_mut().zip(codes) {
        *pair = [e2m1(code & 15), e2m1(code >> 4)];
    }
}

versions! {
    /// Stores levels as 8-bit floats.
    pub(crate) fn pack_e4m3(levels: &[f32], out: &mut [u8]) = pack_e4m3_body;
}

#[inline(always)]
fn pack_e4m3_body(levels: &[f32], out: &mut [u8]) {
    for (out, &x) in out.iter_mut().zip(levels) {
        *out = to_e4m3(x);
    }
}

versions! {
    /// Stores levels as signed bytes.
    pub(crate) fn pack_bytes(levels: &[f32], out: &mut [u8]) = pack_bytes_body;
}

#[inline(always)]
fn pack_bytes_body(levels: &[f32], out: &mut [u8]) {
    for (out, &x) in out.iter_mut().zip(levels) {
        *out = round_even(x.clamp(-128.0, 127.0)) as i8 as u8;
    }
}

versions! {
    /// Stores levels as 4-bit floats, the first of two in the low half of a byte.
    pub(crate) fn pack_e2m1(levels: &[f32], out: &mut [u8]) = pack_e2m1_body;
}

#[inline(always)]
fn pack_e2m1_body(levels: &[f32], out: &mut [u8]) {
    for (out, pair) in out.iter_mut().zip(levels.as_chunks::<2>().0) {
        *out = to_e2m1(pair[0]) | to_e2m1(pair[1]) << 4;
    }
}

versions! {
    /// `(level − zero) · scale` for runs of a row; without zeros where there are none.
    pub(crate) fn scale(levels: &mut [f32], run: usize, scales: &[f32], zeros: &[f32]) = scale_body;
}

#[inline(always)]
fn scale_body(levels: &mut [f32], run: usize, scales: &[f32], zeros: &[f32]) {
    if zeros.is_empty() {
        for (levels, &scale) in levels.chunks_mut(run).zip(scales) {
            levels.iter_mut().for_each(|x| *x *= scale);
        }
    } else {
        for ((levels, &scale), &zero) in levels.chunks_mut(run).zip(scales).zip(zeros) {
            levels.iter_mut().for_each(|x| *x = (*x - zero) * scale);
        }
    }
}

versions! {
    /// `value / scale + zero` for runs of a row, with the quotient rounded before a whole zero is added. Under no scale everything is the zero.
    pub(crate) fn unscale(values: &mut [f32], run: usize, scales: &[f32], zeros: &[f32]) = unscale_body;
}

#[inline(always)]
fn unscale_body(values: &mut [f32], run: usize, scales: &[f32], zeros: &[f32]) {
    for (k, (values, &scale)) in values.chunks_mut(run).zip(scales).enumerate() {
        let divisor = if scale == 0.0 { f32::INFINITY } else { scale };
        values.iter_mut().for_each(|x| *x /= divisor);
        if let Some(&zero) = zeros.get(k) {
            let whole = zero.fract() == 0.0;
            // Beyond the largest code nothing needs to be rounded.
            let rounded = |x: f32| if whole && x.abs() < 1024.0 { round_even(x) } else { x };
            values.iter_mut().for_each(|x| *x = rounded(*x) + zero);
        }
    }
}

/// Values of a run that are compared side by side.
const LANES: usize = 16;

/// The value that comes before all others, in lanes, so that none waits for the one before it. What a NaN is compared with comes before it.
#[inline(always)]
fn extreme(values: &[f32], start: f32, is_before: impl Fn(f32, f32) -> bool) -> f32 {
    let first = |x: f32, y: f32| if is_before(x, y) { x } else { y };
    let mut lanes = [start; LANES];
    let mut all = values.chunks_exact(LANES);
    for values in &mut all {
        lanes.iter_mut().zip(values).for_each(|(lane, &x)| *lane = first(x, *lane));
    }
    lanes.iter().chain(all.remainder()).fold(start, |found, &x| first(x, found))
}

versions! {
    /// Least and largest value of each run of a row. A NaN is neither.
    pub(crate) fn bounds(values: &[f32], run: usize, out: &mut [[f32; 2]]) = bounds_body;
}

#[inline(always)]
fn bounds_body(values: &[f32], run: usize, out: &mut [[f32; 2]]) {
    for (values, [low, high]) in values.chunks(run).zip(out) {
        // In two loops: of one with both comparisons the compiler makes one of shuffles.
        *low = extreme(values, f32::INFINITY, |x, low| x < low);
        *high = extreme(values, f32::NEG_INFINITY, |x, high| x > high);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::simd::forced::at_every_level;

    #[test]
    fn every_float_code_reads_back_and_ties_go_to_even() {
        for code in (0..=255_u8).filter(|code| code & 0x7f != 0x7f) {
            assert_eq!(to_e4m3(e4m3(code)), code);
        }
        assert!(e4m3(0x7f).is_nan() && e4m3(0xff).is_nan());
        for code in 0..16_u8 {
            assert_eq!(to_e2m1(e2m1(code)), code);
        }
        for (codes, decode, encode) in
            [(126, e4m3 as fn(u8) -> f32, to_e4m3 as fn(f32) -> u8), (7, e2m1 as fn(u8) -> f32, to_e2m1)]
        {
            for code in 0..codes {
                let (low, high) = (decode(code), decode(code + 1));
                let even = if code % 2 == 0 { code } else { code + 1 };
                assert_eq!(encode(low + (high - low) / 2.0), even, "{code}");
                assert_eq!(encode(low + (high - low) * 0.49), code);
                assert_eq!(encode(low + (high - low) * 0.51), code + 1);
            }
        }
        assert_eq!([f32::NAN, f32::INFINITY, -1e9, 464.0].map(|x| to_e4m3(x) & 0x7f), [0x7e; 4]);
        assert_eq!([f32::NAN, f32::INFINITY, -1e9, 7.0].map(|x| to_e2m1(x) & 7), [7; 4]);
        for code in 1..255 {
            assert_eq!((to_e8m0(e8m0(code)), e8m0(code)), (code, 2.0_f32.powi(i32::from(code) - 127)));
        }
        assert_eq!((e8m0(0), to_e8m0(e8m0(0))), (2.0_f32.powi(-127), 0));
    }

    /// Of each run, whatever its length, at every level; a NaN is neither, and what has nothing else has no bounds.
    #[test]
    fn bounds_are_the_least_and_the_largest() {
        let values: Vec<f32> = (0..997)
            .map(|i| if i % 23 == 5 || i > 960 { f32::NAN } else { ((i * 7919) % 1009) as f32 - 500.0 })
            .collect();
        for run in [1, 7, 16, 35, 64, 129, 2000] {
            let want: Vec<[f32; 2]> = (values.chunks(run))
                .map(|run| {
                    let known = || run.iter().copied().filter(|x| !x.is_nan());
                    [known().fold(f32::INFINITY, f32::min), known().fold(f32::NEG_INFINITY, f32::max)]
                })
                .collect();
            for (level, found) in at_every_level(|| {
                let mut found = vec![[0.0; 2]; want.len()];
                bounds(&values, run, &mut found);
                found
            }) {
                assert_eq!(found, want, "{level:?} {run}");
            }
        }
    }

    #[test]
    fn values_are_levels_times_scales() {
        let codes: Vec<u8> = (0..=255_u8).filter(|code| code & 0x7f != 0x7f).cycle().take(904).collect();
        let scales: Vec<f32> =
            (0..29).map(|k| (0.003 + k as f32 * 0.01) * if k % 3 == 0 { -1.0 } else { 1.0 }).collect();
        // Some codes more than values, as where a row ends within a word.
        for (run, count) in [(32, 900), (150, 899), (904, 902)] {
            for bf16 in [false, true] {
                let want = |level: &dyn Fn(u8) -> f32| -> Vec<u32> {
                    let value = |(i, &code): (usize, &u8)| level(code) * scales[i / run];
                    let round = |x: f32| if bf16 { half::bf16::from_f32(x).to_f32() } else { x };
                    codes[..count].iter().enumerate().map(value).map(|x| round(x).to_bits()).collect()
                };
                for (level, out) in at_every_level(|| {
                    let mut out = [vec![0.0; count], vec![0.0; count], vec![0.0; count]];
                    assert!(e4m3_values(&codes, run, &scales, bf16, &mut out[0]));
                    assert!(byte_values(&codes, 0, run, &scales, bf16, &mut out[1]));
                    assert!(byte_values(&codes, 128, run, &scales, bf16, &mut out[2]));
                    out.map(|out| out.iter().map(|x| x.to_bits()).collect::<Vec<_>>())
                }) {
                    let wanted =
                        [want(&e4m3), want(&|code| f32::from(code as i8)), want(&|code| f32::from(code) - 128.0)];
                    assert_eq!(out, wanted, "{level:?} {run}");
                }
            }
        }
        let mut out = [0.0; 2];
        assert!(!e4m3_values(&[1, 0x7f], 2, &[0.5], true, &mut out));
        assert!(
            !e4m3_values(&[1, 2], 2, &[1e3], true, &mut out)
                && !byte_values(&[1, 2], 0, 2, &[f32::NAN], true, &mut out)
        );
    }

    #[test]
    fn kernels_agree_at_every_level() {
        let codes: Vec<u8> = (0..=255).chain(0..77).collect();
        let results = at_every_level(|| {
            let mut out = vec![vec![0.0; codes.len()], vec![0.0; codes.len()], vec![0.0; 2 * codes.len()]];
            e4m3_levels(&codes, &mut out[0]);
            byte_levels(&codes, &mut out[1]);
            e2m1_levels(&codes, &mut out[2]);
            for out in &mut out {
                let runs = out.len().div_ceil(32);
                let scales: Vec<f32> = (0..runs).map(|k| 0.01 + k as f32 * 0.003).collect();
                let zeros: Vec<f32> = (0..runs).map(|k| k as f32).collect();
                scale(out, 32, &scales, &zeros);
                let mut back = out.clone();
                unscale(&mut back, 32, &scales, &zeros);
                out.extend(back);
            }
            let bits =
                |out: &Vec<f32>| out.iter().map(|x| if x.is_nan() { 1 } else { x.to_bits() }).collect::<Vec<_>>();
            out.iter().map(bits).collect::<Vec<_>>()
        });
        assert!(results.iter().all(|(_, out)| *out == results[0].1));
    }
}
