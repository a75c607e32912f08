//! Blocks of 4-bit codes in AVX2 and AVX-512.

use std::arch::x86_64::*;

use super::Buckets;

/// 16 levels at a time: nibbles to 32-bit lanes, one table lookup, one product, one rounding.
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx2,fma,f16c")]
pub(super) fn decode_avx512(
    levels: &[f32; 16],
    codes: &[u8],
    absmax: &[f32],
    block: usize,
    bf16: bool,
    out: &mut [f32],
) {
    // SAFETY: 16 floats are read from an array of 16.
    let levels = unsafe { _mm512_loadu_ps(levels.as_ptr()) };
    for ((out, codes), &scale) in out.chunks_exact_mut(block).zip(codes.chunks_exact(block / 2)).zip(absmax) {
        let table = _mm512_mul_ps(levels, _mm512_set1_ps(scale));
        let table = if bf16 { round_bf16(table) } else { table };
        for (out, bytes) in out.chunks_exact_mut(16).zip(codes.chunks_exact(8)) {
            let nibbles = spread(bytes);
            let values = _mm512_permutexvar_ps(_mm512_cvtepu8_epi32(nibbles), table);
            // SAFETY: `out` is 16 floats long.
            unsafe { _mm512_storeu_ps(out.as_mut_ptr(), values) };
        }
    }
}

/// Eight bytes to sixteen nibbles in element order.
#[target_feature(enable = "sse2")]
fn spread(bytes: &[u8]) -> __m128i {
    let mut word = [0; 8];
    word.copy_from_slice(bytes);
    let bytes = _mm_cvtsi64_si128(i64::from_le_bytes(word));
    let low = _mm_and_si128(bytes, _mm_set1_epi8(15));
    let high = _mm_and_si128(_mm_srli_epi16(bytes, 4), _mm_set1_epi8(15));
    _mm_unpacklo_epi8(high, low)
}

/// Round to nearest even in the upper 16 bits. Levels times a finite scale are never NaN; an infinite scale times
/// the level 0 is, and stays NaN because its payload cannot carry into the sign.
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl")]
pub(in crate::simd) fn round_bf16(x: __m512) -> __m512 {
    let bits = _mm512_castps_si512(x);
    let odd = _mm512_and_si512(_mm512_srli_epi32(bits, 16), _mm512_set1_epi32(1));
    let rounded = _mm512_add_epi32(bits, _mm512_add_epi32(odd, _mm512_set1_epi32(0x7fff)));
    let nan = _mm512_cmp_ps_mask::<_CMP_UNORD_Q>(x, x);
    let quiet = _mm512_or_si512(bits, _mm512_set1_epi32(0x0040_0000));
    let chosen = _mm512_mask_blend_epi32(nan, rounded, quiet);
    _mm512_castsi512_ps(_mm512_and_si512(chosen, _mm512_set1_epi32(0xffff_0000_u32 as i32)))
}

#[target_feature(enable = "avx2,fma,f16c")]
pub(super) fn decode_avx2(levels: &[f32; 16], codes: &[u8], absmax: &[f32], block: usize, bf16: bool, out: &mut [f32]) {
    for ((out, codes), &scale) in out.chunks_exact_mut(block).zip(codes.chunks_exact(block / 2)).zip(absmax) {
        let mut scaled = [0.0_f32; 16];
        for (scaled, &level) in scaled.iter_mut().zip(levels) {
            let product = level * scale;
            *scaled = if bf16 { super::round_bf16(product) } else { product };
        }
        // SAFETY: two times 8 floats of an array of 16.
        let (lower, upper) = unsafe { (_mm256_loadu_ps(scaled.as_ptr()), _mm256_loadu_ps(scaled.as_ptr().add(8))) };
        for (out, bytes) in out.chunks_exact_mut(16).zip(codes.chunks_exact(8)) {
            let nibbles = spread(bytes);
            for (out, nibbles) in out.chunks_exact_mut(8).zip([nibbles, _mm_srli_si128::<8>(nibbles)]) {
                let index = _mm256_cvtepu8_epi32(nibbles);
                let from_lower = _mm256_permutevar8x32_ps(lower, index);
                let from_upper = _mm256_permutevar8x32_ps(upper, index);
                // Bit 3 of the nibble, moved to the sign bit, picks the half of the table.
                let pick = _mm256_castsi256_ps(_mm256_slli_epi32::<28>(index));
                // SAFETY: `out` is 8 floats long.
                unsafe { _mm256_storeu_ps(out.as_mut_ptr(), _mm256_blendv_ps(from_lower, from_upper, pick)) };
            }
        }
    }
}

