//! What a truncation kept. Fields are only added within a `schema_version`.

use serde::Serialize;

use crate::report::Tool;
use crate::round::Cut;

/// What to do with the new adapter.
pub(super) const ADVICE: &str =
    "serve it beside the untouched base; `qmerge compare --beside` tells what the cut costs there";

/// What was cut and what is left.
#[derive(Clone, Debug, Serialize)]
pub struct Truncation {
    /// Version of the document.
    pub schema_version: u32,
    /// The program.
    pub tool: Tool,
    /// The adapter that was cut.
    pub adapter: String,
    /// The new one.
    pub output: String,
    /// Largest rank of a module before.
    pub rank_before: usize,
    /// Rank of all modules now.
    pub rank: usize,
    /// Bytes of all tensors before.
    pub bytes_before: u64,
    /// And now.
    pub bytes: u64,
    /// What the inputs of modules were taken from.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub calibration: Option<String>,
    /// Why inputs are not known.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
    /// Share of ‖D‖² that is kept: over the modules whose inputs are known in ‖·‖²_H, or over all in the plain norm where none is.
    pub kept: Option<f64>,
    /// One per module.
    pub weights: Vec<CutWeight>,
    /// Tensors that are no factors, copied as they are.
    pub copied: Vec<String>,
    /// Tensors that only training uses, left out.
    pub left_out: Vec<String>,
    /// What to do with it.
    pub advice: String,
    /// What the user should know.
    pub warnings: Vec<String>,
}

/// One module.
#[derive(Clone, Debug, Serialize)]
pub struct CutWeight {
    /// Module path.
    pub module: String,
    /// Its rank before.
    pub rank_before: usize,
    /// ‖D‖² before the cut: what the adapter adds to the module's output, where inputs are known.
    pub energy: f64,
    /// Share of it that is kept; null where D is zero.
    pub kept: Option<f64>,
    /// True if that is measured on the module's inputs, false for the plain norm of its values.
    pub by_inputs: bool,
}

impl CutWeight {
    pub(super) fn new(module: &str, rank_before: usize, cut: &Cut, by_inputs: bool) -> Self {
        let energy = cut.energy.unwrap_or(0.0);
        let kept = (energy > 0.0).then(|| cut.kept / energy);
        Self { module: module.to_owned(), rank_before, energy, kept, by_inputs }
    }
}

/// The share over all modules of one norm.
pub(super) fn kept(weights: &[CutWeight]) -> Option<f64> {
    let known = weights.iter().any(|weight| weight.by_inputs);
    let counted = || weights.iter().filter(|weight| weight.by_inputs == known);
    let all: f64 = counted().map(|weight| weight.energy).sum();
    let kept: f64 = counted().map(|weight| weight.kept.unwrap_or(0.0) * weight.energy).sum();
    (all > 0.0).then(|| kept / all)
}
