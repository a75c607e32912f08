//! Sums over a chunk of rows from which every figure of the report follows.

use super::versions;

/// Sums over elements. W0: decoded base, T: merged target, D = T − W0: delta, Wq: decoded output, E = Wq − T.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub(crate) struct Differences {
    /// Σ W0².
    pub weight2: f64,
    /// Σ D².
    pub delta2: f64,
    /// Σ (Wq − W0)·D.
    pub change_delta: f64,
    /// Σ E².
    pub error2: f64,
    /// max |E|.
    pub max_error: f32,
    /// Elements with Wq ≠ W0.
    pub changed: u64,
    /// False if any of T, Wq is NaN or infinite.
    pub finite: bool,
}

impl Differences {
    /// Adds another chunk's sums. Chunks are added in row order, so the result does not depend on threads.
    pub(crate) fn add(&mut self, other: &Self) {
        self.weight2 += other.weight2;
        self.delta2 += other.delta2;
        self.change_delta += other.change_delta;
        self.error2 += other.error2;
        self.max_error = self.max_error.max(other.max_error);
        self.changed += other.changed;
        self.finite &= other.finite;
    }

    /// True if all values are finite and small enough for their squares to be summed.
    pub(crate) fn sound(&self) -> bool {
        self.finite && [self.weight2, self.delta2, self.change_delta, self.error2].iter().all(|x| x.is_finite())
    }

    /// Sums of nothing.
    pub(crate) fn zero() -> Self {
        Self { finite: true, ..Self::default() }
    }
}

/// f32 lanes that run side by side: one AVX-512 register, two of AVX2; the order of additions is the same for all.
const LANES: usize = 16;
/// Elements summed in f32 before the lanes are added to the f64 totals.
const SEGMENT: usize = 64 * LANES;

versions! {
    /// Sums over three equally long slices.
    pub(crate) fn differences(base: &[f32], target: &[f32], output: &[f32]) -> Differences = body;
}

#[inline(always)]
fn body(base: &[f32], target: &[f32], output: &[f32]) -> Differences {
    let mut total = Differences::zero();
    for ((base, target), output) in base.chunks(SEGMENT).zip(target.chunks(SEGMENT)).zip(output.chunks(SEGMENT)) {
        segment(base, target, output, &mut total);
    }
    total
}

/// Sums of one lane each.
struct Lanes {
    weight2: [f32; LANES],
    delta2: [f32; LANES],
    change_delta: [f32; LANES],
    error2: [f32; LANES],
    largest: [u32; LANES],
    largest_error: [u32; LANES],
    changed: [u32; LANES],
}

impl Lanes {
    #[inline(always)]
    fn add(&mut self, w: &[f32; LANES], t: &[f32; LANES], q: &[f32; LANES]) {
        for l in 0..LANES {
            let delta = t[l] - w[l];
            let change = q[l] - w[l];
            let error = q[l] - t[l];
            self.weight2[l] += w[l] * w[l];
            self.delta2[l] += delta * delta;
            self.change_delta[l] += change * delta;
            self.error2[l] += error * error;
            self.changed[l] += u32::from(q[l] != w[l]);
            self.largest_error[l] = self.largest_error[l].max(error.to_bits() & MAGNITUDE);
            self.largest[l] = self.largest[l].max((t[l].to_bits() & MAGNITUDE).max(q[l].to_bits() & MAGNITUDE));
        }
    }
}

/// All bits but the sign: comparing them as integers compares magnitudes, with NaN above infinity.
const MAGNITUDE: u32 = 0x7fff_ffff;

