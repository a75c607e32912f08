//! What happens to each tensor: copied, recoded, edited, replaced, or new.

#![cfg_attr(not(test), deny(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing, clippy::panic))]

use std::collections::{BTreeMap, HashMap, HashSet};
use std::path::Path;

use super::builder::Builder;
use super::export::{Constant, Destination, Exported, Model};
use super::method::{Chooser, Main};
use super::quantized::Quantized;
use super::recode::Recode;
use super::target::{Targets, is_coarse};
use super::tie::{self, Parted};
use super::{Inputs, Options, Slot, classifier};
use crate::adapters::{Addition, Changes, Names, PlannedEdit, Replacement, Task};
use crate::error::{Error, Kind, Result, mismatch};
use crate::formats::Claim;
use crate::open::Entry;

/// One unit of work with its place in the output.
#[derive(Debug)]
pub struct Step {
    /// Name of the tensor, or of the weight's lead tensor.
    pub name: String,
    /// What happens.
    pub action: Action,
    /// Where each part goes; one for a copy.
    pub slots: Vec<Slot>,
    /// Base entry whose place it takes, for the order of the output.
    pub place: usize,
}

impl Step {
    /// One whose slots are not known yet.
    fn at(place: usize, name: String, action: Action) -> Self {
        Self { name, action, slots: Vec::new(), place }
    }
}

impl From<Recode> for Action {
    fn from(recode: Recode) -> Self {
        Self::Recode(Box::new(recode))
    }
}

/// What a step does.
#[derive(Debug)]
pub enum Action {
    /// The base's bytes, unchanged.
    Copy {
        /// The tensor.
        entry: Entry,
    },
    /// Decoded, edited, encoded.
    Recode(Box<Recode>),
    /// Written as the plan has it: what an export has that is no tensor of the base.
    Constant(Constant),
}

/// The steps and what they mean for `config.json`.
pub(super) struct Decided {
    pub(super) steps: Vec<Step>,
    pub(super) config: ConfigChange,
    pub(super) rounding: Main,
    /// Entries of `llm_int8_skip_modules`; see [`Quantized::skipped`].
    pub(super) skipped: Option<Vec<String>>,
    /// The other container, if the output has one.
    pub(super) exported: Option<Exported>,
    pub(super) warnings: Vec<String>,
}

/// Changes that a merge makes to the model's configuration.
#[derive(Clone, Debug, Default)]
pub(super) struct ConfigChange {
    /// Input and output embedding part.
    pub(super) untie: bool,
    /// New number of tokens.
    pub(super) vocab_size: Option<usize>,
    /// An adapter brings the head of a classifier.
    pub(super) labels: Option<Labels>,
    /// Modules that the base lacks.
    pub(super) added: Vec<String>,
}

/// A classifier's task and its number of labels.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Labels {
    pub(super) task: Task,
    /// If it is known by the head's name.
    pub(super) number: Option<usize>,
}

impl Step {
    /// Dimensions in the output; a packed weight that is copied has those of its bytes.
    pub(super) fn shape(&self) -> &[usize] {
        match &self.action {
            Action::Copy { entry } => &entry.shape,
            Action::Recode(recode) => recode.to.shape(),
            Action::Constant(_) => &[],
        }
    }
}

/// All changes, by target, each with the number of its adapter.
pub(super) struct Wanted {
    pub(super) edits: HashMap<String, Vec<(usize, PlannedEdit)>>,
    pub(super) replacements: BTreeMap<String, (usize, Replacement)>,
    additions: BTreeMap<String, (usize, Addition)>,
}

impl Wanted {
    pub(super) fn touches(&self, name: &str) -> bool {
        self.edits.contains_key(name) || self.replacements.contains_key(name)
    }

    /// Puts an adapter's tensor in place of `target`.
    pub(super) fn replace(&mut self, target: &str, number: usize, replacement: &Replacement) {
        let own = Replacement { target: target.to_owned(), ..replacement.clone() };
        self.replacements.insert(target.to_owned(), (number, own));
    }

    /// Wants of `to` what is wanted of `from`, beside what other adapters want of it, and nothing of `from`.
    ///
    /// Errors if two adapters want them replaced.
    pub(super) fn rename(&mut self, from: &str, to: &str) -> Result<()> {
        let edits = self.edits.remove(from).unwrap_or_default();
        if !edits.is_empty() {
            let own = self.edits.entry(to.to_owned()).or_default();
            let known: Vec<usize> = own.iter().map(|(number, _)| *number).collect();
            own.extend(edits.into_iter().filter(|(number, _)| !known.contains(number)));
        }
        let Some((number, replacement)) = self.replacements.remove(from) else { return Ok(()) };
        match self.replacements.get(to) {
            Some((other, _)) if *other != number => {
                Err(mismatch(format!("two adapters replace `{to}`, one of them as `{from}`"))
                    .with_hint("merge one of them first, and the other into the result"))
            }
            Some(_) => Ok(()),
            None => {
                self.replace(to, number, &replacement);
                Ok(())
            }
        }
    }

