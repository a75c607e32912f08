//! What the figures of a weight, and of all, say about the adapter.

use super::compare::SAME_RECODED;
use super::rounded::Rounded;
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
/// A survival may lie so far from what rounding leaves before it is another strength.
const STRENGTH: f64 = 0.1;
/// A share below this may be what a rounding to few bits left before the values were stored as they are, and not a strength that anybody gave.
const WEAKEST: f64 = 0.1;
/// Of a merge into few bits so many values are the base's; those of another base seldom are.
const OWN: f64 = 0.3;
/// And of one that was rounded to the nearest.
const MOSTLY_OWN: f64 = 0.9;
/// So many weights at one strength are no coincidence.
const MANY: usize = 6;
/// Shares of weights that a method put there scatter; those of one strength lie within so much of it.
const SCATTER: f64 = 0.1;

/// What was measured of a weight.
pub(super) struct Found {
    pub(super) sums: Sums,
    pub(super) rounded: Option<Rounded>,
}

fn standard_error(loss: &Loss) -> Option<f64> {
    Some(loss.noise_to_delta? / (loss.elements.max(1) as f64).sqrt())
}

/// Judges a weight. `chosen` finds the share of values that a method chose; it is asked only where the sums leave a doubt.
pub(super) fn judge(
    name: &str,
    format: &str,
    recode: &Recode,
    found: &Found,
    options: &VerifyOptions,
    chosen: impl FnOnce() -> Result<Option<f64>>,
) -> Result<VerifiedWeight> {
    let loss = found.sums.loss();
    let state = if recode.edits.is_empty() {
        // Nothing but a tensor from the adapter, or another format: compare values.
        let close = loss.error_rms <= SAME_RECODED * loss.weight_rms;
        let exact = loss.error_rms <= 0.005 * loss.weight_rms;
        if exact || close && !recode.to.is_plain() { State::Replaced } else { State::NotReplaced }
    } else {
        match &found.rounded {
            Some(rounded) => judge_rounded(&loss, rounded, recode.from.weight.is_plain(), options),
            None => judge_sums(&loss, options, chosen)?,
        }
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
        beyond_fraction: found.rounded.map(|rounded| rounded.beyond as f64 / loss.elements.max(1) as f64),
    })
}

