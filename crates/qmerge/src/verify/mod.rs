//! Was an adapter applied, to which tensors, and with what loss? Answered from the files, for merges that any tool made, also where
//! the output is in another format than the base.
//!
//! For each weight that the adapter edits, with W0 the decoded base, D the delta and M the decoded merge, `survival = ⟨M − W0, D⟩ / ⟨D, D⟩`
//! estimates the share of D in M. Rounding noise that is independent of D moves the estimate by about `‖M − W0 − D‖ / (‖D‖·√n)`, its standard
//! error: that tells a weight without the adapter from one whose effect was rounded away, and says when there is no evidence.

mod answer;
mod compare;
mod experts;
mod findings;
mod gone;
mod judge;
mod rounded;

use std::collections::HashSet;

use serde::Serialize;

use crate::adapters::Names;
use crate::error::{Result, counted};
use crate::formats::{self, Inventory};
use crate::open::Checkpoint;
use crate::plan::{Action, Inputs, Plan, Step};
use crate::progress::{Progress, stopped};
use crate::report::{Earlier, Model, SCHEMA_VERSION, Tool, hashes_of};
use answer::Evidence;
use compare::Run;
use experts::Experts;
use findings::Findings;
use gone::Gone;
use judge::summarize;

/// The whole answer.
#[derive(Clone, Debug, Serialize)]
pub struct Verification {
    /// Version of the document.
    pub schema_version: u32,
    /// The program.
    pub tool: Tool,
    /// The base.
    pub base: Model,
    /// The adapters' folders.
    pub adapters: Vec<String>,
    /// The merge that was examined.
    pub merged: Model,
    /// "yes", "no" or "undecided".
    pub answer: Answer,
    /// The answer in words.
    pub text: String,
    /// Over all edited weights.
    pub summary: VerifySummary,
    /// One per weight that the adapter edits or replaces.
    pub weights: Vec<VerifiedWeight>,
    /// Tensors that no adapter touches and that differ from the base all the same.
    pub altered: Vec<String>,
    /// Tensors that should be there and are not.
    pub missing: Vec<String>,
    /// What the user should know.
    pub warnings: Vec<String>,
}

/// Was the adapter applied with its effect kept?
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Answer {
    /// Every edited weight holds the delta, nothing but rounding to see beside it, and no other tensor changed.
    Yes,
    /// Some weight does not, or something else changed.
    No,
    /// What differs beside the delta is too large to tell, or was chosen in a way that weights do not show.
    Undecided,
}

/// Figures over all edited weights.
#[derive(Clone, Debug, Serialize)]
pub struct VerifySummary {
    /// Edited weights.
    pub weights: usize,
    /// Of these, how many stand as [`State`] says.
    pub applied: usize,
    /// See [`State::Lost`], [`State::Erased`] and [`State::Scaled`].
    pub lost: usize,
    /// See [`State::Differs`].
    pub differing: usize,
    /// See [`State::Absent`].
    pub absent: usize,
    /// See [`State::Undecided`].
    pub undecided: usize,
    /// Summed survival.
    pub survival: Option<f64>,
    /// Its standard error.
    pub survival_se: Option<f64>,
    /// Summed noise ratio.
    pub noise_to_delta: Option<f64>,
    /// Share of elements whose decoded value differs from the base's.
    pub changed_fraction: f64,
}

/// What a weight of the merge holds of the delta.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum State {
    /// The delta is there.
    Applied,
    /// Values that nearest rounding gives neither of the base nor of base + delta: chosen by a method that goes by the layer's outputs, so that the effect may stand
    /// elsewhere than the delta, or of another adapter. Weights do not tell what is left of this one.
    Moved,
    /// The delta was applied, but rounding took most of it.
    Lost,
    /// The weight was written anew, without a trace of the delta: rounding took all of it, or it was never there.
    Erased,
    /// The delta is there at another strength.
    Scaled,
    /// Values that are neither base + delta nor any rounding of it to 16 bits: of another base, rounded to fewer bits in between, or changed afterwards. Told where values are
    /// stored as they are.
    Differs,
    /// The base's values, unchanged.
    Absent,
    /// Too much noise to tell.
    Undecided,
    /// The adapter's delta is zero.
    NoDelta,
    /// A tensor taken from the adapter is there.
    Replaced,
    /// A tensor that should have been taken from the adapter is not.
    NotReplaced,
}

/// One weight.
#[derive(Clone, Debug, Serialize)]
pub struct VerifiedWeight {
    /// Name in the base.
    pub name: String,
    /// Format in the merge.
    pub format: String,
    /// What was found.
    pub state: State,
    /// Share of the delta.
    pub survival: Option<f64>,
    /// Standard error of that share.
    pub survival_se: Option<f64>,
    /// Noise against the delta.
    pub noise_to_delta: Option<f64>,
    /// Root mean square of the delta.
    pub delta_rms: f64,
    /// Share of elements that differ from the base's.
    pub changed_fraction: f64,
    /// Share of elements that no rounding of base + delta to 16 bits gives; `None` in a format of fewer bits, and of what the adapter replaces.
    pub beyond_fraction: Option<f64>,
}

/// Choices of a verification.
#[derive(Clone, Debug)]
pub struct VerifyOptions {
    /// Survival from which a delta counts as kept.
    pub min_survival: f64,
    /// Worker threads; 0 for one per processor.
    pub threads: usize,
}

