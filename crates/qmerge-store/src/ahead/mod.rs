//! Reading an object by ranges, ahead of who asks.
//!
//! Where it is known what will be read ([`Blob::expect`]), those bytes come in cells of a fixed size, each in one request, some of them before they are asked for: so the
//! network works while the processors do, and nothing else is read. All else is read as it is asked for. Cells of all objects share one bound on memory.

mod cells;
mod scratch;

use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use cells::cells;
pub use scratch::InUse;
use scratch::Scratch;

use qmerge::error::{Error, Result};
use qmerge::open::Blob;

use crate::remote::{Found, Source, ask, together};

/// A range, and the reads that it holds.
type Group<'r, 'b> = (Range<u64>, Vec<&'r mut (u64, &'b mut [u8])>);

/// Bytes of one request: large beside the time that a store takes to answer, and as many as are written with one.
const CELL: u64 = 8 << 20;
/// Cells that are asked for beyond the one that is wanted.
const AHEAD: u64 = 4;
/// A read of fewer bytes is of what lies beside a weight (scales, a norm): who wants that goes on elsewhere, so nothing is asked for beyond it.
const SMALL: u64 = 256 << 10;
/// Bytes of cells that are kept, for all objects together. What is wanted at this moment may go beyond it.
pub(crate) const KEPT: u64 = 96 << 20;
/// Small reads whose gaps are no longer than that are one request: what a store takes to answer would be worth more, but who pays for what is read is not asked.
const GAP: u64 = 2 << 10;
/// Bytes that a read of many is cut into.
const JOINED: u64 = 8 << 20;
/// Requests of one read of many at a time.
const TOGETHER: usize = 8;

/// An object elsewhere.
#[derive(Debug)]
pub(crate) struct RemoteFile {
    path: PathBuf,
    identity: String,
    object: Arc<Object>,
    /// What will be read: sorted, apart from each other.
    expected: Mutex<Arc<[Range<u64>]>>,
}

#[derive(Debug)]
struct Object {
    /// Among all that were opened.
    number: u64,
    source: Arc<dyn Source>,
    name: String,
    found: Found,
    scratch: Option<Arc<Scratch>>,
}

impl Object {
    /// The bytes of a cell, from the scratch if they are there.
    fn cell(&self, range: Range<u64>) -> Result<Vec<u8>> {
        let Some(scratch) = &self.scratch else { return self.get(range) };
        let key = (self.number, range.start, range.end);
        if let Some(kept) = scratch.get(key) {
            return kept;
        }
        let bytes = self.get(range)?;
        scratch.put(key, &bytes)?;
        Ok(bytes)
    }

    fn get(&self, range: Range<u64>) -> Result<Vec<u8>> {
        let bytes = ask(|| self.source.get(&self.name, &self.found, range.clone()))?;
        debug_assert_eq!(bytes.len() as u64, range.end - range.start, "a source gives what was asked for, or fails");
        Ok(bytes)
    }
}

