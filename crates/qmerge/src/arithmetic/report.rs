//! What was made of adapters. Fields are only added within a `schema_version`.

use serde::Serialize;

use crate::report::Tool;

/// Several adapters that became one.
#[derive(Clone, Debug, Serialize)]
pub struct Combination {
    /// Version of the document.
    pub schema_version: u32,
    /// The program.
    pub tool: Tool,
    /// The adapters, in the order given.
    pub parts: Vec<CombinedAdapter>,
    /// The new one.
    pub output: String,
    /// How they were combined.
    pub method: &'static str,
    /// Share of values that the method keeps of each adapter, where it drops some.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub density: Option<f64>,
    /// Seed of what was drawn, where something was.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub seed: Option<u64>,
    /// What the inputs of modules were taken from, where the cut goes by them.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub calibration: Option<String>,
    /// Rank of all modules.
    pub rank: usize,
    /// Bytes of all tensors.
    pub bytes: u64,
    /// Share of ‖D‖² that the rank keeps, D being what the method makes of the deltas: over the modules whose inputs are known in ‖·‖²_H, or over all in the
    /// plain norm where none is. None where nothing is cut.
    pub kept: Option<f64>,
    /// One per module.
    pub weights: Vec<CombinedWeight>,
    /// Tensors that are no factors, copied as they are.
    pub copied: Vec<String>,
    /// Tensors that only training uses, left out.
    pub left_out: Vec<String>,
    /// What the user should know.
    pub warnings: Vec<String>,
}

/// An adapter that was combined.
#[derive(Clone, Debug, Serialize)]
pub struct CombinedAdapter {
    /// Its folder.
    pub adapter: String,
    /// Factor on its effect.
    pub weight: f64,
    /// Modules that it has factors for.
    pub modules: usize,
    /// Largest rank of a module.
    pub rank: usize,
}

/// One module.
#[derive(Clone, Debug, Serialize)]
pub struct CombinedWeight {
    /// Module path.
    pub module: String,
    /// Sum of the ranks of its adapters.
    pub rank_before: usize,
    /// ‖D‖² of what the method makes of the deltas; null where nothing is cut.
    pub energy: Option<f64>,
    /// Share of it that the new rank keeps; null where D is zero, or nothing is cut.
    pub kept: Option<f64>,
    /// True if both are measured on the module's inputs, false for the plain norm of values.
    pub by_inputs: bool,
}

/// The share over all modules of one norm.
pub(super) fn kept(weights: &[CombinedWeight]) -> Option<f64> {
    let known = weights.iter().any(|weight| weight.by_inputs);
    let counted = || weights.iter().filter(|weight| weight.by_inputs == known);
    let all: f64 = counted().filter_map(|weight| weight.energy).sum();
    let kept: f64 = counted().filter_map(|weight| Some(weight.kept? * weight.energy?)).sum();
    (all > 0.0).then(|| kept / all)
}

/// What was taken of the difference between two models.
#[derive(Clone, Debug, Serialize)]
pub struct Extraction {
    /// Version of the document.
    pub schema_version: u32,
    /// The program.
    pub tool: Tool,
    /// The model that the adapter is for.
    pub base: String,
    /// The one that it leads to.
    pub tuned: String,
    /// The adapter.
    pub output: String,
    /// What the inputs of layers were taken from, where directions go by them.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub calibration: Option<String>,
    /// Rank of its modules; the largest, where they differ.
    pub rank: usize,
    /// Bytes of all tensors.
    pub bytes: u64,
    /// Of these, bytes of tensors that were taken whole.
    pub whole_bytes: u64,
    /// Share of the linear layers' ‖tuned − base‖² that the factors hold: over the modules whose inputs are known in ‖·‖²_H, or over all in the plain norm where none is.
    pub kept: Option<f64>,
    /// Share of all weights' ‖tuned − base‖² that was dropped; none if something dropped has no counterpart to differ from.
    pub left_out: Option<f64>,
    /// Weights that do not differ.
    pub unchanged: usize,
    /// One per linear layer that differs.
    pub weights: Vec<ExtractedWeight>,
    /// Tensors that differ and were taken whole.
    pub whole: Vec<String>,
    /// Tensors that differ and are not in the adapter.
    pub dropped: Vec<DroppedTensor>,
    /// What the user should know.
    pub warnings: Vec<String>,
}

/// A linear layer, or a stack of experts.
#[derive(Clone, Debug, Serialize)]
pub struct ExtractedWeight {
    /// Path of the module, or of the parameter that is targeted by name.
    pub module: String,
    /// Its rank; of a stack that of each matrix.
    pub rank: usize,
    /// ‖tuned − base‖²; of a stack over its matrices, where inputs are known over those of which they are.
    pub energy: f64,
    /// Share of it that the factors hold.
    pub kept: f64,
    /// True if both are measured on the layer's inputs, false for the plain norm of values.
    pub by_inputs: bool,
}

/// A tensor whose difference is not in the adapter.
#[derive(Clone, Debug, Serialize)]
pub struct DroppedTensor {
    /// Its name.
    pub name: String,
    /// ‖tuned − base‖², where both models have it.
    pub energy: Option<f64>,
    /// Why.
    pub reason: &'static str,
}

/// An adapter that became a LoRA.
#[derive(Clone, Debug, Serialize)]
pub struct Conversion {
    /// Version of the document.
    pub schema_version: u32,
    /// The program.
    pub tool: Tool,
    /// The adapter.
    pub adapter: String,
    /// Its method, by PEFT's name.
    pub method: String,
    /// The LoRA.
    pub output: String,
    /// How it is stored: "peft", or "gguf-lora".
    pub format: &'static str,
    /// Rank of its modules; the largest, where they differ.
    pub rank: usize,
    /// Bytes of all tensors.
    pub bytes: u64,
    /// Share of ‖D‖² that the rank holds, D being what the adapter adds: over all modules.
    pub kept: Option<f64>,
    /// One per module.
    pub weights: Vec<ConvertedWeight>,
    /// Tensors that are no part of the method, copied as they are.
    pub copied: Vec<String>,
    /// Weights that the adapter changes and the LoRA does not.
    pub dropped: Vec<DroppedTensor>,
    /// What the user should know.
    pub warnings: Vec<String>,
}

/// A module that became low-rank.
#[derive(Clone, Debug, Serialize)]
pub struct ConvertedWeight {
    /// Path of the module, or of the parameter that is targeted by name.
    pub module: String,
    /// Its rank; of a stack that of each matrix.
    pub rank: usize,
    /// ‖D‖².
    pub energy: f64,
    /// Share of it that the factors hold; null where D is zero.
    pub kept: Option<f64>,
}

/// The share over all of them.
pub(super) fn held(weights: &[ConvertedWeight]) -> Option<f64> {
    let all: f64 = weights.iter().map(|weight| weight.energy).sum();
    let held: f64 = weights.iter().filter_map(|weight| Some(weight.kept? * weight.energy)).sum();
    (all > 0.0).then(|| held / all)
}
