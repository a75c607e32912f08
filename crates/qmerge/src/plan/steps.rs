//! What happens to each tensor: copied, recoded, edited, replaced, or new.

#![cfg_attr(not(test), deny(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing, clippy::panic))]

use std::collections::{BTreeMap, HashMap, HashSet};
use std::path::Path;
use std::sync::Arc;

use super::method::{Chooser, Main};
use super::quantized::{Quantized, is_transposed, is_turned};
use super::tie::{self, Parted};
use super::{Inputs, Options, Slot, classifier};

use crate::adapters::{Adapter, Addition, Changes, Names, PlannedEdit, Replacement, Task};
use crate::dtype::Dtype;
use crate::error::{Error, Kind, Result, mismatch, unsupported, usage};
use crate::formats::plain::PlainWeight;
use crate::formats::{self, Claim, Weight};
use crate::open::{Checkpoint, Entry};
use crate::round::{self, Rounding};

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
}

/// Where decoded values come from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Source {
    /// The base.
    Base,
    /// A tensor that the adapter of that number brings along.
    Adapter(usize),
}

/// A weight that is decoded and encoded anew.
#[derive(Debug)]
pub struct Recode {
    /// Whose values.
    pub source: Source,
    /// How they are stored there.
    pub from: Claim,
    /// How they are stored in the output.
    pub to: Arc<dyn Weight>,
    /// Edits with the number of their adapter, in the order given.
    pub edits: Vec<(usize, PlannedEdit)>,
    /// How codes are chosen.
    pub rounding: &'static dyn Rounding,
    /// The base's scales stay.
    pub keep: bool,
    /// The rows that are read are the layer's inputs.
    pub transposed: bool,
    /// Rows become columns: loaders want (out, in) of a quantized weight that is stored (in, out) while it is plain.
    pub turned: bool,
    /// What the base's weight was quantized from, where that is rounded with the delta in place of the base.
    pub original: Option<Claim>,
    /// Rounds edited values to this type before they are encoded (PEFT casts DoRA's result to the base's type).
    pub values: Option<Dtype>,
}

impl Recode {
    /// The checkpoint that decoded values come from.
    pub(crate) fn source<'i>(&self, inputs: &'i Inputs) -> &'i Checkpoint {
        match self.source {
            Source::Adapter(number) => inputs.adapters.get(number).map_or(&inputs.base, |adapter| &adapter.tensors),
            Source::Base => &inputs.base,
        }
    }

    /// Outputs of the layer, where the weight is a matrix.
    pub fn outputs(&self) -> usize {
        let geometry = self.from.weight.geometry();
        if self.transposed { geometry.cols } else { geometry.rows }
    }

    /// Its inputs.
    pub fn inputs(&self) -> usize {
        let geometry = self.from.weight.geometry();
        if self.transposed { geometry.rows } else { geometry.cols }
    }

    /// True if the rows that are written are the layer's inputs.
    pub(crate) fn is_stored_transposed(&self) -> bool {
        self.transposed != self.turned
    }

    /// True if fresh scales depend on the whole weight.
    pub(crate) fn is_surveyed(&self) -> bool {
        !self.keep && self.to.writer().is_some_and(|writer| writer.needs_survey())
    }
}

