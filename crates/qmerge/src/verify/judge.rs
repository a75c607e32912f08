//! What the figures of a weight, and of all, say about the adapter.

use super::compare::same_recoded;
use super::rounded::Rounded;
use super::{State, VerifiedWeight, VerifyOptions, VerifySummary};
use crate::error::Result;
use crate::formats::Weight;
use crate::measure::{Loss, Sums};
use crate::plan::Recode;

/// A delta is there, at whatever strength, if its share is this many standard errors from zero.
pub(super) const SIGNIFICANT: f64 = 4.0;
/// A share whose standard error is larger than this says nothing.
const EVIDENCE: f64 = 0.1;
/// Share of values at levels that nearest rounding gives neither the base nor the merge, from which on a method chose them: one that looks at the layer's
/// outputs puts the effect elsewhere than the delta, and weights do not tell how much of it is there. Nearest rounding has 2 in a million.
const CHOSEN: f64 = 5e-4;
/// A delta that is there with more than this share was merged at another strength, or a method moved it.
pub(super) const STRONG: f64 = 1.5;
/// A delta at another strength leaves no noise beside it beyond this share of what is there.
const PURE: f64 = 0.1;
/// What lies beside the delta and comes to this share of the weights with it is no rounding's to the nearest, however few the bits: ternary codes that nearly all become zero come to 1, and
/// values of the same size that have nothing to do with them to √2.
const UNRELATED: f64 = 1.2;
/// A survival may lie so far from what rounding leaves before it is another strength.
const STRENGTH: f64 = 0.1;
/// A share below this may be what a rounding to few bits left before the values were stored as they are, and not a strength that anybody gave.
const WEAKEST: f64 = 0.1;
/// Of a merge into few bits so many values are the base's; those of another base seldom are.
const OWN: f64 = 0.3;
/// And of one that was rounded to the nearest.
const MOSTLY_OWN: f64 = 0.9;
/// What was measured of a weight.
pub(super) struct Measured {
    pub(super) sums: Sums,
    pub(super) rounded: Option<Rounded>,
    /// How far it is from the base's, whose place a tensor of the adapter takes.
    pub(super) from_base: Option<Sums>,
}

fn standard_error(loss: &Loss) -> Option<f64> {
    Some(loss.noise_to_delta? / (loss.elements.max(1) as f64).sqrt())
}

/// Judges a weight that is stored as `stored` in the merge. `chosen` finds the share of values that a method chose; it is asked only where the sums leave a doubt.
pub(super) fn judge(
    name: &str,
    stored: &dyn Weight,
    recode: &Recode,
    found: &Measured,
    options: &VerifyOptions,
    chosen: impl FnOnce() -> Result<Option<f64>>,
) -> Result<VerifiedWeight> {
    let loss = found.sums.loss();
    let state = if recode.edits.is_empty() {
        // Nothing but a tensor from the adapter, or another format: compare values. Of a coarse tensor near to both it is the nearer one, as far as noise of four
        // standard errors lets that be told.
        let slack = 1.0 + 8.0 / loss.elements.max(1) as f64;
        let is_nearer = found.from_base.as_ref().is_none_or(|base| loss.error_rms <= slack * base.loss().error_rms);
        let close = is_nearer && loss.error_rms <= same_recoded(stored) * loss.weight_rms;
        let exact = loss.error_rms <= 0.005 * loss.weight_rms;
        if exact || close && !stored.is_plain() { State::Replaced } else { State::NotReplaced }
    } else {
        match &found.rounded {
            Some(rounded) => judge_rounded(&loss, rounded, recode.from.weight.is_plain(), options),
            None => judge_sums(&loss, options, chosen)?,
        }
    };
    Ok(VerifiedWeight {
        name: name.to_owned(),
        format: stored.format().to_owned(),
        state,
        survival: loss.survival,
        survival_se: standard_error(&loss),
        noise_to_delta: loss.noise_to_delta,
        delta_rms: loss.delta_rms,
        changed_fraction: loss.changed_fraction,
        beyond_fraction: found.rounded.map(|rounded| rounded.beyond as f64 / loss.elements.max(1) as f64),
    })
}

pub(super) fn squared(x: f64) -> f64 {
    x * x
}

/// Judges the figures of a weight that the adapter edits and that is stored as it is.
fn judge_rounded(loss: &Loss, rounded: &Rounded, base_is_plain: bool, options: &VerifyOptions) -> State {
    let (Some(survival), Some(se)) = (loss.survival, standard_error(loss)) else {
        return if rounded.beyond > 0 { State::Differs } else { State::NoDelta };
    };
    if loss.changed_fraction == 0.0 {
        return State::Absent;
    }
    let (least, most) = rounded.survivals();
    let may_be = SIGNIFICANT * se + STRENGTH;
    // Neither a wrong strength nor twice the noise of rounding explains it.
    let explained = squared(1.0 - survival) + squared(2.0 * rounded.noise()) + squared(PURE * survival);
    let is_other = squared(loss.noise_to_delta.unwrap_or(0.0)) > explained;
    let as_rounded = (least - may_be..=most + may_be).contains(&survival);
    let own = rounded.kept as f64 / loss.elements.max(1) as f64;
    if rounded.beyond > 0 && is_other && !base_is_plain && own >= OWN {
        // It was rounded to few bits before it was stored so.
        if (options.min_survival..=STRONG).contains(&survival) && se <= EVIDENCE {
            State::Applied
        } else if own >= MOSTLY_OWN {
            State::Lost
        } else {
            State::Undecided
        }
    } else if rounded.beyond > 0 && rounded.far == 0 && as_rounded && se <= EVIDENCE {
        State::Moved
    } else if rounded.beyond > 0 && (is_other || as_rounded) {
        State::Differs
    } else if se > EVIDENCE {
        State::Undecided
    } else if survival.abs() < SIGNIFICANT * se {
        State::Erased
    } else if !as_rounded && (survival.abs() > WEAKEST || base_is_plain && !is_other) {
        State::Scaled
    } else if survival < options.min_survival {
        State::Lost
    } else {
        State::Applied
    }
}

