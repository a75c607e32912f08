//! The same products of values that are rounded to bf16, two inputs at a time.
//!
//! An element is one chain over the inputs, each pair's second before its first, every product exact and every sum rounded once: what processors with a dot product of
//! bf16 pairs do in one instruction (`VDPBF16PS`), and what two fused multiply-adds do on the others. That instruction takes what is too small for a normal f32
//! as zero, so values below [`LEAST`] are zero here: then no sum comes near to that.

#![allow(clippy::needless_range_loop)]

use std::cell::RefCell;

use super::window::Window;
use super::{HEIGHT, PANEL};
use crate::parallel::spread;
use crate::simd::floats::to_bf16;
use crate::simd::{Level, level, versions};

/// Pairs of inputs that are done for all rows before the next: their part of a panel stays in the first-level cache.
const DEPTH: usize = 128;
/// Columns that are done at a time; of a panel, those that nobody asked for are left out.
const STRIP: usize = 16;
/// The smallest magnitude that is kept. The last digit of a product of two such is 2^-124, and so is that of every sum.
const LEAST: f32 = 1.0 / (1_u64 << 55) as f32;

thread_local! {
    /// A worker's rows, rounded: as pairs, or one by one.
    static ROUNDED: RefCell<(Vec<u32>, Vec<f32>)> = const { RefCell::new((Vec::new(), Vec::new())) };
}

/// True if the processor multiplies pairs of bf16, so that rounded columns take half the time.
pub fn in_hardware() -> bool {
    #[cfg(target_arch = "x86_64")]
    {
        level() == Level::Avx512 && is_x86_feature_detected!("avx512bf16")
    }
    #[cfg(not(target_arch = "x86_64"))]
    false
}

#[inline(always)]
fn rounded(x: f32) -> u16 {
    if x.abs() < LEAST { 0 } else { to_bf16(x) }
}

/// Columns of `x` (inputs, tokens) in panels (pairs of inputs, [`PANEL`]), the first of a pair in the lower half, padded with zeros.
pub(super) fn pack(x: &[f32], inputs: usize, tokens: usize) -> Vec<u32> {
    let pairs = inputs.div_ceil(2);
    let mut data = vec![0; pairs * tokens.next_multiple_of(PANEL)];
    spread(data.chunks_exact_mut((pairs * PANEL).max(1)).enumerate(), |(p, panel)| {
        let columns = p * PANEL..tokens.min((p + 1) * PANEL);
        for (pair, rows) in panel.chunks_exact_mut(PANEL).zip(x.chunks(2 * tokens)) {
            let (first, second) = rows.split_at(tokens);
            let second = second.get(columns.clone()).unwrap_or_default();
            pair_up(&first[columns.clone()], second, pair);
        }
    });
    data
}

versions! {
    fn pair_up(first: &[f32], second: &[f32], out: &mut [u32]) = pair_up_body;
}
versions! {
    fn pair_rows(left: &[f32], inputs: usize, out: &mut [u32]) = pair_rows_body;
}
versions! {
    fn round_rows(left: &[f32], inputs: usize, out: &mut [f32]) = round_rows_body;
}

#[inline(always)]
fn pair_up_body(first: &[f32], second: &[f32], out: &mut [u32]) {
    out.iter_mut().zip(first).for_each(|(out, &x)| *out = u32::from(rounded(x)));
    out.iter_mut().zip(second).for_each(|(out, &x)| *out |= u32::from(rounded(x)) << 16);
}

/// Rows of pairs, the last of an odd number of inputs beside a zero.
#[inline(always)]
fn pair_rows_body(left: &[f32], inputs: usize, out: &mut [u32]) {
    for (row, out) in left.chunks_exact(inputs).zip(out.chunks_exact_mut(inputs.div_ceil(2))) {
        let (pairs, rest) = row.as_chunks::<2>();
        for (out, pair) in out.iter_mut().zip(pairs) {
            *out = u32::from(rounded(pair[0])) | u32::from(rounded(pair[1])) << 16;
        }
        if let (Some(out), Some(&x)) = (out.last_mut(), rest.first()) {
            *out = u32::from(rounded(x));
        }
    }
}