    /// Wants of `target` what is wanted of `source`.
    pub(super) fn copy(&mut self, source: &str, target: &str) {
        if let Some(edits) = self.edits.get(source).cloned() {
            self.edits.insert(target.to_owned(), edits);
        }
        if let Some((number, replacement)) = self.replacements.get(source).cloned() {
            self.replace(target, number, &replacement);
        }
    }
}

pub(super) fn decide(inputs: &Inputs, options: &Options, names: &Names<'_>, changes: Vec<Changes>) -> Result<Decided> {
    let mut warnings = Vec::new();
    let mut config = ConfigChange::default();
    let heads: Vec<(Option<Task>, String)> = inputs
        .adapters
        .iter()
        .zip(&changes)
        .flat_map(|(adapter, changes)| {
            changes.additions.iter().map(|addition| (adapter.config.task(), addition.target.clone()))
        })
        .collect();
    let mut wanted = collect(inputs, changes)?;
    refuse_replaced(inputs, &wanted)?;
    let mut parted = tie::settle(inputs, options, names, &mut wanted, &mut config, &mut warnings)?;
    tie::settle_bias(names, &mut wanted, &config, &mut parted)?;
    let new = wanted.additions.keys().chain(parted.iter().map(|parted| &parted.name)).map(String::as_str);
    let quantized = Quantized::new(names, options, new)?;
    warnings.extend(quantized.warning.clone());
    let weights = dimensions(inputs, &wanted, &parted);
    let has_additions = !wanted.additions.is_empty();
    let model =
        Model { inputs, options, names, quantized: &quantized, weights: &weights, change: &config, has_additions };
    let exported = options.export.map(|export| export.export(&model)).transpose()?;
    warnings.extend(exported.iter().flat_map(|exported| exported.warnings.clone()));
    let targets = Targets::new((options, names), &quantized, exported.as_ref(), |name| wanted.touches(name));
    let coarse = inputs.inventory.weights.iter().filter_map(|claim| {
        let name = claim.weight.name();
        let touched = wanted.touches(name);
        let target = targets.of(name, claim);
        let changes = target.is_some() || touched;
        (changes && is_coarse(target.as_ref(), claim)).then_some(claim.weight.as_ref())
    });
    let chooser = Chooser::new(options.rounding, &options.data, inputs.original.is_some(), coarse);
    let builder = Builder { inputs, options, chooser: &chooser, names, targets: &targets };
    let mut steps = Vec::new();
    let positions: HashMap<&str, usize> =
        inputs.base.entries.iter().enumerate().map(|(i, entry)| (entry.name.as_str(), i)).collect();
    let mut recoded: HashSet<&str> = HashSet::new();
    let is_nowhere = |claim: &Claim| {
        let place = exported.as_ref().and_then(|exported| exported.places.get(claim.weight.name()));
        matches!(place, Some(Destination::Nowhere))
    };
    for claim in inputs.inventory.weights.iter().filter(|claim| !is_nowhere(claim)) {
        let lead = claim.entries.first().map(|entry| entry.name.as_str());
        let place = lead.and_then(|name| positions.get(name)).copied().unwrap_or_default();
        if let Some(recode) = builder.recode(&mut wanted, claim)? {
            recoded.extend(claim.entries.iter().map(|entry| entry.name.as_str()));
            steps.push(Step::at(place, recode.to.name().to_owned(), recode.into()));
        }
        for Parted { name, .. } in parted.iter().filter(|parted| parted.source == claim.weight.name()) {
            let recode = builder.apart(&mut wanted, name, claim)?;
            steps.push(Step::at(place, name.clone(), recode.into()));
        }
    }
    for (name, (number, addition)) in std::mem::take(&mut wanted.additions) {
        let recode = builder.added(&name, number, &addition)?;
        let place = inputs.base.entries.len().saturating_sub(1);
        steps.push(Step::at(place, name, recode.into()));
    }
    if let Some(name) = wanted.edits.keys().chain(wanted.replacements.keys()).next() {
        return Err(Error::new(Kind::Bug, "an edit was planned for it, but no step takes it").in_tensor(name));
    }
    match &exported {
        // All that is kept of the base is written anew.
        Some(exported) if !exported.copies_rest => {
            let step = |constant: &Constant| Step::at(0, constant.name.clone(), Action::Constant(constant.clone()));
            steps.extend(exported.constants.iter().map(step));
        }
        _ => {
            let all = inputs.base.entries.iter().enumerate();
            let copied = all.filter(|(_, entry)| !recoded.contains(entry.name.as_str()));
            let step = |(place, entry): (usize, &Entry)| {
                Step::at(place, entry.name.clone(), Action::Copy { entry: entry.clone() })
            };
            steps.extend(copied.map(step));
        }
    }
    // Sorting is stable, so a new head stays behind its embedding, and a classifier's behind all.
    steps.sort_by_key(|step| step.place);
    vocabulary(names, &steps, &mut config)?;
    classifier::labels(&heads, &steps, &mut config)?;
    warnings.extend(classifier_warning(&config));
    let rounding = chooser.main(&steps);
    Ok(Decided { steps, config, rounding, skipped: quantized.skipped, exported, warnings })
}

