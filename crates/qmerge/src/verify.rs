//! Was an adapter applied, to which tensors, and with what loss? Answered from the files, for merges that any tool made, also where
//! the output is in another format than the base.
//!
//! For each weight that the adapter edits, with W0 the decoded base, D the delta and M the decoded merge, `survival = ⟨M − W0, D⟩ / ⟨D, D⟩`
//! estimates the share of D in M. Rounding noise that is independent of D moves the estimate by about `‖M − W0 − D‖ / (‖D‖·√n)`, its standard
//! error: that tells a weight without the adapter from one whose effect was rounded away, and says when there is no evidence.

use std::collections::HashSet;
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};

use serde::Serialize;

use crate::adapters::Names;
use crate::edit;
use crate::error::{Error, Kind, Result};
use crate::formats::{self, Claim, Inventory};
use crate::measure::{Loss, Sums};
use crate::open::{Checkpoint, Entry};
use crate::plan::{Action, Inputs, Plan, Recode, Source};
use crate::report::{Model, SCHEMA_VERSION, Tool};
use crate::simd::moments::moments;

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
    /// Every edited weight holds the delta, and nothing else changed.
    Yes,
    /// Some weight does not, or something else changed.
    No,
    /// The rounding noise is too large to tell.
    Undecided,
}

/// Figures over all edited weights.
#[derive(Clone, Debug, Serialize)]
pub struct VerifySummary {
    /// Edited weights.
    pub weights: usize,
    /// Of these, how many stand as [`State`] says.
    pub applied: usize,
    /// See [`State::Lost`].
    pub lost: usize,
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
    /// The delta was applied, but rounding took most of it.
    Lost,
    /// The delta is there at another strength.
    Scaled,
    /// No trace of the delta.
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
}

/// Choices of a verification.
#[derive(Clone, Debug)]
pub struct VerifyOptions {
    /// Survival from which a delta counts as kept.
    pub min_survival: f64,
    /// Worker threads; 0 for one per processor.
    pub threads: usize,
}

/// A delta is there, at whatever strength, if its share is this many standard errors from zero.
const SIGNIFICANT: f64 = 4.0;
/// A share whose standard error is larger than this says nothing.
const EVIDENCE: f64 = 0.1;
/// Relative error up to which a recoded tensor counts as the same (4-bit noise is about 0.1).
const SAME_RECODED: f64 = 0.2;

