//! What all weights come to: the answer, and why.

use super::judge::{SIGNIFICANT, STRONG, squared};
use super::{Answer, State, VerifiedWeight, VerifyOptions, VerifySummary};
use crate::error::counted;
use crate::open::model_order;

/// So many weights at one strength are no coincidence.
const MANY: usize = 6;
/// Shares of weights that a method put there scatter; those of one strength lie within so much of it.
const SCATTER: f64 = 0.1;

const OTHER_STRENGTH: &str =
    "another `lora_alpha` or weight of the adapter than it says here, or a merge that was done twice or taken out";

/// What an answer is made of.
pub(super) struct Evidence<'v> {
    pub(super) summary: &'v VerifySummary,
    pub(super) weights: &'v [VerifiedWeight],
    /// Tensors that the adapter leaves alone and that changed all the same.
    pub(super) altered: &'v [String],
    /// Tensors that the merge lacks.
    pub(super) missing: &'v [String],
    /// Stacks of experts that the merge holds expert by expert.
    pub(super) apart: &'v [String],
    /// True if a report beside the merge names other adapters, and not these.
    pub(super) names_others: &'v dyn Fn() -> bool,
    pub(super) options: &'v VerifyOptions,
}

impl Evidence<'_> {
    /// Whether the adapter is in the merge, and why.
    pub(super) fn answer(&self) -> (Answer, String) {
        let problems = self.problems();
        if !problems.is_empty() {
            return (Answer::No, problems.join("; "));
        }
        let survival = self.survival();
        let apart = self.apart.iter().min_by(|a, b| model_order(a, b)).map(|first| {
            let stacks = counted(self.apart.len(), "stack of experts was", "stacks of experts were");
            format!("{stacks} not compared, since the merge holds each expert by itself, first `{first}`: give the base's GGUF file as --base")
        });
        if self.weights.is_empty() {
            let text = apart.unwrap_or_else(|| "the adapter changes no weight that the merge has".to_owned());
            return (Answer::Undecided, text);
        }
        if self.summary.undecided > 0 {
            return (
                Answer::Undecided,
                format!(
                    "what differs beside the adapter, rounding or another change, is too large to tell in {}{survival}",
                    self.of_all(self.summary.undecided)
                ),
            );
        }
        let moved = self.of(&[State::Moved]).map_or(0, |(n, _)| n);
        let them = if self.weights.len() == 1 { self.all_weights() } else { self.of_all(moved) };
        let chosen = "values are those that a method which goes by the layers' outputs may have chosen, and weights do not tell how much of the adapter's effect is left";
        // A part of the weights may well hold the delta elsewhere, but the whole model must hold it.
        let as_meant = |survival: f64| (self.options.min_survival..=STRONG).contains(&survival);
        if moved > 0
            && let Some(strength) = self.summary.survival.filter(|&strength| !as_meant(strength))
            && is_one_strength(self.weights, strength)
        {
            return (
                Answer::No,
                format!(
                    "the weights hold the delta at about {strength:.2} times its strength, all of them: {OTHER_STRENGTH}"
                ),
            );
        }
        if moved > 0 && !self.summary.survival.is_some_and(as_meant) {
            let named =
                if (self.names_others)() { "; the report beside it names the file of another adapter" } else { "" };
            let text = format!(
                "in {them} (`moved`) values are neither the base's nor those of base and adapter rounded to the nearest{survival}: of another adapter, or chosen by a method that goes by the layers' outputs, where weights do not tell how much of the adapter's effect is left; `qmerge compare` does{named}"
            );
            return (Answer::Undecided, text);
        }
        let note =
            if moved > 0 { format!("; in {them} (`moved`) {chosen}: `qmerge compare` does") } else { String::new() };
        let applied = format!("the adapter is applied in {}{survival}", self.all_weights());
        match apart {
            Some(apart) => (Answer::Undecided, format!("{applied}{note}, but {apart}")),
            None => (Answer::Yes, format!("{applied}, and no other tensor changed{note}")),
        }
    }

    /// What speaks against it, in words.
    fn problems(&self) -> Vec<String> {
        let mut problems = Vec::new();
        if let Some(name) = self.missing.iter().min_by(|a, b| model_order(a, b)) {
            problems
                .push(format!("{} missing, first `{name}`", counted(self.missing.len(), "tensor is", "tensors are")));
        }
        if let Some((n, name)) = self.of(&[State::Absent]) {
            problems
                .push(format!("the adapter is not in {}: the values are the base's, first `{name}`", self.of_all(n)));
        }
        if let Some((n, name)) = self.of(&[State::NotReplaced]) {
            problems.push(format!(
                "{} not taken from the adapter, first `{name}`",
                counted(n, "tensor was", "tensors were")
            ));
        }
        if let Some((n, name)) = self.of(&[State::Scaled]) {
            let weights = counted(n, "weight holds", "weights hold");
            let survival = self
                .share(&[State::Scaled])
                .map_or(String::new(), |(survival, _)| format!(" (survival {survival:.2})"));
            problems
                .push(format!("{weights} the delta at another strength{survival}, first `{name}`: {OTHER_STRENGTH}"));
        }
        if let Some((n, name)) = self.of(&[State::Differs]) {
            let hold = if n == 1 { "holds" } else { "hold" };
            let there = match self.share(&[State::Differs]) {
                Some((survival, se)) if survival > SIGNIFICANT * se => {
                    format!("the adapter is there (survival {survival:.2}), but ")
                }
                _ => String::new(),
            };
            let mut differing = self.weights.iter().filter(|weight| weight.state == State::Differs);
            let to = if differing.all(|weight| weight.beyond_fraction.is_some()) { " to 16 bits" } else { "" };
            problems.push(format!(
                "{there}{} {hold} values that no rounding of base and adapter{to} gives, first `{name}`: it was merged into another base, rounded to fewer bits in between, or something was added or changed",
                self.of_all(n)
            ));
        }
        if let Some((n, name)) = self.of(&[State::Lost, State::Erased]) {
            let erased = self.of(&[State::Erased]).map_or(0, |(n, _)| n);
            problems.push(if erased == n {
                let were = if n == 1 { "was" } else { "were" };
                let which = if erased == self.weights.len() { self.all_weights() } else { self.of_all(n) };
                format!("{which} {were} written anew without a trace of the adapter, first `{name}`: rounding took it, or it was never merged, or taken out again")
            } else {
                let none = if erased > 0 { format!(", all of it in {erased}") } else { String::new() };
                format!("the adapter was applied, but rounding took most of it in {}{none}{}, first `{name}`", self.of_all(n), self.survival())
            });
        }
        if let Some(name) = self.altered.iter().min_by(|a, b| model_order(a, b)) {
            let tensors = counted(self.altered.len(), "tensor", "tensors");
            problems.push(format!("{tensors} changed that the adapter does not touch, first `{name}`"));
        }
        problems
    }

    /// How many weights are in these states, and the first.
    fn of(&self, states: &[State]) -> Option<(usize, &str)> {
        let found =
            || self.weights.iter().filter(|weight| states.contains(&weight.state)).map(|weight| weight.name.as_str());
        let first = found().min_by(|a, b| model_order(a, b))?;
        Some((found().count(), first))
    }

    /// The survival of the weights in these states, each by how well it is known, and its standard error.
    fn share(&self, states: &[State]) -> Option<(f64, f64)> {
        let found = self.weights.iter().filter(|weight| states.contains(&weight.state));
        let (mut sum, mut total) = (0.0, 0.0);
        for (survival, se) in found.filter_map(|weight| weight.survival.zip(weight.survival_se)) {
            let weight = 1.0 / squared(se.max(1e-9));
            (sum, total) = (sum + weight * survival, total + weight);
        }
        (total > 0.0).then(|| (sum / total, total.sqrt().recip()))
    }

    fn survival(&self) -> String {
        self.summary.survival.map_or(String::new(), |survival| format!(" (survival {survival:.2})"))
    }

    fn of_all(&self, n: usize) -> String {
        format!("{n} of {}", counted(self.weights.len(), "weight", "weights"))
    }

    fn all_weights(&self) -> String {
        match self.weights.len() {
            1 => "the only weight".to_owned(),
            all => format!("all {all} weights"),
        }
    }
}

/// True if all weights that say something hold the delta at one strength, which is another than the adapter's: a method that goes by outputs leaves more of it in one than in
/// another.
fn is_one_strength(weights: &[VerifiedWeight], strength: f64) -> bool {
    let shares = || weights.iter().filter_map(|weight| Some((weight.survival?, weight.survival_se?)));
    let near = |(share, se): (f64, f64)| (share - strength).abs() <= SCATTER * strength.abs() + SIGNIFICANT * se;
    let telling = shares().filter(|(_, se)| *se <= SCATTER * strength.abs()).count();
    telling >= MANY && 2 * telling >= shares().count() && shares().all(near)
}
