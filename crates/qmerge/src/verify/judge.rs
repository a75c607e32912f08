//! What the figures of a weight, and of all, say about the adapter.

use super::compare::SAME_RECODED;
use super::{Answer, State, VerifiedWeight, VerifyOptions, VerifySummary};
use crate::measure::{Loss, Sums};
use crate::plan::Recode;

/// A delta is there, at whatever strength, if its share is this many standard errors from zero.
const SIGNIFICANT: f64 = 4.0;
/// A share whose standard error is larger than this says nothing.
const EVIDENCE: f64 = 0.1;
/// Rounding to the nearest value moves no value by more than half a step, so noise of this many deltas was chosen: a method that looks at
/// the layer's output puts the effect elsewhere than the delta, and weights do not tell how much of it is there.
const MOVED: f64 = 2.0;

fn standard_error(loss: &Loss) -> Option<f64> {
    Some(loss.noise_to_delta? / (loss.elements.max(1) as f64).sqrt())
}

pub(super) fn judge(name: &str, format: &str, recode: &Recode, sums: &Sums, options: &VerifyOptions) -> VerifiedWeight {
    let loss = sums.loss();
    let se = standard_error(&loss);
    let state = match (loss.survival, se) {
        _ if recode.edits.is_empty() => {
            // Nothing but a tensor from the adapter, or another format: compare values.
            let close = loss.error_rms <= SAME_RECODED * loss.weight_rms;
            let exact = loss.error_rms <= 0.005 * loss.weight_rms;
            if exact || close && !recode.to.is_plain() { State::Replaced } else { State::NotReplaced }
        }
        (Some(survival), Some(se)) => {
            let noise = loss.noise_to_delta.unwrap_or(0.0);
            if se > EVIDENCE && loss.changed_fraction > 0.0 {
                State::Undecided
            } else if survival < SIGNIFICANT * se || loss.changed_fraction == 0.0 {
                State::Absent
            } else if survival < options.min_survival {
                // A weaker delta without noise was scaled; one under noise was rounded away.
                if noise < 1.0 - survival + 0.05 && noise > 1.0 - survival - 0.05 && survival > 0.05 {
                    State::Scaled
                } else if noise > MOVED {
                    State::Moved
                } else {
                    State::Lost
                }
            } else if survival > 1.5 {
                State::Scaled
            } else {
                State::Applied
            }
        }
        _ => State::NoDelta,
    };
    VerifiedWeight {
        name: name.to_owned(),
        format: format.to_owned(),
        state,
        survival: loss.survival,
        survival_se: se,
        noise_to_delta: loss.noise_to_delta,
        delta_rms: loss.delta_rms,
        changed_fraction: loss.changed_fraction,
    }
}

pub(super) fn summarize(weights: &[VerifiedWeight], total: &Sums) -> VerifySummary {
    let count = |states: &[State]| weights.iter().filter(|weight| states.contains(&weight.state)).count();
    let loss = total.loss();
    VerifySummary {
        weights: weights.len(),
        applied: count(&[State::Applied, State::Moved, State::Replaced, State::NoDelta]),
        lost: count(&[State::Lost, State::Scaled]),
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
) -> (Answer, String) {
    let survival = summary.survival.map_or(String::new(), |survival| format!(" (survival {survival:.2})"));
    let first = |state: &[State]| {
        weights.iter().find(|weight| state.contains(&weight.state)).map_or("", |weight| weight.name.as_str())
    };
    let mut problems = Vec::new();
    if let Some(name) = missing.first() {
        problems.push(format!("{} tensors are missing, first `{name}`", missing.len()));
    }
    if summary.absent > 0 {
        let name = first(&[State::Absent, State::NotReplaced]);
        problems.push(format!(
            "{} of {} weights show no trace of the adapter, first `{name}`",
            summary.absent, summary.weights
        ));
    }
    if summary.lost > 0 {
        let scaled = weights.iter().filter(|weight| weight.state == State::Scaled).count();
        if scaled > 0 {
            problems.push(format!(
                "{scaled} weights hold the delta at another strength, first `{}`",
                first(&[State::Scaled])
            ));
        }
        if summary.lost > scaled {
            let name = first(&[State::Lost]);
            problems.push(format!(
                "the adapter was applied, but rounding took most of it in {} of {} weights{survival}, first `{name}`",
                summary.lost - scaled,
                summary.weights
            ));
        }
    }
    if let Some(name) = altered.first() {
        problems.push(format!("{} tensors changed that the adapter does not touch, first `{name}`", altered.len()));
    }
    if !problems.is_empty() {
        return (Answer::No, problems.join("; "));
    }
    if summary.undecided > 0 || weights.is_empty() {
        return (
            Answer::Undecided,
            format!(
                "{} of {} weights hold too much rounding noise to tell{survival}",
                summary.undecided, summary.weights
            ),
        );
    }
    let moved = weights.iter().filter(|weight| weight.state == State::Moved).count();
    let note = match moved {
        0 => String::new(),
        _ => format!(
            "; in {moved} of them values moved by more than the delta, and only `compare` shows what is left of its effect"
        ),
    };
    (
        Answer::Yes,
        format!("the adapter is applied in all {} weights{survival}, and nothing else changed{note}", summary.weights),
    )
}