impl Default for VerifyOptions {
    fn default() -> Self {
        Self { min_survival: 0.5, threads: 0 }
    }
}

/// Nanoseconds of one thread that a step takes, about.
fn work(step: &Step) -> u64 {
    match &step.action {
        Action::Recode(recode) => 5 * recode.to.geometry().elements() as u64,
        Action::Copy { entry } => entry.bytes,
        Action::Constant(constant) => constant.len(),
    }
}

/// Examines a merge, whoever made it. `plan` is a plan that merges the same base and adapters.
///
/// ```
/// # fn main() -> qmerge::error::Result<()> {
/// # use qmerge::{adapters::Adapter, open::Checkpoint, plan::{Inputs, Options, Plan}, progress::Silent};
/// use qmerge::verify::{Answer, VerifyOptions, verify};
///
/// # let base = Checkpoint::open("testdata/tiny-llama/bases/base-bf16".as_ref())?;
/// # let adapter = Adapter::open("testdata/tiny-llama/adapters/plain".as_ref(), 1.0)?;
/// # let inputs = Inputs::new(base, vec![adapter])?;
/// # let plan = Plan::new(&inputs, &Options::default())?;
/// // The base itself, where a merge should be.
/// let merged = Checkpoint::open("testdata/tiny-llama/bases/base-bf16".as_ref())?;
/// let found = verify(&inputs, &plan, &merged, &VerifyOptions::default(), &Silent)?;
/// assert_eq!(found.answer, Answer::No);
/// # Ok(()) }
/// ```
pub fn verify(
    inputs: &Inputs,
    plan: &Plan,
    merged: &Checkpoint,
    options: &VerifyOptions,
    progress: &dyn Progress,
) -> Result<Verification> {
    let inventory = formats::inventory(merged)?;
    let found = Names::new(merged, &inventory.weights, &[])?;
    // Scales and states are judged with their weight.
    let companions: HashSet<&str> = inputs
        .inventory
        .weights
        .iter()
        .flat_map(|claim| claim.entries.iter().skip(1).map(|entry| entry.name.as_str()))
        .collect();
    let own = Names::new(&inputs.base, &inputs.inventory.weights, &[])?;
    let family = own.experts;
    let experts = Experts::new(own, &found);
    let stored = inputs.inventory.weights.iter().map(|claim| (claim.entries[0].name.as_str(), claim)).collect();
    let threads = crate::parallel::threads(options.threads);
    let run = Run { inputs, merged, experts: family, stored, threads, progress };
    let mut findings = Findings::new(run, options, &found, experts);
    progress.start(plan.steps.iter().map(work).sum());
    progress.phase("checking", "tensors");
    for (number, step) in plan.steps.iter().enumerate() {
        if progress.cancelled() {
            return Err(stopped());
        }
        // What was done for the step before.
        progress.advance(if number > 0 { work(&plan.steps[number - 1]) } else { 0 });
        progress.part(number as u64 + 1, plan.steps.len() as u64);
        match &step.action {
            Action::Recode(recode) => findings.take_edited(&step.name, recode)?,
            // A plan that is held against a merge is of the base's own container.
            Action::Constant(_) => {}
            Action::Copy { entry } if companions.contains(entry.name.as_str()) => {}
            Action::Copy { entry } => findings.take_copied(entry)?,
        }
    }
    progress.advance(plan.steps.last().map_or(0, work));
    let Findings { weights, total, altered, gone, .. } = findings;
    let told = gone.told();
    let Gone { missing, apart, .. } = gone;
    let summary = summarize(&weights, &total);
    let evidence = Evidence {
        summary: &summary,
        weights: &weights,
        altered: &altered,
        missing: &missing,
        apart: &apart,
        names_others: &|| names_others(inputs, merged),
        options,
    };
    let (answer, text) = evidence.answer();
    let mut warnings = plan.warnings.clone();
    warnings.extend(told);
    if !found.renamed().is_empty() {
        let tensors = counted(found.renamed().len(), "tensor of the merge was", "tensors of the merge were");
        warnings.push(format!("{tensors} found under other names"));
    }
    Ok(Verification {
        schema_version: SCHEMA_VERSION,
        tool: Tool::THIS,
        base: model(&inputs.base, &inputs.inventory),
        adapters: inputs.adapters.iter().map(|adapter| adapter.path.display().to_string()).collect(),
        merged: model(merged, &inventory),
        answer,
        text,
        summary,
        weights,
        altered,
        missing,
        warnings,
    })
}

/// True if a report beside a merge names the files of other adapters, and not these.
fn names_others(inputs: &Inputs, merged: &Checkpoint) -> bool {
    // What is no report of ours, or cannot be read, says nothing.
    let Some(earlier) = Earlier::beside(merged).ok().flatten() else { return false };
    let hashes = hashes_of(&inputs.adapters);
    let is_named = |hashes: Vec<String>| hashes.iter().any(|hash| earlier.text.contains(hash.as_str()));
    !earlier.adapters.is_empty() && !hashes.map_or(true, is_named)
}

fn model(checkpoint: &Checkpoint, inventory: &Inventory) -> Model {
    Model {
        path: checkpoint.path.display().to_string(),
        format: formats::in_words(inventory),
        bytes: checkpoint.total_bytes(),
    }
}
