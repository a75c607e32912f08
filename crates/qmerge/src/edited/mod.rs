//! The values that a merge aims at, before any rounding: a weight decoded row by row, with its edits applied.

mod task_vectors;

use std::ops::Range;

use crate::edit::{self, Edit, common_step};
use crate::error::Result;
use crate::formats::{Reader, StoredRows};
use crate::plan::{Inputs, Recode};
use task_vectors::TaskVectors;

/// A weight and the edits of it. It may be used from several threads.
#[derive(Debug)]
pub struct Edited<'a> {
    base: Reader<'a>,
    edits: Vec<Edit>,
    task_vectors: Option<TaskVectors<'a>>,
}

impl<'a> Edited<'a> {
    /// A weight that nothing edits.
    pub fn unedited(base: Reader<'a>) -> Self {
        Self { base, edits: Vec::new(), task_vectors: None }
    }

    /// Loads the edits of a step, and does the sums over the whole weight that some of them need.
    pub fn new(inputs: &'a Inputs, recode: &Recode) -> Result<Self> {
        let source = recode.source(inputs);
        let base = Reader::new(source, &recode.from)?;
        let (mut edits, mut members) = (Vec::new(), Vec::new());
        for (number, edit) in &recode.edits {
            let tensors = &inputs.adapters[*number].tensors;
            match edit.plan.task_vector() {
                Some(vector) => members.push((*number, tensors, vector)),
                None => edits.push(edit.plan.load(tensors, (source, &recode.from))?),
            }
        }
        let edited = Self::with_edits(base, edits)?;
        let task_vectors = (!members.is_empty()).then(|| TaskVectors::new(&edited.base, &members)).transpose()?;
        Ok(Self { task_vectors, ..edited })
    }

    /// A weight with edits that are loaded; does the sums over the whole weight that some of them need.
    pub fn with_edits(base: Reader<'a>, mut edits: Vec<Edit>) -> Result<Self> {
        for edit in &mut edits {
            if edit.needs_survey() {
                let mut values = Vec::new();
                for rows in base.chunks(1 << 17) {
                    base.rows(&rows, &mut values)?;
                    edit.survey(&rows, base.claim().weight.geometry().cols, &values);
                }
                edit.settle();
            }
        }
        Ok(Self { base, edits, task_vectors: None })
    }

    /// The weight before any edit.
    pub fn base(&self) -> &Reader<'a> {
        &self.base
    }

    /// Reads everything that is stored now; see [`Reader::hold`].
    pub fn hold(&self) -> Result<()> {
        self.base.hold()?;
        self.task_vectors.iter().try_for_each(TaskVectors::hold)
    }

    /// Bytes that [`Edited::hold`] takes.
    pub fn bytes(&self) -> u64 {
        self.base.bytes() + self.task_vectors.as_ref().map_or(0, TaskVectors::bytes)
    }

    /// True if anything changes the weight.
    pub fn is_edited(&self) -> bool {
        !self.edits.is_empty() || self.task_vectors.is_some()
    }

    /// The edits, in order, where they are all that changes it; none where rows of tuned models do.
    pub fn edits(&self) -> Option<&[Edit]> {
        self.task_vectors.is_none().then_some(&self.edits)
    }

    /// Rows that are cheapest together: chunks begin and end at multiples.
    pub fn row_step(&self) -> usize {
        let geometry = self.base.claim().weight.geometry();
        common_step(geometry.row_step, self.edit_step()).clamp(1, geometry.rows.max(1))
    }

    /// Rows that have to be edited together.
    fn edit_step(&self) -> usize {
        self.edits.iter().fold(1, |step, edit| common_step(step, edit.row_step()))
    }

    /// Decodes `rows` into `base` and applies the edits into `values`, both (rows, cols).
    pub fn rows(&self, rows: &Range<usize>, base: &mut Vec<f32>, values: &mut Vec<f32>) -> Result<()> {
        let cols = self.base.claim().weight.geometry().cols;
        let all = self.together(rows);
        self.base.rows(&all, base)?;
        self.apply(&all, base, values)?;
        if all != *rows {
            for values in [base, values] {
                values.truncate((rows.end - all.start) * cols);
                values.drain(..(rows.start - all.start) * cols);
            }
        }
        Ok(())
    }

    /// Some rows with those that have to be edited together with them.
    fn together(&self, rows: &Range<usize>) -> Range<usize> {
        let step = self.edit_step();
        let end = rows.end.checked_next_multiple_of(step).unwrap_or(usize::MAX);
        rows.start / step * step..end.min(self.base.claim().weight.geometry().rows)
    }

    /// The same of rows that were loaded, which begin and end where a chunk may.
    pub(crate) fn decode(
        &self,
        stored: &StoredRows,
        rows: &Range<usize>,
        base: &mut Vec<f32>,
        values: &mut Vec<f32>,
    ) -> Result<()> {
        self.base.decode(stored, rows, base);
        self.apply(rows, base, values)
    }

    /// Task vectors come last: edits are of the base that their adapters were trained on.
    fn apply(&self, rows: &Range<usize>, base: &[f32], values: &mut Vec<f32>) -> Result<()> {
        values.resize(base.len(), 0.0);
        edit::apply(&self.edits, rows, self.base.claim().weight.geometry().cols, base, values);
        self.task_vectors.iter().try_for_each(|vectors| vectors.add(rows, base, values))
    }
}
