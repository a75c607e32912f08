//! What a merge that stores values as they are says beyond sums: rounding to 16 bits moves each value by so much at most, and the share of a delta that it leaves is known.

use crate::dtype::Dtype;
use crate::measure::Sums;
use crate::simd::differences::differences;
use crate::simd::floats::round_to;

/// From one bf16 to the next, as a share of a value at most. A tool may compute in bf16 whatever it stores, and round to either neighbour.
const STEP: f32 = 1.0 / 128.0;
/// From one f16 to the next where they are subnormal.
const LEAST: f32 = 6e-8;
/// What a tool that multiplies in 16 bits may get wrong of a value of the delta, and of the size of its neighbours, which it is summed up from.
const PRODUCT: f32 = 1.0 / 16.0;

/// Of one weight, or a part of it.
#[derive(Clone, Copy)]
pub(super) struct Rounded {
    /// Values that no rounding of base + delta gives.
    pub(super) beyond: u64,
    /// W0, T and T rounded to the nearest.
    nearest: Sums,
    /// W0, T and what comes of adding the delta to a base that was rounded before.
    twice: Sums,
}

impl Rounded {
    pub(super) fn zero() -> Self {
        Self { beyond: 0, nearest: Sums::zero(), twice: Sums::zero() }
    }

    pub(super) fn add(&mut self, other: &Self) {
        self.beyond += other.beyond;
        self.nearest.add(&other.nearest);
        self.twice.add(&other.twice);
    }

    /// From the base's values, the target's and the merge's. Of 16 bits bf16 loses the most, and a tool may have computed in it what it stores in others.
    pub(super) fn of(w: &[f32], t: &[f32], m: &[f32]) -> Self {
        let sums = |rounded: &[f32]| Sums { elements: w.len() as u64, differences: differences(w, t, rounded) };
        let mut nearest = t.to_vec();
        round_to(Dtype::BF16, &mut nearest);
        let mut twice = w.to_vec();
        round_to(Dtype::BF16, &mut twice);
        twice.iter_mut().zip(t.iter().zip(w)).for_each(|(x, (t, w))| *x += t - w);
        round_to(Dtype::BF16, &mut twice);
        let (nearest, twice) = (sums(&nearest), sums(&twice));
        let size = nearest.loss().delta_rms as f32;
        let is_beyond = |((w, t), m): &((&f32, &f32), &f32)| {
            let delta = (*t - *w).abs();
            (*m - *t).abs() > STEP * (w.abs() + delta) + PRODUCT * (delta + size) + LEAST
        };
        let beyond = w.iter().zip(t).zip(m).filter(is_beyond).count() as u64;
        Self { beyond, nearest, twice }
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
