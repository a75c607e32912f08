//! Non-linear functions of activations, in place.

use qmerge::arch::spec::{Activation, Clamp};
use qmerge::simd::exp::exp;
use qmerge::simd::tanh::tanh;

/// `1 / (1 + exp(−x))`, in place.
pub(crate) fn sigmoid(x: &mut [f32]) {
    x.iter_mut().for_each(|x| *x = -*x);
    exp(x);
    x.iter_mut().for_each(|x| *x = 1.0 / (1.0 + *x));
}

/// What clamped gates and ups become, in the gates' place.
pub(crate) fn clamped(clamp: Clamp, gate: &mut [f32], up: &[f32]) {
    let Clamp { alpha, limit } = clamp;
    let mut open: Vec<f32> = gate.iter().map(|gate| gate.min(limit) * alpha).collect();
    sigmoid(&mut open);
    for ((gate, up), open) in gate.iter_mut().zip(up).zip(open) {
        *gate = gate.min(limit) * open * (up.max(-limit).min(limit) + 1.0);
    }
}

/// What stands between the matrices of a feed-forward.
pub(crate) fn activate(activation: Activation, values: &mut [f32]) {
    match activation {
        Activation::Silu => {
            let mut negated: Vec<f32> = values.iter().map(|x| -x).collect();
            exp(&mut negated);
            values.iter_mut().zip(negated).for_each(|(x, exponential)| *x /= 1.0 + exponential);
        }
        Activation::Gelu => {
            values.iter_mut().for_each(|x| *x *= 0.5 * (1.0 + libm::erff(*x * std::f32::consts::FRAC_1_SQRT_2)));
        }
        Activation::GeluTanh => {
            const ROOT: f32 = 0.797_884_6;
            let mut inner: Vec<f32> = values.iter().map(|x| ROOT * (*x + 0.044_715 * *x * *x * *x)).collect();
            tanh(&mut inner);
            values.iter_mut().zip(inner).for_each(|(x, tanh)| *x *= 0.5 * (1.0 + tanh));
        }
        Activation::Relu => values.iter_mut().for_each(|x| *x = x.max(0.0)),
        Activation::ReluSquared => values.iter_mut().for_each(|x| *x = x.max(0.0) * x.max(0.0)),
    }
}

/// `cap · tanh(x / cap)`, in place.
pub(crate) fn softcap(x: &mut [f32], cap: f32) {
    x.iter_mut().for_each(|x| *x /= cap);
    tanh(x);
    x.iter_mut().for_each(|x| *x *= cap);
}

/// Exponentials of columns against each one's largest value, in place, and their sums.
pub(crate) fn exponentials(x: &mut [f32], columns: usize) -> Vec<f32> {
    let mut largest = vec![f32::NEG_INFINITY; columns];
    for row in x.chunks_exact(columns) {
        largest.iter_mut().zip(row).for_each(|(largest, &x)| *largest = largest.max(x));
    }
    for row in x.chunks_exact_mut(columns) {
        row.iter_mut().zip(&largest).for_each(|(x, largest)| *x -= largest);
    }
    exp(x);
    let mut sums = vec![0.0; columns];
    for row in x.chunks_exact(columns) {
        sums.iter_mut().zip(row).for_each(|(sum, x)| *sum += x);
    }
    sums
}

/// Exponentials that sum to one.
pub(crate) fn softmax(x: &mut [f32]) {
    let sums = exponentials(x, 1);
    x.iter_mut().for_each(|x| *x /= sums[0]);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn activations_have_their_known_values() {
        // torch.nn.functional's silu, gelu, and gelu with approximate="tanh".
        let x: [f32; 7] = [-3.0, -1.0, -0.1, 0.0, 0.5, 2.0, 6.0];
        let known: [(Activation, [f32; 7]); 5] = [
            (Activation::Silu, [-0.14227761, -0.26894143, -0.04750208, 0.0, 0.31122968, 1.7615942, 5.985164]),
            (Activation::Gelu, [-0.004049694, -0.15865526, -0.046017215, 0.0, 0.34573123, 1.9544997, 6.0]),
            (Activation::GeluTanh, [-0.003637392, -0.15880801, -0.04601725, 0.0, 0.345714, 1.9545977, 6.0]),
            (Activation::Relu, [0.0, 0.0, 0.0, 0.0, 0.5, 2.0, 6.0]),
            (Activation::ReluSquared, [0.0, 0.0, 0.0, 0.0, 0.25, 4.0, 36.0]),
        ];
        for (activation, want) in known {
            let mut got = x;
            activate(activation, &mut got);
            for (x, (got, want)) in x.iter().zip(got.iter().zip(want)) {
                assert!((got - want).abs() <= 2e-7 * x.abs(), "{activation:?} of {x}: {got}, not {want}");
            }
        }
    }
}