/// The steps and what they mean for `config.json`.
pub(super) struct Decided {
    pub(super) steps: Vec<Step>,
    pub(super) config: ConfigChange,
    pub(super) rounding: Main,
    /// Entries of `llm_int8_skip_modules`; see [`Quantized::skipped`].
    pub(super) skipped: Option<Vec<String>>,
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
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Labels {
    pub(super) task: Task,
    pub(super) number: usize,
}

impl Step {
    /// Dimensions in the output; a packed weight that is copied has those of its bytes.
    pub(super) fn shape(&self) -> &[usize] {
        match &self.action {
            Action::Copy { entry } => &entry.shape,
            Action::Recode(recode) => recode.to.shape(),
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
    let parted = tie::settle(inputs, options, names, &mut wanted, &mut config, &mut warnings)?;
    let new = wanted.additions.keys().chain(parted.iter().map(|parted| &parted.name)).map(String::as_str);
    let quantized = Quantized::new(names, options, new)?;
    warnings.extend(quantized.warning.clone());
    let coarse = inputs.inventory.weights.iter().filter_map(|claim| {
        let format = target_format(options, names, &quantized, claim);
        let changes = format.is_some() || wanted.touches(claim.weight.name());
        (changes && is_coarse(format, claim)).then(|| claim.weight.name())
    });
    let chooser = Chooser::new(options.rounding, &options.data, inputs.original.is_some(), coarse);
    let mut steps = Vec::new();
    let positions: HashMap<&str, usize> =
        inputs.base.entries.iter().enumerate().map(|(i, entry)| (entry.name.as_str(), i)).collect();
    let mut recoded: HashSet<&str> = HashSet::new();
    for claim in &inputs.inventory.weights {
        let lead = claim.entries.first().map(|entry| entry.name.as_str());
        let place = lead.and_then(|name| positions.get(name)).copied().unwrap_or_default();
        if let Some(recode) = recode(inputs, options, &chooser, (names, &quantized), &mut wanted, claim)? {
            recoded.extend(claim.entries.iter().map(|entry| entry.name.as_str()));
            steps.push(Step {
                name: recode.to.name().to_owned(),
                action: Action::Recode(Box::new(recode)),
                slots: Vec::new(),
                place,
            });
        }
        for Parted { name, .. } in parted.iter().filter(|parted| parted.source == claim.weight.name()) {
            let recode = apart(inputs, options, &chooser, (names, &quantized), &mut wanted, name, claim)?;
            steps.push(Step { name: name.clone(), action: Action::Recode(Box::new(recode)), slots: Vec::new(), place });
        }
    }
    for (name, (number, addition)) in std::mem::take(&mut wanted.additions) {
        let recode = added(inputs, options, names, &name, number, &addition)?;
        let place = inputs.base.entries.len().saturating_sub(1);
        steps.push(Step { name, action: Action::Recode(Box::new(recode)), slots: Vec::new(), place });
    }
    if let Some(name) = wanted.edits.keys().chain(wanted.replacements.keys()).next() {
        return Err(Error::new(Kind::Bug, "an edit was planned for it, but no step takes it").in_tensor(name));
    }
    steps.extend(
        inputs.base.entries.iter().enumerate().filter(|(_, entry)| !recoded.contains(entry.name.as_str())).map(
            |(place, entry)| Step {
                name: entry.name.clone(),
                action: Action::Copy { entry: entry.clone() },
                slots: Vec::new(),
                place,
            },
        ),
    );
    // Sorting is stable, so a new head stays behind its embedding, and a classifier's behind all.
    steps.sort_by_key(|step| step.place);
    vocabulary(names, &steps, &mut config)?;
    classifier::labels(&heads, &steps, &mut config)?;
    if let (Some(labels), Some(module)) = (config.labels, config.added.last()) {
        warnings.push(format!(
            "the adapter brings the head of a classifier, `{module}`, which the base does not have: it is added, and config.json names a \
             class …{} with {} labels",
            labels.task.class(),
            labels.number
        ));
    }
    let rounding = chooser.main(&steps);
    Ok(Decided { steps, config, rounding, skipped: quantized.skipped, warnings })
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

/// The step of a base weight that is not merely copied.
fn recode(
    inputs: &Inputs,
    options: &Options,
    chooser: &Chooser<'_>,
    (names, quantized): (&Names<'_>, &Quantized<'_>),
    wanted: &mut Wanted,
    claim: &Claim,
) -> Result<Option<Recode>> {
    let name = claim.weight.name();
    let touched = wanted.touches(name);
    let format = target_format(options, names, quantized, claim);
    if !touched && format.is_none() {
        return Ok(None);
    }
    build(inputs, options, chooser, names, wanted, name, claim, format).map(Some)
}

/// A weight that parts from the one it was tied to: that one's values, or the adapter's own, with its edits.
fn apart(
    inputs: &Inputs,
    options: &Options,
    chooser: &Chooser<'_>,
    (names, quantized): (&Names<'_>, &Quantized<'_>),
    wanted: &mut Wanted,
    name: &str,
    source: &Claim,
) -> Result<Recode> {
    build(inputs, options, chooser, names, wanted, name, source, target_format(options, names, quantized, source))
}

/// A tensor that the base lacks, in the type that the rest of the model has.
fn added(
    inputs: &Inputs,
    options: &Options,
    names: &Names<'_>,
    name: &str,
    number: usize,
    addition: &Addition,
) -> Result<Recode> {
    let from = plain(inputs, number, &addition.tensor)?;
    let shape = from.weight.shape().to_vec();
    let like = names.embed().or_else(|| names.weights.iter().find(|claim| claim.weight.is_plain()));
    let dtype = like.map_or(from.weight.value_dtype(), |claim| claim.weight.value_dtype());
    let to: Arc<dyn Weight> = match options.to.filter(|to| !to.quantizes()) {
        Some(format) => format.create(name, &shape, dtype, &options.settings)?,
        None => Arc::new(PlainWeight::new(name, &shape, dtype)),
    };
    Ok(Recode {
        source: Source::Adapter(number),
        from,
        to,
        edits: Vec::new(),
        rounding: round::NEAREST,
        keep: false,
        transposed: false,
        turned: false,
        original: None,
        values: None,
    })
}

/// Builds the step that writes `name` out of `claim`'s values or their replacement.
#[allow(clippy::too_many_arguments)]
fn build(
    inputs: &Inputs,
    options: &Options,
    chooser: &Chooser<'_>,
    names: &Names<'_>,
    wanted: &mut Wanted,
    name: &str,
    claim: &Claim,
    target: Option<Target>,
) -> Result<Recode> {
    let edits = wanted.edits.remove(name).unwrap_or_default();
    let (source, mut from) = match wanted.replacements.remove(name) {
        None => (Source::Base, claim.clone()),
        Some((number, replacement)) => (Source::Adapter(number), replaced(inputs, number, &replacement, claim)?),
    };
    for (number, edit) in &edits {
        fit(&mut from, edit)
            .map_err(|error| error.in_file(inputs.adapters.get(*number).map_or(Path::new(""), Adapter::file)))?;
    }
    let additive = edits.iter().any(|(_, edit)| edit.plan.is_additive());
    let base_dtype = claim.weight.value_dtype();
    let values_dtype = if additive { Dtype::F32 } else { base_dtype };
    let stores_as = edits.iter().find_map(|(_, edit)| edit.plan.stores_as());
    let own = target.is_none() && source == Source::Base && name == claim.weight.name();
    let rounding = chooser.wanted(own, is_coarse(target, claim));
    let keep = own && rounding.keeps_scales() && claim.weight.on_grid().is_some();
    let shape = from.weight.shape().to_vec();
    let geometry = from.weight.geometry();
    let turned = target.is_some_and(|target| target.turned);
    let transposed = is_transposed(names, from.weight.as_ref());
    let to: Arc<dyn Weight> = match (target, stores_as) {
        (_, Some(dtype)) => Arc::new(PlainWeight::new(name, &shape, dtype)),
        (Some(Target { format, .. }), None) => {
            let settings = &options.settings;
            let shape = if turned { shape.iter().rev().copied().collect() } else { shape };
            format.create(
                name,
                &shape,
                if additive && claim.weight.is_plain() { base_dtype } else { values_dtype },
                settings,
            )?
        }
        (None, None) if keep => Arc::clone(&claim.weight),
        (None, None) if claim.weight.is_plain() => Arc::new(PlainWeight::new(name, &shape, base_dtype)),
        (None, None) => claim
            .weight
            .writer()
            .ok_or_else(|| only_read(claim.weight.as_ref()))?
            .renewed(values_dtype, &options.settings)?,
    };
    // The same view of rows on both sides, so that chunks agree.
    let to = if to.geometry().rows == geometry.rows || turned {
        to
    } else {
        to.reshaped(geometry.rows, geometry.cols)
            .ok_or_else(|| Error::new(Kind::Bug, "the output's rows differ from the input's").in_tensor(name))?
    };
    let values = (!additive && !edits.is_empty() && !to.is_plain()).then_some(base_dtype);
    let from_original = keep && rounding.needs_original() && !to.is_plain();
    let original = from_original.then(|| original(inputs, name, &from)).transpose()?;
    let mut recode = Recode { source, from, to, edits, rounding, keep, transposed, turned, original, values };
    recode.rounding = chooser.settled(&recode);
    Ok(recode)
}

/// The weight of that name in what the base was quantized from.
fn original(inputs: &Inputs, name: &str, from: &Claim) -> Result<Claim> {
    let Some(original) = &inputs.original else {
        return Err(usage("`--rounding original` needs the checkpoint that the base was quantized from")
            .with_hint("name it with --original"));
    };
    let unfit = |problem: String| {
        mismatch(problem)
            .in_file(&original.checkpoint.path)
            .in_tensor(name)
            .with_hint("--original names the 16-bit checkpoint that this base was quantized from")
    };
    let claim = original.weight(name).ok_or_else(|| unfit("is missing in the original".into()))?;
    if claim.weight.shape() != from.weight.shape() {
        let (have, want) = (claim.weight.shape(), from.weight.shape());
        return Err(unfit(format!("shape {have:?} in the original, {want:?} in the base")));
    }
    let geometry = from.weight.geometry();
    let mut claim = claim.clone();
    if (claim.weight.geometry().rows, claim.weight.geometry().cols) != (geometry.rows, geometry.cols) {
        claim.weight = claim
            .weight
            .reshaped(geometry.rows, geometry.cols)
            .ok_or_else(|| unfit("its rows cannot be cut as the base's are".into()))?;
    }
    Ok(claim)
}

/// The adapter's own tensor in place of a base weight's. Its first dimension may differ: a resized vocabulary.
fn replaced(inputs: &Inputs, number: usize, replacement: &Replacement, claim: &Claim) -> Result<Claim> {
    let from = plain(inputs, number, &replacement.tensor)?;
    let (have, shape) = (claim.weight.shape(), from.weight.shape());
    let resized = matches!((have, shape), ([_, have], [_, own]) if have == own);
    let same = shape == have;
    let is_table = resized && claim.weight.is_plain();
    if !(same || is_table) {
        return Err(mismatch(format!("shape {shape:?}, but it replaces `{}` of shape {have:?}", claim.weight.name()))
            .in_file(inputs.adapters.get(number).map_or(Path::new(""), Adapter::file))
            .in_tensor(&replacement.tensor)
            .with_hint("this adapter was trained on another base"));
    }
    Ok(from)
}

/// A tensor of an adapter as a weight.
fn plain(inputs: &Inputs, number: usize, name: &str) -> Result<Claim> {
    let missing = || mismatch("missing").in_tensor(name);
    let tensors = &inputs.adapters.get(number).ok_or_else(missing)?.tensors;
    let entry = tensors.get(name).ok_or_else(missing)?;
    if !entry.dtype.is_plain_float() {
        return Err(mismatch(format!("stored as {}, expected F32, F16 or BF16", entry.dtype))
            .in_file(tensors.file_of(entry))
            .in_tensor(&entry.name));
    }
    let weight = PlainWeight::new(&entry.name, &entry.shape, entry.dtype);
    Ok(Claim { weight: Arc::new(weight), entries: vec![entry.clone()] })
}

/// Sees the weight with the rows and columns of the edit (a convolution is flattened), or says that it does not fit.
fn fit(from: &mut Claim, edit: &PlannedEdit) -> Result<()> {
    let Some((rows, cols)) = edit.plan.shape() else { return Ok(()) };
    let geometry = from.weight.geometry();
    if (geometry.rows, geometry.cols) == (rows, cols) {
        return Ok(());
    }
    match from.weight.reshaped(rows, cols).filter(|_| from.weight.shape().len() != 2) {
        Some(weight) => {
            from.weight = weight;
            Ok(())
        }
        None => Err(mismatch(format!(
            "the adapter's delta is [{rows}, {cols}], but `{}` is {:?}",
            from.weight.name(),
            from.weight.shape()
        ))
        .in_tensor(edit.tensors.first().map_or("", String::as_str))
        .with_hint("this adapter was trained on another base")),
    }
}

/// Some types can be read, and nobody has said how to write them.
fn only_read(weight: &dyn Weight) -> Error {
    unsupported(format!("stored as {}, which can be read but not written", weight.format()))
        .in_tensor(weight.name())
        .with_hint("--to names another format for the output")
}

/// True if a weight ends in a format coarser than 16 bits.
fn is_coarse(target: Option<Target>, claim: &Claim) -> bool {
    target.map_or(!claim.weight.is_plain(), |target| target.format.quantizes())
}

/// A format that a weight takes in place of its own.
#[derive(Clone, Copy)]
struct Target {
    format: &'static dyn formats::Format,
    /// Rows become columns.
    turned: bool,
}

/// The format a base weight takes; `None` for its own.
fn target_format(options: &Options, names: &Names<'_>, quantized: &Quantized<'_>, claim: &Claim) -> Option<Target> {
    let format = options.to?;
    let weight = claim.weight.as_ref();
    if format.id() == weight.format() {
        return None;
    }
    let takes = !format.quantizes() || !weight.is_plain() || quantized.takes(weight);
    takes.then(|| Target { format, turned: is_turned(names, weight, format) })
}

/// Embedding and head must agree on the number of tokens; a change goes to the configuration.
fn vocabulary(names: &Names<'_>, steps: &[Step], config: &mut ConfigChange) -> Result<()> {
    // A packed weight's own shape says how many bytes it has; its claim says how many tokens.
    let before = |name: &str| names.exact(name).and_then(|claim| claim.weight.shape().first().copied());
    let now: HashMap<&str, Option<usize>> = steps
        .iter()
        .map(|step| match &step.action {
            Action::Copy { .. } => (step.name.as_str(), before(&step.name)),
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
