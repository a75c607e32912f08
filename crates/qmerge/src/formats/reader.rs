//! Reads and decodes rows of a weight, whatever its format.

use std::cell::RefCell;
use std::ops::Range;

use super::{Claim, Grid, MAX_WHOLE_PART};
use crate::error::{Error, Kind, Result};
use crate::open::{Checkpoint, Entry};

/// Most bytes that a thread keeps between two reads.
const MOST_KEPT: usize = 4 << 20;

thread_local! {
    /// Bytes of the rows that a thread reads, by part, used again for the next rows.
    static READ: RefCell<Vec<Vec<u8>>> = const { RefCell::new(Vec::new()) };
}

/// A weight of a checkpoint, ready to be decoded row by row. It may be used from several threads.
#[derive(Debug)]
pub struct Reader<'a> {
    checkpoint: &'a Checkpoint,
    claim: Claim,
    /// Parts that are not cut by rows.
    whole: Vec<Option<Vec<u8>>>,
    /// Parts that are cut by rows, once they are held in memory.
    held: Option<Vec<Vec<u8>>>,
}

impl<'a> Reader<'a> {
    /// Reads what belongs to the weight as a whole.
    pub fn new(checkpoint: &'a Checkpoint, claim: &Claim) -> Result<Self> {
        let read = |(part, entry)| match claim.weight.part_rows(part, &(0..0)) {
            Some(_) => Ok(None),
            None => checkpoint.read_small(entry, MAX_WHOLE_PART).map(Some),
        };
        let whole = claim.entries.iter().enumerate().map(read).collect::<Result<_>>()?;
        Ok(Self { checkpoint, claim: claim.clone(), whole, held: None })
    }

    /// Reads everything now, as it is stored, so that later calls need no file.
    pub fn hold(&mut self) -> Result<()> {
        let cut = |(entry, whole): (&Entry, &Option<Vec<u8>>)| match whole {
            Some(_) => Ok(Vec::new()),
            None => self.checkpoint.read_small(entry, entry.bytes),
        };
        self.held = Some(self.claim.entries.iter().zip(&self.whole).map(cut).collect::<Result<_>>()?);
        Ok(())
    }

    /// Runs of rows of about `elements` elements that may be decoded by themselves.
    pub fn chunks(&self, elements: usize) -> impl Iterator<Item = Range<usize>> + use<> {
        let geometry = self.claim.weight.geometry();
        let step = geometry.row_step.max(1);
        let per_chunk = (elements / geometry.cols.max(1) / step * step).max(step);
        (0..geometry.rows).step_by(per_chunk).map(move |start| start..(start + per_chunk).min(geometry.rows))
    }

    /// Bytes that [`Reader::hold`] takes.
    pub fn bytes(&self) -> u64 {
        self.claim.entries.iter().map(|entry| entry.bytes).sum()
    }

    /// The weight, and the entries that it is read from.
    pub fn claim(&self) -> &Claim {
        &self.claim
    }

    /// An error about the weight's lead tensor.
    pub(crate) fn error(&self, kind: Kind, message: String) -> Error {
        match self.claim.entries.first() {
            Some(lead) => self.checkpoint.error(lead, kind, message),
            None => Error::new(kind, message).in_tensor(self.claim.weight.name()),
        }
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
        let geometry = self.claim.weight.geometry();
        let step = geometry.row_step.max(1);
        let whole = rows.start / step * step..rows.end.next_multiple_of(step).min(geometry.rows);
        self.whole_steps(&whole, values)?;
        values.truncate((rows.end - whole.start) * geometry.cols);
        values.drain(..(rows.start - whole.start) * geometry.cols);
        Ok(())
    }

    /// The grid of `rows`, which begin and end where a chunk may.
    pub(crate) fn grid(&self, rows: &Range<usize>) -> Result<Grid> {
        self.with_parts(rows, |parts| self.claim.weight.grid(parts, rows.clone()))
    }

    /// `out += rows · x` for one column, without decoding first; false where [`Weight::dots`](super::Weight::dots) cannot.
    pub fn dots(&self, rows: &Range<usize>, x: &[f32], out: &mut [f32]) -> Result<bool> {
        let weight = &self.claim.weight;
        let (geometry, step) = (weight.geometry(), weight.geometry().row_step.max(1));
        if !rows.start.is_multiple_of(step) || !(rows.end.is_multiple_of(step) || rows.end == geometry.rows) {
            return Ok(false);
        }
        self.with_parts(rows, |parts| weight.dots(parts, rows.clone(), x, out))
    }

    /// Decodes rows that begin and end where a chunk may.
    fn whole_steps(&self, rows: &Range<usize>, values: &mut Vec<f32>) -> Result<()> {
        let weight = &self.claim.weight;
        values.resize(rows.len() * weight.geometry().cols, 0.0);
        self.with_parts(rows, |parts| weight.decode(parts, rows.clone(), values))
    }

    /// Calls `f` with the bytes of these rows.
    fn with_parts<T>(&self, rows: &Range<usize>, f: impl FnOnce(&[&[u8]]) -> T) -> Result<T> {
        let weight = &self.claim.weight;
        // Taken out meanwhile, whatever `f` does.
        let mut read = READ.take();
        read.resize_with(read.len().max(self.whole.len()), Vec::new);
        if self.held.is_none() {
            for ((part, entry), bytes) in self.claim.entries.iter().enumerate().zip(&mut read) {
                if let Some(range) = weight.part_rows(part, rows) {
                    bytes.resize((range.end - range.start) as usize, 0);
                    self.checkpoint.read_at(entry, range.start, bytes)?;
                }
            }
        }
        let held = |part: usize| {
            let (bytes, range) = (self.held.as_ref()?.get(part)?, weight.part_rows(part, rows)?);
            bytes.get(range.start as usize..range.end as usize)
        };
        let stored = self.whole.iter().zip(&read).enumerate();
        let parts: Vec<&[u8]> = stored
            .map(|(part, (whole, read))| whole.as_deref().or_else(|| held(part)).unwrap_or(read.as_slice()))
            .collect();
        let done = f(&parts);
        if read.iter().map(Vec::capacity).sum::<usize>() <= MOST_KEPT {
            READ.set(read);
        }
        Ok(done)
    }
}
