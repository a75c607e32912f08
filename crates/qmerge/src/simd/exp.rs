//! The exponential of many values.

use super::versions;

versions! {
    /// Replaces each value by its exponential, to within 2 units in the last place. Below −87.3 it is 0; NaN stays NaN.
    pub fn exp(x: &mut [f32]) = exp_body;
}

#[inline(always)]
fn exp_body(x: &mut [f32]) {
    for x in x {
        *x = one(*x);
    }
}

/// e^x = 2^n · e^r with |r| ≤ ln 2 / 2, and e^r by its Taylor polynomial of degree 7, whose error there is below 6e-9.
#[inline(always)]
pub(super) fn one(x: f32) -> f32 {
    // ln 2 in two parts, so that n · ln 2 is subtracted without loss (Cody and Waite).
    const HIGH: f32 = 0.693_359_4;
    const LOW: f32 = -2.121_944_4e-4;
    // Adding and subtracting 1.5 · 2^23 rounds to an integer, which then stands in the low bits.
    const ROUND: f32 = 12_582_912.0;
    let bounded = x.clamp(-87.3, 88.8);
    let shifted = bounded.mul_add(std::f32::consts::LOG2_E, ROUND);
    let n = shifted - ROUND;
    let r = n.mul_add(-LOW, n.mul_add(-HIGH, bounded));
    let mut p = 1.0 / 5040.0;
    for factor in [1.0 / 720.0, 1.0 / 120.0, 1.0 / 24.0, 1.0 / 6.0, 0.5, 1.0, 1.0] {
        p = r.mul_add(p, factor);
    }
    // In two steps, since 2^128 is no f32.
    let exponent = shifted.to_bits().wrapping_sub(ROUND.to_bits()) as i32;
    let half = exponent >> 1;
    let power = |n: i32| f32::from_bits(((n + 127) as u32) << 23);
    let result = p * power(half) * power(exponent - half);
    if x < -87.3 { 0.0 } else { result }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::simd::forced::at_every_level;

    #[test]
    fn values_are_close_to_those_in_double_precision_and_equal_at_every_level() {
        let inputs: Vec<f32> = (-8_800..8_872).map(|i| i as f32 * 0.01 + 0.003).collect();
        for (level, got) in at_every_level(|| {
            let mut x = inputs.clone();
            exp(&mut x);
            x
        }) {
            for (&x, got) in inputs.iter().zip(got) {
                let want = f64::from(x).exp();
                let unit = want.max(f64::from(f32::MIN_POSITIVE)) * f64::from(f32::EPSILON);
                assert!(
                    (f64::from(got) - want).abs() < 2.0 * unit || want < 1.3e-38,
                    "{level:?} exp({x}) = {got}, not {want}"
                );
                assert_eq!(got.to_bits(), one(x).to_bits(), "{level:?}");
            }
        }
        let mut ends = [f32::NEG_INFINITY, -200.0, 0.0, 200.0, f32::INFINITY, f32::NAN];
        exp(&mut ends);
        assert_eq!(ends[..5], [0.0, 0.0, 1.0, f32::INFINITY, f32::INFINITY]);
        assert!(ends[5].is_nan());
    }
}
