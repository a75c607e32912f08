//! Products of some rows of a matrix with many columns, in one fixed order of summation.
//!
//! Activations are stored features first: `x` is (inputs, tokens), so rows of a weight give rows of the result, and neighbouring tokens
//! are neighbours in memory. With many tokens each element is one chain of fused multiply-adds over the inputs in order; with few
//! ([`FEW`]) it is the sum of 64 such chains over every 64th input. Both give the same bits at every vector level and for any cut into rows.

#![allow(clippy::needless_range_loop)]

use super::{Level, level, versions};

/// Up to this many columns a row is multiplied at a time, without packing.
pub const FEW: usize = 8;
/// Columns of a panel.
const PANEL: usize = 64;
/// Inputs that are done for all rows before the next, so that this part of a panel stays in the second-level cache.
const DEPTH: usize = 1024;
/// Chains of a dot product.
const LANES: usize = 64;

/// Columns that many matrices are multiplied with, packed once.
#[derive(Debug)]
pub struct Columns {
    inputs: usize,
    tokens: usize,
    /// With few tokens (tokens, inputs); else panels (inputs, [`PANEL`]) one after the other, padded with zeros.
    data: Vec<f32>,
}

impl Columns {
    /// Packs `x` (inputs, tokens).
    pub fn new(x: &[f32], inputs: usize, tokens: usize) -> Self {
        assert_eq!(x.len(), inputs * tokens);
        let mut data;
        if tokens <= FEW {
            data = vec![0.0; x.len()];
            for (i, row) in x.chunks_exact(tokens.max(1)).enumerate() {
                for (t, &x) in row.iter().enumerate() {
                    data[t * inputs + i] = x;
                }
            }
        } else {
            data = vec![0.0; inputs * tokens.next_multiple_of(PANEL)];
            for (p, panel) in data.chunks_exact_mut((inputs * PANEL).max(1)).enumerate() {
                let columns = p * PANEL..tokens.min((p + 1) * PANEL);
                for (row, x) in panel.chunks_exact_mut(PANEL).zip(x.chunks_exact(tokens)) {
                    row[..columns.len()].copy_from_slice(&x[columns.clone()]);
                }
            }
        }
        Self { inputs, tokens, data }
    }

    /// Rows of `x`.
    pub fn inputs(&self) -> usize {
        self.inputs
    }

    /// Columns of `x`.
    pub fn tokens(&self) -> usize {
        self.tokens
    }
}

/// `out (rows, tokens) = left (rows, inputs) · x`, or `+=` where `add`.
pub fn matmul(left: &[f32], x: &Columns, add: bool, out: &mut [f32]) {
    let rows = left.len().checked_div(x.inputs).unwrap_or(0);
    assert!(left.len() == rows * x.inputs && out.len() == rows * x.tokens);
    if !add {
        out.fill(0.0);
    }
    if x.tokens == 0 || x.inputs == 0 {
        return;
    }
    if x.tokens <= FEW {
        dots(left, x, out);
    } else if level() == Level::Avx512 {
        tiles_wide(left, x, out);
    } else {
        tiles(left, x, out);
    }
}

versions! {
    fn dots(left: &[f32], x: &Columns, out: &mut [f32]) = dots_body;
}
versions! {
    fn tiles_wide(left: &[f32], x: &Columns, out: &mut [f32]) = tiles_body::<4, PANEL>;
}
versions! {
    fn tiles(left: &[f32], x: &Columns, out: &mut [f32]) = tiles_body::<4, 16>;
}

#[inline(always)]
fn dots_body(left: &[f32], x: &Columns, out: &mut [f32]) {
    for (left, out) in left.chunks_exact(x.inputs).zip(out.chunks_exact_mut(x.tokens)) {
        for (x, out) in x.data.chunks_exact(x.inputs).zip(out) {
            *out += dot(left, x);
        }
    }
}

#[inline(always)]
fn dot(a: &[f32], b: &[f32]) -> f32 {
    let (a, a_tail) = a.as_chunks::<LANES>();
    let (b, b_tail) = b.as_chunks::<LANES>();
    let mut sums = [0.0_f32; LANES];
    for (a, b) in a.iter().zip(b) {
        for l in 0..LANES {
            sums[l] = a[l].mul_add(b[l], sums[l]);
        }
    }
    for (l, (a, b)) in a_tail.iter().zip(b_tail).enumerate() {
        sums[l] = a.mul_add(*b, sums[l]);
    }
    let mut width = LANES / 2;
    while width > 0 {
        for l in 0..width {
            sums[l] += sums[l + width];
        }
        width /= 2;
    }
    sums[0]
}

