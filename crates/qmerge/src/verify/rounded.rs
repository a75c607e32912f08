//! What a merge that stores values as they are says beyond sums: rounding to 16 bits moves each value by so much at most, and the share of a delta that it leaves is known.

use crate::dtype::Dtype;
use crate::measure::Sums;
use crate::simd::differences::differences;
use crate::simd::floats::round_to;

/// Half of the way from one bf16 to the next, as a share of a value at most: what one rounding moves it by. A tool may compute in bf16 whatever it stores.
const HALF_STEP: f32 = 1.0 / 256.0;
/// From one f16 to the next where they are subnormal.
const LEAST: f32 = 6e-8;
/// What a tool that multiplies in 16 bits may get wrong of a value of the delta, and of the size of its neighbours, which it is summed up from.
const PRODUCT: f32 = 1.0 / 16.0;

/// Half steps at the size of a row's values that a method which goes by the layer's outputs moves any of them by: a small value makes up for what large ones lost.
const CARRIED: f32 = 4.0;

/// Of one weight, or a part of it.
#[derive(Clone, Copy)]
pub(super) struct Rounded {
    /// Values that no rounding of base + delta to 16 bits gives.
    pub(super) beyond: u64,
    /// Those of them that no such method chose.
    pub(super) far: u64,
    /// Values that are the base's but for such a rounding.
    pub(super) kept: u64,
    /// W0, T and T rounded to the nearest.
    nearest: Sums,
    /// W0, T and what comes of adding the delta to a base that was rounded before.
    twice: Sums,
}

impl Rounded {
    pub(super) fn zero() -> Self {
        Self { beyond: 0, far: 0, kept: 0, nearest: Sums::zero(), twice: Sums::zero() }
    }

    pub(super) fn add(&mut self, other: &Self) {
        self.beyond += other.beyond;
        self.far += other.far;
        self.kept += other.kept;
        self.nearest.add(&other.nearest);
        self.twice.add(&other.twice);
    }

    /// From rows of the base's values, the target's and the merge's, which were rounded `times` on their way. Of 16 bits bf16 loses the most.
    pub(super) fn of(cols: usize, times: usize, w: &[f32], t: &[f32], m: &[f32]) -> Self {
        let sums = |rounded: &[f32]| Sums { elements: w.len() as u64, differences: differences(w, t, rounded) };
        let mut nearest = t.to_vec();
        round_to(Dtype::BF16, &mut nearest);
        let mut twice = w.to_vec();
        round_to(Dtype::BF16, &mut twice);
        twice.iter_mut().zip(t.iter().zip(w)).for_each(|(x, (t, w))| *x += t - w);
        round_to(Dtype::BF16, &mut twice);
        let (nearest, twice) = (sums(&nearest), sums(&twice));
        let (size, step) = (nearest.loss().delta_rms as f32, times as f32 * HALF_STEP);
        let (mut beyond, mut far, mut kept) = (0, 0, 0);
        let cols = cols.max(1);
        for ((w, t), m) in w.chunks(cols).zip(t.chunks(cols)).zip(m.chunks(cols)) {
            let squares: f32 = w.iter().zip(t).map(|(w, t)| (t - w) * (t - w)).sum();
            let size = size.max((squares / cols as f32).sqrt());
            let row = (w.iter().map(|w| w * w).sum::<f32>() / cols as f32).sqrt();
            for ((w, t), m) in w.iter().zip(t).zip(m) {
                let delta = (t - w).abs();
                let allowed = step * (w.abs() + delta) + PRODUCT * (delta + size) + LEAST;
                beyond += u64::from((m - t).abs() > allowed);
                far += u64::from((m - t).abs() > allowed + CARRIED * HALF_STEP * row);
                kept += u64::from((m - w).abs() <= step * w.abs() + LEAST);
            }
        }
        Self { beyond, far, kept, nearest, twice }
    }

    /// The least and the greatest share of the delta that a rounding which was meant to keep it leaves: all of it where values are rounded up or down by chance or
    /// by what their neighbours lost.
    pub(super) fn survivals(&self) -> (f64, f64) {
        let of = |sums: &Sums| sums.loss().survival.unwrap_or(1.0);
        let (nearest, twice) = (of(&self.nearest), of(&self.twice));
        (nearest.min(twice).min(1.0), nearest.max(twice).max(1.0))
    }

    /// The most noise beside the delta, ‖E‖ / ‖D‖, that rounding to the nearest leaves.
    pub(super) fn noise(&self) -> f64 {
        let of = |sums: &Sums| sums.loss().noise_to_delta.unwrap_or(0.0);
        of(&self.nearest).max(of(&self.twice))
    }
}
