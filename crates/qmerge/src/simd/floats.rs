//! Conversions between f32 and the 16-bit floats, round to nearest even, subnormals kept.

use half::slice::HalfFloatSliceExt;

use super::versions;
use crate::dtype::Dtype;

/// Rounds to bf16 and back, in the bits of an f32.
#[inline(always)]
pub(crate) fn round_bf16(x: f32) -> f32 {
    f32::from_bits(u32::from(to_bf16(x)) << 16)
}

#[inline(always)]
pub(super) fn to_bf16(x: f32) -> u16 {
    let bits = x.to_bits();
    let rounded = bits.wrapping_add(0x7fff + ((bits >> 16) & 1)) >> 16;
    // A NaN must not round up into an infinity or wrap to zero.
    let quiet = (bits >> 16) | 0x40;
    (if x.is_nan() { quiet } else { rounded }) as u16
}

#[inline(always)]
fn bf16_to_f32_body(bytes: &[u8], out: &mut [f32]) {
    for (out, pair) in out.iter_mut().zip(bytes.chunks_exact(2)) {
        *out = f32::from_bits(u32::from(u16::from_le_bytes([pair[0], pair[1]])) << 16);
    }
}

#[inline(always)]
fn f32_to_bf16_body(values: &[f32], out: &mut [u8]) {
    for (pair, &x) in out.chunks_exact_mut(2).zip(values) {
        pair.copy_from_slice(&to_bf16(x).to_le_bytes());
    }
}

#[inline(always)]
fn round_bf16_body(values: &mut [f32]) {
    for x in values {
        *x = round_bf16(*x);
    }
}

versions! {
    /// Decodes little-endian bf16.
    fn bf16_to_f32(bytes: &[u8], out: &mut [f32]) = bf16_to_f32_body;
}
versions! {
    /// Encodes little-endian bf16.
    fn f32_to_bf16(values: &[f32], out: &mut [u8]) = f32_to_bf16_body;
}
versions! {
    /// Rounds every value to bf16.
    fn round_all_bf16(values: &mut [f32]) = round_bf16_body;
}

/// Elements converted at a time where a 16-bit copy must stand on the stack.
const BATCH: usize = 512;

fn f16_to_f32(bytes: &[u8], out: &mut [f32]) {
    let mut halves = [half::f16::ZERO; BATCH];
    for (out, bytes) in out.chunks_mut(BATCH).zip(bytes.chunks(2 * BATCH)) {
        let halves = &mut halves[..out.len()];
        for (half, pair) in halves.iter_mut().zip(bytes.chunks_exact(2)) {
            *half = half::f16::from_le_bytes([pair[0], pair[1]]);
        }
        halves.convert_to_f32_slice(out);
    }
}

fn f32_to_f16(values: &[f32], out: &mut [u8]) {
    let mut halves = [half::f16::ZERO; BATCH];
    for (values, out) in values.chunks(BATCH).zip(out.chunks_mut(2 * BATCH)) {
        let halves = &mut halves[..values.len()];
        halves.convert_from_f32_slice(values);
        for (pair, half) in out.chunks_exact_mut(2).zip(halves.iter()) {
            pair.copy_from_slice(&half.to_le_bytes());
        }
    }
}

versions! {
    /// Rounds every value to f16.
    fn round_all_f16(values: &mut [f32]) = round_f16_body;
}

#[inline(always)]
fn round_f16_body(values: &mut [f32]) {
    for x in values {
        *x = round_f16(*x);
    }
}

/// Rounds to f16 and back, in the bits of an f32: without a conversion, which has no kernel of its own at every level.
#[inline(always)]
fn round_f16(x: f32) -> f32 {
    let (sign, size) = (x.to_bits() & 0x8000_0000, x.to_bits() & 0x7fff_ffff);
    // Thirteen bits fewer, ties to even; what carries beyond the largest is infinite.
    let normal = size.wrapping_add(0xfff + ((size >> 13) & 1)) & !0x1fff;
    let normal = if normal >= 0x4780_0000 { f32::INFINITY.to_bits() } else { normal };
    // Numbers of the size of 1/2 have the smallest f16 for their last bit.
    let small = ((f32::from_bits(size) + 0.5) - 0.5).to_bits();
    let rounded = if size < 0x3880_0000 { small } else { normal };
    let nan = size & !0x1fff | 0x40_0000;
    f32::from_bits(sign | if size > f32::INFINITY.to_bits() { nan } else { rounded })
}

/// Decodes f32, f16 or bf16 (little endian). `bytes` holds exactly `out.len()` elements.
pub(crate) fn decode(dtype: Dtype, bytes: &[u8], out: &mut [f32]) {
    match dtype {
        Dtype::BF16 => bf16_to_f32(bytes, out),
        Dtype::F16 => f16_to_f32(bytes, out),
        _ => {
            for (out, quad) in out.iter_mut().zip(bytes.chunks_exact(4)) {
                *out = f32::from_le_bytes([quad[0], quad[1], quad[2], quad[3]]);
            }
        }
    }
}