/// Rows of an even length.
#[inline(always)]
fn round_rows_body(left: &[f32], inputs: usize, out: &mut [f32]) {
    for (row, out) in left.chunks_exact(inputs).zip(out.chunks_exact_mut(inputs.next_multiple_of(2))) {
        out[inputs..].fill(0.0);
        out.iter_mut().zip(row).for_each(|(out, &x)| *out = f32::from_bits(u32::from(rounded(x)) << 16));
    }
}

/// `out (rows, tokens) += left (rows, inputs) · x`, of which `data` are the packed columns.
pub(super) fn add(left: &[f32], data: &[u32], inputs: usize, tokens: usize, out: &mut [f32]) {
    let (rows, pairs) = (left.len() / inputs, inputs.div_ceil(2));
    // Nothing below waits for other workers, so none comes by here with the cell taken.
    ROUNDED.with_borrow_mut(|(paired, single)| {
        #[cfg(target_arch = "x86_64")]
        if in_hardware() {
            paired.resize(rows * pairs, 0);
            pair_rows(left, inputs, paired);
            // SAFETY: the processor has what it needs.
            tiles(paired, 1, data, pairs, tokens, out, |left, panel, strips, sums| unsafe {
                match strips {
                    1 => x86::tile_paired::<1>(left, panel, sums),
                    2 => x86::tile_paired::<2>(left, panel, sums),
                    3 => x86::tile_paired::<3>(left, panel, sums),
                    _ => x86::tile_paired::<4>(left, panel, sums),
                }
            });
            return;
        }
        single.resize(rows * 2 * pairs, 0.0);
        round_rows(left, inputs, single);
        #[cfg(target_arch = "x86_64")]
        match level() {
            // SAFETY: the level says that the processor has what it needs.
            Level::Avx512 => tiles(single, 2, data, pairs, tokens, out, |left, panel, strips, sums| unsafe {
                x86::tile_single(left, panel, strips, sums)
            }),
            // SAFETY: as above.
            Level::Avx2 => tiles(single, 2, data, pairs, tokens, out, |left, panel, strips, sums| unsafe {
                x86::tile_narrow(left, panel, strips, sums)
            }),
            _ => tiles(single, 2, data, pairs, tokens, out, tile),
        }
        #[cfg(not(target_arch = "x86_64"))]
        tiles(single, 2, data, pairs, tokens, out, tile);
    });
}

