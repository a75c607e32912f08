//! Where the parts of a step go in the output.

use crate::error::Result;
use crate::plan::{Plan, Step};
use crate::write::Output;

/// The places of all parts.
#[derive(Clone, Copy)]
pub(super) struct Places<'a> {
    pub(super) plan: &'a Plan,
    pub(super) output: &'a Output,
}

impl Places<'_> {
    /// Writes into a part's place, from `offset` on. What is written may be left for another thread, so `bytes` are another buffer's afterwards.
    pub(super) fn put(&self, step: &Step, part: usize, offset: u64, bytes: &mut Vec<u8>) -> Result<()> {
        let slot = step.slots[part];
        let file = &self.plan.files[slot.file];
        self.output.write_at(slot.file, file.data_start + file.tensors[slot.tensor].offset + offset, bytes)
    }

    /// Writes complete parts. Returns those whose place depends on lengths that are not known yet.
    pub(super) fn put_uncut(
        &self,
        step: &Step,
        parts: impl Iterator<Item = (usize, Vec<u8>)>,
    ) -> Result<Vec<(usize, Vec<u8>)>> {
        let mut late = Vec::new();
        for (part, mut bytes) in parts {
            let slot = step.slots[part];
            if self.plan.files[slot.file].tensors[slot.tensor].shape.is_some() {
                self.put(step, part, 0, &mut bytes)?;
            } else {
                late.push((part, bytes));
            }
        }
        Ok(late)
    }
}