/// Examines a merge. `plan` is the plan that merges the same base and adapters.
pub fn verify(inputs: &Inputs, plan: &Plan, merged: &Checkpoint, options: &VerifyOptions) -> Result<Verification> {
    let inventory = formats::inventory(merged)?;
    let found = Names::new(merged, &inventory.weights, &[])?;
    // Scales and states are judged with their weight.
    let companions: HashSet<&str> = inputs
        .inventory
        .weights
        .iter()
        .flat_map(|claim| claim.entries.iter().skip(1).map(|entry| entry.name.as_str()))
        .collect();
    let mut weights = Vec::new();
    let mut missing = Vec::new();
    let mut altered = Vec::new();
    let mut total = Sums::zero();
    for step in &plan.steps {
        match &step.action {
            Action::Recode(recode) => {
                let Some(claim) = found.find(&step.name)? else {
                    missing.push(step.name.clone());
                    continue;
                };
                let sums = measure(inputs, recode, merged, claim, options.threads)
                    .map_err(|error| error.in_tensor(&step.name))?;
                if !recode.edits.is_empty() {
                    total.add(&sums);
                }
                weights.push(judge(&step.name, claim.weight.format(), recode, &sums, options));
            }
            Action::Copy { entry } => {
                if !companions.contains(entry.name.as_str())
                    && !unchanged(inputs, entry, merged, &found, options.threads)?
                {
                    if find_entry(merged, &found, entry)?.is_none() {
                        missing.push(entry.name.clone())
                    } else {
                        altered.push(entry.name.clone())
                    }
                }
            }
        }
    }
    let summary = summarize(&weights, &total);
    let (answer, text) = answer(&summary, &weights, &altered, &missing);
    let mut warnings = plan.warnings.clone();
    if !found.renamed().is_empty() {
        warnings.push(format!("{} tensors of the merge were found under other names", found.renamed().len()));
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

fn model(checkpoint: &Checkpoint, inventory: &Inventory) -> Model {
    Model {
        path: checkpoint.path.display().to_string(),
        format: formats::in_words(inventory),
        bytes: checkpoint.total_bytes(),
    }
}

/// Sums of W0, T and M over one weight, on all threads, added in row order.
fn measure(inputs: &Inputs, recode: &Recode, merged: &Checkpoint, claim: &Claim, threads: usize) -> Result<Sums> {
    let geometry = recode.from.weight.geometry();
    let shape_differs = claim.weight.geometry().elements() != geometry.elements();
    if shape_differs {
        return Err(Error::new(
            Kind::Mismatch,
            format!("shape {:?} in the merge, {:?} expected", claim.weight.shape(), recode.to.shape()),
        )
        .in_file(&merged.path));
    }
    let other = view(claim, geometry.rows, geometry.cols)?;
    let mut edits = recode
        .edits
        .iter()
        .map(|(adapter, edit)| edit.plan.load(&inputs.adapters[*adapter].tensors))
        .collect::<Result<Vec<_>>>()?;
    let source = match recode.source {
        Source::Base => &inputs.base,
        Source::Adapter(number) => &inputs.adapters[number].tensors,
    };
    let base = Reader::new(source, &recode.from)?;
    settle(&mut edits, &base)?;
    let other = Reader { checkpoint: merged, claim: other, whole: Reader::whole(merged, claim)? };
    let step = geometry.common_step(&other.claim.weight.geometry());
    parallel(geometry.rows, geometry.cols, step, threads, |rows| {
        let mut values = [Vec::new(), Vec::new(), Vec::new()];
        let [w, t, m] = &mut values;
        base.rows(&rows, w)?;
        other.rows(&rows, m)?;
        t.resize(w.len(), 0.0);
        edit::apply(&edits, &rows, geometry.cols, w, t);
        Ok(Sums { elements: w.len() as u64, moments: moments(w, t, m) })
    })
}

fn settle(edits: &mut [edit::Edit], base: &Reader<'_>) -> Result<()> {
    let geometry = base.claim.weight.geometry();
    for edit in edits {
        if let edit::Edit::Map(map) = edit
            && map.needs_survey()
        {
            let (mut sums, mut values) = (Vec::new(), Vec::new());
            for rows in chunks(geometry.rows, geometry.cols, geometry.row_step) {
                base.rows(&rows, &mut values)?;
                map.survey(rows, geometry.cols, &values, &mut sums);
            }
            map.settle(sums);
        }
    }
    Ok(())
}

/// Reads and decodes rows of a weight.
struct Reader<'a> {
    checkpoint: &'a Checkpoint,
    claim: Claim,
    whole: Vec<Option<Vec<u8>>>,
}

impl<'a> Reader<'a> {
    fn new(checkpoint: &'a Checkpoint, claim: &Claim) -> Result<Self> {
        Ok(Self { checkpoint, claim: claim.clone(), whole: Self::whole(checkpoint, claim)? })
    }

    fn whole(checkpoint: &Checkpoint, claim: &Claim) -> Result<Vec<Option<Vec<u8>>>> {
        claim
            .entries
            .iter()
            .enumerate()
            .map(|(part, entry)| match claim.weight.part_rows(part, &(0..0)) {
                Some(_) => Ok(None),
                None => checkpoint.read_small(entry, formats::MAX_WHOLE_PART).map(Some),
            })
            .collect()
    }

    fn rows(&self, rows: &std::ops::Range<usize>, values: &mut Vec<f32>) -> Result<()> {
        let weight = &self.claim.weight;
        let mut read = Vec::with_capacity(self.whole.len());
        for (part, entry) in self.claim.entries.iter().enumerate() {
            let mut bytes = Vec::new();
            if let Some(range) = weight.part_rows(part, rows) {
                bytes.resize((range.end - range.start) as usize, 0);
                self.checkpoint.read_at(entry, range.start, &mut bytes)?;
            }
            read.push(bytes);
        }
        let parts: Vec<&[u8]> =
            self.whole.iter().zip(&read).map(|(whole, read)| whole.as_deref().unwrap_or(read.as_slice())).collect();
        values.resize(rows.len() * weight.geometry().cols, 0.0);
        weight.decode(&parts, rows.clone(), values);
        Ok(())
    }
}

/// The weight with the given rows, where its own view is another.
fn view(claim: &Claim, rows: usize, cols: usize) -> Result<Claim> {
    let geometry = claim.weight.geometry();
    if (geometry.rows, geometry.cols) == (rows, cols) {
        return Ok(claim.clone());
    }
    let weight = claim.weight.reshaped(rows, cols).ok_or_else(|| {
        Error::new(
            Kind::Unsupported,
            format!("stored as {:?} in {}, which cannot be compared", claim.weight.shape(), claim.weight.format()),
        )
    })?;
    Ok(Claim { weight, entries: claim.entries.clone() })
}

/// Elements of a chunk.
const CHUNK: usize = 1 << 17;

fn chunks(rows: usize, cols: usize, step: usize) -> Vec<std::ops::Range<usize>> {
    let per_chunk = (CHUNK / cols.max(1) / step * step).max(step);
    (0..rows).step_by(per_chunk).map(|start| start..(start + per_chunk).min(rows)).collect()
}

fn parallel(
    rows: usize,
    cols: usize,
    step: usize,
    threads: usize,
    work: impl Fn(std::ops::Range<usize>) -> Result<Sums> + Sync,
) -> Result<Sums> {
    let chunks = chunks(rows, cols, step);
    let results: Mutex<Vec<Option<Result<Sums>>>> = Mutex::new(chunks.iter().map(|_| None).collect());
    let next = AtomicUsize::new(0);
    let threads =
        if threads == 0 { std::thread::available_parallelism().map_or(1, std::num::NonZero::get) } else { threads };
    std::thread::scope(|scope| {
        for _ in 0..threads.min(chunks.len()) {
            scope.spawn(|| {
                loop {
                    let at = next.fetch_add(1, Ordering::Relaxed);
                    let Some(chunk) = chunks.get(at) else { return };
                    let result = work(chunk.clone());
                    results.lock().unwrap_or_else(std::sync::PoisonError::into_inner)[at] = Some(result);
                }
            });
        }
    });
    let mut total = Sums::zero();
    for result in results.into_inner().unwrap_or_else(std::sync::PoisonError::into_inner).into_iter().flatten() {
        total.add(&result?);
    }
    Ok(total)
}

fn standard_error(loss: &Loss) -> Option<f64> {
    Some(loss.noise_to_delta? / (loss.elements.max(1) as f64).sqrt())
}

fn judge(name: &str, format: &str, recode: &Recode, sums: &Sums, options: &VerifyOptions) -> VerifiedWeight {
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

fn find_entry<'m>(merged: &'m Checkpoint, found: &Names<'m>, entry: &Entry) -> Result<Option<&'m Entry>> {
    match merged.get(&entry.name) {
        Some(entry) => Ok(Some(entry)),
        None => Ok(found.find(&entry.name)?.map(|claim| &claim.entries[0])),
    }
}

/// True if a tensor that no adapter touches holds the same values in the merge.
fn unchanged<'m>(
    inputs: &Inputs,
    entry: &Entry,
    merged: &'m Checkpoint,
    found: &Names<'m>,
    threads: usize,
) -> Result<bool> {
    let base = inputs.inventory.weights.iter().find(|claim| claim.weight.name() == entry.name);
    let (Some(base), Some(other)) = (base, found.find(&entry.name)?) else {
        let Some(other) = find_entry(merged, found, entry)? else { return Ok(false) };
        return Ok(entry.dtype == other.dtype
            && entry.bytes == other.bytes
            && same_bytes(&inputs.base, entry, merged, other)?);
    };
    let geometry = base.weight.geometry();
    if other.weight.geometry().elements() != geometry.elements() {
        return Ok(false);
    }
    let other_view = view(other, geometry.rows, geometry.cols)?;
    let (base, other) = (
        Reader::new(&inputs.base, base)?,
        Reader { checkpoint: merged, whole: Reader::whole(merged, other)?, claim: other_view },
    );
    let step = geometry.common_step(&other.claim.weight.geometry());
    let sums = parallel(geometry.rows, geometry.cols, step, threads, |rows| {
        let (mut w, mut m) = (Vec::new(), Vec::new());
        base.rows(&rows, &mut w)?;
        other.rows(&rows, &mut m)?;
        Ok(Sums { elements: w.len() as u64, moments: moments(&w, &w, &m) })
    })?;
    let loss = sums.loss();
    let recoded = base.claim.weight.format() != other.claim.weight.format();
    let allowed = match (recoded, other.claim.weight.is_plain()) {
        (false, _) => 0.0,
        // A cast between 16-bit types rounds once.
        (true, true) => 0.005,
        (true, false) => SAME_RECODED,
    };
    Ok(loss.error_rms <= allowed * loss.weight_rms)
}

fn same_bytes(a: &Checkpoint, entry_a: &Entry, b: &Checkpoint, entry_b: &Entry) -> Result<bool> {
    let mut at = 0;
    let (mut left, mut right) = (vec![0; 1 << 20], vec![0; 1 << 20]);
    while at < entry_a.bytes {
        let n = left.len().min((entry_a.bytes - at) as usize);
        a.read_at(entry_a, at, &mut left[..n])?;
        b.read_at(entry_b, at, &mut right[..n])?;
        if left[..n] != right[..n] {
            return Ok(false);
        }
        at += n as u64;
    }
    Ok(true)
}

fn summarize(weights: &[VerifiedWeight], total: &Sums) -> VerifySummary {
    let count = |states: &[State]| weights.iter().filter(|weight| states.contains(&weight.state)).count();
    let loss = total.loss();
    VerifySummary {
        weights: weights.len(),
        applied: count(&[State::Applied, State::Replaced, State::NoDelta]),
        lost: count(&[State::Lost, State::Scaled]),
        absent: count(&[State::Absent, State::NotReplaced]),
        undecided: count(&[State::Undecided]),
        survival: loss.survival,
        survival_se: standard_error(&loss),
        noise_to_delta: loss.noise_to_delta,
        changed_fraction: loss.changed_fraction,
    }
}

fn answer(
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
    (
        Answer::Yes,
        format!("the adapter is applied in all {} weights{survival}, and nothing else changed", summary.weights),
    )
}