/// That the model becomes a classifier, where an adapter brings the head of one.
fn classifier_warning(config: &ConfigChange) -> Option<String> {
    let (labels, module) = (config.labels.as_ref()?, config.added.last()?);
    let before = if matches!(labels.task, Task::Class(_)) { "" } else { "…" };
    let number = labels.number.map_or_else(String::new, |number| format!(" with {number} labels"));
    Some(format!(
        "the adapter brings the head of a classifier, `{module}`, which the base does not have: it is added, and config.json names a \
         class {before}{}{number}",
        labels.task.class()
    ))
}

/// Names and dimensions of the output's weights, where nothing but an adapter changes them.
fn dimensions(inputs: &Inputs, wanted: &Wanted, parted: &[Parted]) -> Vec<(String, Vec<usize>)> {
    let shape = |name: &str, claim: &Claim| {
        let own = wanted.replacements.get(name).and_then(|(number, replacement)| {
            Some(inputs.adapters.get(*number)?.tensors.get(&replacement.tensor)?.shape.clone())
        });
        own.unwrap_or_else(|| claim.weight.shape().to_vec())
    };
    let of = |claim: &Claim| {
        let name = claim.weight.name();
        let apart = parted.iter().filter(|parted| parted.source == name).map(|parted| parted.name.as_str());
        std::iter::once(name).chain(apart).map(|name| (name.to_owned(), shape(name, claim))).collect::<Vec<_>>()
    };
    inputs.inventory.weights.iter().flat_map(of).collect()
}

/// A tensor that an adapter puts in place of the base's is no base that a tuned model differs from.
fn refuse_replaced(inputs: &Inputs, wanted: &Wanted) -> Result<()> {
    for (target, (number, replacement)) in &wanted.replacements {
        let edits = wanted.edits.get(target).map_or(&[][..], Vec::as_slice);
        let tuned = edits.iter().find(|(_, edit)| edit.plan.task_vector().is_some());
        let adapters = tuned.and_then(|(tuned, _)| inputs.adapters.get(*tuned)).zip(inputs.adapters.get(*number));
        if let Some((tuned, adapter)) = adapters {
            return Err(mismatch(format!(
                "{} brings its own, and {} changes the base's",
                adapter.path.display(),
                tuned.path.display()
            ))
            .in_file(adapter.file())
            .in_tensor(&replacement.tensor)
            .with_hint("merge one of them first, and the other into the result"));
        }
    }
    Ok(())
}

fn collect(inputs: &Inputs, changes: Vec<Changes>) -> Result<Wanted> {
    let mut wanted = Wanted { edits: HashMap::new(), replacements: BTreeMap::new(), additions: BTreeMap::new() };
    for (number, changes) in changes.into_iter().enumerate() {
        for edit in changes.edits {
            wanted.edits.entry(edit.target.clone()).or_default().push((number, edit));
        }
        let folder =
            |number: usize| inputs.adapters.get(number).map_or(Path::new(""), |adapter| adapter.path.as_path());
        let two = |other: usize, target: &str| {
            mismatch(format!("two adapters replace it: {} and {}", folder(other).display(), folder(number).display()))
                .in_tensor(target)
                .with_hint("merge one of them first, and the other into the result")
        };
        for replacement in changes.replacements {
            let target = replacement.target.clone();
            if let Some((other, _)) = wanted.replacements.insert(target.clone(), (number, replacement)) {
                return Err(two(other, &target));
            }
        }
        for addition in changes.additions {
            let target = addition.target.clone();
            if let Some((other, _)) = wanted.additions.insert(target.clone(), (number, addition)) {
                return Err(two(other, &target));
            }
        }
    }
    Ok(wanted)
}

/// Embedding and head must agree on the number of tokens; a change goes to the configuration.
fn vocabulary(names: &Names<'_>, steps: &[Step], config: &mut ConfigChange) -> Result<()> {
    // A packed weight's own shape says how many bytes it has; its claim says how many tokens.
    let before = |name: &str| names.exact(name).and_then(|claim| claim.weight.shape().first().copied());
    let now: HashMap<&str, Option<usize>> = steps
        .iter()
        .map(|step| match &step.action {
            Action::Copy { .. } | Action::Constant(_) => (step.name.as_str(), before(&step.name)),
            Action::Recode(recode) => (step.name.as_str(), recode.to.shape().first().copied()),
        })
        .collect();
    let Some(embed) = names.embed() else { return Ok(()) };
    let embed = embed.weight.name();
    let Some(tokens) = now.get(embed).copied().flatten() else { return Ok(()) };
    let changed = |name: &str| before(name) != now.get(name).copied().flatten();
    for head in names.arch.heads(names.tie).map(|module| format!("{module}.weight")) {
        if let Some(rows) = now.get(head.as_str()).copied().flatten()
            && rows != tokens
            && (changed(embed) || changed(&head))
        {
            return Err(mismatch(format!("`{embed}` has {tokens} tokens, but `{head}` has {rows}"))
                .with_hint("the adapter resized one of the two only: save it again with save_embedding_layers=True"));
        }
    }
    if changed(embed) {
        config.vocab_size = Some(tokens);
    }
    Ok(())
}
