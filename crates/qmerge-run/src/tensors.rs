//! The tensors of a model by name, each with what adapters do to it.

use std::collections::HashMap;

use qmerge::arch::{self, Arch};
use qmerge::edited::Edited;
use qmerge::error::{Error, Kind, Result};
use qmerge::formats::{Claim, Reader, arch_of};
use qmerge::open::Checkpoint;
use qmerge::plan::{Action, Inputs, Plan, Recode};

/// A base, alone or with adapters kept apart.
#[derive(Debug)]
pub struct Tensors<'a> {
    inputs: &'a Inputs,
    arch: &'static Arch,
    stored: HashMap<&'a str, &'a Claim>,
    edited: HashMap<&'a str, &'a Recode>,
}

impl<'a> Tensors<'a> {
    /// The tensors of a base. `plan` is the plan that merges the inputs' adapters; without it the base stands alone.
    pub fn new(inputs: &'a Inputs, plan: Option<&'a Plan>) -> Self {
        let stored = inputs.inventory.weights.iter().map(|claim| (claim.weight.name(), claim)).collect();
        let steps = plan.map_or(&[][..], |plan| &plan.steps);
        let edited = steps.iter().filter_map(|step| match &step.action {
            Action::Recode(recode) => Some((step.name.as_str(), recode.as_ref())),
            Action::Copy { .. } | Action::Constant(_) => None,
        });
        // Who runs a model reads all of it.
        inputs.base.expect_all();
        let config = inputs.base.config.as_ref();
        let language_model = config.and_then(|config| arch::language_model(config).ok());
        let model_type = language_model.as_ref().map_or("", |config| config.model_type());
        let arch = arch_of(model_type, config, &inputs.inventory.weights);
        Self { inputs, arch, stored, edited: edited.collect() }
    }

    /// The row of the family of the model that is run.
    pub fn arch(&self) -> &'static Arch {
        self.arch
    }

    /// The checkpoint of the base.
    pub fn checkpoint(&self) -> &'a Checkpoint {
        &self.inputs.base
    }

    /// True if there is a tensor of that name.
    pub fn has(&self, name: &str) -> bool {
        self.edited.contains_key(name) || self.stored.contains_key(name)
    }

    /// The tensor of that name, ready to be decoded; `None` if there is none.
    pub fn find(&self, name: &str) -> Result<Option<Edited<'a>>> {
        let found = match (self.edited.get(name), self.stored.get(name)) {
            (Some(recode), _) => Edited::new(self.inputs, recode),
            (None, Some(claim)) => Reader::new(&self.inputs.base, claim).map(Edited::unedited),
            (None, None) => return Ok(None),
        };
        found.map(Some).map_err(|error| error.in_tensor(name))
    }

    /// The tensor of that name. Errors if there is none.
    pub fn get(&self, name: &str) -> Result<Edited<'a>> {
        self.find(name)?.ok_or_else(|| self.missing(name))
    }

    /// All values of a small tensor, if it exists. Errors if it has not `len` of them.
    pub fn vector(&self, name: &str, len: usize) -> Result<Option<Vec<f32>>> {
        let Some(tensor) = self.find(name)? else { return Ok(None) };
        let geometry = tensor.base().claim().weight.geometry();
        if geometry.elements() != len {
            let shape = tensor.base().claim().weight.shape();
            return Err(self.misfit(name, format!("shape {shape:?}, but the configuration wants {len} values")));
        }
        let (mut base, mut values) = (Vec::new(), Vec::new());
        tensor.rows(&(0..geometry.rows), &mut base, &mut values)?;
        Ok(Some(values))
    }

    /// The same for a tensor that must exist.
    pub fn needed(&self, name: &str, len: usize) -> Result<Vec<f32>> {
        self.vector(name, len)?.ok_or_else(|| self.missing(name))
    }

    pub(crate) fn missing(&self, name: &str) -> Error {
        Error::new(Kind::Mismatch, "missing, and a model of this type needs it")
            .in_file(&self.inputs.base.path)
            .in_tensor(name)
            .with_hint(if self.inputs.base.is_self_contained() {
                "the file is incomplete: take another GGUF file of the model"
            } else {
                "the checkpoint is incomplete, or its model_type is wrong"
            })
    }

    pub(crate) fn misfit(&self, name: &str, message: String) -> Error {
        Error::new(Kind::Mismatch, message).in_file(&self.inputs.base.path).in_tensor(name).with_hint(
            if self.inputs.base.is_self_contained() {
                "the file's keys and its tensors do not fit each other: take another GGUF file of the model"
            } else {
                "config.json and the weights belong to different models"
            },
        )
    }
}
