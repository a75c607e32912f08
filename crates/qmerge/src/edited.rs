//! The values that a merge aims at, before any rounding: a weight decoded row by row, with its edits applied.

use std::ops::Range;

use crate::edit::{self, Edit};
use crate::error::Result;
use crate::formats::{Reader, Stored};
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
        let base = Reader::new(recode.source(inputs), &recode.from)?;
        let mut edits = recode
            .edits
            .iter()
            .map(|(adapter, edit)| edit.plan.load(&inputs.adapters[*adapter].tensors))
            .collect::<Result<Vec<_>>>()?;
        for edit in &mut edits {
            if let Edit::Map(map) = edit
                && map.needs_survey()
            {
                let (mut sums, mut values) = (Vec::new(), Vec::new());
                for rows in base.chunks(1 << 17) {
                    base.rows(&rows, &mut values)?;
                    map.survey(rows, base.claim().weight.geometry().cols, &values, &mut sums);
                }
                map.settle(sums);
            }
        }
        Ok(Self { base, edits })
    }

    /// The weight before any edit.
    pub fn base(&self) -> &Reader<'a> {
        &self.base
    }

    /// Reads everything that is stored now; see [`Reader::hold`].
    pub fn hold(&mut self) -> Result<()> {
        self.base.hold()
    }

    /// The edits, in order.
    pub fn edits(&self) -> &[Edit] {
        &self.edits
    }

    /// Decodes `rows` into `base` and applies the edits into `values`, both (rows, cols).
    pub fn rows(&self, rows: &Range<usize>, base: &mut Vec<f32>, values: &mut Vec<f32>) -> Result<()> {
        self.base.rows(rows, base)?;
        self.apply(rows, base, values);
        Ok(())
    }

    /// The same of rows that were loaded.
    pub(crate) fn decode(&self, stored: &Stored, rows: &Range<usize>, base: &mut Vec<f32>, values: &mut Vec<f32>) {
        self.base.decode(stored, rows, base);
        self.apply(rows, base, values);
    }

    fn apply(&self, rows: &Range<usize>, base: &[f32], values: &mut Vec<f32>) {
        values.resize(base.len(), 0.0);
        edit::apply(&self.edits, rows, self.base.claim().weight.geometry().cols, base, values);
    }
}
