//! A module of the base, as a method sees it.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};

use super::defined;
use super::dialects::Stated;
use super::place::shipped_base;
use super::site::Site;
use super::{Adapter, ReadOptions, read_floats};
use crate::arch::gguf::RowOrder;
use crate::dtype::Dtype;
use crate::error::{Result, mismatch, unsupported};
use crate::formats::Claim;
use crate::open::Checkpoint;
use crate::parallel::lock;

/// The tensors that an adapter has for one module, by marker.
#[derive(Clone, Debug, Default)]
pub struct Tensors {
    by_marker: BTreeMap<(&'static str, bool), String>,
}

impl Tensors {
    /// The tensor of a marker.
    pub fn get(&self, marker: &'static str) -> Option<&str> {
        self.by_marker.get(&(marker, false)).map(String::as_str)
    }

    /// The bias of a marker.
    pub fn bias(&self, marker: &'static str) -> Option<&str> {
        self.by_marker.get(&(marker, true)).map(String::as_str)
    }

    /// The name of one of them.
    pub(super) fn first(&self) -> &str {
        self.by_marker.values().next().map_or("", String::as_str)
    }

    /// Takes a tensor in. Errors if there is one of the same marker.
    pub(super) fn insert(&mut self, key: (&'static str, bool), name: &str) -> Result<()> {
        match self.by_marker.insert(key, name.to_owned()) {
            Some(before) => Err(mismatch(format!("stands for the same factor as `{before}`")).in_tensor(name)),
            None => Ok(()),
        }
    }
}

/// A module that an adapter changes and that the base has.
pub struct Module<'a> {
    pub(super) path: &'a str,
    /// Factor that the user asked for in this module.
    pub(super) scale: f64,
    /// Wrappers that lie around it and are not its own.
    pub(super) depth: usize,
    /// Rank and factor that the file states for it, before the configuration.
    pub(super) stated: Option<Stated>,
    /// Between the orders of rows of the adapter, which are a GGUF file's, and of the model, where they differ.
    pub(super) order: Option<RowOrder>,
    pub(super) adapter: &'a Adapter,
    pub(super) tensors: &'a Tensors,
    pub(super) shared: &'a BTreeMap<String, Arc<Shared>>,
    pub(super) site: &'a Site<'a>,
    /// Most outputs and most inputs of all modules that the adapter changes.
    pub(super) largest: (usize, usize),
    /// Paths of all modules that the adapter changes and the base has, and their outputs and inputs.
    pub(super) all: &'a [(&'a str, (usize, usize))],
    /// Modules that the adapter changes, whether the base has them or not.
    pub(super) count: usize,
    pub(super) model_type: &'a str,
    pub(super) options: &'a ReadOptions,
}

