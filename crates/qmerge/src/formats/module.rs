//! The tensors of a checkpoint by the module that they belong to: what a format looks at to know its own.
//!
//! A quantized layer is several tensors (`q_proj.qweight`, `q_proj.scales`; `q_proj.weight`, `q_proj.weight.absmax`), so formats claim modules, not names.
//! Grouping them once costs one look-up per tensor, however many formats there are.

use std::collections::HashMap;

use crate::open::{Checkpoint, Entry};

/// Most dotted parts that a companion's name adds to the name of the tensor that it belongs to (`weight.quant_state.bitsandbytes__nf4`).
const DEEPEST: usize = 3;

/// The tensors whose names are `path.…` and belong to no module within it.
#[derive(Debug)]
pub struct Module<'c> {
    /// The checkpoint, for its configuration and for small reads.
    pub checkpoint: &'c Checkpoint,
    /// Name in the model ("model.layers.0.self_attn.q_proj"); empty for tensors without a dot.
    pub path: &'c str,
    /// In the order of their names.
    tensors: Vec<Tensor<'c>>,
}

#[derive(Debug)]
struct Tensor<'c> {
    /// What follows the module's path ("weight", "weight.absmax").
    leaf: &'c str,
    entry: &'c Entry,
    /// Number of the entry in the checkpoint.
    number: usize,
    taken: bool,
}

impl<'c> Module<'c> {
    /// The tensor of that name within the module, whether or not another format has claimed it.
    pub fn get(&self, leaf: &str) -> Option<&'c Entry> {
        let at = self.tensors.binary_search_by(|tensor| tensor.leaf.cmp(leaf)).ok()?;
        self.tensors.get(at).map(|tensor| tensor.entry)
    }

    /// The companion `leaf.suffix` of a tensor.
    pub fn beside(&self, leaf: &str, suffix: &str) -> Option<&'c Entry> {
        let wanted = || leaf.bytes().chain(std::iter::once(b'.')).chain(suffix.bytes());
        let at = self.tensors.binary_search_by(|tensor| tensor.leaf.bytes().cmp(wanted())).ok()?;
        self.tensors.get(at).map(|tensor| tensor.entry)
    }

    /// Tensors that no format has claimed, with their names within the module.
    pub fn free(&self) -> impl Iterator<Item = (&'c str, &'c Entry)> + '_ {
        self.tensors.iter().filter(|tensor| !tensor.taken).map(|tensor| (tensor.leaf, tensor.entry))
    }

    /// Marks what a claim holds, and returns the number of its first tensor.
    pub(super) fn take(&mut self, entries: &[Entry]) -> usize {
        let mut first = usize::MAX;
        for entry in entries {
            let leaf = entry.name.strip_prefix(self.path).unwrap_or_default();
            let leaf = leaf.strip_prefix('.').unwrap_or(leaf);
            let at = self.tensors.binary_search_by(|tensor| tensor.leaf.cmp(leaf));
            if let Some(tensor) = at.ok().and_then(|at| self.tensors.get_mut(at)) {
                tensor.taken = true;
                first = first.min(tensor.number);
            }
        }
        first
    }

    /// Numbers of the entries that nobody has claimed.
    pub(super) fn left(&self) -> impl Iterator<Item = usize> + '_ {
        self.tensors.iter().filter(|tensor| !tensor.taken).map(|tensor| tensor.number)
    }
}

/// All modules, in the order of their first tensors.
pub(super) fn modules(checkpoint: &Checkpoint) -> Vec<Module<'_>> {
    let mut places: HashMap<&str, usize> = HashMap::new();
    let mut modules: Vec<Module<'_>> = Vec::new();
    for (number, entry) in checkpoint.entries.iter().enumerate() {
        let (path, leaf) = split(checkpoint, &entry.name);
        let at = *places.entry(path).or_insert_with(|| {
            modules.push(Module { checkpoint, path, tensors: Vec::new() });
            modules.len() - 1
        });
        if let Some(module) = modules.get_mut(at) {
            module.tensors.push(Tensor { leaf, entry, number, taken: false });
        }
    }
    for module in &mut modules {
        module.tensors.sort_by_key(|tensor| tensor.leaf);
    }
    modules
}

/// A name's module and what is left of it: a companion goes where the tensor is that its name begins with.
fn split<'n>(checkpoint: &Checkpoint, name: &'n str) -> (&'n str, &'n str) {
    let mut owner = name;
    let mut shorter = name;
    for _ in 1..DEEPEST {
        let Some((before, _)) = shorter.rsplit_once('.') else { break };
        shorter = before;
        if checkpoint.has(shorter) {
            owner = shorter;
        }
    }
    let at = owner.rfind('.').map_or(0, |dot| dot + 1);
    let (path, leaf) = name.split_at_checked(at).unwrap_or(("", name));
    (path.strip_suffix('.').unwrap_or(path), leaf)
}
