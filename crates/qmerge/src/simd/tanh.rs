//! The hyperbolic tangent of many values.

use super::{exp, versions};

versions! {
    /// Replaces each value by its hyperbolic tangent, to within 3 units in the last place; NaN stays NaN.
    pub fn tanh(x: &mut [f32]) = tanh_body;
}

#[inline(always)]
fn tanh_body(x: &mut [f32]) {
    for x in x {
        *x = one(*x);
    }
}

/// Below this the difference of two near values would lose digits.
const NEAR: f32 = 0.625;

/// 1 − 2 / (e^2x + 1), and near zero x + x³ · P(x²), where P is fitted to the least relative error (4.4e-9); odd by taking the sign last.
#[inline(always)]
fn one(x: f32) -> f32 {
    const P: [f32; 5] = [-0.005_704_985, 0.020_639_084, -0.053_739_715, 0.133_314_42, -0.333_332_8];
    let magnitude = x.abs();
    let far = 1.0 - 2.0 / (exp::one(2.0 * magnitude) + 1.0);
    let square = magnitude * magnitude;
    let mut p = P[0];
    for coefficient in &P[1..] {
        p = p.mul_add(square, *coefficient);
    }
    let near = (magnitude * square).mul_add(p, magnitude);
    // NaN is not below, and far is NaN too.
    if magnitude < NEAR { near } else { far }.copysign(x)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::simd::forced::at_every_level;

    #[test]
    fn values_are_close_to_those_in_double_precision_and_equal_at_every_level() {
        let mut inputs: Vec<f32> = (-12_000..12_000).map(|i| i as f32 * 0.001 + 0.000_3).collect();
        inputs.extend((-60..0).flat_map(|n| [1.0, -1.3].map(|x| x * (n as f32).exp2())));
        for (level, got) in at_every_level(|| {
            let mut x = inputs.clone();
            tanh(&mut x);
            x
        }) {
            for (&x, got) in inputs.iter().zip(got) {
                let want = f64::from(x).tanh();
                let unit = want.abs() * f64::from(f32::EPSILON);
                assert!((f64::from(got) - want).abs() < 3.0 * unit, "{level:?} tanh({x}) = {got}, not {want}");
                assert_eq!(got.to_bits(), one(x).to_bits(), "{level:?}");
                assert_eq!((-got).to_bits(), one(-x).to_bits(), "{level:?}");
            }
        }
        let mut ends = [f32::NEG_INFINITY, -200.0, -0.0, 0.0, 44.5, f32::MAX, f32::INFINITY, f32::NAN];
        tanh(&mut ends);
        assert_eq!(ends[..7], [-1.0, -1.0, 0.0, 0.0, 1.0, 1.0, 1.0]);
        assert!(ends[2].is_sign_negative() && ends[3].is_sign_positive() && ends[7].is_nan());
    }
}