/// Tiles of [`HEIGHT`] rows and as many strips of a panel as there are columns; of `left`, so many elements are a pair.
fn tiles<T>(
    left: &[T],
    each: usize,
    data: &[u32],
    pairs: usize,
    tokens: usize,
    out: &mut [f32],
    tile: impl Fn([&[T]; HEIGHT], &[u32], usize, Window<'_>),
) {
    let rows = left.len() / (each * pairs);
    for depth in (0..pairs).step_by(DEPTH) {
        let depth = depth..(depth + DEPTH).min(pairs);
        for (panel, j) in data.chunks_exact(PANEL * pairs).zip((0..tokens).step_by(PANEL)) {
            let panel = &panel[depth.start * PANEL..depth.end * PANEL];
            let width = PANEL.min(tokens - j);
            for first in (0..rows).step_by(HEIGHT) {
                let height = HEIGHT.min(rows - first);
                // Rows that are missing are the last one again, and thrown away.
                let left: [&[T]; HEIGHT] = std::array::from_fn(|m| {
                    &left[(first + m).min(rows - 1) * each * pairs..][depth.start * each..depth.end * each]
                });
                let strips = width.div_ceil(STRIP);
                Window::of(out, tokens, first * tokens + j, (height, width), strips * STRIP, |sums| {
                    tile(left, panel, strips, sums);
                });
            }
        }
    }
}

/// The definition. `left` has two elements for each row of `panel`.
fn tile(left: [&[f32]; HEIGHT], panel: &[u32], strips: usize, mut sums: Window<'_>) {
    let left = left.map(|left| &left.as_chunks::<2>().0[..panel.len() / PANEL]);
    for from in (0..strips * STRIP).step_by(STRIP) {
        let mut sum: [[f32; STRIP]; HEIGHT] = std::array::from_fn(|m| *sums.row(m, from));
        for (k, row) in panel.chunks_exact(PANEL).enumerate() {
            let row: &[u32; STRIP] = row[from..from + STRIP].try_into().expect("as many columns");
            for m in 0..HEIGHT {
                for n in 0..STRIP {
                    let second = f32::from_bits(row[n] & 0xffff_0000);
                    sum[m][n] = left[m][k][1].mul_add(second, sum[m][n]);
                }
            }
            for m in 0..HEIGHT {
                for n in 0..STRIP {
                    sum[m][n] = left[m][k][0].mul_add(f32::from_bits(row[n] << 16), sum[m][n]);
                }
            }
        }
        for m in 0..HEIGHT {
            *sums.row(m, from) = sum[m];
        }
    }
}

#[cfg(target_arch = "x86_64")]
mod x86 {
    use super::{HEIGHT, PANEL, STRIP, Window};
    use std::arch::x86_64::*;

    type Tile<const N: usize> = [[__m512; N]; HEIGHT];

    #[inline]
    #[target_feature(enable = "avx512f")]
    fn load<const N: usize>(sums: &mut Window<'_>) -> Tile<N> {
        let (p, stride) = sums.place(0, 16 * N);
        // SAFETY: vectors of 16 floats a row, as many as may be read.
        std::array::from_fn(|m| std::array::from_fn(|n| unsafe { _mm512_loadu_ps(p.add(m * stride + 16 * n)) }))
    }

    #[inline]
    #[target_feature(enable = "avx512f")]
    fn store<const N: usize>(sum: &Tile<N>, mut sums: Window<'_>) {
        let (p, stride) = sums.place(0, 16 * N);
        for m in 0..HEIGHT {
            for n in 0..N {
                // SAFETY: as above, written.
                unsafe { _mm512_storeu_ps(p.add(m * stride + 16 * n), sum[m][n]) };
            }
        }
    }

    /// The first vectors of a panel's row.
    #[inline]
    #[target_feature(enable = "avx512f")]
    fn row<const N: usize>(panel: &[u32], k: usize) -> [__m512i; N] {
        let row = &panel[k * PANEL..][..16 * N];
        // SAFETY: `row` has so many elements.
        std::array::from_fn(|n| unsafe { _mm512_loadu_si512(row.as_ptr().add(16 * n).cast()) })
    }

    /// Rows of pairs, and `N` strips.
    #[target_feature(enable = "avx512f,avx512bf16")]
    pub(super) fn tile_paired<const N: usize>(left: [&[u32]; HEIGHT], panel: &[u32], mut sums: Window<'_>) {
        let mut sum = load::<N>(&mut sums);
        let pairs = panel.len() / PANEL;
        let left = left.map(|left| &left[..pairs]);
        for k in 0..pairs {
            let row: [__m512bh; N] =
                // SAFETY: both are 512 bits, and any bits are values.
                row::<N>(panel, k).map(|row| unsafe { std::mem::transmute::<__m512i, __m512bh>(row) });
            for m in 0..HEIGHT {
                let factor = _mm512_set1_epi32(left[m][k].cast_signed());
                // SAFETY: as above.
                let factor = unsafe { std::mem::transmute::<__m512i, __m512bh>(factor) };
                for n in 0..N {
                    sum[m][n] = _mm512_dpbf16_ps(sum[m][n], factor, row[n]);
                }
            }
        }
        store(&sum, sums);
    }

    /// Rows of values, two for each row of the panel.
    #[target_feature(enable = "avx512f,fma")]
    pub(super) fn tile_single(left: [&[f32]; HEIGHT], panel: &[u32], strips: usize, sums: Window<'_>) {
        match strips {
            1 => wide::<1>(left, panel, sums),
            2 => wide::<2>(left, panel, sums),
            3 => wide::<3>(left, panel, sums),
            _ => wide::<4>(left, panel, sums),
        }
    }

    #[inline]
    #[target_feature(enable = "avx512f,fma")]
    fn wide<const N: usize>(left: [&[f32]; HEIGHT], panel: &[u32], mut sums: Window<'_>) {
        let mut sum = load::<N>(&mut sums);
        let pairs = panel.len() / PANEL;
        let left = left.map(|left| &left.as_chunks::<2>().0[..pairs]);
        let upper = _mm512_set1_epi32(0xffff_0000_u32.cast_signed());
        for k in 0..pairs {
            let row = row::<N>(panel, k);
            let second = row.map(|row| _mm512_castsi512_ps(_mm512_and_si512(row, upper)));
            for m in 0..HEIGHT {
                let factor = _mm512_set1_ps(left[m][k][1]);
                for n in 0..N {
                    sum[m][n] = _mm512_fmadd_ps(factor, second[n], sum[m][n]);
                }
            }
            let first = row.map(|row| _mm512_castsi512_ps(_mm512_slli_epi32::<16>(row)));
            for m in 0..HEIGHT {
                let factor = _mm512_set1_ps(left[m][k][0]);
                for n in 0..N {
                    sum[m][n] = _mm512_fmadd_ps(factor, first[n], sum[m][n]);
                }
            }
        }
        store(&sum, sums);
    }

    /// The same with registers half as wide, one strip after the other: the sums of six rows and of one strip are as many as there is room for.
    #[target_feature(enable = "avx2,fma")]
    pub(super) fn tile_narrow(left: [&[f32]; HEIGHT], panel: &[u32], strips: usize, mut sums: Window<'_>) {
        let pairs = panel.len() / PANEL;
        let left = left.map(|left| left[..2 * pairs].as_ptr());
        let upper = _mm256_set1_epi32(0xffff_0000_u32.cast_signed());
        for from in (0..strips * STRIP).step_by(STRIP) {
            let (p, stride) = sums.place(from, STRIP);
            // SAFETY: two vectors of 8 floats are a strip of a row, which may be read and written.
            let mut sum: [[__m256; 2]; HEIGHT] =
                std::array::from_fn(|m| std::array::from_fn(|n| unsafe { _mm256_loadu_ps(p.add(m * stride + 8 * n)) }));
            for (k, row) in panel.chunks_exact(PANEL).enumerate() {
                let row = row[from..from + STRIP].as_ptr();
                // SAFETY: a strip is two vectors.
                let row: [__m256i; 2] = std::array::from_fn(|n| unsafe { _mm256_loadu_si256(row.add(8 * n).cast()) });
                let second = row.map(|row| _mm256_castsi256_ps(_mm256_and_si256(row, upper)));
                for m in 0..HEIGHT {
                    // SAFETY: each row of `left` has two values for each of the panel.
                    let factor = unsafe { _mm256_broadcast_ss(&*left[m].add(2 * k + 1)) };
                    for n in 0..2 {
                        sum[m][n] = _mm256_fmadd_ps(factor, second[n], sum[m][n]);
                    }
                }
                let first = row.map(|row| _mm256_castsi256_ps(_mm256_slli_epi32::<16>(row)));
                for m in 0..HEIGHT {
                    // SAFETY: as above.
                    let factor = unsafe { _mm256_broadcast_ss(&*left[m].add(2 * k)) };
                    for n in 0..2 {
                        sum[m][n] = _mm256_fmadd_ps(factor, first[n], sum[m][n]);
                    }
                }
            }
            for m in 0..HEIGHT {
                for n in 0..2 {
                    // SAFETY: as where they were read.
                    unsafe { _mm256_storeu_ps(p.add(m * stride + 8 * n), sum[m][n]) };
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::simd::matmul::{Columns, matmul};

    fn numbers(n: usize, seed: u32) -> Vec<f32> {
        let mut state = seed;
        (0..n)
            .map(|i| {
                state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
                let x = (state >> 8) as f32 / (1 << 23) as f32 - 1.0;
                // Magnitudes of all sizes, such as vanish beside others, and such as are taken for zero.
                match i % 11 {
                    3 => x * 1e-9,
                    5 => x * 1e-30,
                    7 => x * 1e12,
                    8 => 0.0,
                    _ => x,
                }
            })
            .collect()
    }

    fn bf16(x: f32) -> f32 {
        if x.abs() < LEAST { 0.0 } else { half::bf16::from_f32(x).to_f32() }
    }

    #[test]
    fn every_way_gives_the_bits_of_two_fused_sums() {
        for (rows, inputs, tokens) in
            [(1, 1, 1), (5, 130, 1), (7, 63, 8), (4, 33, 64), (6, 1027, 130), (3, 2050, 70), (13, 300, 16), (2, 9, 40)]
        {
            let (left, x) = (numbers(rows * inputs, 1), numbers(inputs * tokens, 2));
            let start = numbers(rows * tokens, 3);
            let mut want = start.clone();
            for (i, want) in want.iter_mut().enumerate() {
                let (r, t) = (i / tokens, i % tokens);
                let product = |k: usize, sum: f32| match k < inputs {
                    true => bf16(left[r * inputs + k]).mul_add(bf16(x[k * tokens + t]), sum),
                    false => sum,
                };
                for k in (0..inputs).step_by(2) {
                    *want = product(k, product(k + 1, *want));
                }
            }
            let columns = Columns::rounded(&x, inputs, tokens);
            for (level, got) in crate::simd::forced::at_every_level(|| {
                let mut out = start.clone();
                matmul(&left, &columns, true, &mut out);
                out
            }) {
                assert_eq!(got, want, "{level:?}: {rows} {inputs} {tokens}");
            }
            // What a processor with wide registers and no product of pairs does.
            #[cfg(target_arch = "x86_64")]
            if level() == Level::Avx512 {
                let pairs = inputs.div_ceil(2);
                let mut single = vec![0.0; rows * 2 * pairs];
                round_rows(&left, inputs, &mut single);
                let mut out = start.clone();
                let Columns { data: super::super::Packed::Pairs(data), .. } = &columns else { panic!("pairs") };
                // SAFETY: the level says that the processor has what it needs.
                tiles(&single, 2, data, pairs, tokens, &mut out, |l, p, n, s| unsafe { x86::tile_single(l, p, n, s) });
                assert_eq!(out, want);
            }
        }
    }

    #[test]
    fn what_is_not_finite_stays_so() {
        let x = [f32::NAN, f32::INFINITY, 1.0, f32::from_bits(0x7f80_0001)];
        assert!(rounded(x[0]) & 0x7fff > 0x7f80 && rounded(x[3]) & 0x7fff > 0x7f80);
        assert_eq!((rounded(x[1]), rounded(f32::MIN_POSITIVE), rounded(-LEAST)), (0x7f80, 0, 0xa400));
        for (_, sums) in crate::simd::forced::at_every_level(|| {
            let mut out = [0.0; 4];
            matmul(&x, &Columns::rounded(&[1.0], 1, 1), false, &mut out);
            out
        }) {
            assert!(sums[0].is_nan() && sums[1] == f32::INFINITY && sums[2] == 1.0 && sums[3].is_nan());
        }
    }
}
