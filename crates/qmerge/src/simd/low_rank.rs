//! The low-rank product `scale · L·R`, with one fixed order of summation.
//!
//! PEFT computes `B @ A` with the machine's BLAS. On x86 that is MKL, which sums each element in one chain of fused
//! multiply-adds with `k` ascending up to rank 192; up to 384 in two chains over the halves; above, in chains of 192
//! (measured against torch 2.15). A fused multiply-add is exactly rounded, so the same chains give the same bits at
//! every vector level and for any cut into rows. Odd ranks between 193 and 383 are cut differently by MKL.

use super::{Level, level, versions};

/// Longest chain that is summed without a break.
const CHAIN: usize = 192;

/// `out (rows, cols) = scale · left (rows, rank) · right (rank, cols)`, or `+=` where `add`.
///
/// Each product is rounded once by the chain, once by the scaling, once by the addition.
pub(crate) fn low_rank(left: &[f32], right: &[f32], rank: usize, cols: usize, scale: f32, add: bool, out: &mut [f32]) {
    if cols == 0 || out.is_empty() {
        return;
    }
    if rank == 0 {
        if !add {
            out.fill(0.0);
        }
        return;
    }
    debug_assert_eq!(left.len() * cols, out.len() * rank);
    debug_assert_eq!(right.len(), rank * cols);
    if level() == Level::Avx512 { wide(left, right, rank, cols, scale, add, out) } else { narrow(left, right, rank, cols, scale, add, out) }
}

versions! {
    fn wide(left: &[f32], right: &[f32], rank: usize, cols: usize, scale: f32, add: bool, out: &mut [f32]) = product::<8, 32>;
}
versions! {
    fn narrow(left: &[f32], right: &[f32], rank: usize, cols: usize, scale: f32, add: bool, out: &mut [f32]) = product::<4, 16>;
}

/// Tiles of `M` rows and `N` columns; the tile size changes speed only, never an element's sum.
#[inline(always)]
fn product<const M: usize, const N: usize>(left: &[f32], right: &[f32], rank: usize, cols: usize, scale: f32, add: bool, out: &mut [f32]) {
    let rows = out.len() / cols;
    for j in (0..cols).step_by(N) {
        let width = N.min(cols - j);
        let mut i = 0;
        while i < rows {
            if width == N && rows - i >= M {
                let sum = tile::<M, N>(&left[i * rank..(i + M) * rank], &right[j..], rank, cols);
                for (m, sum) in sum.iter().enumerate() {
                    let at = (i + m) * cols + j;
                    store(&mut out[at..at + N], sum, scale, add);
                }
                i += M;
            } else {
                let mut sum = [[0.0; N]; 1];
                if width == N {
                    sum = tile::<1, N>(&left[i * rank..(i + 1) * rank], &right[j..], rank, cols);
                } else {
                    for (n, sum) in sum[0][..width].iter_mut().enumerate() {
                        *sum = tile::<1, 1>(&left[i * rank..(i + 1) * rank], &right[j + n..], rank, cols)[0][0];
                    }
                }
                let at = i * cols + j;
                store(&mut out[at..at + width], &sum[0][..width], scale, add);
                i += 1;
            }
        }
    }
}

#[inline(always)]
fn store(out: &mut [f32], sum: &[f32], scale: f32, add: bool) {
    if add {
        for (out, &sum) in out.iter_mut().zip(sum) {
            *out += sum * scale;
        }
    } else {
        for (out, &sum) in out.iter_mut().zip(sum) {
            *out = sum * scale;
        }
    }
}

#[inline(always)]
fn tile<const M: usize, const N: usize>(left: &[f32], right: &[f32], rank: usize, cols: usize) -> [[f32; N]; M] {
    let length = match rank {
        0..=CHAIN => rank,
        _ if rank <= 2 * CHAIN => rank.div_ceil(2),
        _ => CHAIN,
    };
    let mut total = chain::<M, N>(left, right, rank, cols, 0, length);
    let mut k = length;
    while k < rank {
        let end = (k + length).min(rank);
        let part = chain::<M, N>(left, right, rank, cols, k, end);
        for (total, part) in total.iter_mut().zip(&part) {
            for (total, part) in total.iter_mut().zip(part) {
                *total += part;
            }
        }
        k = end;
    }
    total
}

#[inline(always)]
fn chain<const M: usize, const N: usize>(left: &[f32], right: &[f32], rank: usize, cols: usize, from: usize, to: usize) -> [[f32; N]; M] {
    let mut sum = [[0.0_f32; N]; M];
    for k in from..to {
        let row: &[f32; N] = right[k * cols..k * cols + N].try_into().expect("the tile is N wide");
        for (m, sum) in sum.iter_mut().enumerate() {
            let factor = left[m * rank + k];
            for (sum, &x) in sum.iter_mut().zip(row) {
                *sum = factor.mul_add(x, *sum);
            }
        }
    }
    sum
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::simd::forced::at_every_level;

    fn numbers(n: usize, seed: u32) -> Vec<f32> {
        let mut state = seed;
        (0..n)
            .map(|_| {
                state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
                (state >> 8) as f32 / (1 << 23) as f32 - 1.0
            })
            .collect()
    }

    #[test]
    fn every_level_and_every_cut_give_the_same_bits() {
        for (rows, cols, rank) in [(1, 1, 1), (13, 37, 5), (16, 64, 16), (9, 100, 200), (3, 33, 500), (7, 40, 0)] {
            let (left, right) = (numbers(rows * rank, 1), numbers(rank * cols, 2));
            let results = at_every_level(|| {
                let mut out = vec![0.5; rows * cols];
                low_rank(&left, &right, rank, cols, 0.3, true, &mut out);
                out
            });
            let want = &results[0].1;
            for (level, got) in &results {
                assert!(got.iter().map(|x| x.to_bits()).eq(want.iter().map(|x| x.to_bits())), "{level:?}");
            }
            let mut by_row = vec![0.5; rows * cols];
            for i in 0..rows {
                low_rank(&left[i * rank..(i + 1) * rank], &right, rank, cols, 0.3, true, &mut by_row[i * cols..(i + 1) * cols]);
            }
            assert_eq!(&by_row, want);
        }
    }

    #[test]
    fn one_element_is_a_chain_of_fused_multiply_adds() {
        let (left, right) = (numbers(5, 3), numbers(5, 4));
        let mut out = [0.0];
        low_rank(&left, &right, 5, 1, 2.0, false, &mut out);
        let want = left.iter().zip(&right).fold(0.0_f32, |sum, (a, b)| a.mul_add(*b, sum)) * 2.0;
        assert_eq!(out[0].to_bits(), want.to_bits());
    }
}
