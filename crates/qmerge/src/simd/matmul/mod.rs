//! Products of some rows of a matrix with many columns, in one fixed order of summation.
//!
//! Activations are stored features first: `x` is (inputs, tokens), so rows of a weight give rows of the result, and neighbouring tokens
//! are neighbours in memory. With many tokens each element is one chain of fused multiply-adds over the inputs in order; with few
//! ([`FEW`]) it is the sum of 64 such chains over every 64th input. Both give the same bits at every vector level and for any cut into rows. Where the result
//! need not be that exact, columns are rounded to bf16 and taken in pairs.

#![allow(clippy::needless_range_loop)]

mod pairs;
mod window;

pub use pairs::in_hardware as multiplies_pairs;

use self::window::Window;
use super::{Level, level, versions};
use crate::parallel::spread;

/// Up to this many columns a row is multiplied at a time, without packing.
pub const FEW: usize = 8;
/// Columns of a panel.
pub(crate) const PANEL: usize = 64;
/// Inputs that are done for all rows before the next, so that this part of a panel stays in the second-level cache.
const DEPTH: usize = 512;
/// Columns of a tile where registers are narrow.
const NARROW: usize = 16;
/// Rows of a tile. Chunks of a multiple of it leave no tile unfilled.
pub const HEIGHT: usize = 6;
/// Chains of a dot product.
pub(super) const LANES: usize = 64;

/// Columns that many matrices are multiplied with, packed once.
#[derive(Debug)]
pub struct Columns {
    inputs: usize,
    tokens: usize,
    data: Packed,
}

#[derive(Debug)]
enum Packed {
    /// Panels (inputs, [`PANEL`]) one after the other, padded with zeros.
    Panels(Vec<f32>),
    /// Where there are few tokens: (tokens, inputs).
    Few(Vec<f32>),
    /// Panels of pairs of inputs, rounded to bf16.
    Pairs(Vec<u32>),
}

impl Columns {
    /// Packs `x` (inputs, tokens).
    pub fn new(x: &[f32], inputs: usize, tokens: usize) -> Self {
        assert_eq!(x.len(), inputs * tokens);
        if tokens <= FEW {
            let mut data = vec![0.0; x.len()];
            for (i, row) in x.chunks_exact(tokens.max(1)).enumerate() {
                for (t, &x) in row.iter().enumerate() {
                    data[t * inputs + i] = x;
                }
            }
            return Self { inputs, tokens, data: Packed::Few(data) };
        }
        let mut data = vec![0.0; inputs * tokens.next_multiple_of(PANEL)];
        spread(data.chunks_exact_mut((inputs * PANEL).max(1)).enumerate(), |(p, panel)| {
            let columns = p * PANEL..tokens.min((p + 1) * PANEL);
            for (row, x) in panel.chunks_exact_mut(PANEL).zip(x.chunks_exact(tokens)) {
                row[..columns.len()].copy_from_slice(&x[columns.clone()]);
            }
        });
        Self { inputs, tokens, data: Packed::Panels(data) }
    }

    /// The same rounded to bf16, as is what they are multiplied with: half the bytes, and half the time where the processor multiplies pairs of bf16. However
    /// many columns there are, each has the bits that it has alone.
    pub fn rounded(x: &[f32], inputs: usize, tokens: usize) -> Self {
        assert_eq!(x.len(), inputs * tokens);
        Self { inputs, tokens, data: Packed::Pairs(pairs::pack(x, inputs, tokens)) }
    }

    /// Takes a symmetric matrix (features, features) in panels, which need no second copy of it: some of its rows turned over are a panel.
    pub(crate) fn symmetric(mut data: Vec<f32>, features: usize) -> Self {
        assert_eq!(data.len(), features * features);
        data.resize(features * features.next_multiple_of(PANEL), 0.0);
        spread(data.chunks_exact_mut((features * PANEL).max(1)).enumerate(), |(p, panel)| {
            let count = PANEL.min(features - p * PANEL);
            let rows = panel[..count * features].to_vec();
            // In squares, which stay in the first-level cache.
            for (number, square) in panel.chunks_mut(PANEL * PANEL).enumerate() {
                let start = number * PANEL;
                square.fill(0.0);
                for (r, row) in rows.chunks_exact(features).enumerate() {
                    let row = &row[start..features.min(start + PANEL)];
                    square[r..].iter_mut().step_by(PANEL).zip(row).for_each(|(to, &from)| *to = from);
                }
            }
        });
        Self { inputs: features, tokens: features, data: Packed::Panels(data) }
    }

