//! What an adapter does to a base, and that every tensor of it is accounted for.

use std::collections::{BTreeSet, HashMap, HashSet};

use super::{Adapter, Placed};
use crate::error::{Error, Result, mismatch};
use crate::open::Checkpoint;

/// What an adapter does to a base, decided from names and shapes.
#[derive(Debug, Default)]
pub struct Changes {
    /// Edits of weights that exist in the base (or will: a head that parts from its embedding).
    pub edits: Vec<PlannedEdit>,
    /// Tensors that take the place of the base's.
    pub replacements: Vec<Replacement>,
    /// Tensors that the base has none of: the head of a classifier.
    pub additions: Vec<Addition>,
    /// Tensors that need not be merged, each with the reason.
    pub ignored: Vec<(String, &'static str)>,
    /// Numbers of the rules on factors that a module was found by.
    pub scales: BTreeSet<usize>,
    /// Tensors that matched nothing.
    pub unused: Vec<String>,
    /// What the user should know.
    pub warnings: Vec<String>,
}

/// One edit of one weight.
#[derive(Clone, Debug)]
pub struct PlannedEdit {
    /// Name of the weight's lead entry in the base.
    pub target: String,
    /// The edit.
    pub plan: Placed,
    /// Adapter tensors it takes.
    pub tensors: Vec<String>,
    /// Path of the linear layer whose matrix it changes, as the adapter calls it; none for embeddings, experts, biases and tokens, and where the
    /// matrix is a part of a weight.
    pub layer: Option<String>,
}

/// A tensor of the adapter that replaces one of the base.
#[derive(Clone, Debug)]
pub struct Replacement {
    /// Name in the base.
    pub target: String,
    /// Name in the adapter.
    pub tensor: String,
    /// True if the user trained this copy (`modules_to_save`, biases); false if it only came along (the base's own tensor of an
    /// edited or resized embedding).
    pub trained: bool,
}

/// A tensor of the adapter that is new to the base.
#[derive(Clone, Debug)]
pub struct Addition {
    /// Its name in the output.
    pub target: String,
    /// Name in the adapter.
    pub tensor: String,
}

impl Changes {
    /// Errors if two modules of the adapter ended in one weight: each was trained on its own, so one of them was named wrongly.
    pub(super) fn refuse_twice(&self, adapter: &Adapter) -> Result<()> {
        let mut taken = HashMap::new();
        for edit in &self.edits {
            let (target, Some(tensor)) = (edit.target.as_str(), edit.tensors.first()) else { continue };
            if let Some(other) = taken.insert((target, edit.plan.part), tensor.as_str())
                && adapter.key(other).module != adapter.key(tensor).module
            {
                return Err(twice(target, other, tensor));
            }
        }
        let mut replaced: HashMap<&str, &str> = HashMap::new();
        let whole = self.replacements.iter().map(|replacement| (&replacement.target, &replacement.tensor));
        let added = self.additions.iter().map(|addition| (&addition.target, &addition.tensor));
        for (target, tensor) in whole.chain(added) {
            if let Some(other) = replaced.insert(target, tensor) {
                return Err(twice(target, other, tensor));
            }
        }
        Ok(())
    }

    /// True if it is nothing but what its method does to layers: no module trained whole, no trained tokens.
    pub(crate) fn is_layers_only(&self) -> bool {
        self.additions.is_empty()
            && self.replacements.iter().all(|replacement| !replacement.trained)
            && !self.edits.iter().any(|edit| edit.plan.is_tokens())
    }

    /// Collects the tensors that no one took.
    pub(super) fn account(&mut self, tensors: &Checkpoint) {
        let mut used = HashSet::<&str>::new();
        used.extend(self.edits.iter().flat_map(|edit| edit.tensors.iter().map(String::as_str)));
        used.extend(self.replacements.iter().map(|replacement| replacement.tensor.as_str()));
        used.extend(self.additions.iter().map(|addition| addition.tensor.as_str()));
        used.extend(self.ignored.iter().map(|(name, _)| name.as_str()));
        self.unused = tensors
            .entries
            .iter()
            .map(|entry| &entry.name)
            .filter(|name| !used.contains(name.as_str()))
            .cloned()
            .collect();
    }
}

fn twice(target: &str, one: &str, two: &str) -> Error {
    mismatch(format!("it and `{one}` both mean `{target}` of the base"))
        .in_tensor(two)
        .with_hint("say with --map 'regex=>replacement' what each of them means, or take one out of the adapter")
}
