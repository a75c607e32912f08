//! Products of rows in f64: what eigenvalues of a matrix's small side are made of.

#![allow(clippy::needless_range_loop)]

use super::versions;

/// Rows and columns of a tile of the result.
const HEIGHT: usize = 4;
const WIDTH: usize = 16;
/// Values of a row that are taken at a time, so that this part of all rows stays in the second-level cache.
const DEPTH: usize = 128;

/// X Xᵀ (n, n) of `x` (n, len): each element is one chain of fused multiply-adds in f64, in the order of the row.
pub(crate) fn gram(x: &[f32], n: usize, len: usize) -> Vec<f64> {
    assert_eq!(x.len(), n * len);
    let wide = n.next_multiple_of(WIDTH);
    let mut out = vec![0.0; n.next_multiple_of(HEIGHT) * wide];
    let mut block = Vec::new();
    for start in (0..len).step_by(DEPTH) {
        let depth = DEPTH.min(len - start);
        block.clear();
        block.resize(depth * wide, 0.0);
        for (i, row) in x.chunks_exact(len).enumerate() {
            for (k, x) in row[start..start + depth].iter().enumerate() {
                block[k * wide + i] = f64::from(*x);
            }
        }
        add(&block, wide, &mut out);
    }
    (0..n * n).map(|at| (at / n, at % n)).map(|(i, j)| out[i.min(j) * wide + i.max(j)]).collect()
}

versions! {
    /// Adds what `block` (depth, wide) gives to the elements from the diagonal on.
    fn add(block: &[f64], wide: usize, out: &mut [f64]) = add_body;
}

#[inline(always)]
fn add_body(block: &[f64], wide: usize, out: &mut [f64]) {
    for i in (0..out.len() / wide).step_by(HEIGHT) {
        for j in (i / WIDTH * WIDTH..wide).step_by(WIDTH) {
            let mut sums = [[0.0_f64; WIDTH]; HEIGHT];
            for r in 0..HEIGHT {
                sums[r].copy_from_slice(&out[(i + r) * wide + j..][..WIDTH]);
            }
            for row in block.chunks_exact(wide) {
                let right: &[f64; WIDTH] = row[j..j + WIDTH].try_into().expect("WIDTH values");
                for r in 0..HEIGHT {
                    let left = row[i + r];
                    for l in 0..WIDTH {
                        sums[r][l] = left.mul_add(right[l], sums[r][l]);
                    }
                }
            }
            for r in 0..HEIGHT {
                out[(i + r) * wide + j..][..WIDTH].copy_from_slice(&sums[r]);
            }
        }
    }
}

/// W X (weights, len) of `weights` (any, n) and `x` (n, len): each element is one chain of fused multiply-adds in f64, in the order of the rows.
pub(crate) fn combine(weights: &[f64], x: &[f32], n: usize, len: usize) -> Vec<f64> {
    let mut out = vec![0.0; weights.len() / n.max(1) * len];
    combine_into(weights, x, n, &mut out);
    out
}

versions! {
    fn combine_into(weights: &[f64], x: &[f32], n: usize, out: &mut [f64]) = combine_body;
}

#[inline(always)]
fn combine_body(weights: &[f64], x: &[f32], n: usize, out: &mut [f64]) {
    let len = x.len() / n.max(1);
    let whole = len / WIDTH * WIDTH;
    for start in (0..whole).step_by(WIDTH) {
        for (tile, weights) in weights.chunks(HEIGHT * n.max(1)).enumerate() {
            let rows = weights.len() / n;
            let mut sums = [[0.0_f64; WIDTH]; HEIGHT];
            for i in 0..n {
                let x: &[f32; WIDTH] = x[i * len + start..][..WIDTH].try_into().expect("WIDTH values");
                for r in 0..rows {
                    let weight = weights[r * n + i];
                    for l in 0..WIDTH {
                        sums[r][l] = weight.mul_add(f64::from(x[l]), sums[r][l]);
                    }
                }
            }
            for r in 0..rows {
                out[(tile * HEIGHT + r) * len + start..][..WIDTH].copy_from_slice(&sums[r]);
            }
        }
    }
    for (out, weights) in out.chunks_exact_mut(len.max(1)).zip(weights.chunks_exact(n.max(1))) {
        for at in whole..len {
            out[at] = weights.iter().enumerate().fold(0.0, |sum, (i, w)| w.mul_add(f64::from(x[i * len + at]), sum));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::simd::forced::at_every_level;

    fn values(count: usize) -> Vec<f32> {
        (0..count).map(|i| ((i * i * 7919 + i) % 1013) as f32 / 506.0 - 1.0).collect()
    }

    #[test]
    fn products_of_rows_are_those_of_plain_sums_at_every_level() {
        for (n, len) in [(1, 1), (3, 130), (5, 17), (16, 257), (37, 300)] {
            let x = values(n * len);
            let sum = |i: usize, j: usize| -> f64 {
                (0..len).fold(0.0, |sum, k| f64::from(x[i * len + k]).mul_add(f64::from(x[j * len + k]), sum))
            };
            for (level, got) in at_every_level(|| gram(&x, n, len)) {
                for (at, got) in got.iter().enumerate() {
                    // The other half is turned over, so its factors come in the other order: the same product.
                    assert_eq!(*got, sum(at / n, at % n), "{level:?} {n} {len}");
                }
            }
        }
    }

    #[test]
    fn sums_of_rows_are_plain_sums_at_every_level() {
        for (count, n, len) in [(1, 1, 1), (5, 3, 40), (9, 20, 33), (4, 7, 16)] {
            let (x, weights) = (values(n * len), values(count * n).into_iter().map(f64::from).collect::<Vec<_>>());
            for (level, got) in at_every_level(|| combine(&weights, &x, n, len)) {
                for (at, got) in got.iter().enumerate() {
                    let (r, c) = (at / len, at % len);
                    let want = (0..n).fold(0.0, |sum, i| weights[r * n + i].mul_add(f64::from(x[i * len + c]), sum));
                    assert_eq!(*got, want, "{level:?} {count} {n} {len}");
                }
            }
        }
        assert!(combine(&[], &[1.0, 2.0], 2, 1).is_empty());
    }
}
