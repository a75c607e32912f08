//! A weight file on its way: cells of one size, each of which is a part of an upload once all its bytes are there.

use std::collections::BTreeMap;
use std::ops::Range;

use serde::{Deserialize, Serialize};

/// Bytes that were put by, in an object of pieces.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Saved {
    /// Number of the object.
    pub(super) object: u64,
    pub(super) at: u64,
}

/// Neighbouring bytes of a cell.
#[derive(Clone, Debug)]
pub(super) struct Piece {
    pub(super) len: u64,
    pub(super) saved: Option<Saved>,
    /// `None` where they were let go after they were saved.
    pub(super) bytes: Option<Vec<u8>>,
}

#[derive(Debug)]
pub(super) enum Cell {
    /// By their places in the file.
    Open(BTreeMap<u64, Piece>),
    Uploading,
    /// What the store calls the part.
    Uploaded(String),
}

/// The cells of a file.
#[derive(Debug)]
pub(super) struct Cells {
    /// Bytes of a cell; of the last, the most.
    pub(super) size: u64,
    cells: Vec<Cell>,
    /// Known once the file is ended.
    len: Option<u64>,
}

impl Cells {
    pub(super) fn new(size: u64, most: u64) -> Self {
        let count = most.div_ceil(size).max(1);
        Self { size, cells: (0..count).map(|_| Cell::Open(BTreeMap::new())).collect(), len: None }
    }

    pub(super) fn iter_mut(&mut self) -> impl Iterator<Item = (usize, &mut Cell)> {
        self.cells.iter_mut().enumerate()
    }

    pub(super) fn set(&mut self, number: usize, cell: Cell) {
        if let Some(place) = self.cells.get_mut(number) {
            *place = cell;
        }
    }

    /// The names of all parts, if all are uploaded.
    pub(super) fn parts(&self) -> Option<Vec<String>> {
        let part = |cell: &Cell| match cell {
            Cell::Uploaded(id) => Some(id.clone()),
            _ => None,
        };
        self.cells.iter().map(part).collect()
    }

    pub(super) fn len(&self) -> Option<u64> {
        self.len
    }

    /// Adds bytes at a place in the file, as far as they are not there. Returns the number of those that are new, and the cells that are whole now.
    pub(super) fn add(&mut self, offset: u64, bytes: &[u8]) -> (u64, Vec<usize>) {
        let (mut new, mut whole) = (0, Vec::new());
        let mut rest = bytes;
        let mut at = offset;
        while !rest.is_empty() {
            let number = (at / self.size) as usize;
            let upto = ((number as u64 + 1) * self.size - at).min(rest.len() as u64);
            let (here, after) = rest.split_at(upto as usize);
            if let Some(Cell::Open(pieces)) = self.cells.get_mut(number) {
                for gap in gaps(pieces, at..at + upto) {
                    let own = here.get((gap.start - at) as usize..(gap.end - at) as usize).unwrap_or_default();
                    new += own.len() as u64;
                    let piece = Piece { len: own.len() as u64, saved: None, bytes: Some(own.to_vec()) };
                    pieces.insert(gap.start, piece);
                }
                if self.is_whole(number) {
                    whole.push(number);
                }
            }
            at += upto;
            rest = after;
        }
        (new, whole)
    }

    /// Takes up bytes that an earlier run put by.
    pub(super) fn restore(&mut self, offset: u64, len: u64, saved: Saved) {
        if let Some(Cell::Open(pieces)) = self.cells.get_mut((offset / self.size) as usize)
            && gaps(pieces, offset..offset + len).first() == Some(&(offset..offset + len))
        {
            pieces.insert(offset, Piece { len, saved: Some(saved), bytes: None });
        }
    }

    /// Takes up zeros: bytes that nobody writes. Returns the cells that are whole now.
    pub(super) fn fill(&mut self, range: Range<u64>) -> Vec<usize> {
        let mut whole = Vec::new();
        let mut at = range.start;
        while at < range.end {
            let upto = (at / self.size + 1) * self.size;
            let end = upto.min(range.end);
            whole.extend(self.add(at, &vec![0; (end - at) as usize]).1);
            at = end;
        }
        whole
    }

    /// Ends the file. Returns the cells that are whole now.
    pub(super) fn end(&mut self, len: u64) -> Vec<usize> {
        self.len = Some(len);
        self.cells.truncate(len.div_ceil(self.size).max(1) as usize);
        let open: Vec<usize> = self
            .cells
            .iter()
            .enumerate()
            .filter(|(_, cell)| matches!(cell, Cell::Open(_)))
            .map(|(number, _)| number)
            .collect();
        for &number in &open {
            self.fill(self.range(number));
        }
        open
    }

    /// Where a cell lies in the file, as far as is known.
    pub(super) fn range(&self, number: usize) -> Range<u64> {
        let start = number as u64 * self.size;
        let end = start + self.size;
        start..self.len.map_or(end, |len| end.min(len))
    }

    fn is_whole(&self, number: usize) -> bool {
        let Some(Cell::Open(pieces)) = self.cells.get(number) else { return false };
        gaps(pieces, self.range(number)).is_empty()
    }

    /// Takes the pieces of a cell, to be uploaded.
    pub(super) fn take(&mut self, number: usize) -> Option<BTreeMap<u64, Piece>> {
        let cell = self.cells.get_mut(number)?;
        match std::mem::replace(cell, Cell::Uploading) {
            Cell::Open(pieces) => Some(pieces),
            other => {
                *cell = other;
                None
            }
        }
    }
}

/// What of a range no piece covers.
fn gaps(pieces: &BTreeMap<u64, Piece>, range: Range<u64>) -> Vec<Range<u64>> {
    let mut found = Vec::new();
    let mut at = range.start;
    // One that begins before may reach into it.
    let before = pieces.range(..range.start).next_back();
    let within = pieces.range(range.clone());
    for (start, piece) in before.into_iter().chain(within) {
        if *start > at {
            found.push(at..*start);
        }
        at = at.max(start + piece.len);
    }
    if at < range.end {
        found.push(at..range.end);
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    fn content(cells: &mut Cells, number: usize) -> Vec<u8> {
        cells.take(number).unwrap().into_values().flat_map(|piece| piece.bytes.unwrap()).collect()
    }

    #[test]
    fn a_cell_is_whole_once_all_its_bytes_are_there_in_any_order() {
        let mut cells = Cells::new(4, 10);
        assert_eq!(cells.add(2, &[2, 3, 4, 5]), (4, vec![]));
        // What is there already stays.
        assert_eq!(cells.add(0, &[0, 1, 9, 9, 9]), (2, vec![0]));
        assert_eq!(content(&mut cells, 0), [0, 1, 2, 3]);
        assert!(cells.take(0).is_none());
        assert_eq!(cells.fill(6..8), [1]);
        assert_eq!(content(&mut cells, 1), [4, 5, 0, 0]);
        cells.add(8, &[8]);
        assert_eq!(cells.end(10), [2]);
        assert_eq!(content(&mut cells, 2), [8, 0]);
    }

    #[test]
    fn a_shorter_end_leaves_out_cells() {
        let mut cells = Cells::new(4, 100);
        cells.add(0, &[1, 2]);
        assert_eq!(cells.end(2), [0]);
        assert_eq!(content(&mut cells, 0), [1, 2]);
        cells.set(0, Cell::Uploaded("a".into()));
        assert_eq!(cells.parts(), Some(vec!["a".to_owned()]));
    }
}
