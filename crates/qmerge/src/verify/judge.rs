//! What the figures of a weight, and of all, say about the adapter.

use super::compare::SAME_RECODED;
use super::{Answer, State, VerifiedWeight, VerifyOptions, VerifySummary};
use crate::error::{Result, counted};
use crate::measure::{Loss, Sums};
use crate::open::model_order;
use crate::plan::Recode;

/// A delta is there, at whatever strength, if its share is this many standard errors from zero.
const SIGNIFICANT: f64 = 4.0;
/// A share whose standard error is larger than this says nothing.
const EVIDENCE: f64 = 0.1;
/// Share of values at levels that nearest rounding gives neither the base nor the merge, from which on a method chose them: one that looks at the layer's
/// outputs puts the effect elsewhere than the delta, and weights do not tell how much of it is there. Nearest rounding has 2 in a million.
const CHOSEN: f64 = 5e-4;
/// A delta that is there with more than this share was merged at another strength, or a method moved it.
const STRONG: f64 = 1.5;
/// A delta at another strength leaves no noise beside it beyond this share of what is there.
const PURE: f64 = 0.1;

fn standard_error(loss: &Loss) -> Option<f64> {
    Some(loss.noise_to_delta? / (loss.elements.max(1) as f64).sqrt())
}

/// Judges a weight. `chosen` finds the share of values that a method chose; it is asked only where the sums leave a doubt.
pub(super) fn judge(
    name: &str,
    format: &str,
    recode: &Recode,
    sums: &Sums,
    options: &VerifyOptions,
    chosen: impl FnOnce() -> Result<Option<f64>>,
) -> Result<VerifiedWeight> {
    let loss = sums.loss();
    let state = if recode.edits.is_empty() {
        // Nothing but a tensor from the adapter, or another format: compare values.
        let close = loss.error_rms <= SAME_RECODED * loss.weight_rms;
        let exact = loss.error_rms <= 0.005 * loss.weight_rms;
        if exact || close && !recode.to.is_plain() { State::Replaced } else { State::NotReplaced }
    } else {
        judge_sums(&loss, options, chosen)?
    };
    Ok(VerifiedWeight {
        name: name.to_owned(),
        format: format.to_owned(),
        state,
        survival: loss.survival,
        survival_se: standard_error(&loss),
        noise_to_delta: loss.noise_to_delta,
        delta_rms: loss.delta_rms,
        changed_fraction: loss.changed_fraction,
    })
}

