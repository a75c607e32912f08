//! Small operations on rows, for rounding.

#![allow(clippy::needless_range_loop)]

use super::matmul::PANEL;
use super::versions;

versions! {
    /// `y += a · x`.
    pub(crate) fn axpy(a: f32, x: &[f32], y: &mut [f32]) = axpy_body;
}

#[inline(always)]
fn axpy_body(a: f32, x: &[f32], y: &mut [f32]) {
    for (y, x) in y.iter_mut().zip(x) {
        *y = a.mul_add(*x, *y);
    }
}

versions! {
    /// `y += Σ a[k] · x[k]` with `x` (a, y); each element is one chain in the order of `a`.
    pub(crate) fn axpys(a: &[f32], x: &[f32], y: &mut [f32]) = axpys_body;
}

#[inline(always)]
fn axpys_body(a: &[f32], x: &[f32], y: &mut [f32]) {
    const WIDTH: usize = 64;
    let n = y.len();
    let whole = n / WIDTH * WIDTH;
    for start in (0..whole).step_by(WIDTH) {
        let mut sums: [f32; WIDTH] = y[start..start + WIDTH].try_into().expect("WIDTH values");
        for (k, a) in a.iter().enumerate() {
            let x: &[f32; WIDTH] = x[k * n + start..k * n + start + WIDTH].try_into().expect("WIDTH values");
            for l in 0..WIDTH {
                sums[l] = a.mul_add(x[l], sums[l]);
            }
        }
        y[start..start + WIDTH].copy_from_slice(&sums);
    }
    for (k, a) in a.iter().enumerate() {
        for i in whole..n {
            y[i] = a.mul_add(x[k * n + i], y[i]);
        }
    }
}

versions! {
    /// `sums += Σ a · x[k]` over pairs (k, a), with `x` (any, [`PANEL`]); each element is one chain in the order of the pairs.
    pub(crate) fn gather(pairs: &[(u32, f32)], x: &[f32], sums: &mut [f32; PANEL]) = gather_body;
}

#[inline(always)]
fn gather_body(pairs: &[(u32, f32)], x: &[f32], sums: &mut [f32; PANEL]) {
    let mut own = *sums;
    for &(k, a) in pairs {
        let x: &[f32; PANEL] = x[k as usize * PANEL..][..PANEL].try_into().expect("a panel's row");
        for l in 0..PANEL {
            own[l] = a.mul_add(x[l], own[l]);
        }
    }
    *sums = own;
}

/// `out = x`, in pieces that glibc copies by vectors: of longer ones it makes a string instruction, which on some processors (Zen 3) is several times slower than the second-level cache.
pub(crate) fn copy(x: &[f32], out: &mut [f32]) {
    const PIECE: usize = 256;
    out.chunks_mut(PIECE).zip(x.chunks(PIECE)).for_each(|(out, x)| out.copy_from_slice(x));
}

/// Asks for values that will be read soon to come into the second-level cache, where stable Rust has the instruction.
#[cfg_attr(not(target_arch = "x86_64"), expect(unused_variables))]
pub(crate) fn prefetch(x: &[f32]) {
    #[cfg(target_arch = "x86_64")]
    for line in x.chunks(16) {
        use std::arch::x86_64::{_MM_HINT_T1, _mm_prefetch};
        // SAFETY: a prefetch reads nothing.
        unsafe { _mm_prefetch::<_MM_HINT_T1>(line.as_ptr().cast()) };
    }
}

versions! {
    /// `y[.., part] += a · x`, with `a` a column, `x` a row of the part's length and `y` (a, any).
    pub(crate) fn outer(a: &[f32], x: &[f32], y: &mut [f32], part: std::ops::Range<usize>) = outer_body;
}

#[inline(always)]
fn outer_body(a: &[f32], x: &[f32], y: &mut [f32], part: std::ops::Range<usize>) {
    let width = y.len() / a.len().max(1);
    for (a, y) in a.iter().zip(y.chunks_exact_mut(width.max(1))) {
        axpy_body(*a, x, &mut y[part.clone()]);
    }
}

versions! {
    /// Σ x·y in 16 chains.
    pub(crate) fn dot(x: &[f32], y: &[f32]) -> f32 = dot_body;
}

#[inline(always)]
fn dot_body(x: &[f32], y: &[f32]) -> f32 {
    let mut sums = [0.0_f32; 16];
    let (x, x_tail) = x.as_chunks::<16>();
    let (y, y_tail) = y.as_chunks::<16>();
    for (x, y) in x.iter().zip(y) {
        for l in 0..16 {
            sums[l] = x[l].mul_add(y[l], sums[l]);
        }
    }
    for (l, (x, y)) in x_tail.iter().zip(y_tail).enumerate() {
        sums[l] = x.mul_add(*y, sums[l]);
    }
    sums.iter().sum()
}

