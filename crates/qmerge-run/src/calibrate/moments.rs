//! H of a layer's inputs.

use qmerge::round::InputMoments;
use qmerge::simd::matmul::{HEIGHT, matmul};
use rayon::prelude::*;

use super::PRECISION;

/// Features whose products are computed together.
const FEATURES: usize = 256;

/// H of `x` (features, tokens).
pub(super) fn second_moments(x: &[f32], tokens: usize) -> InputMoments {
    let features = x.len() / tokens.max(1);
    let mut values = vec![0.0; features * features];
    for start in (0..features).step_by(FEATURES) {
        let width = FEATURES.min(features - start);
        let mut turned = vec![0.0; tokens * width];
        for (c, row) in x[start * tokens..(start + width) * tokens].chunks_exact(tokens).enumerate() {
            turned[c..].iter_mut().step_by(width).zip(row).for_each(|(to, &from)| *to = from);
        }
        let columns = PRECISION.pack(&turned, tokens, width);
        // H is symmetric: what lies above these columns is known from those before.
        let rows = 16 * HEIGHT;
        values[start * features..].par_chunks_mut(rows * features).enumerate().for_each(|(number, out)| {
            let first = start + number * rows;
            let count = out.len() / features;
            let mut product = vec![0.0; count * width];
            matmul(&x[first * tokens..(first + count) * tokens], &columns, false, &mut product);
            for (out, product) in out.chunks_exact_mut(features).zip(product.chunks_exact(width)) {
                out[start..start + width].iter_mut().zip(product).for_each(|(out, sum)| *out = sum / tokens as f32);
            }
        });
    }
    mirror(&mut values, features);
    InputMoments { features, tokens, values }
}

/// Copies what lies below the diagonal to above it, squares of some features at a time.
fn mirror(values: &mut [f32], features: usize) {
    const TILE: usize = 64;
    let mut rest = values;
    for start in (0..features).step_by(TILE) {
        let width = TILE.min(features - start);
        let (own, below) = rest.split_at_mut(width * features);
        own.par_chunks_mut(features).enumerate().for_each(|(i, row)| {
            let column = below.iter().skip(start + i).step_by(features);
            row[start + width..].iter_mut().zip(column).for_each(|(to, from)| *to = *from);
        });
        for i in 0..width {
            for j in i + 1..width {
                own[i * features + start + j] = own[j * features + start + i];
            }
        }
        rest = below;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn moments_are_mean_products() {
        let (features, tokens) = (300, 40);
        // Values that bf16 holds.
        let x: Vec<f32> = (0..features * tokens).map(|i| ((i * 7919) % 101) as f32 / 64.0 - 0.75).collect();
        let moments = second_moments(&x, tokens);
        for (i, j) in [(0, 0), (1, 299), (299, 1), (280, 270), (100, 257)] {
            let sum: f64 = (0..tokens).map(|t| f64::from(x[i * tokens + t]) * f64::from(x[j * tokens + t])).sum();
            assert!((f64::from(moments.values[i * features + j]) - sum / tokens as f64).abs() < 1e-5, "{i} {j}");
        }
    }
}