    /// A panel (inputs, [`PANEL`]), of columns from [`PANEL`] times its number on.
    pub(crate) fn panel(&self, number: usize) -> &[f32] {
        let Packed::Panels(data) = &self.data else { panic!("other columns lie otherwise") };
        &data[number * self.inputs * PANEL..(number + 1) * self.inputs * PANEL]
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
    match &x.data {
        Packed::Few(data) => dots(left, data, x.inputs, out),
        Packed::Panels(data) => tiles(left, data, x.inputs, x.tokens, out),
        Packed::Pairs(data) => pairs::add(left, data, x.inputs, x.tokens, out),
    }
}

/// `out (rows, PANEL) += left (rows, inputs) · panel (inputs, PANEL)`, with the same chains.
pub(crate) fn add_panel(left: &[f32], panel: &[f32], out: &mut [f32]) {
    assert!(panel.len().is_multiple_of(PANEL));
    if !left.is_empty() {
        tiles(left, panel, panel.len() / PANEL, PANEL, out);
    }
}

/// `data` is panels, one after the other.
fn tiles(left: &[f32], data: &[f32], inputs: usize, tokens: usize, out: &mut [f32]) {
    if level() == Level::Avx512 {
        tiles_wide(left, data, inputs, tokens, out);
    } else {
        tiles_narrow(left, data, inputs, tokens, out);
    }
}

versions! {
    fn dots(left: &[f32], data: &[f32], inputs: usize, out: &mut [f32]) = dots_body;
}
versions! {
    fn tiles_wide(left: &[f32], data: &[f32], inputs: usize, tokens: usize, out: &mut [f32]) = tiles_body::<PANEL>;
}
versions! {
    fn tiles_narrow(left: &[f32], data: &[f32], inputs: usize, tokens: usize, out: &mut [f32]) = tiles_body::<NARROW>;
}

#[inline(always)]
fn dots_body(left: &[f32], data: &[f32], inputs: usize, out: &mut [f32]) {
    for (left, out) in left.chunks_exact(inputs).zip(out.chunks_exact_mut(data.len() / inputs)) {
        for (x, out) in data.chunks_exact(inputs).zip(out) {
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
    sum_up(sums)
}

/// The sum of a dot product's chains: halves are added until one is left.
#[inline(always)]
pub(super) fn sum_up(mut sums: [f32; LANES]) -> f32 {
    let mut width = LANES / 2;
    while width > 0 {
        for l in 0..width {
            sums[l] += sums[l + width];
        }
        width /= 2;
    }
    sums[0]
}

/// Tiles of [`HEIGHT`] rows and `N` columns, which changes speed only: an element's chain goes on from what `out` holds.
#[inline(always)]
fn tiles_body<const N: usize>(left: &[f32], data: &[f32], inputs: usize, tokens: usize, out: &mut [f32]) {
    let rows = left.len() / inputs;
    for depth in (0..inputs).step_by(DEPTH) {
        let depth = depth..(depth + DEPTH).min(inputs);
        // A panel's part stays in the second-level cache for all rows.
        for j in (0..tokens).step_by(N) {
            let panel = &data[j / PANEL * PANEL * inputs..];
            let panel = &panel[depth.start * PANEL..depth.end * PANEL];
            let width = N.min(tokens - j);
            for first in (0..rows).step_by(HEIGHT) {
                let height = HEIGHT.min(rows - first);
                // Rows that are missing are the last one again, and thrown away.
                let left: [&[f32]; HEIGHT] =
                    std::array::from_fn(|m| &left[(first + m).min(rows - 1) * inputs..][depth.clone()]);
                Window::of(out, tokens, first * tokens + j, (height, width), N, |sums| {
                    #[cfg(target_arch = "x86_64")]
                    match (N, level()) {
                        // SAFETY: the level says that the processor has what it needs.
                        (PANEL, Level::Avx512) => return unsafe { x86::tile(left, panel, sums) },
                        // SAFETY: as above.
                        (NARROW, Level::Avx2) => return unsafe { x86::tile_narrow(left, panel, j % PANEL, sums) },
                        _ => {}
                    }
                    tile::<N>(left, panel, j % PANEL, sums);
                });
            }
        }
    }
}

#[inline(always)]
fn tile<const N: usize>(left: [&[f32]; HEIGHT], panel: &[f32], from: usize, mut sums: Window<'_>) {
    let mut sum: [[f32; N]; HEIGHT] = std::array::from_fn(|m| *sums.row(m, 0));
    let left = left.map(|left| &left[..panel.len() / PANEL]);
    for (k, row) in panel.chunks_exact(PANEL).enumerate() {
        let row: &[f32; N] = row[from..from + N].try_into().expect("N columns");
        for m in 0..HEIGHT {
            for n in 0..N {
                sum[m][n] = left[m][k].mul_add(row[n], sum[m][n]);
            }
        }
    }
    for m in 0..HEIGHT {
        *sums.row(m, 0) = sum[m];
    }
}

#[cfg(target_arch = "x86_64")]
mod x86 {
    use super::{HEIGHT, NARROW, PANEL, Window};
    use std::arch::x86_64::*;

    /// Some rows and a panel in registers.
    #[inline]
    #[target_feature(enable = "avx2,fma,f16c,avx512f,avx512bw,avx512dq,avx512vl")]
    pub(super) fn tile(left: [&[f32]; HEIGHT], panel: &[f32], mut sums: Window<'_>) {
        let (p, stride) = sums.place(0, PANEL);
        // SAFETY: four vectors of 16 floats a row, as many as may be read and written.
        let mut sum: [[__m512; 4]; HEIGHT] =
            std::array::from_fn(|m| std::array::from_fn(|n| unsafe { _mm512_loadu_ps(p.add(m * stride + 16 * n)) }));
        let left = left.map(|left| &left[..panel.len() / PANEL]);
        for (k, row) in panel.chunks_exact(PANEL).enumerate() {
            let row = row.as_ptr();
            // SAFETY: `row` is 64 floats long.
            let row: [__m512; 4] = std::array::from_fn(|n| unsafe { _mm512_loadu_ps(row.add(16 * n)) });
            for m in 0..HEIGHT {
                let factor = _mm512_set1_ps(left[m][k]);
                for n in 0..4 {
                    sum[m][n] = _mm512_fmadd_ps(factor, row[n], sum[m][n]);
                }
            }
        }
        for m in 0..HEIGHT {
            for n in 0..4 {
                // SAFETY: as above.
                unsafe { _mm512_storeu_ps(p.add(m * stride + 16 * n), sum[m][n]) };
            }
        }
    }

    /// Some rows and a few of a panel's columns, from one on.
    #[inline]
    #[target_feature(enable = "avx2,fma,f16c")]
    pub(super) fn tile_narrow(left: [&[f32]; HEIGHT], panel: &[f32], from: usize, mut sums: Window<'_>) {
        let (p, stride) = sums.place(0, NARROW);
        // SAFETY: two vectors of 8 floats a row, as many as may be read and written.
        let mut sum: [[__m256; 2]; HEIGHT] =
            std::array::from_fn(|m| std::array::from_fn(|n| unsafe { _mm256_loadu_ps(p.add(m * stride + 8 * n)) }));
        let left = left.map(|left| left[..panel.len() / PANEL].as_ptr());
        for (k, row) in panel.chunks_exact(PANEL).enumerate() {
            let row = row[from..from + NARROW].as_ptr();
            // SAFETY: `row` is 16 floats long.
            let row: [__m256; 2] = std::array::from_fn(|n| unsafe { _mm256_loadu_ps(row.add(8 * n)) });
            for m in 0..HEIGHT {
                // SAFETY: each row of `left` has a value for each row of the panel.
                let factor = unsafe { _mm256_broadcast_ss(&*left[m].add(k)) };
                for n in 0..2 {
                    sum[m][n] = _mm256_fmadd_ps(factor, row[n], sum[m][n]);
                }
            }
        }
        for m in 0..HEIGHT {
            for n in 0..2 {
                // SAFETY: as above.
                unsafe { _mm256_storeu_ps(p.add(m * stride + 8 * n), sum[m][n]) };
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

    #[test]
    fn a_symmetric_matrix_lies_in_the_panels_of_any_other() {
        for n in [1, 3, 9, 64, 130] {
            let x: Vec<f32> = (0..n * n).map(|i| ((i / n * (i % n)) % 97) as f32).collect();
            let symmetric = Columns::symmetric(x.clone(), n);
            for (i, row) in x.chunks_exact(n).enumerate() {
                for (j, want) in row.iter().enumerate() {
                    assert_eq!(symmetric.panel(j / PANEL)[i * PANEL + j % PANEL], *want, "{n}: {i} {j}");
                }
            }
            let left = numbers(2 * n, 4);
            let (mut got, mut want) = (vec![0.0; 2 * n], vec![0.0; 2 * n]);
            matmul(&left, &symmetric, false, &mut got);
            matmul(&left, &Columns::new(&x, n, n), false, &mut want);
            assert!(got.iter().zip(&want).all(|(a, b)| (a - b).abs() <= 1e-3 * (1.0 + b.abs())));
        }
    }
}