versions! {
    /// True if every |pull · inverse · factor| is less than `bound`.
    pub(crate) fn within(pull: &[f32], inverse: &[f32], factor: f32, bound: f32) -> bool = within_body;
}

#[inline(always)]
fn within_body(pull: &[f32], inverse: &[f32], factor: f32, bound: f32) -> bool {
    let outside = pull.iter().zip(inverse).fold(0, |outside, (pull, inverse)| {
        let inside = (pull * inverse * factor).abs() < bound;
        outside | u32::from(!inside)
    });
    outside == 0
}

versions! {
    /// For up to 64 elements: a bit for each whose `value − pull · inverse · factor` lies beyond its bounds.
    pub(crate) fn beyond(
        values: &[f32], pull: &[f32], inverse: &[f32], factor: f32, low: &[f32], high: &[f32],
    ) -> u64 = beyond_body;
}

#[inline(always)]
fn beyond_body(values: &[f32], pull: &[f32], inverse: &[f32], factor: f32, low: &[f32], high: &[f32]) -> u64 {
    let mut flags = [0_u8; 64];
    let n = values.len().min(64);
    let all = values[..n].iter().zip(&pull[..n]).zip(&inverse[..n]).zip(&low[..n]).zip(&high[..n]);
    for (flag, ((((value, pull), inverse), low), high)) in flags.iter_mut().zip(all) {
        let wanted = value - pull * inverse * factor;
        *flag = u8::from(wanted < *low) | u8::from(wanted > *high);
    }
    if flags == [0; 64] {
        return 0;
    }
    flags.iter().enumerate().fold(0, |mask, (l, &flag)| mask | u64::from(flag) << l)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::simd::forced::at_every_level;

    #[test]
    fn every_level_gives_the_same_bits() {
        let numbers = |n: usize, seed: usize| -> Vec<f32> {
            (0..n).map(|i| ((i * 7919 + seed * 104_729) % 1000) as f32 / 500.0 - 1.0).collect()
        };
        for n in [1, 15, 64, 130] {
            let (x, y) = (numbers(3 * n, 1), numbers(n, 2));
            let results = at_every_level(|| {
                let (mut one, mut all) = (y.clone(), y.clone());
                axpy(0.3, &x[..n], &mut one);
                axpys(&[0.3, -0.7, 0.1], &x, &mut all);
                let mut some = [0.5; PANEL];
                gather(&[(2, 0.3), (0, -0.7), (1, 0.1)], &numbers(3 * PANEL, 5), &mut some);
                // Two rows, of which all but the ends take a share.
                let mut rows = vec![0.5; 2 * (n + 2)];
                outer(&[0.3, -0.7], &x[..n], &mut rows, 1..n + 1);
                let near = within(&x[..n], &y, 2.0, 1.9);
                let more = (some, rows, near);
                let some = n.min(64);
                let mask = beyond(&y[..some], &x, &x[n..], 0.5, &numbers(n, 3), &numbers(n, 4));
                (one, all, dot(&x[..n], &y), mask, more)
            });
            for (level, got) in &results {
                assert_eq!(got, &results[0].1, "{level:?}");
            }
            let (one, all, sum, _, (some, rows, near)) = &results[0].1;
            let panel = numbers(3 * PANEL, 5);
            for i in 0..n {
                assert!((one[i] - (y[i] + 0.3 * x[i])).abs() < 1e-6);
                assert!((all[i] - (y[i] + 0.3 * x[i] - 0.7 * x[n + i] + 0.1 * x[2 * n + i])).abs() < 1e-6);
            }
            for (i, some) in some.iter().enumerate() {
                let want = 0.5 + 0.3 * panel[2 * PANEL + i] - 0.7 * panel[i] + 0.1 * panel[PANEL + i];
                assert!((some - want).abs() < 1e-6);
            }
            for (row, a) in rows.chunks_exact(n + 2).zip([0.3, -0.7]) {
                for i in 0..n {
                    assert!((row[i + 1] - 0.5 - a * x[i]).abs() < 1e-6);
                }
                assert!(row[0] == 0.5 && row[n + 1] == 0.5, "only the part");
            }
            assert_eq!(*near, (0..n).all(|i| (x[i] * y[i] * 2.0).abs() < 1.9));
            let want: f64 = (0..n).map(|i| f64::from(x[i]) * f64::from(y[i])).sum();
            assert!((f64::from(*sum) - want).abs() < 1e-4);
        }
        assert_eq!(beyond(&[0.0, 0.0, 0.0], &[1.0, -1.0, 0.1], &[1.0; 3], 1.0, &[-0.5; 3], &[0.5; 3]), 0b011);
    }
}
