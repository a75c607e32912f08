//! Reads and decodes rows of a weight, whatever its format.

use std::ops::Range;

use super::{Claim, MAX_WHOLE_PART};
use crate::error::{Error, Kind, Result};
use crate::open::Checkpoint;

/// A weight of a checkpoint, ready to be decoded row by row. It may be used from several threads.
#[derive(Debug)]
pub struct Reader<'a> {
    checkpoint: &'a Checkpoint,
    claim: Claim,
    /// Parts that are not cut by rows.
    whole: Vec<Option<Vec<u8>>>,
}

impl<'a> Reader<'a> {
    /// Reads what belongs to the weight as a whole.
    pub fn new(checkpoint: &'a Checkpoint, claim: &Claim) -> Result<Self> {
        let read = |(part, entry)| match claim.weight.part_rows(part, &(0..0)) {
            Some(_) => Ok(None),
            None => checkpoint.read_small(entry, MAX_WHOLE_PART).map(Some),
        };
        let whole = claim.entries.iter().enumerate().map(read).collect::<Result<_>>()?;
        Ok(Self { checkpoint, claim: claim.clone(), whole })
    }

    /// The weight, and the entries that it is read from.
    pub fn claim(&self) -> &Claim {
        &self.claim
    }

    /// The same weight seen as `rows` × `cols`, where its own view is another.
    pub fn reshaped(mut self, rows: usize, cols: usize) -> Result<Self> {
        let geometry = self.claim.weight.geometry();
        if (geometry.rows, geometry.cols) != (rows, cols) {
            let weight = self.claim.weight.reshaped(rows, cols).ok_or_else(|| {
                let (shape, format) = (self.claim.weight.shape(), self.claim.weight.format());
                Error::new(Kind::Unsupported, format!("stored as {shape:?} in {format}, which cannot be compared"))
            })?;
            self.claim.weight = weight;
        }
        Ok(self)
    }

    /// Decodes `rows` into `values` (row-major).
    pub fn rows(&self, rows: &Range<usize>, values: &mut Vec<f32>) -> Result<()> {
        let weight = &self.claim.weight;
        let mut read = Vec::with_capacity(self.whole.len());
        for (part, entry) in self.claim.entries.iter().enumerate() {
            let mut bytes = Vec::new();
            if let Some(range) = weight.part_rows(part, rows) {
                bytes.resize((range.end - range.start) as usize, 0);
                self.checkpoint.read_at(entry, range.start, &mut bytes)?;
            }
            read.push(bytes);
        }
        let parts: Vec<&[u8]> =
            self.whole.iter().zip(&read).map(|(whole, read)| whole.as_deref().unwrap_or(read.as_slice())).collect();
        values.resize(rows.len() * weight.geometry().cols, 0.0);
        weight.decode(&parts, rows.clone(), values);
        Ok(())
    }
}
