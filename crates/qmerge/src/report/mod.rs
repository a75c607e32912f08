//! What was done and what it cost: the wire format of `qmerge-report.json`, and the verdict in words.
//!
//! These types are separate from the ones that work, so that the report can stay stable while they change. Fields are only added
//! within a `schema_version`.

mod assemble;
mod behaviour;
mod card;
mod command;
mod date;
mod earlier;
mod plan;
mod residual;
mod verdict;

use serde::Serialize;

pub(crate) use assemble::{Written, assemble};
pub use behaviour::Behaviour;
pub(crate) use card::{Made, card};
#[doc(hidden)]
pub use command::{command_line, quoted, source_words};
pub(crate) use date::now;
pub(crate) use earlier::{Earlier, hashes_of};
pub use plan::{PlanSummary, PlannedFile, PlannedWeight};
pub use residual::{ResidualReport, Without};
pub use verdict::{By, Verdict};
#[doc(hidden)]
pub use verdict::{Evidence, verdict};
pub(crate) use verdict::{converted, replaced, undone};

use crate::adapters::Adapter;
use crate::edit::Joining;
use crate::measure::Loss;
use crate::plan::{Inputs, Plan};
pub(crate) use crate::write::name_of;
#[doc(hidden)]
pub use crate::write::path_beside;
pub use crate::write::{CARD_NAME, FILE_NAME, RESIDUAL_FOLDER};

/// Version of the document.
pub const SCHEMA_VERSION: u32 = 1;

/// The whole report.
///
/// It comes back from a merge as this type, and lies in the output as JSON with the same fields, which any version of its
/// [schema](SCHEMA_VERSION) reads:
///
/// ```
/// # fn main() -> qmerge::error::Result<()> {
/// # use qmerge::{adapters::Adapter, merge, open::Checkpoint, plan::{Inputs, Options, Plan}, progress::Silent};
/// use qmerge::report::FILE_NAME;
///
/// # let base = Checkpoint::open("testdata/tiny-llama/bases/base-nf4dq".as_ref())?;
/// # let adapter = Adapter::open("testdata/tiny-llama/adapters/plain".as_ref(), 1.0)?;
/// # let inputs = Inputs::new(base, vec![adapter])?;
/// # let plan = Plan::new(&inputs, &Options::default())?;
/// # let output = std::env::temp_dir().join(format!("qmerge-report-{}", std::process::id()));
/// # let report = merge::run(&inputs, &plan, None, &output, &Default::default(), &Silent)?;
/// let worst = report.weights.iter().min_by(|a, b| a.survival.unwrap_or(1.0).total_cmp(&b.survival.unwrap_or(1.0)));
/// println!("{}: least is left in {}", report.verdict.text, worst.map_or("none", |weight| weight.name.as_str()));
///
/// let stored = std::fs::read(output.join(FILE_NAME)).expect("a report beside the weights");
/// let stored: serde_json::Value = serde_json::from_slice(&stored).expect("JSON");
/// assert_eq!(stored["verdict"]["text"], report.verdict.text);
/// # std::fs::remove_dir_all(&output).ok();
/// # Ok(()) }
/// ```
#[derive(Clone, Debug, Serialize)]
pub struct Report {
    /// [`SCHEMA_VERSION`].
    pub schema_version: u32,
    /// The program.
    pub tool: Tool,
    /// When it was done, in UTC: `2026-01-31T12:00:00Z`.
    pub date: String,
    /// The command line that did it, as a POSIX shell reads it, where there was one.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub command: Option<String>,
    /// The base.
    pub base: Model,
    /// The adapters in the order given.
    pub adapters: Vec<AdapterReport>,
    /// How the differences of tuned models were joined, where there were any.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub task_vectors: Option<TaskVectorsReport>,
    /// Factors on what adapters do in some modules, as they were given: `regex=factor`.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub lora_scale: Vec<String>,
    /// The output.
    pub output: Model,
    /// How codes were chosen.
    pub rounding: RoundingReport,
    /// Sums over all merged weights.
    pub summary: Summary,
    /// What a run of the merged model showed, where it was run.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub behaviour: Option<Behaviour>,
    /// One sentence on what became of the adapter, and one on what to do.
    pub verdict: Verdict,
    /// The adapter that holds what rounding left, where one was asked for.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub residual: Option<ResidualReport>,
    /// Weights that took a wider type than they would have, by name.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub promoted: Vec<String>,
    /// One per merged (or converted) weight, in the order of the output.
    pub weights: Vec<WeightReport>,
    /// What the user should know.
    pub warnings: Vec<String>,
}

