//! A weight that is not merely copied: whose values it has, how it is stored, and how it is rounded.

#![cfg_attr(not(test), deny(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing, clippy::panic))]

use std::ops::Range;
use std::path::Path;
use std::sync::Arc;

use super::method::Chooser;
use super::quantized::is_transposed;
use super::steps::Wanted;
use super::target::{TargetFormat, Targets, is_coarse};
use super::{Inputs, Options, original};
use crate::adapters::{Adapter, Addition, Names, PlannedEdit, Replacement, TaskVector};
use crate::arch;
use crate::arch::gguf::Piece;
use crate::dtype::Dtype;
use crate::error::{Error, Kind, Result, mismatch, unsupported};
use crate::formats::plain::PlainWeight;
use crate::formats::{self, Claim, Padded, Viewed, Weight, Woven};
use crate::open::Checkpoint;
use crate::round::{self, Rounding};

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
    pub keeps_scales: bool,
    /// It takes a wider type than it would have without [`Options::promote`].
    pub promoted: bool,
    /// The weight of a layer that is no table of embeddings, and no head.
    pub is_layer: bool,
    /// The rows that are read are the layer's inputs.
    pub transposed: bool,
    /// Number of matrices, where the weight is a stack of them that are rounded one by one.
    pub stack: Option<usize>,
    /// Rows become columns: one of the two formats stores inputs as rows (GPTQ; a plain Conv1D), and the other outputs.
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

    /// Outputs of the layer, where the weight is a matrix, or of each where it is a stack.
    pub fn outputs(&self) -> usize {
        if self.transposed { self.from.weight.geometry().cols } else { self.matrix_rows() }
    }

    /// Its inputs.
    pub fn inputs(&self) -> usize {
        if self.transposed { self.matrix_rows() } else { self.from.weight.geometry().cols }
    }

    /// The tuned weights whose differences from this one are added.
    pub fn task_vectors(&self) -> impl Iterator<Item = &TaskVector> {
        self.edits.iter().filter_map(|(_, edit)| edit.plan.task_vector())
    }

    /// True if which values of them stay depends on all.
    pub(crate) fn surveys_task_vectors(&self) -> bool {
        self.task_vectors().any(TaskVector::needs_survey)
    }

    fn matrix_rows(&self) -> usize {
        self.from.weight.geometry().rows / self.stack.unwrap_or(1).max(1)
    }

    /// The rows of each matrix of a stack, or all.
    pub(crate) fn matrices(&self) -> impl Iterator<Item = Range<usize>> + use<> {
        let rows = self.from.weight.geometry().rows;
        let each = (rows / self.stacked()).max(1);
        (0..rows).step_by(each).map(move |start| start..start + each)
    }

    /// The rows that are written of some matrices, where those that are read are these.
    pub(crate) fn written_rows(&self, rows: &Range<usize>) -> Range<usize> {
        if !self.turned {
            return rows.clone();
        }
        let [read, written] = [&self.from.weight, &self.to].map(|weight| weight.geometry().rows / self.stacked());
        rows.start / read.max(1) * written..rows.end / read.max(1) * written
    }

    /// The number of matrices.
    pub(crate) fn stacked(&self) -> usize {
        if let [matrices, _, _] = *self.from.weight.shape() { matrices.max(1) } else { 1 }
    }

    /// The rows of one matrix, or of the only one.
    pub(crate) fn rows_of(&self, matrix: Option<usize>) -> Range<usize> {
        let (rows, number) = (self.matrix_rows(), matrix.unwrap_or(0));
        rows * number..rows * (number + 1)
    }

    /// True of a stack whose matrices can be rounded one by one: what is written of each is its own, or stays what it is.
    pub(crate) fn has_matrices_apart(&self) -> bool {
        let (rows, own) = (self.matrix_rows(), self.to.as_ref());
        let is_cut = (0..own.parts().len()).all(|part| own.part_rows(part, &(0..rows)).is_some());
        let steps = [own.geometry().row_step, self.from.weight.geometry().row_step];
        self.stack.is_some()
            && !self.turned
            && steps.iter().all(|step| rows.is_multiple_of((*step).max(1)))
            && (own.is_plain() || self.begins_at_base() || is_cut && !self.is_surveyed())
    }

    /// True if the rows that are written are the layer's inputs.
    pub(crate) fn is_stored_transposed(&self) -> bool {
        self.transposed != self.turned
    }

    /// True if what it is edited by is of known rank: then a few directions of its outputs hold it.
    pub(crate) fn has_known_rank(&self) -> bool {
        self.edits.iter().all(|(_, edit)| edit.plan.rank().is_some())
    }

    /// True if all of its edits add to the weight, and none multiplies it.
    pub(crate) fn adds(&self) -> bool {
        self.edits.iter().all(|(_, edit)| edit.plan.is_additive())
    }

    /// True if a weight that is rounded as a whole begins at the base's codes.
    pub(crate) fn begins_at_base(&self) -> bool {
        self.keeps_scales && !self.to.is_plain()
    }

    /// True if fresh scales depend on the whole weight.
    pub(crate) fn is_surveyed(&self) -> bool {
        !self.keeps_scales && self.to.writer().is_some_and(|writer| writer.needs_survey())
    }
}

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
        let Self { inputs, options, chooser, names, .. } = *self;
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
        let promoted = target.as_ref().is_some_and(|target| target.promoted);
        let own = target.is_none() && source == Source::Base && name == claim.weight.name();
        // Scales can be kept where values can be stored under them.
        let has_scales = own && claim.weight.on_grid().is_some();
        let rounding = chooser.wanted(has_scales, is_coarse(target.as_ref(), claim));
        let keeps_scales = has_scales && rounding.keeps_scales();
        let shape = from.weight.shape().to_vec();
        let geometry = from.weight.geometry();
        let stack = chooser.stack(claim.weight.as_ref());
        let in_out = stack.is_some() && claim.weight.has_family_order() && names.stacks_inputs_as_rows();
        let own_transposed = is_transposed(names, name, from.weight.as_ref());
        let transposed = in_out || own_transposed;
        // What has other names in the file than in the model takes them.
        let view = match &target {
            Some(target) if self.targets.exported.is_some() => target.view.clone(),
            _ => claim.weight.view().map(|view| view.named(name)),
        };
        let stored_name = view.as_ref().map_or(name, |view| view.stored.as_str());
        let importance = target.as_ref().and_then(|target| target.importance.clone());
        let is_stack = shape.len() == 3 && view.is_none();
        let is_turned_stack = is_stack && target.as_ref().is_some_and(|target| target.reversed);
        let woven = view.clone().and_then(|view| Some((view.weave.clone()?, view)));
        let to: Arc<dyn Weight> = match (target, stores_as, woven) {
            (Some(target), _, Some(woven)) => {
                let dtype = if additive && claim.weight.is_plain() { base_dtype } else { values_dtype };
                target.woven(woven, dtype, &options.settings)?
            }
            (None, Some(dtype), Some((weave, view))) => {
                let piece = |piece: &Piece| Arc::new(PlainWeight::new(&piece.stored, &piece.shape, dtype)) as _;
                Arc::new(Woven::new(weave.pieces().iter().map(piece).collect(), view, weave))
            }
            (None, None, Some(_)) if !keeps_scales && name == claim.weight.name() => claim
                .weight
                .writer()
                .ok_or_else(|| only_read(claim.weight.as_ref()))?
                .renewed(if claim.weight.is_plain() { base_dtype } else { values_dtype }, &options.settings)?,
            (_, Some(dtype), _) if self.targets.exported.is_none() => {
                Arc::new(PlainWeight::new(stored_name, &shape, dtype))
            }
            (Some(TargetFormat { format, reversed, .. }), ..) => {
                let settings = &options.settings;
                let mut shape = shape;
                if let (true, [.., rows, cols]) = (reversed, shape.as_mut_slice()) {
                    std::mem::swap(rows, cols);
                }
                if let (Some(view), Some(rows)) = (&view, shape.first_mut()) {
                    *rows = rows.saturating_add(view.padding);
                }
                format.create(
                    stored_name,
                    &shape,
                    if additive && claim.weight.is_plain() { base_dtype } else { values_dtype },
                    settings,
                )?
            }
            (None, ..) if keeps_scales => Arc::clone(&claim.weight),
            (None, ..) if claim.weight.is_plain() => Arc::new(PlainWeight::new(stored_name, &shape, base_dtype)),
            (None, ..) if view.is_some() && name != claim.weight.name() => {
                formats::by_id(claim.weight.format())?.create(stored_name, &shape, values_dtype, &options.settings)?
            }
            (None, ..) => claim
                .weight
                .writer()
                .ok_or_else(|| only_read(claim.weight.as_ref()))?
                .renewed(values_dtype, &options.settings)?,
        };
        let weighted =
            importance.filter(|_| to.view().is_none()).and_then(|importance| to.writer()?.weighted(&importance));
        let to = weighted.unwrap_or(to);
        let padding = view.as_ref().map_or(0, |view| view.padding);
        let to = if padding > 0 { Arc::new(Padded::new(to, padding)) as _ } else { to };
        let to = match view {
            Some(view) if to.view().is_none() => Arc::new(Viewed::new(to, view)),
            _ => to,
        };
        let turned = match from.weight.shape().len() {
            2 => is_transposed(names, name, to.as_ref()) != own_transposed,
            _ => is_turned_stack,
        };
        // The same view of rows on both sides, so that chunks agree.
        let to = if to.geometry().rows == geometry.rows || turned {
            to
        } else {
            to.reshaped(geometry.rows, geometry.cols)
                .ok_or_else(|| Error::new(Kind::Bug, "the output's rows differ from the input's").in_tensor(name))?
        };
        let values = (!additive && !edits.is_empty() && !to.is_plain()).then_some(base_dtype);
        let from_original = keeps_scales && rounding.needs_original() && !to.is_plain();
        let original = from_original.then(|| original::find(inputs, names, name, &from)).transpose()?;
        let is_layer = is_layer(names, name);
        let mut recode = Recode {
            source,
            from,
            to,
            edits,
            rounding,
            keeps_scales,
            promoted,
            is_layer,
            transposed,
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

/// Some types can be read, and nobody has said how to write them.
fn only_read(weight: &dyn Weight) -> Error {
    unsupported(format!("stored as {}, which can be read but not written", weight.format()))
        .in_tensor(weight.name())
        .with_hint(if formats::by_id(weight.format()).is_ok_and(|format| format.is_of_gguf()) {
            formats::OTHER_TYPES
        } else {
            "--to names another format for the output"
        })
}
