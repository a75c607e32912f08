//! Tensors that a merge does not hold under any name: those that should be there, and those that its container has no place for.

use serde_json::Value;

use super::experts::Twin;
use crate::adapters::Names;
use crate::arch::gguf::{predicts_further, towers};
use crate::error::counted;
use crate::open::Checkpoint;
use crate::plan::Inputs;

pub(super) struct Gone<'v, 'm> {
    inputs: &'v Inputs,
    found: &'v Names<'m>,
    /// Layers of the model, where the merge is a GGUF file and the base is not.
    layers: Option<usize>,
    pub(super) missing: Vec<String>,
    left_out: Vec<String>,
    /// Stacks whose experts are weights of their own in the merge, of families of which it is not known how they lie.
    pub(super) apart: Vec<String>,
}

impl<'v, 'm> Gone<'v, 'm> {
    pub(super) fn new(inputs: &'v Inputs, merged: &Checkpoint, found: &'v Names<'m>) -> Self {
        let is_file = merged.is_self_contained() && !inputs.base.is_self_contained();
        let config = inputs.base.config.as_ref().filter(|_| is_file);
        let layers = config.and_then(|config| config.find("num_hidden_layers").and_then(Value::as_u64));
        let layers = is_file.then(|| layers.and_then(|layers| layers.try_into().ok()).unwrap_or(usize::MAX));
        Self { inputs, found, layers, missing: Vec::new(), left_out: Vec::new(), apart: Vec::new() }
    }

    /// Takes a tensor of the base that the merge does not hold.
    pub(super) fn take(&mut self, name: &str, experts: &Twin<'_, '_>) {
        let all = match self.layers {
            Some(layers) if self.inputs.tower_of(name).is_some() || predicts_further(name, layers) => {
                &mut self.left_out
            }
            Some(_) if matches!(experts, Twin::Unknown) && self.is_apart(name) => &mut self.apart,
            _ => &mut self.missing,
        };
        all.push(name.to_owned());
    }

    /// True of a stack whose experts are weights of their own in the merge.
    fn is_apart(&self, name: &str) -> bool {
        let name = towers::alone(name);
        let Some((experts, _)) = name.rsplit_once('.') else { return false };
        let first = format!("{experts}.0.");
        self.found.weights.iter().any(|claim| towers::alone(claim.weight.name()).starts_with(&first))
    }

    /// What a user should know of what has no place in the merge.
    pub(super) fn told(&self) -> Option<String> {
        let first = self.left_out.first()?;
        let tensors = counted(self.left_out.len(), "tensor of the base is", "tensors of the base are");
        Some(format!("{tensors} not in a GGUF file, which holds the language model alone, first `{first}`"))
    }
}