/// Name and version of the program.
#[derive(Clone, Debug, Serialize)]
pub struct Tool {
    /// "qmerge".
    pub name: &'static str,
    /// Its version.
    pub version: &'static str,
}

impl Tool {
    /// This program.
    pub const THIS: Self = Self { name: "qmerge", version: env!("CARGO_PKG_VERSION") };
}

/// A model on disk.
#[derive(Clone, Debug, Serialize)]
pub struct Model {
    /// Folder or file.
    pub path: String,
    /// Formats of its matrices, most bytes first.
    pub format: String,
    /// Bytes of all tensors.
    pub bytes: u64,
}

/// How the differences of tuned models were joined.
#[derive(Clone, Debug, Serialize)]
pub struct TaskVectorsReport {
    /// "linear", "ties", …
    pub method: &'static str,
    /// Share of its values that each keeps, where the method drops some.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub density: Option<f64>,
    /// What elects a sign, where signs vote.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub majority_sign: Option<&'static str>,
    /// Seed, where values are drawn.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub seed: Option<u64>,
}

impl TaskVectorsReport {
    /// That of a plan, if it has any.
    pub(crate) fn of(inputs: &Inputs, plan: &Plan) -> Option<Self> {
        let Joining { operator, density, majority, seed } = plan.read.joining;
        inputs.adapters.iter().any(Adapter::is_tuned).then(|| Self {
            method: operator.id(),
            density,
            majority_sign: operator.votes().then_some(majority.id()),
            seed: operator.draws().then_some(seed),
        })
    }

    /// Its choices in a line.
    pub(crate) fn in_words(&self) -> String {
        let mut words = vec![self.method.to_owned()];
        words.extend(self.density.map(|density| format!("density {density}")));
        words.extend(self.majority_sign.map(|sign| format!("signs by {sign}")));
        words.extend(self.seed.map(|seed| format!("seed {seed}")));
        words.join(", ")
    }
}

/// What became of one adapter's tensors.
#[derive(Clone, Debug, Serialize)]
pub struct AdapterReport {
    /// Folder.
    pub path: String,
    /// Kind; TASK_VECTOR for a model that was trained whole.
    pub peft_type: String,
    /// Factor on its effect.
    pub weight: f64,
    /// Hash of its weight file; of a model that was trained whole, of its tensors' names, types and shapes and samples of their bytes.
    pub sha256: String,
    /// Base model it says it was trained on.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub base_model: Option<String>,
    /// Number of its tensors.
    pub tensors: usize,
    /// Folded into weights.
    pub merged: usize,
    /// Put in place of the base's.
    pub replaced: usize,
    /// New to the base: the head of a classifier.
    #[serde(skip_serializing_if = "is_zero")]
    pub added: usize,
    /// Files beside its weights that are merged too; their tensors are counted with its own.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub beside: Vec<String>,
    /// Tensor files beside its weights that are not merged.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub left_out: Vec<String>,
    /// Matched nothing.
    pub unused: usize,
    /// Names of those.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub unused_tensors: Vec<String>,
    /// Not needed, with the reason.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub ignored: Vec<Ignored>,
}

fn is_zero(number: &usize) -> bool {
    *number == 0
}

/// A tensor that a merge does not need.
#[derive(Clone, Debug, Serialize)]
pub struct Ignored {
    /// Its name.
    pub tensor: String,
    /// Why.
    pub reason: &'static str,
}