/// Judges the figures of a weight that the adapter edits, in a format of fewer bits.
fn judge_sums(loss: &Loss, options: &VerifyOptions, chosen: impl FnOnce() -> Result<Option<f64>>) -> Result<State> {
    let (Some(survival), Some(se)) = (loss.survival, standard_error(loss)) else { return Ok(State::NoDelta) };
    if loss.changed_fraction == 0.0 {
        return Ok(State::Absent);
    }
    let beside = squared(loss.noise_to_delta.unwrap_or(0.0)) - squared(1.0 - survival);
    if beside.max(0.0).sqrt() * loss.delta_rms > UNRELATED * (loss.weight_rms + loss.delta_rms) {
        return Ok(State::Differs);
    }
    if se > EVIDENCE {
        return Ok(State::Undecided);
    }
    if (options.min_survival..=STRONG).contains(&survival) {
        return Ok(State::Applied);
    }
    let is_there = survival.abs() >= SIGNIFICANT * se;
    Ok(if is_there && survival.abs() > 0.05 && beside <= squared(PURE * survival) {
        State::Scaled
    } else if chosen()?.is_some_and(|share| share >= CHOSEN) {
        State::Moved
    } else if survival > STRONG || is_there && survival < 0.0 {
        State::Scaled
    } else if is_there {
        State::Lost
    } else {
        State::Erased
    })
}

pub(super) fn summarize(weights: &[VerifiedWeight], total: &Sums) -> VerifySummary {
    let count = |states: &[State]| weights.iter().filter(|weight| states.contains(&weight.state)).count();
    let loss = total.loss();
    VerifySummary {
        weights: weights.len(),
        applied: count(&[State::Applied, State::Moved, State::Replaced, State::NoDelta]),
        lost: count(&[State::Lost, State::Erased, State::Scaled]),
        differing: count(&[State::Differs]),
        absent: count(&[State::Absent, State::NotReplaced]),
        undecided: count(&[State::Undecided]),
        survival: loss.survival,
        survival_se: standard_error(&loss),
        noise_to_delta: loss.noise_to_delta,
        changed_fraction: loss.changed_fraction,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::simd::differences::differences;

    /// Numbers that look random, of mean 0 and about the size 1.
    fn noise(seed: u64) -> impl FnMut() -> f32 {
        let mut state = seed;
        move || {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            ((state >> 40) as f32 / (1 << 23) as f32 - 1.0) * 1.7
        }
    }

    /// The state of a weight that holds `strength` of the delta under `beside` times as much noise, of which a method chose a share.
    fn state(strength: f32, beside: f32, chosen: f64) -> State {
        judged(1e-3, (strength, beside), chosen)
    }

    /// The same where the delta is so many times as large as the weights.
    fn of_delta(size: f32, strength: f32, beside: f32) -> State {
        judged(size, (strength, beside), 0.0)
    }

    fn judged(size: f32, (strength, beside): (f32, f32), chosen: f64) -> State {
        let (mut weight, mut delta, mut rounding) = (noise(1), noise(2), noise(3));
        let base: Vec<f32> = (0..1 << 16).map(|_| weight()).collect();
        let deltas: Vec<f32> = base.iter().map(|_| size * delta()).collect();
        let target: Vec<f32> = base.iter().zip(&deltas).map(|(w, d)| w + d).collect();
        let merged = base.iter().zip(&deltas).map(|(w, d)| w + strength * d + beside * size * rounding());
        let sums =
            Sums { elements: base.len() as u64, differences: differences(&base, &target, &merged.collect::<Vec<_>>()) };
        let loss = sums.loss();
        judge_sums(&loss, &VerifyOptions { min_survival: 0.5, threads: 1 }, || Ok(Some(chosen))).unwrap()
    }

    #[test]
    fn a_share_beyond_the_delta_is_another_strength_unless_a_method_put_it_there() {
        assert_eq!(state(1.0, 8.0, 0.0), State::Applied);
        // Twice as strong, whoever rounded it.
        assert_eq!(state(2.0, 0.0, 0.0), State::Scaled);
        assert_eq!(state(2.0, 0.0, 0.01), State::Scaled);
        assert_eq!(state(2.0, 8.0, 0.0), State::Scaled);
        // Under noise that a method chose, neither more nor less says anything of the effect.
        assert_eq!(state(1.74, 8.0, 0.01), State::Moved);
        assert_eq!(state(0.3, 8.0, 0.01), State::Moved);
        assert_eq!(state(0.3, 8.0, 0.0), State::Lost);
        assert_eq!(state(0.0, 8.0, 0.0), State::Erased);
        // As much as the weights themselves, and half as much again.
        assert_eq!(state(1.0, 1000.0, 0.0), State::Undecided);
        assert_eq!(state(1.0, 1500.0, 0.0), State::Differs);
        // A delta that is larger than the weights is none of that, at another strength either.
        assert_eq!(of_delta(20.0, 1.0, 0.1), State::Applied);
        assert_eq!(of_delta(20.0, 3.0, 0.0), State::Scaled);
    }
}
