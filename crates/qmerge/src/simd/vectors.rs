//! Small operations on rows, for rounding.

#![allow(clippy::needless_range_loop)]

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
    /// `y += Σ a · x[k]` over pairs (k, a), with `x` (any, y); each element is one chain in the order of the pairs.
    pub(crate) fn gather(pairs: &[(u32, f32)], x: &[f32], y: &mut [f32]) = gather_body;
}

#[inline(always)]
fn gather_body(pairs: &[(u32, f32)], x: &[f32], y: &mut [f32]) {
    if let Ok(y) = y.try_into() {
        gather_some::<64>(pairs, x, y);
    } else if let Ok(y) = y.try_into() {
        gather_some::<32>(pairs, x, y);
    } else {
        let n = y.len();
        for &(k, a) in pairs {
            axpy_body(a, &x[k as usize * n..][..n], y);
        }
    }
}

#[inline(always)]
fn gather_some<const N: usize>(pairs: &[(u32, f32)], x: &[f32], y: &mut [f32; N]) {
    let mut sums = *y;
    for &(k, a) in pairs {
        let x: &[f32; N] = x[k as usize * N..][..N].try_into().expect("N values");
        for l in 0..N {
            sums[l] = a.mul_add(x[l], sums[l]);
        }
    }
    *y = sums;
}

versions! {
    /// `y[.., part] += a · x` with few rows `a` (rows, inputs), `x` (inputs, part) and `y` (rows, any); each element is one chain over the inputs in order.
    pub(crate) fn few_rows(a: &[f32], x: &[f32], y: &mut [f32], part: std::ops::Range<usize>) = few_rows_body;
}

#[inline(always)]
fn few_rows_body(a: &[f32], x: &[f32], y: &mut [f32], part: std::ops::Range<usize>) {
    /// Rows and columns that are done together.
    const ROWS: usize = 8;
    const WIDTH: usize = 16;
    let n = part.len();
    let inputs = x.len() / n.max(1);
    let rows = a.len() / inputs.max(1);
    let width = y.len() / rows.max(1);
    for first in (0..rows).step_by(ROWS) {
        let a: [&[f32]; ROWS] = std::array::from_fn(|r| &a[(first + r).min(rows - 1) * inputs..][..inputs]);
        for start in (0..n / WIDTH * WIDTH).step_by(WIDTH) {
            let mut sums = [[0.0_f32; WIDTH]; ROWS];
            for r in 0..ROWS.min(rows - first) {
                sums[r].copy_from_slice(&y[(first + r) * width + part.start + start..][..WIDTH]);
            }
            for i in 0..inputs {
                let x: &[f32; WIDTH] = x[i * n + start..][..WIDTH].try_into().expect("WIDTH values");
                for r in 0..ROWS {
                    for l in 0..WIDTH {
                        sums[r][l] = a[r][i].mul_add(x[l], sums[r][l]);
                    }
                }
            }
            for r in 0..ROWS.min(rows - first) {
                y[(first + r) * width + part.start + start..][..WIDTH].copy_from_slice(&sums[r]);
            }
        }
        for r in 0..ROWS.min(rows - first) {
            for l in n / WIDTH * WIDTH..n {
                let y = &mut y[(first + r) * width + part.start + l];
                a[r].iter().zip(x[l..].iter().step_by(n)).for_each(|(a, x)| *y = a.mul_add(*x, *y));
            }
        }
    }
}

versions! {
    /// `y[k] += a[k] · x` with `y` (a, x).
    pub(crate) fn outer(a: &[f32], x: &[f32], y: &mut [f32]) = outer_body;
}

#[inline(always)]
fn outer_body(a: &[f32], x: &[f32], y: &mut [f32]) {
    for (a, y) in a.iter().zip(y.chunks_exact_mut(x.len().max(1))) {
        axpy_body(*a, x, y);
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
                let mut some = y.clone();
                gather(&[(2, 0.3), (0, -0.7), (1, 0.1)], &x, &mut some);
                let mut product = y.clone();
                outer(&[0.3], &x[..n], &mut product);
                // Nine rows of three inputs, and a part of what they give.
                let factors = numbers(27, 5);
                let mut rows = vec![0.5; 9 * (n + 2)];
                few_rows(&factors, &x, &mut rows, 1..n + 1);
                let near = within(&x[..n], &y, 2.0, 1.9);
                let more = (some, product, rows, near);
                let some = n.min(64);
                let mask = beyond(&y[..some], &x, &x[n..], 0.5, &numbers(n, 3), &numbers(n, 4));
                (one, all, dot(&x[..n], &y), mask, more)
            });
            for (level, got) in &results {
                assert_eq!(got, &results[0].1, "{level:?}");
            }
            let (one, all, sum, _, (some, product, rows, near)) = &results[0].1;
            let factors = numbers(27, 5);
            for i in 0..n {
                assert!((one[i] - (y[i] + 0.3 * x[i])).abs() < 1e-6);
                assert!((all[i] - (y[i] + 0.3 * x[i] - 0.7 * x[n + i] + 0.1 * x[2 * n + i])).abs() < 1e-6);
            }
            for i in 0..n {
                assert!((some[i] - (y[i] + 0.3 * x[2 * n + i] - 0.7 * x[i] + 0.1 * x[n + i])).abs() < 1e-6);
                assert_eq!(product[i], one[i]);
                for r in 0..9 {
                    let sum: f32 = (0..3).map(|k| factors[3 * r + k] * x[k * n + i]).sum();
                    assert!((rows[r * (n + 2) + 1 + i] - 0.5 - sum).abs() < 1e-6);
                }
            }
            assert!((0..9).all(|r| rows[r * (n + 2)] == 0.5 && rows[r * (n + 2) + n + 1] == 0.5), "only the part");
            assert_eq!(*near, (0..n).all(|i| (x[i] * y[i] * 2.0).abs() < 1.9));
            let want: f64 = (0..n).map(|i| f64::from(x[i]) * f64::from(y[i])).sum();
            assert!((f64::from(*sum) - want).abs() < 1e-4);
        }
        assert_eq!(beyond(&[0.0, 0.0, 0.0], &[1.0, -1.0, 0.1], &[1.0; 3], 1.0, &[-0.5; 3], &[0.5; 3]), 0b011);
    }
}