/// How codes were chosen.
#[derive(Clone, Debug, Serialize)]
pub struct RoundingReport {
    /// Method.
    pub method: String,
    /// Why this method.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
    /// Seed, where the method draws.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub seed: Option<u64>,
    /// What the inputs of layers were taken from, where the method needs them.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub calibration: Option<String>,
}

/// Sums over weights.
#[derive(Clone, Debug, Serialize)]
pub struct Summary {
    /// Weights with edits.
    pub weights_merged: usize,
    /// Their elements.
    pub elements: u64,
    /// ⟨Wq − W0, D⟩ / ⟨D, D⟩ over all of them.
    pub survival: Option<f64>,
    /// ‖E‖ / ‖D‖ over all of them.
    pub noise_to_delta: Option<f64>,
    /// Mean over weights of their `kept_output`, where inputs are known.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub kept_output: Option<f64>,
    /// Mean over weights of their `noise_output`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub noise_output: Option<f64>,
    /// Share of their elements whose decoded value changed.
    pub changed_fraction: f64,
    /// Values that were NaN or infinite: 0, or there would be no output.
    pub nonfinite: u64,
    /// Wall-clock time.
    pub seconds: f64,
    /// Bytes read from base and adapters.
    pub bytes_read: u64,
    /// Bytes written.
    pub bytes_written: u64,
    /// Bytes of weights that were there from an interrupted run, where this one went on.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub bytes_before: Option<u64>,
    /// Largest resident memory of the process, where the system tells.
    pub peak_rss_bytes: Option<u64>,
}

/// One weight.
#[derive(Clone, Debug, Serialize)]
pub struct WeightReport {
    /// Name.
    pub name: String,
    /// Format it was read from.
    pub from: String,
    /// Format it was written to.
    pub to: String,
    /// Dimensions.
    pub shape: Vec<usize>,
    /// Root mean square of the delta.
    pub delta_rms: f64,
    /// Root mean square of the decoded base.
    pub weight_rms: f64,
    /// Root mean square of E.
    pub error_rms: f64,
    /// ⟨Wq − W0, D⟩ / ⟨D, D⟩; null where there is no delta.
    pub survival: Option<f64>,
    /// ‖E‖ / ‖D‖; null where there is no delta.
    pub noise_to_delta: Option<f64>,
    /// Share of elements whose decoded value changed.
    pub changed_fraction: f64,
    /// max |E|.
    pub max_abs_error: f64,
    /// How its codes were chosen.
    pub rounding: String,
    /// ⟨Wq − W0, D⟩_H / ‖D‖²_H with ‖X‖²_H = tr(X H Xᵀ): how much of the adapter's output on real inputs is kept, where they are known.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub kept_output: Option<f64>,
    /// ‖E‖²_H / ‖D‖²_H.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub noise_output: Option<f64>,
    /// Share of ‖E‖²_H that the residual adapter holds; of ‖E‖² where the inputs are not known.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub residual_kept: Option<f64>,
}

impl WeightReport {
    /// The wire form of a weight's figures.
    pub fn new(name: &str, from: &str, to: &str, shape: &[usize], loss: &Loss) -> Self {
        Self {
            name: name.to_owned(),
            from: from.to_owned(),
            to: to.to_owned(),
            shape: shape.to_vec(),
            delta_rms: loss.delta_rms,
            weight_rms: loss.weight_rms,
            error_rms: loss.error_rms,
            survival: loss.survival,
            noise_to_delta: loss.noise_to_delta,
            changed_fraction: loss.changed_fraction,
            max_abs_error: loss.max_abs_error,
            rounding: String::new(),
            kept_output: None,
            noise_output: None,
            residual_kept: None,
        }
    }
}

impl Report {
    /// What a run of the merged model showed, in a line.
    pub fn measured(&self) -> Option<String> {
        let reference =
            if self.task_vectors.is_none() { "the adapter kept apart" } else { "the sum before it was rounded" };
        self.behaviour.as_ref().map(|behaviour| behaviour.in_words(reference))
    }

    /// The document as it is written to disk.
    pub fn to_json(&self) -> String {
        let mut text = serde_json::to_string_pretty(self).unwrap_or_default();
        text.push('\n');
        text
    }
}