/// Whole blocks: absmax by integer comparison of magnitudes, then sixteen values at a time through the buckets.
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx2,fma,f16c")]
pub(super) fn encode_avx512(buckets: &Buckets, values: &[f32], block: usize, codes: &mut [u8], absmax: &mut [f32]) {
    // SAFETY: both tables are arrays of 32.
    let (thr0, thr1, base0, base1) = unsafe {
        (
            _mm512_loadu_ps(buckets.threshold.as_ptr()),
            _mm512_loadu_ps(buckets.threshold.as_ptr().add(16)),
            _mm512_loadu_si512(buckets.below.as_ptr().cast()),
            _mm512_loadu_si512(buckets.below.as_ptr().add(16).cast()),
        )
    };
    let magnitude = _mm512_set1_epi32(0x7fff_ffff);
    for ((values, codes), absmax) in values.chunks_exact(block).zip(codes.chunks_exact_mut(block / 2)).zip(absmax) {
        let mut largest = _mm512_setzero_si512();
        for values in values.chunks_exact(16) {
            // SAFETY: `values` is 16 floats long.
            let x = unsafe { _mm512_loadu_si512(values.as_ptr().cast()) };
            largest = _mm512_max_epu32(largest, _mm512_and_si512(x, magnitude));
        }
        *absmax = f32::from_bits(_mm512_reduce_max_epu32(largest));
        let inverse = _mm512_set1_ps(1.0 / super::at_least_tiny(*absmax));
        for (codes, values) in codes.chunks_exact_mut(8).zip(values.chunks_exact(16)) {
            // SAFETY: `values` is 16 floats long.
            let x = unsafe { _mm512_loadu_ps(values.as_ptr()) };
            let v = _mm512_mul_ps(x, inverse);
            let nan = _mm512_cmp_ps_mask::<_CMP_UNORD_Q>(v, v);
            let v = _mm512_min_ps(_mm512_max_ps(v, _mm512_set1_ps(-1.0)), _mm512_set1_ps(1.0));
            let bucket = _mm512_cvttps_epi32(_mm512_fmadd_ps(v, _mm512_set1_ps(16.0), _mm512_set1_ps(16.0)));
            let bucket = _mm512_min_epi32(bucket, _mm512_set1_epi32(31));
            let threshold = _mm512_permutex2var_ps(thr0, bucket, thr1);
            let below = _mm512_permutex2var_epi32(base0, bucket, base1);
            let above = _mm512_cmp_ps_mask::<_CMP_GT_OQ>(v, threshold);
            let code = _mm512_mask_add_epi32(below, above, below, _mm512_set1_epi32(1));
            let code = _mm512_mask_mov_epi32(code, nan, _mm512_set1_epi32(15));
            let bytes = _mm512_cvtepi32_epi8(code);
            // First of a pair times 16 plus the second: the packed byte.
            let pairs = _mm_maddubs_epi16(bytes, _mm_set1_epi16(0x0110));
            let packed = _mm_packus_epi16(pairs, pairs);
            codes.copy_from_slice(&_mm_cvtsi128_si64(packed).to_le_bytes());
        }
    }
}