/// Tiles of `M` rows and `N` columns, which changes speed only: an element's chain goes on from what `out` holds.
#[inline(always)]
fn tiles_body<const M: usize, const N: usize>(left: &[f32], x: &Columns, out: &mut [f32]) {
    let (inputs, tokens) = (x.inputs, x.tokens);
    let rows = left.len() / inputs;
    let groups = rows.div_ceil(M);
    let mut packed = vec![0.0; groups * M * DEPTH.min(inputs)];
    for depth in (0..inputs).step_by(DEPTH) {
        let depth = depth..(depth + DEPTH).min(inputs);
        let size = M * depth.len();
        // The factors that one step of a tile takes lie side by side; rows that are missing count as zero.
        for (group, packed) in packed.chunks_exact_mut(size).take(groups).enumerate() {
            for m in 0..M.min(rows - group * M) {
                let row = &left[(group * M + m) * inputs..][depth.clone()];
                packed[m..].iter_mut().step_by(M).zip(row).for_each(|(to, &from)| *to = from);
            }
        }
        // A panel's part stays in the second-level cache for all rows.
        for j in (0..tokens).step_by(N) {
            let panel = &x.data[j / PANEL * PANEL * inputs..];
            let panel = &panel[depth.start * PANEL..depth.end * PANEL];
            let width = N.min(tokens - j);
            for (group, packed) in packed.chunks_exact(size).take(groups).enumerate() {
                let height = M.min(rows - group * M);
                let at = |m: usize| (group * M + m) * tokens + j;
                let mut sums = [[0.0_f32; N]; M];
                for m in 0..height {
                    sums[m][..width].copy_from_slice(&out[at(m)..at(m) + width]);
                }
                #[cfg(target_arch = "x86_64")]
                let done = N == PANEL && M == 4 && {
                    // SAFETY: only the AVX-512 level makes tiles as wide as a panel.
                    unsafe { x86::tile(packed, panel, sums.as_flattened_mut()) };
                    true
                };
                #[cfg(not(target_arch = "x86_64"))]
                let done = false;
                if !done {
                    tile::<M, N>(packed, panel, j % PANEL, &mut sums);
                }
                for m in 0..height {
                    out[at(m)..at(m) + width].copy_from_slice(&sums[m][..width]);
                }
            }
        }
    }
}

#[inline(always)]
fn tile<const M: usize, const N: usize>(packed: &[f32], panel: &[f32], from: usize, sums: &mut [[f32; N]; M]) {
    let mut sum = *sums;
    for (factors, row) in packed.chunks_exact(M).zip(panel.chunks_exact(PANEL)) {
        let row: &[f32; N] = row[from..from + N].try_into().expect("N columns");
        for m in 0..M {
            for n in 0..N {
                sum[m][n] = factors[m].mul_add(row[n], sum[m][n]);
            }
        }
    }
    *sums = sum;
}

#[cfg(target_arch = "x86_64")]
mod x86 {
    use super::PANEL;
    use std::arch::x86_64::*;

    /// Four rows and a panel in registers. `sums` is (4, PANEL).
    #[inline]
    #[target_feature(enable = "avx2,fma,f16c,avx512f,avx512bw,avx512dq,avx512vl")]
    pub(super) fn tile(packed: &[f32], panel: &[f32], sums: &mut [f32]) {
        assert!(sums.len() == 4 * PANEL);
        let p = sums.as_mut_ptr();
        // SAFETY: 16 vectors of 16 floats, the length checked above.
        let mut sum: [[__m512; 4]; 4] =
            std::array::from_fn(|m| std::array::from_fn(|n| unsafe { _mm512_loadu_ps(p.add(m * PANEL + 16 * n)) }));
        for (factors, row) in packed.chunks_exact(4).zip(panel.chunks_exact(PANEL)) {
            let row = row.as_ptr();
            // SAFETY: `row` is 64 floats long.
            let row: [__m512; 4] = std::array::from_fn(|n| unsafe { _mm512_loadu_ps(row.add(16 * n)) });
            for m in 0..4 {
                let factor = _mm512_set1_ps(factors[m]);
                for n in 0..4 {
                    sum[m][n] = _mm512_fmadd_ps(factor, row[n], sum[m][n]);
                }
            }
        }
        for m in 0..4 {
            for n in 0..4 {
                // SAFETY: as above.
                unsafe { _mm512_storeu_ps(p.add(m * PANEL + 16 * n), sum[m][n]) };
            }
        }
    }
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
    fn every_level_and_every_cut_give_the_same_bits_close_to_the_truth() {
        for (rows, inputs, tokens) in
            [(1, 1, 1), (5, 130, 1), (7, 64, 8), (9, 2100, 9), (4, 33, 64), (6, 1025, 130), (3, 7, 200)]
        {
            let (left, x) = (numbers(rows * inputs, 1), numbers(inputs * tokens, 2));
            let columns = Columns::new(&x, inputs, tokens);
            let start = numbers(rows * tokens, 3);
            let results = at_every_level(|| {
                let mut out = start.clone();
                matmul(&left, &columns, true, &mut out);
                let mut cut = start.clone();
                for i in 0..rows {
                    let row = i * tokens..(i + 1) * tokens;
                    matmul(&left[i * inputs..(i + 1) * inputs], &columns, true, &mut cut[row]);
                }
                assert_eq!(out, cut);
                out
            });
            for (level, got) in &results {
                assert_eq!(got, &results[0].1, "{level:?}");
            }
            for (at, got) in results[0].1.iter().enumerate() {
                let (i, t) = (at / tokens, at % tokens);
                let sum: f64 =
                    (0..inputs).map(|k| f64::from(left[i * inputs + k]) * f64::from(x[k * tokens + t])).sum();
                let want = sum + f64::from(start[at]);
                assert!((f64::from(*got) - want).abs() < 1e-4, "{got} {want}");
            }
        }
    }
}