impl<'a> Module<'a> {
    /// Path of the module ("model.layers.0.mlp.up_proj").
    pub fn path(&self) -> &'a str {
        self.path
    }

    /// The name that patterns of the configuration are matched with: its path, or that of a parameter that is targeted by name.
    pub fn name(&self) -> &'a str {
        &self.site.name
    }

    /// The adapter, for the shapes of its tensors.
    pub fn adapter(&self) -> &'a Adapter {
        self.adapter
    }

    /// Factor on the adapter's effect that the user asked for.
    pub fn weight(&self) -> f64 {
        self.adapter.weight * self.scale
    }

    /// Rank and factor that the adapter's file states for it alone, before the configuration.
    pub(super) fn stated(&self) -> Option<Stated> {
        self.stated
    }

    /// Choices of what adapters mean.
    pub fn options(&self) -> &'a ReadOptions {
        self.options
    }

    /// The module's own tensors.
    pub fn tensors(&self) -> &'a Tensors {
        self.tensors
    }

    /// The tensor of a marker. Errors if the adapter has none.
    pub fn tensor(&self, marker: &'static str) -> Result<&'a str> {
        let missing = || mismatch(format!("`{}` has no tensor `{marker}`", self.path)).with_hint(INCOMPLETE);
        self.tensors.get(marker).ok_or_else(missing)
    }

    /// Dimensions of a tensor of the adapter.
    pub fn shape(&self, tensor: &str) -> Result<&'a [usize]> {
        let entry = self.adapter.tensors.get(tensor).ok_or_else(|| mismatch("missing").in_tensor(tensor))?;
        Ok(&entry.shape)
    }

    /// The tensor of a marker, which has to have that shape.
    pub(crate) fn sized(&self, marker: &'static str, want: &[usize]) -> Result<&'a str> {
        let tensor = self.tensor(marker)?;
        let have = self.shape(tensor)?;
        if have == want {
            return Ok(tensor);
        }
        Err(mismatch(format!("shape {have:?}, but the configuration and `{}` want {want:?}", self.base_name()))
            .in_tensor(tensor)
            .with_hint(OTHER))
    }

    /// Outputs and inputs of the module's matrix. Errors if it is no linear layer: a convolution, or a stack of which the adapter changes all.
    pub fn linear(&self, method: &str) -> Result<(usize, usize)> {
        let kind = match self.claim().weight.shape() {
            _ if self.is_stack() => "a stack of matrices",
            [_, _] => return Ok(self.base_shape()),
            _ if self.is_expert() => return Ok(self.base_shape()),
            [_] => "a vector",
            _ => "a convolution",
        };
        let problem = format!("`{}` is {kind}, and {method} of one is not supported by this version", self.base_name());
        Err(unsupported(problem).in_tensor(self.tensors.first()))
    }

    /// The same, where a convolution is as good: its kernel lies behind the inputs.
    pub(super) fn linear_or_convolution(&self, method: &str) -> Result<(usize, usize)> {
        if self.is_convolution() { Ok(self.base_shape()) } else { self.linear(method) }
    }

    /// Features and tokens of an embedding's table: the one that the adapter brings along, else the base's.
    pub(super) fn table(&self) -> (usize, usize) {
        let shape = shipped_base(self.adapter, self.path).map_or(self.claim().weight.shape(), |entry| &entry.shape);
        match *shape {
            [tokens, features] => (features, tokens),
            _ => (0, 0),
        }
    }

    /// The two dimensions of a factor, with everything behind the first taken together.
    pub fn matrix(&self, tensor: &str) -> Result<(usize, usize)> {
        matrix_shape(&self.adapter.tensors, tensor)
    }

    /// A tensor that all modules share. Errors if the adapter has none.
    pub fn shared(&self, marker: &str) -> Result<Arc<Shared>> {
        let missing = || mismatch(format!("the adapter has no tensor `{marker}`")).with_hint(INCOMPLETE);
        self.shared.get(marker).map(Arc::clone).ok_or_else(missing)
    }

    /// The weight that holds the module's matrix; of several, the first.
    pub(super) fn claim(&self) -> &'a Claim {
        self.site.claim
    }

    /// Outputs and inputs of the module's matrix in the base, as a linear layer; of one matrix, if it is of a stack.
    pub(crate) fn base_shape(&self) -> (usize, usize) {
        self.site.shape
    }

    /// Most outputs and most inputs of all modules that the adapter changes and the base has.
    pub fn largest(&self) -> (usize, usize) {
        self.largest
    }

    /// Number of modules that the adapter changes.
    pub(super) fn count(&self) -> usize {
        self.count
    }

    /// Outputs and inputs of all modules that the adapter changes and the base has.
    pub(super) fn shapes(&self) -> impl Iterator<Item = (usize, usize)> {
        self.all.iter().map(|(_, shape)| *shape)
    }

    /// Outputs and inputs of those modules that the adapter changes and the model's code defines before this one. Errors, with what is wanted the order
    /// for, where it is not known.
    pub(super) fn before(&self, wanted: &str) -> Result<Vec<(usize, usize)>> {
        if self.all.len() != self.count {
            let problem = format!(
                "{wanted} go by the number of a module among all that the adapter changes, of which the base has {} of {}",
                self.all.len(),
                self.count
            );
            return Err(unsupported(problem).with_hint(OTHER));
        }
        let mut before = Vec::new();
        for (path, shape) in self.all {
            let is_before = defined::is_before(self.model_type, path, self.path).ok_or_else(|| {
                unsupported(format!(
                    "{wanted} go by the order in which the model's code defines its modules, which is not known of `{path}` and `{}` in a model of the type `{}`",
                    self.path, self.model_type
                ))
                .with_hint("let PEFT turn it into an ordinary LoRA (`convert_to_lora`), and merge that")
            })?;
            before.extend(is_before.then_some(*shape));
        }
        Ok(before)
    }

    /// Matrices that the module stacks and the adapter has tensors for; 1 for a layer.
    pub fn matrices(&self) -> usize {
        self.site.matrices()
    }

    /// True for routed experts, stacked or each by itself in a stack.
    pub(crate) fn is_expert(&self) -> bool {
        self.site.is_expert()
    }

    /// True for a stack of which the adapter has tensors for all matrices.
    pub(crate) fn is_stack(&self) -> bool {
        self.site.is_stack()
    }

    /// True for a convolution, whose kernel lies behind the inputs.
    pub(crate) fn is_convolution(&self) -> bool {
        self.claim().weight.shape().len() > 2 && !self.is_expert()
    }

    /// True if its values are stored as floats.
    pub fn is_plain(&self) -> bool {
        self.claim().weight.is_plain()
    }

    /// The name of the weight in the base.
    pub(crate) fn base_name(&self) -> &'a str {
        self.claim().weight.name()
    }

    /// True if the configuration targets the parameter by name.
    pub(crate) fn is_parameter(&self) -> bool {
        self.site.is_parameter()
    }

    /// The 16-bit type that the weight's plain values have, if they do.
    pub(crate) fn sixteen_bits(&self) -> Option<Dtype> {
        let weight = &self.claim().weight;
        Some(weight.value_dtype()).filter(|dtype| weight.is_plain() && *dtype != Dtype::F32)
    }

    /// True for the input projection of torch's MultiheadAttention.
    pub(crate) fn is_attention_input(&self) -> bool {
        self.site.is_attention_input()
    }

    /// True for its output projection.
    pub(crate) fn is_attention_output(&self) -> bool {
        self.site.attention_output
    }

    /// True if the base has a bias for the module.
    pub(crate) fn has_bias(&self) -> bool {
        self.site.bias.is_some()
    }
}

