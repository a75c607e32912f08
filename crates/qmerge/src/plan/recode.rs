//! A weight that is not merely copied: whose values it has, how it is stored, and how it is rounded.

#![cfg_attr(not(test), deny(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing, clippy::panic))]

use std::ops::Range;
use std::sync::Arc;

use super::Inputs;
use crate::adapters::{PlannedEdit, TaskVector};
use crate::dtype::Dtype;
use crate::formats::{Claim, Weight};
use crate::open::Checkpoint;
use crate::round::Rounding;

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
    /// It takes a wider type than it would have without [`super::Options::promote`].
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
