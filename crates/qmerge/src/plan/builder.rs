//! How weights become steps: whose values they have, in which format they end, and by which rounding.

#![cfg_attr(not(test), deny(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing, clippy::panic))]

use std::path::Path;
use std::sync::Arc;

use super::method::Chooser;
use super::quantized::is_transposed;
use super::recode::{Recode, Source};
use super::steps::Wanted;
use super::stored::Unstored;
use super::target::{TargetFormat, Targets, is_coarse};
use super::{Inputs, Options, original};
use crate::adapters::{Adapter, Addition, Names, PlannedEdit, Replacement};
use crate::arch;
use crate::error::{Error, Kind, Result, mismatch};
use crate::formats::plain::PlainWeight;
use crate::formats::{Claim, Weight};
use crate::round;

/// What all weights of a plan are decided by.
pub(super) struct Builder<'a, 'n> {
    pub(super) inputs: &'a Inputs,
    pub(super) options: &'a Options,
    pub(super) chooser: &'a Chooser<'a>,
    pub(super) names: &'a Names<'n>,
    pub(super) targets: &'a Targets<'a, 'n>,
}

impl Builder<'_, '_> {
    /// The step of a base weight that is not merely copied.
    pub(super) fn recode(&self, wanted: &mut Wanted, claim: &Claim) -> Result<Option<Recode>> {
        let name = claim.weight.name();
        let touched = wanted.touches(name);
        let target = self.targets.of(name, claim);
        if !touched && target.is_none() {
            return Ok(None);
        }
        self.build(wanted, name, claim, target).map(Some)
    }

    /// A weight that parts from the one it was tied to: that one's values, or the adapter's own, with its edits.
    pub(super) fn apart(&self, wanted: &mut Wanted, name: &str, source: &Claim) -> Result<Recode> {
        self.build(wanted, name, source, self.targets.of(name, source))
    }

    /// A tensor that the base lacks, in the type that the rest of the model has.
    pub(super) fn added(&self, name: &str, number: usize, addition: &Addition) -> Result<Recode> {
        let Self { inputs, options, names, .. } = *self;
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
            keeps_scales: false,
            promoted: false,
            is_layer: false,
            transposed: false,
            stack: None,
            turned: false,
            original: None,
            values: None,
        })
    }

    /// Builds the step that writes `name` out of `claim`'s values or their replacement.
    fn build(&self, wanted: &mut Wanted, name: &str, claim: &Claim, target: Option<TargetFormat>) -> Result<Recode> {
        let Self { inputs, chooser, names, .. } = *self;
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
        let own = target.is_none() && source == Source::Base && name == claim.weight.name();
        // Scales can be kept where values can be stored under them.
        let has_scales = own && claim.weight.on_grid().is_some();
        let rounding = chooser.wanted(has_scales, is_coarse(target.as_ref(), claim));
        let keeps_scales = has_scales && rounding.keeps_scales();
        let stack = chooser.stack(claim.weight.as_ref());
        let in_out = stack.is_some() && names.is_turned_stack(claim.weight.as_ref());
        let own_transposed = is_transposed(names, name, from.weight.as_ref());
        // What has other names in the file than in the model takes them.
        let view = match &target {
            Some(target) if self.targets.exported.is_some() => target.view.clone(),
            _ => claim.weight.view().map(|view| view.named(name)),
        };
        let is_stack = from.weight.shape().len() == 3 && view.is_none();
        let is_turned_stack = is_stack && target.as_ref().is_some_and(|target| target.reversed);
        let unstored = Unstored {
            name,
            claim,
            shape: from.weight.shape(),
            additive,
            stores_as: edits.iter().find_map(|(_, edit)| edit.plan.stores_as()),
            keeps_scales,
            view,
        };
        let to = unstored.stored(target.as_ref(), self.targets)?;
        let turned = match from.weight.shape().len() {
            2 => is_transposed(names, name, to.as_ref()) != own_transposed,
            _ => is_turned_stack,
        };
        // The same view of rows on both sides, so that chunks agree.
        let geometry = from.weight.geometry();
        let to = if to.geometry().rows == geometry.rows || turned {
            to
        } else {
            to.reshaped(geometry.rows, geometry.cols)
                .ok_or_else(|| Error::new(Kind::Bug, "the output's rows differ from the input's").in_tensor(name))?
        };
        let values = (!additive && !edits.is_empty() && !to.is_plain()).then(|| claim.weight.value_dtype());
        let from_original = keeps_scales && rounding.needs_original() && !to.is_plain();
        let original = from_original.then(|| original::find(inputs, names, name, &from)).transpose()?;
        let mut recode = Recode {
            source,
            from,
            to,
            edits,
            rounding,
            keeps_scales,
            promoted: target.is_some_and(|target| target.promoted),
            is_layer: is_layer(names, name),
            transposed: in_out || own_transposed,
            stack,
            turned,
            original,
            values,
        };
        recode.rounding = chooser.settled(&recode);
        Ok(recode)
    }
}

/// True of the weight of a layer that takes activations, and is no head, whose weight may be a table of embeddings too.
fn is_layer(names: &Names<'_>, name: &str) -> bool {
    let module = name.strip_suffix(".weight").unwrap_or(name);
    !arch::leaf_in(module, names.arch.not_linear) && !names.is_head(module)
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
