//! The low-rank product `scale · L·R`, with one fixed order of summation.
//!
//! PEFT computes `B @ A` with the machine's BLAS. On x86 that is MKL, which sums each element in one chain of fused
//! multiply-adds with `k` ascending up to rank 192; up to 384 in two chains over the halves; above, in chains of 192
//! (measured against torch 2.15). A fused multiply-add is exactly rounded, so the same chains give the same bits at
//! every vector level and for any cut into rows. Odd ranks between 193 and 383 are cut differently by MKL.

// Tiles are small matrices with fixed bounds: indices say what happens, and compile to registers.
#![allow(clippy::needless_range_loop)]

use std::ops::Range;

use super::{Level, level, versions};

/// Longest chain that is summed without a break.
const CHAIN: usize = 192;

/// What becomes of the product. All slices are (rows, cols).
pub(crate) enum Target<'a> {
    /// `out = product`.
    Set(&'a mut [f32]),
    /// `out += product`.
    Add(&'a mut [f32]),
    /// `values = base + product`.
    Onto { base: &'a [f32], values: &'a mut [f32] },
}

/// Columns of a panel.
const PANEL: usize = 64;

/// Columns that are done for all rows before the next: rows are then read and written in runs that a prefetcher follows, and the panels
/// of a strip stay in the first-level cache.
const STRIP: usize = 4 * PANEL;

/// The right factor (rank, cols), cut into panels of [`PANEL`] columns that lie one after the other, each (rank, PANEL). A row of a tile
/// is then next to the one before, where rows of the whole factor would compete for the same few cache lines.
#[derive(Debug)]
pub(crate) struct Panels {
    rank: usize,
    cols: usize,
    /// Columns behind the last are zero.
    data: Vec<f32>,
}

impl Panels {
    pub(crate) fn new(right: &[f32], rank: usize, cols: usize) -> Self {
        debug_assert_eq!(right.len(), rank * cols);
        let mut data = vec![0.0; rank * cols.next_multiple_of(PANEL)];
        for (p, panel) in data.chunks_exact_mut((rank * PANEL).max(1)).enumerate() {
            let columns = p * PANEL..cols.min((p + 1) * PANEL);
            for (k, row) in panel.chunks_exact_mut(PANEL).enumerate() {
                row[..columns.len()].copy_from_slice(&right[k * cols + columns.start..k * cols + columns.end]);
            }
        }
        Self { rank, cols, data }
    }

    /// Some rows of the factor as they came, (rows, cols).
    pub(crate) fn rows(&self, rows: Range<usize>, out: &mut Vec<f32>) {
        out.clear();
        out.resize(rows.len() * self.cols, 0.0);
        for (p, panel) in self.data.chunks_exact((self.rank * PANEL).max(1)).enumerate() {
            let columns = p * PANEL..self.cols.min((p + 1) * PANEL);
            let panel = &panel[rows.start * PANEL..rows.end * PANEL];
            for (row, out) in panel.chunks_exact(PANEL).zip(out.chunks_exact_mut(self.cols)) {
                out[columns.clone()].copy_from_slice(&row[..columns.len()]);
            }
        }
    }
}

/// `scale · left (rows, rank) · right (rank, cols)` into `target`.
///
/// Each product is rounded once by the chain, once by the scaling, once by an addition.
pub(crate) fn low_rank(left: &[f32], right: &Panels, scale: f32, target: Target<'_>) {
    let wide = level() == Level::Avx512;
    match (target, wide) {
        (Target::Set(out), true) => set_wide(left, right, scale, &[], out),
        (Target::Set(out), false) => set(left, right, scale, &[], out),
        (Target::Add(out), true) => add_wide(left, right, scale, &[], out),
        (Target::Add(out), false) => add(left, right, scale, &[], out),
        (Target::Onto { base, values }, true) => onto_wide(left, right, scale, base, values),
        (Target::Onto { base, values }, false) => onto(left, right, scale, base, values),
    }
}

/// The sinks as numbers, since each wants its own loop.
const SET: u8 = 0;
const ADD: u8 = 1;
const ONTO: u8 = 2;

macro_rules! sinks {
    ($($wide:ident $narrow:ident $target:ident)*) => {$(
        versions! {
            fn $wide(left: &[f32], right: &Panels, scale: f32, base: &[f32], out: &mut [f32]) = product::<4, PANEL, $target>;
        }
        versions! {
            fn $narrow(left: &[f32], right: &Panels, scale: f32, base: &[f32], out: &mut [f32]) = product::<4, 16, $target>;
        }
    )*};
}
sinks! {
    set_wide set SET
    add_wide add ADD
    onto_wide onto ONTO
}

/// Tiles of `M` rows and `N` columns; the tile size changes speed only, never an element's sum.
#[inline(always)]
fn product<const M: usize, const N: usize, const SINK: u8>(
    left: &[f32],
    right: &Panels,
    scale: f32,
    base: &[f32],
    out: &mut [f32],
) {
    let (rank, cols) = (right.rank, right.cols);
    if cols == 0 {
        return;
    }
    let rows = out.len() / cols;
    debug_assert_eq!(left.len(), rows * rank);
    let tiled = rows / M * M;
    let packed = pack::<M>(&left[..tiled * rank], rank);
    for strip in (0..cols).step_by(STRIP) {
        let strip_end = cols.min(strip + STRIP);
        for i in (0..tiled).step_by(M) {
            for j in (strip..strip_end).step_by(N) {
                let panel = &right.data[j / PANEL * PANEL * rank..];
                let left = &packed[i * rank..(i + M) * rank];
                let width = N.min(cols - j);
                #[cfg(target_arch = "x86_64")]
                if N == PANEL && width == N && rank <= CHAIN {
                    // SAFETY: only the AVX-512 level makes tiles as wide as a panel.
                    unsafe { x86::tile::<SINK>(left, panel, scale, i * cols + j, cols, base, out) };
                    continue;
                }
                let sum = tile::<M, N>(left, panel, j % PANEL, rank);
                if width == N {
                    store::<M, N, SINK>(i * cols + j, cols, &sum, scale, base, out);
                } else {
                    for m in 0..M {
                        store_some::<SINK>((i + m) * cols + j, &sum[m][..width], scale, base, out);
                    }
                }
            }
        }
        for i in tiled..rows {
            for j in (strip..strip_end).step_by(N) {
                let panel = &right.data[j / PANEL * PANEL * rank..];
                let sum = tile::<1, N>(&left[i * rank..(i + 1) * rank], panel, j % PANEL, rank);
                if cols - j >= N {
                    store::<1, N, SINK>(i * cols + j, cols, &sum, scale, base, out);
                } else {
                    store_some::<SINK>(i * cols + j, &sum[0][..cols - j], scale, base, out);
                }
            }
        }
    }
}

/// Takes the sums of a tile whose first element is `at`. Everything goes through arrays of fixed size, so that a compiler need not prove that
/// the slices do not overlap; and all loads come before all stores, since a load waits for a store to the same place in another page.
#[inline(always)]
fn store<const M: usize, const N: usize, const SINK: u8>(
    at: usize,
    cols: usize,
    sum: &[[f32; N]; M],
    scale: f32,
    base: &[f32],
    out: &mut [f32],
) {
    let mut product = *sum;
    let mut total = [[0.0; N]; M];
    for m in 0..M {
        for n in 0..N {
            product[m][n] *= scale;
        }
        if SINK != SET {
            let range = at + m * cols..at + m * cols + N;
            let addend = if SINK == ADD { &out[range] } else { &base[range] };
            let addend: &[f32; N] = addend.try_into().expect("N elements");
            for n in 0..N {
                total[m][n] = product[m][n] + addend[n];
            }
        }
    }
    for m in 0..M {
        let range = at + m * cols..at + m * cols + N;
        out[range].copy_from_slice(if SINK == SET { &product[m] } else { &total[m] });
    }
}

/// The same for a part of a row.
#[inline(always)]
fn store_some<const SINK: u8>(at: usize, sum: &[f32], scale: f32, base: &[f32], out: &mut [f32]) {
    for (at, &sum) in (at..).zip(sum) {
        store::<1, 1, SINK>(at, 0, &[[sum]], scale, base, out);
    }
}

/// Rows in groups of `M`, each group as (rank, M): the factors that one step of a tile takes lie side by side.
#[inline(always)]
fn pack<const M: usize>(left: &[f32], rank: usize) -> Vec<f32> {
    let mut packed = Vec::with_capacity(left.len());
    for group in left.chunks_exact((M * rank).max(1)) {
        for k in 0..rank {
            for m in 0..M {
                packed.push(group[m * rank + k]);
            }
        }
    }
    packed
}

/// Sums of one tile. `left` is (rank, M); the tile takes columns `from..from + N` of the panel.
#[inline(always)]
fn tile<const M: usize, const N: usize>(left: &[f32], panel: &[f32], from: usize, rank: usize) -> [[f32; N]; M] {
    let length = match rank {
        0..=CHAIN => rank,
        _ if rank <= 2 * CHAIN => rank.div_ceil(2),
        _ => CHAIN,
    };
    let mut total = chain::<M, N>(&left[..length * M], panel, from);
    let mut k = length;
    while k < rank {
        let end = (k + length).min(rank);
        let part = chain::<M, N>(&left[k * M..end * M], &panel[k * PANEL..], from);
        for m in 0..M {
            for n in 0..N {
                total[m][n] += part[m][n];
            }
        }
        k = end;
    }
    total
}

#[inline(always)]
fn chain<const M: usize, const N: usize>(left: &[f32], panel: &[f32], from: usize) -> [[f32; N]; M] {
    let mut sum = [[0.0_f32; N]; M];
    for (factors, row) in left.chunks_exact(M).zip(panel.chunks_exact(PANEL)) {
        let row: &[f32; N] = row[from..from + N].try_into().expect("N columns");
        for m in 0..M {
            for n in 0..N {
                sum[m][n] = factors[m].mul_add(row[n], sum[m][n]);
            }
        }
    }
    sum
}

#[cfg(target_arch = "x86_64")]
mod x86 {
    use super::{ADD, PANEL, SET};
    use std::arch::x86_64::*;

    /// A tile of four rows and a panel, start to end in registers: the same operations in the same order as the generic tile and store.
    #[inline]
    #[target_feature(enable = "avx2,fma,f16c,avx512f,avx512bw,avx512dq,avx512vl")]
    pub(super) fn tile<const SINK: u8>(
        left: &[f32],
        panel: &[f32],
        scale: f32,
        at: usize,
        cols: usize,
        base: &[f32],
        out: &mut [f32],
    ) {
        let mut sum = [[_mm512_setzero_ps(); 4]; 4];
        for (factors, row) in left.chunks_exact(4).zip(panel.chunks_exact(PANEL)) {
            let row = load(row);
            for m in 0..4 {
                let factor = _mm512_set1_ps(factors[m]);
                for n in 0..4 {
                    sum[m][n] = _mm512_fmadd_ps(factor, row[n], sum[m][n]);
                }
            }
        }
        let scale = _mm512_set1_ps(scale);
        for m in 0..4 {
            for n in 0..4 {
                sum[m][n] = _mm512_mul_ps(sum[m][n], scale);
            }
        }
        let row = |m: usize| at + m * cols..at + m * cols + PANEL;
        let mut total = sum;
        if SINK != SET {
            for m in 0..4 {
                let addend = load(if SINK == ADD { &out[row(m)] } else { &base[row(m)] });
                for n in 0..4 {
                    total[m][n] = _mm512_add_ps(sum[m][n], addend[n]);
                }
            }
        }
        for m in 0..4 {
            store(&mut out[row(m)], &total[m]);
        }
    }

    #[target_feature(enable = "avx512f")]
    fn load(row: &[f32]) -> [__m512; 4] {
        let row: &[f32; PANEL] = row.try_into().expect("a panel's row");
        // SAFETY: four times sixteen floats of an array of 64.
        unsafe {
            let p = row.as_ptr();
            [_mm512_loadu_ps(p), _mm512_loadu_ps(p.add(16)), _mm512_loadu_ps(p.add(32)), _mm512_loadu_ps(p.add(48))]
        }
    }

    #[target_feature(enable = "avx512f")]
    fn store(row: &mut [f32], values: &[__m512; 4]) {
        let row: &mut [f32; PANEL] = row.try_into().expect("a panel's row");
        for (n, &value) in values.iter().enumerate() {
            // SAFETY: four times sixteen floats of an array of 64.
            unsafe { _mm512_storeu_ps(row.as_mut_ptr().add(16 * n), value) };
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

    fn bits(values: &[f32]) -> Vec<u32> {
        values.iter().map(|x| x.to_bits()).collect()
    }

    #[test]
    fn every_level_every_cut_and_every_sink_give_the_same_bits() {
        for (rows, cols, rank) in
            [(1, 1, 1), (13, 37, 5), (16, 64, 16), (9, 100, 200), (3, 33, 500), (7, 40, 0), (4, 129, 3)]
        {
            let (left, right) = (numbers(rows * rank, 1), Panels::new(&numbers(rank * cols, 2), rank, cols));
            let base = numbers(rows * cols, 3);
            let results = at_every_level(|| {
                let zero = vec![0.0; rows * cols];
                let (mut set, mut added, mut onto) = (zero.clone(), base.clone(), zero);
                low_rank(&left, &right, 0.3, Target::Set(&mut set));
                low_rank(&left, &right, 0.3, Target::Add(&mut added));
                low_rank(&left, &right, 0.3, Target::Onto { base: &base, values: &mut onto });
                assert_eq!(bits(&added), bits(&onto));
                (bits(&set), bits(&added))
            });
            for (level, got) in &results {
                assert_eq!(got, &results[0].1, "{level:?}");
            }
            let mut by_row = vec![0.0; rows * cols];
            for i in 0..rows {
                low_rank(
                    &left[i * rank..(i + 1) * rank],
                    &right,
                    0.3,
                    Target::Set(&mut by_row[i * cols..(i + 1) * cols]),
                );
            }
            assert_eq!(bits(&by_row), results[0].1.0);
        }
    }

    #[test]
    fn one_element_is_a_chain_of_fused_multiply_adds() {
        let (left, right) = (numbers(5, 3), numbers(5, 4));
        let mut out = [0.0];
        low_rank(&left, &Panels::new(&right, 5, 1), 2.0, Target::Set(&mut out));
        let want = left.iter().zip(&right).fold(0.0_f32, |sum, (a, b)| a.mul_add(*b, sum)) * 2.0;
        assert_eq!(out[0].to_bits(), want.to_bits());
    }
}
