//! Products of stored rows with one column, decoded in registers.
//!
//! They equal decoding followed by [`super::matmul`] bit for bit: the same values, the same 64 chains, summed in the same order. A row is then
//! read once at the speed of memory instead of being written to a buffer first.

use super::matmul::{LANES, sum_up};
use super::versions;

versions! {
    /// `out[i] += row i · x` for rows of bf16.
    pub(crate) fn bf16_dots(rows: &[u8], x: &[f32], out: &mut [f32]) = bf16_body;
}

#[inline(always)]
fn bf16_body(rows: &[u8], x: &[f32], out: &mut [f32]) {
    let value = |two: &[u8; 2]| f32::from_bits(u32::from(u16::from_le_bytes(*two)) << 16);
    for (row, out) in rows.chunks_exact(2 * x.len()).zip(out) {
        let (row, row_tail) = row.as_chunks::<2>().0.as_chunks::<LANES>();
        let (x, x_tail) = x.as_chunks::<LANES>();
        let mut sums = [0.0_f32; LANES];
        for (row, x) in row.iter().zip(x) {
            for l in 0..LANES {
                sums[l] = value(&row[l]).mul_add(x[l], sums[l]);
            }
        }
        for (sum, (two, x)) in sums.iter_mut().zip(row_tail.iter().zip(x_tail)) {
            *sum = value(two).mul_add(*x, *sum);
        }
        *out += sum_up(sums);
    }
}

/// `out[i] += row i · x` for rows of 4-bit codes in blocks of 64, first code in the high nibble. A value is `level · absmax`, rounded to bf16
/// where `bf16`. False, and nothing done, where there is no kernel for it.
pub(crate) fn nibble_dots(
    levels: &[f32; 16],
    codes: &[u8],
    absmax: &[f32],
    bf16: bool,
    x: &[f32],
    out: &mut [f32],
) -> bool {
    #[cfg(target_arch = "x86_64")]
    if super::level() == super::Level::Avx512 && x.len().is_multiple_of(LANES) && !x.is_empty() {
        assert!(codes.len() == out.len() * x.len() / 2 && absmax.len() == out.len() * x.len() / LANES);
        // SAFETY: the processor was found to have these features.
        unsafe { x86::nibble_dots(levels, codes, absmax, bf16, x, out) };
        return true;
    }
    let _ = (levels, codes, absmax, bf16, x, out);
    false
}

#[cfg(target_arch = "x86_64")]
mod x86 {
    use super::LANES;
    use crate::simd::nibbles::x86::round_bf16;
    use std::arch::x86_64::*;

    #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx2,fma,f16c")]
    pub(super) fn nibble_dots(
        levels: &[f32; 16],
        codes: &[u8],
        absmax: &[f32],
        bf16: bool,
        x: &[f32],
        out: &mut [f32],
    ) {
        // Sixteen elements of even number, then the sixteen odd ones beside them: as the two nibbles of bytes come.
        let mut apart = vec![0.0; x.len()];
        for (apart, x) in apart.as_chunks_mut::<32>().0.iter_mut().zip(x.as_chunks::<32>().0) {
            for l in 0..16 {
                (apart[l], apart[16 + l]) = (x[2 * l], x[2 * l + 1]);
            }
        }
        // SAFETY: an array of 16.
        let levels = unsafe { _mm512_loadu_ps(levels.as_ptr()) };
        let rows = codes.chunks_exact(x.len() / 2).zip(absmax.chunks_exact(x.len() / LANES));
        for ((codes, absmax), out) in rows.zip(out) {
            let mut sums = [_mm512_setzero_ps(); 4];
            for ((codes, x), &scale) in codes.chunks_exact(32).zip(apart.chunks_exact(LANES)).zip(absmax) {
                let table = _mm512_mul_ps(levels, _mm512_set1_ps(scale));
                let table = if bf16 { round_bf16(table) } else { table };
                for half in 0..2 {
                    // SAFETY: 16 of 32 bytes.
                    let bytes = unsafe { _mm_loadu_si128(codes.as_ptr().add(16 * half).cast()) };
                    let low = _mm512_cvtepu8_epi32(bytes);
                    // The lookup takes the lowest four bits.
                    let even = _mm512_permutexvar_ps(_mm512_srli_epi32::<4>(low), table);
                    let odd = _mm512_permutexvar_ps(low, table);
                    // SAFETY: two times 16 of 64 floats.
                    let (x_even, x_odd) = unsafe {
                        let x = x.as_ptr().add(32 * half);
                        (_mm512_loadu_ps(x), _mm512_loadu_ps(x.add(16)))
                    };
                    sums[2 * half] = _mm512_fmadd_ps(even, x_even, sums[2 * half]);
                    sums[2 * half + 1] = _mm512_fmadd_ps(odd, x_odd, sums[2 * half + 1]);
                }
            }
            // Lanes l and l + 32 lie in the same place of two vectors, and so do all later pairs down to 0 and 1.
            let halves = [_mm512_add_ps(sums[0], sums[2]), _mm512_add_ps(sums[1], sums[3])];
            let [even, odd] = halves.map(|sums| {
                let mut lanes = [0.0_f32; 16];
                // SAFETY: an array of 16.
                unsafe { _mm512_storeu_ps(lanes.as_mut_ptr(), sums) };
                let mut width = 8;
                while width > 0 {
                    for l in 0..width {
                        lanes[l] += lanes[l + width];
                    }
                    width /= 2;
                }
                lanes[0]
            });
            *out += even + odd;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::dtype::Dtype;
    use crate::formats::bnb4::NF4_BOOK;
    use crate::simd::forced::at_every_level;
    use crate::simd::matmul::{Columns, matmul};
    use crate::simd::{floats, nibbles};

    #[test]
    fn they_equal_decoding_and_then_multiplying() {
        for (rows, cols) in [(1, 64), (5, 192), (3, 576), (2, 4096)] {
            let byte = |i: usize| (i.wrapping_mul(2_654_435_761) >> 7) as u8;
            let codes: Vec<u8> = (0..rows * cols / 2).map(byte).collect();
            let absmax: Vec<f32> = (0..rows * cols / 64).map(|i| 0.01 + f32::from(byte(i)) / 300.0).collect();
            let x: Vec<f32> = (0..cols).map(|i| f32::from(byte(i + 77)) / 100.0 - 1.2).collect();
            let columns = Columns::new(&x, cols, 1);
            for (level, ()) in at_every_level(|| {
                for dtype in [Dtype::BF16, Dtype::F32] {
                    let (mut values, mut want, mut got) = (vec![0.0; rows * cols], vec![0.0; rows], vec![0.0; rows]);
                    nibbles::decode(&NF4_BOOK, &codes, &absmax, 64, dtype, &mut values);
                    matmul(&values, &columns, false, &mut want);
                    if nibble_dots(&NF4_BOOK.levels, &codes, &absmax, dtype == Dtype::BF16, &x, &mut got) {
                        assert_eq!(got, want);
                    }
                    let mut bytes = vec![0; 2 * rows * cols];
                    floats::encode(Dtype::BF16, &values, &mut bytes);
                    floats::decode(Dtype::BF16, &bytes, &mut values);
                    matmul(&values, &columns, false, &mut want);
                    got.fill(0.0);
                    bf16_dots(&bytes, &x, &mut got);
                    assert_eq!(got, want);
                }
            }) {
                let _ = level;
            }
        }
    }
}