fn squared(x: f64) -> f64 {
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
    if se > EVIDENCE {
        return Ok(State::Undecided);
    }
    if (options.min_survival..=STRONG).contains(&survival) {
        return Ok(State::Applied);
    }
    let beside = squared(loss.noise_to_delta.unwrap_or(0.0)) - squared(1.0 - survival);
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

/// True if all weights that say something hold the delta at one strength, which is another than the adapter's: a method that goes by outputs leaves more of it in one than in
/// another.
fn is_one_strength(weights: &[VerifiedWeight], strength: f64) -> bool {
    let shares = || weights.iter().filter_map(|weight| Some((weight.survival?, weight.survival_se?)));
    let near = |(share, se): (f64, f64)| (share - strength).abs() <= SCATTER * strength.abs() + SIGNIFICANT * se;
    let telling = shares().filter(|(_, se)| *se <= SCATTER * strength.abs()).count();
    telling >= MANY && 2 * telling >= shares().count() && shares().all(near)
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

pub(super) fn answer(
    summary: &VerifySummary,
    weights: &[VerifiedWeight],
    altered: &[String],
    missing: &[String],
    // True if a report beside the merge names other adapters, and not these.
    names_others: &dyn Fn() -> bool,
    options: &VerifyOptions,
) -> (Answer, String) {
    let survival = summary.survival.map_or(String::new(), |survival| format!(" (survival {survival:.2})"));
    let of = |states: &[State]| {
        let found =
            || weights.iter().filter(|weight| states.contains(&weight.state)).map(|weight| weight.name.as_str());
        let first = found().min_by(|a, b| model_order(a, b))?;
        Some((found().count(), first))
    };
    const OTHER_STRENGTH: &str =
        "another `lora_alpha` or weight of the adapter than it says here, or a merge that was done twice or taken out";
    // The survival of some weights, each by how well it is known, and its standard error.
    let share = |states: &[State]| {
        let found = weights.iter().filter(|weight| states.contains(&weight.state));
        let (mut sum, mut total) = (0.0, 0.0);
        for (survival, se) in found.filter_map(|weight| weight.survival.zip(weight.survival_se)) {
            let weight = 1.0 / squared(se.max(1e-9));
            (sum, total) = (sum + weight * survival, total + weight);
        }
        (total > 0.0).then(|| (sum / total, total.sqrt().recip()))
    };
    let all = summary.weights;
    let of_all = |n: usize| format!("{n} of {}", counted(all, "weight", "weights"));
    let (all_weights, them) = match all {
        1 => ("the only weight".to_owned(), "the only weight".to_owned()),
        _ => (format!("all {all} weights"), of_all(of(&[State::Moved]).map_or(0, |(n, _)| n))),
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
        let survival =
            share(&[State::Scaled]).map_or(String::new(), |(survival, _)| format!(" (survival {survival:.2})"));
        problems.push(format!("{weights} the delta at another strength{survival}, first `{name}`: {OTHER_STRENGTH}"));
    }
    if let Some((n, name)) = of(&[State::Differs]) {
        let hold = if n == 1 { "holds" } else { "hold" };
        let there = match share(&[State::Differs]) {
            Some((survival, se)) if survival > SIGNIFICANT * se => {
                format!("the adapter is there (survival {survival:.2}), but ")
            }
            _ => String::new(),
        };
        problems.push(format!(
            "{there}{} {hold} values that no rounding of base and adapter to 16 bits gives, first `{name}`: it was merged into another base, rounded to fewer bits in between, or something was added or changed",
            of_all(n)
        ));
    }
    if let Some((n, name)) = of(&[State::Lost, State::Erased]) {
        let erased = of(&[State::Erased]).map_or(0, |(n, _)| n);
        problems.push(if erased == n {
            let were = if n == 1 { "was" } else { "were" };
            let which = if erased == all { all_weights.clone() } else { of_all(n) };
            format!("{which} {were} written anew without a trace of the adapter, first `{name}`: rounding took it, or it was never merged, or taken out again")
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
    if weights.is_empty() {
        return (Answer::Undecided, "the adapter changes no weight that the merge has".to_owned());
    }
    if summary.undecided > 0 {
        return (
            Answer::Undecided,
            format!(
                "what differs beside the adapter, rounding or another change, is too large to tell in {}{survival}",
                of_all(summary.undecided)
            ),
        );
    }
    let moved = of(&[State::Moved]).map_or(0, |(n, _)| n);
    let chosen = "values are those that a method which goes by the layers' outputs may have chosen, and weights do not tell how much of the adapter's effect is left";
    // A part of the weights may well hold the delta elsewhere, but the whole model must hold it.
    let as_meant = |survival: f64| (options.min_survival..=STRONG).contains(&survival);
    if moved > 0
        && let Some(strength) = summary.survival.filter(|&strength| !as_meant(strength))
        && is_one_strength(weights, strength)
    {
        return (
            Answer::No,
            format!(
                "the weights hold the delta at about {strength:.2} times its strength, all of them: {OTHER_STRENGTH}"
            ),
        );
    }
    if moved > 0 && !summary.survival.is_some_and(as_meant) {
        let named = if names_others() { "; the report beside it names the file of another adapter" } else { "" };
        let text = format!(
            "in {them} (`moved`) values are neither the base's nor those of base and adapter rounded to the nearest{survival}: of another adapter, or chosen by a method that goes by the layers' outputs, where weights do not tell how much of the adapter's effect is left; `qmerge compare` does{named}"
        );
        return (Answer::Undecided, text);
    }
    let note = if moved > 0 { format!("; in {them} (`moved`) {chosen}: `qmerge compare` does") } else { String::new() };
    let text = format!("the adapter is applied in {all_weights}{survival}, and no other tensor changed{note}");
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