// With the last who reads it, which may be a thread that reads ahead.
impl Drop for Object {
    fn drop(&mut self) {
        if let Some(scratch) = &self.scratch {
            scratch.forget(self.number);
        }
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Numbers of objects that were opened.
static NUMBER: AtomicU64 = AtomicU64::new(0);

/// Bytes that nobody said would be read: headers, and what is small.
static LOOKED_AT: AtomicU64 = AtomicU64::new(0);

/// Bytes that this process has read of what nobody said would be read.
pub(crate) fn looked_at() -> u64 {
    LOOKED_AT.load(Ordering::Relaxed)
}

/// True once an object was opened.
pub(crate) fn is_used() -> bool {
    NUMBER.load(Ordering::Relaxed) > 0
}

impl RemoteFile {
    pub(crate) fn new(path: PathBuf, source: Arc<dyn Source>, name: &str, found: Found) -> Self {
        let number = NUMBER.fetch_add(1, Ordering::Relaxed);
        let identity = format!("{} {}", found.len, found.tag);
        let object = Object { number, source, name: name.to_owned(), found, scratch: scratch::current() };
        Self { path, identity, object: Arc::new(object), expected: Mutex::new(Arc::new([])) }
    }

    /// Cells from the one that holds `offset` on.
    fn cells_from(expected: &[Range<u64>], offset: u64) -> impl Iterator<Item = Range<u64>> + '_ {
        let first = expected.partition_point(|range| range.end <= offset);
        expected.get(first..).unwrap_or_default().iter().flat_map(move |range| {
            let begin = offset.max(range.start) / CELL * CELL;
            (begin..range.end).step_by(CELL as usize).map(move |at| at.max(range.start)..(at + CELL).min(range.end))
        })
    }

    fn read(&self, offset: u64, buffer: &mut [u8]) -> Result<()> {
        let end = offset + buffer.len() as u64;
        let expected = Arc::clone(&lock(&self.expected));
        let holds = |range: &Range<u64>| range.start <= offset && end <= range.end;
        if !expected.get(expected.partition_point(|range| range.end <= offset)).is_some_and(holds) {
            return self.direct(offset, buffer);
        }
        let ahead = if end - offset < SMALL { 0 } else { AHEAD };
        let mut at = offset;
        while at < end {
            let wanted: Vec<Range<u64>> = Self::cells_from(&expected, at).take(1 + ahead as usize).collect();
            let Some(cell) = wanted.first() else { break };
            // The one that is wanted too, so that it does not wait for those after it.
            cells().prepare(&self.object, &wanted);
            let upto = end.min(cell.end);
            let bytes = cells().get(&self.object, cell, upto == cell.end)?;
            let from = bytes.get((at - cell.start) as usize..(upto - cell.start) as usize);
            let to = buffer.get_mut((at - offset) as usize..(upto - offset) as usize);
            if let (Some(from), Some(to)) = (from, to) {
                to.copy_from_slice(from);
            }
            at = upto;
        }
        Ok(())
    }

    /// As it is asked for.
    fn direct(&self, offset: u64, buffer: &mut [u8]) -> Result<()> {
        LOOKED_AT.fetch_add(buffer.len() as u64, Ordering::Relaxed);
        let mut at = offset;
        for piece in buffer.chunks_mut(JOINED as usize) {
            let bytes = self.object.get(at..at + piece.len() as u64)?;
            piece.copy_from_slice(&bytes);
            at += bytes.len() as u64;
        }
        Ok(())
    }
}

impl Drop for RemoteFile {
    fn drop(&mut self) {
        cells().forget(self.object.number);
    }
}

impl Blob for RemoteFile {
    fn path(&self) -> &Path {
        &self.path
    }

    fn len(&self) -> u64 {
        self.object.found.len
    }

    fn identity(&self) -> &str {
        &self.identity
    }

    fn is_known_by_content(&self) -> bool {
        self.object.found.has_tag()
    }

    fn grain(&self) -> usize {
        CELL as usize
    }

    fn expect(&self, ranges: &[Range<u64>]) {
        let mut all: Vec<Range<u64>> = lock(&self.expected).to_vec();
        let inside = |range: &Range<u64>| range.start..range.end.min(self.len());
        all.extend(ranges.iter().map(inside).filter(|range| range.start < range.end));
        all.sort_unstable_by_key(|range| (range.start, range.end));
        let mut joined: Vec<Range<u64>> = Vec::with_capacity(all.len());
        for range in all {
            match joined.last_mut() {
                Some(last) if range.start <= last.end => last.end = last.end.max(range.end),
                _ => joined.push(range),
            }
        }
        *lock(&self.expected) = joined.into();
    }

    fn read_at(&self, offset: u64, buffer: &mut [u8]) -> Result<()> {
        let end = offset.checked_add(buffer.len() as u64);
        if end.is_none_or(|end| end > self.len()) {
            let end = offset.saturating_add(buffer.len() as u64);
            return Err(Error::new(qmerge::error::Kind::Malformed, format!("truncated: ends before byte {end}"))
                .in_file(&self.path)
                .with_hint("upload the file again"));
        }
        if buffer.is_empty() {
            return Ok(());
        }
        self.read(offset, buffer).map_err(|error| error.in_file(&self.path))
    }

