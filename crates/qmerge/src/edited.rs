//! The values that a merge aims at, before any rounding: a weight decoded row by row, with its edits applied.

use std::ops::Range;

use crate::edit::{self, Edit, common_step};
use crate::error::Result;
use crate::formats::{Reader, StoredRows};
use crate::plan::{Inputs, Recode};

/// A weight and the edits of it. It may be used from several threads.
#[derive(Debug)]
pub struct Edited<'a> {
    base: Reader<'a>,
    edits: Vec<Edit>,
}

impl<'a> Edited<'a> {
    /// A weight that nothing edits.
    pub fn unedited(base: Reader<'a>) -> Self {
        Self { base, edits: Vec::new() }
    }

    /// Loads the edits of a step, and does the sums over the whole weight that some of them need.
    pub fn new(inputs: &'a Inputs, recode: &Recode) -> Result<Self> {
        let source = recode.source(inputs);
        let base = Reader::new(source, &recode.from)?;
        let edits = recode
            .edits
            .iter()
            .map(|(adapter, edit)| edit.plan.load(&inputs.adapters[*adapter].tensors, (source, &recode.from)))
            .collect::<Result<Vec<_>>>()?;
        Self::with_edits(base, edits)
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
        Ok(Self { base, edits })
    }

    /// The weight before any edit.
    pub fn base(&self) -> &Reader<'a> {
        &self.base
    }

    /// Reads everything that is stored now; see [`Reader::hold`].
    pub fn hold(&self) -> Result<()> {
        self.base.hold()
    }

    /// The edits, in order.
    pub fn edits(&self) -> &[Edit] {
        &self.edits
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
        self.apply(&all, base, values);
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
    pub(crate) fn decode(&self, stored: &StoredRows, rows: &Range<usize>, base: &mut Vec<f32>, values: &mut Vec<f32>) {
        self.base.decode(stored, rows, base);
        self.apply(rows, base, values);
    }

    fn apply(&self, rows: &Range<usize>, base: &[f32], values: &mut Vec<f32>) {
        values.resize(base.len(), 0.0);
        edit::apply(&self.edits, rows, self.base.claim().weight.geometry().cols, base, values);
    }
}
