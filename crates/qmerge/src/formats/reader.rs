//! Reads and decodes rows of a weight, whatever its format.

use std::cell::RefCell;
use std::ops::Range;
use std::sync::OnceLock;

use super::{Claim, Grid, MAX_UNCUT_PART, Weight};
use crate::error::{Error, Kind, Result};
use crate::open::{Checkpoint, Entry};

/// Most bytes that a thread keeps between two reads.
const MOST_KEPT: usize = 4 << 20;

thread_local! {
    /// What a thread reads, used again for the next rows.
    static READ: RefCell<StoredRows> = const { RefCell::new(StoredRows { rows: 0..0, parts: Vec::new() }) };
}

/// Bytes of some rows as they are stored, by part.
#[derive(Debug, Default)]
pub(crate) struct StoredRows {
    rows: Range<usize>,
    parts: Vec<Vec<u8>>,
}

/// A weight of a checkpoint, ready to be decoded row by row. It may be used from several threads.
#[derive(Debug)]
pub struct Reader<'a> {
    checkpoint: &'a Checkpoint,
    claim: Claim,
    /// Parts that are not cut by rows.
    uncut: Vec<Option<Vec<u8>>>,
    /// Parts that are cut by rows, once they are held in memory.
    held: OnceLock<Vec<Vec<u8>>>,
}

impl<'a> Reader<'a> {
    /// Reads what belongs to the weight as a whole.
    ///
    /// ```
    /// # fn main() -> qmerge::error::Result<()> {
    /// # use qmerge::open::Checkpoint;
    /// use qmerge::formats::{Reader, inventory};
    ///
    /// let base = Checkpoint::open("testdata/tiny-llama/bases/base-nf4dq".as_ref())?;
    /// let weights = inventory(&base)?.weights;
    /// let claim = weights.iter().find(|claim| claim.weight.format() == "nf4").expect("a weight in NF4");
    /// let mut values = Vec::new();
    /// Reader::new(&base, claim)?.rows(&(0..2), &mut values)?;
    /// assert_eq!(values.len(), 2 * claim.weight.geometry().cols);
    /// # Ok(()) }
    /// ```
    pub fn new(checkpoint: &'a Checkpoint, claim: &Claim) -> Result<Self> {
        let cut: Vec<bool> = (0..claim.entries.len()).map(|at| claim.weight.part_rows(at, &(0..0)).is_some()).collect();
        let uncut: Vec<&Entry> =
            claim.entries.iter().zip(&cut).filter(|(_, cut)| !**cut).map(|(entry, _)| entry).collect();
        let mut read = checkpoint.read_entries(&uncut, MAX_UNCUT_PART)?.into_iter();
        let uncut = cut.iter().map(|&cut| if cut { None } else { read.next() }).collect();
        Ok(Self { checkpoint, claim: claim.clone(), uncut, held: OnceLock::new() })
    }