#[inline(always)]
fn segment(base: &[f32], target: &[f32], output: &[f32], total: &mut Differences) {
    let zero = [0.0; LANES];
    let mut lanes = Lanes {
        weight2: zero,
        delta2: zero,
        change_delta: zero,
        error2: zero,
        largest: [0; LANES],
        largest_error: [0; LANES],
        changed: [0; LANES],
    };
    let (base, base_tail) = base.as_chunks::<LANES>();
    let (target, target_tail) = target.as_chunks::<LANES>();
    let (output, output_tail) = output.as_chunks::<LANES>();
    for ((w, t), q) in base.iter().zip(target).zip(output) {
        lanes.add(w, t, q);
    }
    if !base_tail.is_empty() {
        let padded = |tail: &[f32]| {
            let mut lanes = zero;
            lanes[..tail.len()].copy_from_slice(tail);
            lanes
        };
        lanes.add(&padded(base_tail), &padded(target_tail), &padded(output_tail));
    }
    let sum = |lanes: &[f32; LANES]| lanes.iter().map(|&x| f64::from(x)).sum::<f64>();
    let max = |lanes: &[u32; LANES]| lanes.iter().copied().max().unwrap_or(0);
    total.weight2 += sum(&lanes.weight2);
    total.delta2 += sum(&lanes.delta2);
    total.change_delta += sum(&lanes.change_delta);
    total.error2 += sum(&lanes.error2);
    total.changed += lanes.changed.iter().map(|&n| u64::from(n)).sum::<u64>();
    total.max_error = total.max_error.max(f32::from_bits(max(&lanes.largest_error)));
    total.finite &= max(&lanes.largest) < f32::INFINITY.to_bits();
}

/// The first index whose value is NaN or infinite.
pub(crate) fn first_nonfinite(values: &[f32]) -> Option<usize> {
    values.iter().position(|x| !x.is_finite())
}

versions! {
    /// True if every value is finite.
    pub(crate) fn all_finite(values: &[f32]) -> bool = all_finite_body;
}

#[inline(always)]
fn all_finite_body(values: &[f32]) -> bool {
    values.iter().map(|x| x.to_bits() & MAGNITUDE).fold(0, u32::max) < f32::INFINITY.to_bits()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::simd::forced::at_every_level;

    #[test]
    fn sums_agree_with_plain_f64_and_between_levels() {
        let n = 5000;
        let wave = |k: f32| (0..n).map(|i| (i as f32 * k).sin()).collect::<Vec<_>>();
        let (w, d, q) = (wave(0.7), wave(0.13), wave(0.71));
        let t: Vec<f32> = w.iter().zip(&d).map(|(w, d)| w + d).collect();
        let all = at_every_level(|| differences(&w, &t, &q));
        let got = all[0].1;
        assert!(all.iter().all(|(_, other)| *other == got));
        let sum = |f: &dyn Fn(usize) -> f64| (0..n).map(f).sum::<f64>();
        // Summed in f32 lanes, so the bound is on the sum of magnitudes.
        let want = sum(&|i| f64::from(q[i] - w[i]) * f64::from(t[i] - w[i]));
        assert!((got.change_delta - want).abs() < 1e-6 * sum(&|i| f64::from((q[i] - w[i]) * d[i]).abs()));
        assert!((got.delta2 - sum(&|i| f64::from(d[i]).powi(2))).abs() < 1e-6 * got.delta2);
        assert!((got.error2 - sum(&|i| f64::from(q[i] - t[i]).powi(2))).abs() < 1e-6 * got.error2);
        assert_eq!(got.changed, (0..n).filter(|&i| q[i] != w[i]).count() as u64);
        assert_eq!(got.max_error, (0..n).map(|i| (q[i] - t[i]).abs()).fold(0.0, f32::max));
        assert!(got.finite);
    }

    #[test]
    fn a_single_nan_or_infinity_is_seen_anywhere() {
        for bad in [f32::NAN, -f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
            for at in [0, 15, 16, 1023, 1024, 1030] {
                let mut values = vec![1.0; 1031];
                let fine = values.clone();
                values[at] = bad;
                for (level, (target, output, plain)) in at_every_level(|| {
                    (
                        differences(&fine, &values, &fine).finite,
                        differences(&fine, &fine, &values).finite,
                        all_finite(&values),
                    )
                }) {
                    assert!(!target && !output && !plain, "{level:?} {bad} {at}");
                }
                assert_eq!(first_nonfinite(&values), Some(at));
            }
        }
    }
}