/// Encodes f32, f16 or bf16 (little endian) into exactly as many bytes.
pub(crate) fn encode(dtype: Dtype, values: &[f32], out: &mut [u8]) {
    match dtype {
        Dtype::BF16 => f32_to_bf16(values, out),
        Dtype::F16 => f32_to_f16(values, out),
        _ => {
            for (quad, x) in out.chunks_exact_mut(4).zip(values) {
                quad.copy_from_slice(&x.to_le_bytes());
            }
        }
    }
}

/// Rounds values to what `dtype` can hold (f32: nothing to do).
pub(crate) fn round_to(dtype: Dtype, values: &mut [f32]) {
    match dtype {
        Dtype::BF16 => round_all_bf16(values),
        Dtype::F16 => round_all_f16(values),
        _ => {}
    }
}

/// One value rounded to `dtype`.
pub(crate) fn round_one(dtype: Dtype, x: f32) -> f32 {
    match dtype {
        Dtype::BF16 => round_bf16(x),
        Dtype::F16 => round_f16(x),
        _ => x,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::simd::forced::at_every_level;

    /// Rounding in the bits of an f32 is `half`'s conversion there and back: at every f16 of 2⁻¹⁵ and more, half way to the next, and next to those; at half steps of smaller ones; and at some of any size.
    #[test]
    fn rounding_to_f16_is_a_conversion_and_back() {
        let of = |bits: u32| (0..=2).map(move |more| (bits << 13).wrapping_add((more << 12) + 0x3800_0000));
        let near = |bits: u32| [bits.saturating_sub(1), bits, bits + 1].into_iter();
        let tiny = (0..1 << 20).map(|bits: u32| bits * 977);
        let steps = (0..4096).map(|half| (half as f32 * f32::from_bits((127 - 25) << 23)).to_bits()).flat_map(near);
        let all = (0..0x8000_u32)
            .flat_map(of)
            .flat_map(near)
            .chain(tiny)
            .chain(steps)
            .flat_map(|bits| [bits & 0x7fff_ffff, bits | 0x8000_0000]);
        let special = [f32::NAN, -f32::NAN, f32::INFINITY, 65519.9, 65520.0, -65520.0, 1e38].map(f32::to_bits);
        let values: Vec<f32> = all.chain(special).map(f32::from_bits).collect();
        for (level, rounded) in at_every_level(|| {
            let mut values = values.clone();
            round_to(Dtype::F16, &mut values);
            values
        }) {
            for (x, rounded) in values.iter().zip(rounded) {
                let want = half::f16::from_f32(*x).to_f32();
                let both_nan = want.is_nan() && rounded.is_nan();
                assert!(both_nan || want.to_bits() == rounded.to_bits(), "{level:?} {x}: {rounded}, not {want}");
            }
        }
    }

    /// Every finite bf16 and f16 survives a round trip, and ties go to even, at every level.
    #[test]
    fn sixteen_bit_floats_round_trip_and_round_to_even() {
        for dtype in [Dtype::BF16, Dtype::F16] {
            let bytes: Vec<u8> = (0..=u16::MAX).flat_map(u16::to_le_bytes).collect();
            let results = at_every_level(|| {
                let mut values = vec![0.0; 1 << 16];
                decode(dtype, &bytes, &mut values);
                let mut back = vec![0; bytes.len()];
                encode(dtype, &values, &mut back);
                // Half way between neighbours: must land on the even one.
                let mut halfway: Vec<f32> = values.windows(2).map(|pair| pair[0] + (pair[1] - pair[0]) / 2.0).collect();
                round_to(dtype, &mut halfway);
                (values, back, halfway)
            });
            let (_, (values, back, halfway)) = &results[0];
            for (i, x) in values.iter().enumerate() {
                if x.is_finite() {
                    assert_eq!(back[2 * i..2 * i + 2], bytes[2 * i..2 * i + 2]);
                }
                if values.get(i + 1).is_some_and(|next| next.is_finite())
                    && x.is_finite()
                    && x.signum() == values[i + 1].signum()
                {
                    let even = if i % 2 == 0 { values[i] } else { values[i + 1] };
                    assert_eq!(halfway[i].to_bits(), even.to_bits(), "{dtype} {i:#x}");
                }
            }
            for (level, result) in &results[1..] {
                assert!(
                    result.1 == *back && result.2.iter().map(|x| x.to_bits()).eq(halfway.iter().map(|x| x.to_bits())),
                    "{level:?}"
                );
            }
        }
    }
}
