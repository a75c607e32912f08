//! Row-wise int8, as bitsandbytes' LLM.int8 stores it.
//!
//! Quantizing goes through f16: `h = f16(x)`, `absmax = max |h|`, `scale = (1/absmax)·127`, `q = round_half_even(h·scale)`.
//! Dequantizing is `(q·absmax)·(1/127)`, each product rounded.

use super::floats::round_to;
use super::versions;
use crate::dtype::Dtype;

/// 1/127 as bitsandbytes spells it, rounded to f32.
const INVERSE_127: f32 = f32::from_bits(0x3c01_0204);

versions! {
    /// Decodes one row of codes with its absmax.
    pub(crate) fn decode_row(codes: &[u8], absmax: f32, out: &mut [f32]) = decode_body;
}

#[inline(always)]
fn decode_body(codes: &[u8], absmax: f32, out: &mut [f32]) {
    for (out, &code) in out.iter_mut().zip(codes) {
        *out = f32::from(code as i8) * absmax * INVERSE_127;
    }
}

/// Encodes one row; returns its absmax. `scratch` is as long as the row.
pub(crate) fn encode_row(values: &[f32], scratch: &mut [f32], codes: &mut [u8]) -> f32 {
    scratch.copy_from_slice(values);
    round_to(Dtype::F16, scratch);
    encode_halves(scratch, codes)
}

/// Codes of values under an absmax that is given: the nearest of −127..=127.
pub(crate) fn pack_row(values: &[f32], absmax: f32, codes: &mut [u8]) {
    let scale = if absmax > 0.0 { 127.0 / absmax } else { 0.0 };
    quantize(values, scale, codes);
}

versions! {
    fn encode_halves(halves: &[f32], codes: &mut [u8]) -> f32 = encode_body;
}

#[inline(always)]
fn encode_body(halves: &[f32], codes: &mut [u8]) -> f32 {
    // Integer comparison of magnitudes lets a NaN win, as torch's max does.
    let absmax = f32::from_bits(halves.iter().map(|x| x.to_bits() & 0x7fff_ffff).fold(0, u32::max));
    quantize_body(halves, (1.0 / absmax) * 127.0, codes);
    absmax
}

versions! {
    fn quantize(values: &[f32], scale: f32, codes: &mut [u8]) = quantize_body;
}

#[inline(always)]
fn quantize_body(values: &[f32], scale: f32, codes: &mut [u8]) {
    /// Adding and subtracting 1.5·2^23 rounds to the nearest integer, ties to even.
    const MAGIC: f32 = 12_582_912.0;
    for (code, &x) in codes.iter_mut().zip(values) {
        let product = x * scale;
        // Not finite becomes 0, as the reference's conversion does.
        let product = if product.is_finite() { product.clamp(-127.0, 127.0) } else { 0.0 };
        let rounded = (product + MAGIC) - MAGIC;
        *code = (rounded as i32 as i8) as u8;
    }
}