    /// Reads everything now, as it is stored, so that later calls need no file.
    pub fn hold(&self) -> Result<()> {
        if self.held.get().is_some() {
            return Ok(());
        }
        let cut = |(entry, uncut): (&Entry, &Option<Vec<u8>>)| match uncut {
            Some(_) => Ok(Vec::new()),
            None => self.checkpoint.read_small(entry, entry.bytes),
        };
        let held = self.claim.entries.iter().zip(&self.uncut).map(cut).collect::<Result<_>>()?;
        // Another thread may have been faster.
        drop(self.held.set(held));
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
    pub(crate) fn reshaped(mut self, rows: usize, cols: usize) -> Result<Self> {
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
        self.with_stored(&whole, |stored| self.decode(stored, &whole, values))?;
        values.truncate((rows.end - whole.start) * geometry.cols);
        values.drain(..(rows.start - whole.start) * geometry.cols);
        Ok(())
    }

    /// The grid of `rows`, which begin and end where a chunk may; `None` for a type that has none.
    pub(crate) fn grid(&self, rows: &Range<usize>) -> Result<Option<Grid>> {
        let Some(on_grid) = self.claim.weight.on_grid() else { return Ok(None) };
        self.with_stored(rows, |stored| Some(on_grid.grid(&self.parts(stored, rows), rows.clone())))
    }

    /// `out += rows · x` for one column, without decoding first; false where [`Weight::dots`](super::Weight::dots) cannot.
    pub fn dots(&self, rows: &Range<usize>, x: &[f32], out: &mut [f32]) -> Result<bool> {
        let weight = &self.claim.weight;
        let (geometry, step) = (weight.geometry(), weight.geometry().row_step.max(1));
        if !rows.start.is_multiple_of(step) || !(rows.end.is_multiple_of(step) || rows.end == geometry.rows) {
            return Ok(false);
        }
        self.with_stored(rows, |stored| weight.dots(&self.parts(stored, rows), rows.clone(), x, out))
    }

    /// Reads the bytes of rows that begin and end where a chunk may.
    pub(crate) fn load(&self, rows: &Range<usize>, stored: &mut StoredRows) -> Result<()> {
        stored.rows = rows.clone();
        stored.parts.resize_with(stored.parts.len().max(self.uncut.len()), Vec::new);
        if self.held.get().is_some() {
            return Ok(());
        }
        for ((part, entry), bytes) in self.claim.entries.iter().enumerate().zip(&mut stored.parts) {
            if let Some(range) = self.claim.weight.part_rows(part, rows) {
                bytes.resize((range.end - range.start) as usize, 0);
                self.checkpoint.read_at(entry, range.start, bytes)?;
            }
        }
        Ok(())
    }

    /// The bytes of each part that belong to `rows`, some of those that were loaded.
    pub(crate) fn parts<'b>(&'b self, stored: &'b StoredRows, rows: &Range<usize>) -> Vec<&'b [u8]> {
        let weight = self.claim.weight.as_ref();
        let bytes = |(part, uncut): (usize, &'b Option<Vec<u8>>)| match (uncut, self.held.get()) {
            (Some(uncut), _) => uncut,
            (None, Some(held)) => {
                let range = weight.part_rows(part, rows).unwrap_or_default();
                held.get(part).and_then(|held| held.get(range.start as usize..range.end as usize)).unwrap_or_default()
            }
            (None, None) => within(weight, part, stored.parts.get(part), &stored.rows, rows),
        };
        self.uncut.iter().enumerate().map(bytes).collect()
    }

    /// Decodes `rows`, some of those that were loaded.
    pub(crate) fn decode(&self, stored: &StoredRows, rows: &Range<usize>, values: &mut Vec<f32>) {
        let weight = &self.claim.weight;
        values.resize(rows.len() * weight.geometry().cols, 0.0);
        weight.decode(&self.parts(stored, rows), rows.clone(), values);
    }

    /// The bytes of each part that belong to `rows`, which begin and end where a chunk may.
    pub(crate) fn stored(&self, rows: &Range<usize>) -> Result<Vec<Vec<u8>>> {
        self.with_stored(rows, |stored| self.parts(stored, rows).into_iter().map(<[u8]>::to_vec).collect())
    }

    /// The parts that belong to the weight as a whole, by part.
    pub(crate) fn uncut(&self) -> &[Option<Vec<u8>>] {
        &self.uncut
    }

    /// Calls `f` with the bytes of these rows.
    fn with_stored<T>(&self, rows: &Range<usize>, f: impl FnOnce(&StoredRows) -> T) -> Result<T> {
        // Taken out meanwhile, whatever `f` does.
        let mut stored = READ.take();
        self.load(rows, &mut stored)?;
        let done = f(&stored);
        if stored.parts.iter().map(Vec::capacity).sum::<usize>() <= MOST_KEPT {
            READ.set(stored);
        }
        Ok(done)
    }
}

/// Cuts the bytes of `rows` out of those of `all`, which hold them.
pub(crate) fn within<'b>(
    weight: &dyn Weight,
    part: usize,
    bytes: Option<&'b Vec<u8>>,
    all: &Range<usize>,
    rows: &Range<usize>,
) -> &'b [u8] {
    let bytes = bytes.map_or(&[][..], Vec::as_slice);
    match (weight.part_rows(part, all), weight.part_rows(part, rows)) {
        (Some(all), Some(some)) => {
            let place = some.start.saturating_sub(all.start) as usize..some.end.saturating_sub(all.start) as usize;
            bytes.get(place).unwrap_or_default()
        }
        _ => bytes,
    }
}