    /// Neighbours together, and several requests at a time.
    fn read_many(&self, reads: &mut [(u64, &mut [u8])]) -> Result<()> {
        let mut sorted: Vec<&mut (u64, &mut [u8])> =
            reads.iter_mut().filter(|(_, buffer)| !buffer.is_empty()).collect();
        sorted.sort_by_key(|(offset, _)| *offset);
        let end_of = |read: &(u64, &mut [u8])| read.0.saturating_add(read.1.len() as u64);
        if let Some(beyond) = sorted.iter().map(|read| end_of(read)).find(|end| *end > self.len()) {
            return Err(Error::new(qmerge::error::Kind::Malformed, format!("truncated: ends before byte {beyond}"))
                .in_file(&self.path));
        }
        // Each group with the range that holds it.
        let mut groups: Vec<Group<'_, '_>> = Vec::new();
        for read in sorted {
            let (start, end) = (read.0, end_of(read));
            match groups.last_mut() {
                Some((range, group)) if start <= range.end + GAP && end.saturating_sub(range.start) <= JOINED => {
                    range.end = range.end.max(end);
                    group.push(read);
                }
                _ => groups.push((start..end, vec![read])),
            }
        }
        let read = |(range, group): Group<'_, '_>| {
            let mut bytes = vec![0; (range.end - range.start) as usize];
            self.read(range.start, &mut bytes)?;
            for (offset, buffer) in group {
                let at = (*offset - range.start) as usize;
                if let Some(own) = bytes.get(at..at + buffer.len()) {
                    buffer.copy_from_slice(own);
                }
            }
            Ok(())
        };
        together(groups, TOGETHER, read).map_err(|error| error.in_file(&self.path))
    }
}

#[cfg(test)]
mod tests {
    use qmerge::error::Kind;
    use qmerge::open::Item;

    use super::*;
    use crate::remote::Failed;

    /// An object of bytes that tell their place.
    #[derive(Debug, Default)]
    struct Counting {
        sent: AtomicU64,
    }

    fn byte(at: u64) -> u8 {
        (at * 7 % 251) as u8
    }

    impl Source for Counting {
        fn list(&self, _: &str) -> std::result::Result<Vec<Item>, Failed> {
            Ok(Vec::new())
        }

        fn look(&self, _: &str) -> std::result::Result<Found, Failed> {
            Err(Failed::Missing)
        }

        fn get(&self, name: &str, _: &Found, range: Range<u64>) -> std::result::Result<Vec<u8>, Failed> {
            assert!(name != "panics", "as a defect would");
            self.sent.fetch_add(range.end - range.start, Ordering::Relaxed);
            Ok(range.map(byte).collect())
        }
    }

    const LEN: u64 = KEPT + 5 * CELL + 17;

    fn opened(source: &Arc<Counting>, name: &str) -> RemoteFile {
        let found = Found { len: LEN, tag: "\"1\"".into() };
        let file = RemoteFile::new(PathBuf::from(name), Arc::clone(source) as Arc<dyn Source>, name, found);
        file.expect(std::slice::from_ref(&(0..LEN)));
        file
    }

    fn read_all(file: &RemoteFile) {
        let mut buffer = vec![0; 3 << 20];
        let mut at = 0;
        while at < LEN {
            let count = (LEN - at).min(buffer.len() as u64) as usize;
            file.read_at(at, &mut buffer[..count]).unwrap();
            assert!(buffer[..count].iter().zip(at..).all(|(found, at)| *found == byte(at)));
            at += count as u64;
        }
    }

    #[test]
    fn what_is_read_again_comes_from_the_scratch() {
        let folder = std::env::temp_dir().join(format!("qmerge-ahead-{}", std::process::id()));
        std::fs::create_dir_all(&folder).unwrap();
        // All of it has a place, or half.
        for (bytes, from_source) in [(2 * LEN, LEN), (LEN / 2, 2 * LEN + 2 * CELL)] {
            let in_use = crate::scratch(&folder, bytes).unwrap();
            let source = Arc::new(Counting::default());
            let file = opened(&source, "object");
            drop(in_use);
            (0..3).for_each(|_| read_all(&file));
            let sent = source.sent.load(Ordering::Relaxed);
            assert!(sent >= LEN && sent <= from_source, "{sent} of {LEN}");
        }
        let source = Arc::new(Counting::default());
        read_all(&opened(&source, "object"));
        assert_eq!(source.sent.load(Ordering::Relaxed), LEN, "without one, each byte comes once for a read of all");
        std::fs::remove_dir_all(&folder).unwrap();
    }

    #[test]
    fn a_defect_while_it_reads_ahead_is_an_error() {
        let file = opened(&Arc::new(Counting::default()), "panics");
        let error = file.read_at(0, &mut [0; 100]).unwrap_err();
        assert_eq!(error.kind(), Kind::Bug);
    }
}