/// What a missing tensor may come from.
pub(super) const INCOMPLETE: &str = "the adapter file is incomplete";
/// What a shape may come from that does not fit.
pub(super) const OTHER: &str =
    "adapter_config.json and the weights are of different adapters, or this adapter was trained on another base";

/// The two dimensions of a factor, with everything behind the first taken together.
pub(super) fn matrix_shape(tensors: &Checkpoint, name: &str) -> Result<(usize, usize)> {
    let entry = tensors.get(name).ok_or_else(|| mismatch("missing").in_tensor(name))?;
    match entry.shape[..] {
        [rows, ref rest @ ..] if !rest.is_empty() => Ok((rows, rest.iter().product())),
        _ => Err(mismatch(format!("shape {:?}, expected a matrix", entry.shape)).in_tensor(name)),
    }
}

/// A tensor that all modules of an adapter share. It is read once, by the first change that is loaded.
#[derive(Debug)]
pub struct Shared {
    name: String,
    elements: u64,
    values: Mutex<Option<Arc<[f32]>>>,
}

impl Shared {
    pub(super) fn new(name: &str, elements: u64) -> Self {
        Self { name: name.to_owned(), elements, values: Mutex::new(None) }
    }

    /// Its name in the adapter.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Bytes that its values take.
    pub fn memory(&self) -> u64 {
        4 * self.elements
    }

    /// Its values.
    pub(super) fn read(&self, tensors: &Checkpoint) -> Result<Arc<[f32]>> {
        let mut values = lock(&self.values);
        if let Some(values) = &*values {
            return Ok(Arc::clone(values));
        }
        let read: Arc<[f32]> = read_floats(tensors, &self.name)?.into();
        *values = Some(Arc::clone(&read));
        Ok(read)
    }
}