/// Judges the figures of a weight that the adapter edits.
fn judge_sums(loss: &Loss, options: &VerifyOptions, chosen: impl FnOnce() -> Result<Option<f64>>) -> Result<State> {
    let (Some(survival), Some(se)) = (loss.survival, standard_error(loss)) else { return Ok(State::NoDelta) };
    if loss.changed_fraction == 0.0 {
        return Ok(State::Absent);
    }
    if se > EVIDENCE {
        return Ok(State::Undecided);
    }
    if (options.min_survival..=STRONG).contains(&survival) {
        return Ok(State::Applied);
    }
    let squared = |x: f64| x * x;
    let beside = squared(loss.noise_to_delta.unwrap_or(0.0)) - squared(1.0 - survival);
    let is_there = survival >= SIGNIFICANT * se;
    Ok(if is_there && survival > 0.05 && beside <= squared(PURE * survival) {
        State::Scaled
    } else if chosen()?.is_some_and(|share| share >= CHOSEN) {
        State::Moved
    } else if survival > STRONG {
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
        absent: count(&[State::Absent, State::NotReplaced]),
        undecided: count(&[State::Undecided]),
        survival: loss.survival,
        survival_se: standard_error(&loss),
        noise_to_delta: loss.noise_to_delta,
        changed_fraction: loss.changed_fraction,
    }
}

pub(super) fn answer(
    summary: &VerifySummary,
    weights: &[VerifiedWeight],
    altered: &[String],
    missing: &[String],
    options: &VerifyOptions,
) -> (Answer, String) {
    let survival = summary.survival.map_or(String::new(), |survival| format!(" (survival {survival:.2})"));
    let of = |states: &[State]| {
        let found =
            || weights.iter().filter(|weight| states.contains(&weight.state)).map(|weight| weight.name.as_str());
        let first = found().min_by(|a, b| model_order(a, b))?;
        Some((found().count(), first))
    };
    let all = summary.weights;
    let of_all = |n: usize| format!("{n} of {}", counted(all, "weight", "weights"));
    let (all_weights, them) = match all {
        1 => ("the only weight".to_owned(), "it".to_owned()),
        _ => (format!("all {all} weights"), format!("{} of them", of(&[State::Moved]).map_or(0, |(n, _)| n))),
    };
    let mut problems = Vec::new();
    if let Some(name) = missing.iter().min_by(|a, b| model_order(a, b)) {
        problems.push(format!("{} missing, first `{name}`", counted(missing.len(), "tensor is", "tensors are")));
    }
    if let Some((n, name)) = of(&[State::Absent]) {
        problems.push(format!("the adapter is not in {}: the values are the base's, first `{name}`", of_all(n)));
    }
    if let Some((n, name)) = of(&[State::NotReplaced]) {
        problems
            .push(format!("{} not taken from the adapter, first `{name}`", counted(n, "tensor was", "tensors were")));
    }
    if let Some((n, name)) = of(&[State::Scaled]) {
        let weights = counted(n, "weight holds", "weights hold");
        problems.push(format!("{weights} the delta at another strength, first `{name}`"));
    }
    if let Some((n, name)) = of(&[State::Lost, State::Erased]) {
        let erased = of(&[State::Erased]).map_or(0, |(n, _)| n);
        problems.push(if erased == all {
            let were = if all == 1 { "was" } else { "were" };
            format!("{all_weights} {were} written anew without a trace of the adapter: rounding took it, or it was never merged")
        } else {
            let none = if erased > 0 { format!(", all of it in {erased}") } else { String::new() };
            format!("the adapter was applied, but rounding took most of it in {}{none}{survival}, first `{name}`", of_all(n))
        });
    }
    if let Some(name) = altered.iter().min_by(|a, b| model_order(a, b)) {
        let tensors = counted(altered.len(), "tensor", "tensors");
        problems.push(format!("{tensors} changed that the adapter does not touch, first `{name}`"));
    }
    if !problems.is_empty() {
        return (Answer::No, problems.join("; "));
    }
    if summary.undecided > 0 || weights.is_empty() {
        return (
            Answer::Undecided,
            format!("too much rounding noise to tell in {}{survival}", of_all(summary.undecided)),
        );
    }
    let moved = of(&[State::Moved]).map_or(0, |(n, _)| n);
    let chosen = "a method that goes by the layers' outputs put the adapter there, and weights do not tell how much of its effect is left";
    // A part of the weights may well hold the delta elsewhere, but the whole model must hold it.
    let as_meant = |survival: f64| (options.min_survival..=STRONG).contains(&survival);
    if moved > 0 && !summary.survival.is_some_and(as_meant) {
        return (
            Answer::Undecided,
            format!(
                "the adapter is merged into {all_weights}{survival}, but in {them} (`moved`) {chosen}: `qmerge compare` does"
            ),
        );
    }
    let note = if moved > 0 { format!("; in {them} (`moved`) {chosen}: `qmerge compare` does") } else { String::new() };
    let text = format!("the adapter is applied in {all_weights}{survival}, and nothing else changed{note}");
    (Answer::Yes, text)
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
        let (mut weight, mut delta, mut rounding) = (noise(1), noise(2), noise(3));
        let base: Vec<f32> = (0..1 << 16).map(|_| weight()).collect();
        let deltas: Vec<f32> = base.iter().map(|_| 1e-3 * delta()).collect();
        let target: Vec<f32> = base.iter().zip(&deltas).map(|(w, d)| w + d).collect();
        let merged = base.iter().zip(&deltas).map(|(w, d)| w + strength * d + beside * 1e-3 * rounding());
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
    }
}
