//! The plan as a document, for `--dry-run`.

use std::path::Path;

use serde::Serialize;

use super::{Model, SCHEMA_VERSION};
use crate::plan::{Action, Inputs, Plan};

/// What a merge would do.
#[derive(Clone, Debug, Serialize)]
pub struct PlanSummary {
    /// Version of the document.
    pub schema_version: u32,
    /// The base.
    pub base: Model,
    /// The output; bytes are the most its weight files can take.
    pub output: Model,
    /// Rounding method.
    pub rounding: String,
    /// Why this method.
    pub reason: Option<String>,
    /// Weights with edits.
    pub merged: usize,
    /// Weights that change format or are replaced, without an edit.
    pub recoded: usize,
    /// Tensors copied byte for byte.
    pub copied: usize,
    /// Worker threads.
    pub threads: usize,
    /// Seconds that the merge is expected to take with this method, about: measured on one machine, whose threads another's may outrun.
    pub seconds: f64,
    /// Largest memory expected.
    pub memory_bytes: u64,
    /// Weight files with their tensors' number and largest size.
    pub files: Vec<PlannedFile>,
    /// Weights that are not copied.
    pub weights: Vec<PlannedWeight>,
    /// What the user should know.
    pub warnings: Vec<String>,
}

/// One file.
#[derive(Clone, Debug, Serialize)]
pub struct PlannedFile {
    /// Name.
    pub name: String,
    /// Number of tensors.
    pub tensors: usize,
    /// Most bytes.
    pub bytes: u64,
}

/// One weight.
#[derive(Clone, Debug, Serialize)]
pub struct PlannedWeight {
    /// Name.
    pub name: String,
    /// Format read.
    pub from: String,
    /// Format written.
    pub to: String,
    /// Rounding method.
    pub rounding: String,
    /// Dimensions.
    pub shape: Vec<usize>,
    /// Numbers of the adapters that edit it, from 0.
    pub adapters: Vec<usize>,
    /// Their factors.
    pub scales: Vec<f64>,
}

impl Plan {
    /// The plan as a document. `seconds` and `memory_bytes` are what the merge is expected to take on so many threads.
    pub fn summary(
        &self,
        inputs: &Inputs,
        output: &Path,
        threads: usize,
        seconds: f64,
        memory_bytes: u64,
    ) -> PlanSummary {
        let recodes: Vec<_> = self
            .steps
            .iter()
            .filter_map(|step| match &step.action {
                Action::Recode(recode) => Some((step, recode)),
                Action::Copy { .. } | Action::Constant(_) => None,
            })
            .collect();
        let merged = recodes.iter().filter(|(_, recode)| !recode.edits.is_empty()).count();
        PlanSummary {
            schema_version: SCHEMA_VERSION,
            base: Model {
                path: inputs.base.path.display().to_string(),
                format: crate::formats::in_words(&inputs.inventory),
                bytes: inputs.base.total_bytes(),
            },
            output: Model {
                path: output.display().to_string(),
                format: self.output_format.clone(),
                bytes: self.output_bytes(),
            },
            rounding: self.rounding.id().to_owned(),
            reason: self.reason.clone(),
            merged,
            recoded: recodes.len() - merged,
            copied: self.steps.len() - recodes.len(),
            threads,
            seconds,
            memory_bytes,
            files: self
                .files
                .iter()
                .map(|file| PlannedFile {
                    name: file.name.clone(),
                    tensors: file.tensors.len(),
                    bytes: file.max_bytes(),
                })
                .collect(),
            weights: recodes
                .into_iter()
                .map(|(step, recode)| PlannedWeight {
                    name: step.name.clone(),
                    from: recode.from.weight.format().to_owned(),
                    to: recode.to.format().to_owned(),
                    rounding: recode.rounding.id().to_owned(),
                    shape: recode.to.shape().to_vec(),
                    adapters: recode.edits.iter().map(|(number, _)| *number).collect(),
                    scales: recode.edits.iter().filter_map(|(_, edit)| edit.plan.scale()).collect(),
                })
                .collect(),
            warnings: self.warnings.clone(),
        }
    }
}
