//! Reading an object by ranges, ahead of who asks.
//!
//! Where it is known what will be read ([`Blob::expect`]), those bytes come in cells of a fixed size, each in one request, some of them before they are asked for: so the
//! network works while the processors do, and nothing else is read. All else is read as it is asked for. Cells of all objects share one bound on memory.

use std::collections::{HashMap, VecDeque};
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, OnceLock, PoisonError};

use qmerge::error::{Error, Result};
use qmerge::open::Blob;

use crate::remote::{Found, Source, ask};

/// A range, and the reads that it holds.
type Group<'r, 'b> = (Range<u64>, Vec<&'r mut (u64, &'b mut [u8])>);

/// Bytes of one request: large beside the time that a store takes to answer.
const CELL: u64 = 4 << 20;
/// Cells that are asked for beyond the one that is wanted.
const AHEAD: u64 = 4;
/// Bytes of cells that are kept, for all objects together. What is wanted at this moment may go beyond it.
pub(crate) const KEPT: u64 = 64 << 20;
/// Requests for what will be wanted later that are under way at a time.
const UNDER_WAY: usize = 8;
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
}

impl Object {
    fn get(&self, range: Range<u64>) -> Result<Vec<u8>> {
        let bytes = ask(|| self.source.get(&self.name, &self.found, range.clone()))?;
        debug_assert_eq!(bytes.len() as u64, range.end - range.start, "a source gives what was asked for, or fails");
        Ok(bytes)
    }
}

/// A cell: the object's number, and where it begins and ends.
type Key = (u64, u64, u64);

#[derive(Debug)]
enum Cell {
    Coming,
    /// The bytes, and whether they were read to their end.
    There(Arc<Vec<u8>>, bool),
    Failed(Arc<Error>),
}

/// The cells of all objects.
#[derive(Debug, Default)]
struct Cells {
    state: Mutex<State>,
    changed: Condvar,
}

#[derive(Debug, Default)]
struct State {
    cells: HashMap<Key, Cell>,
    /// In the order in which they were asked for.
    order: VecDeque<Key>,
    /// Of those that are there or coming.
    bytes: u64,
    coming: usize,
}

fn cells() -> &'static Arc<Cells> {
    static CELLS: OnceLock<Arc<Cells>> = OnceLock::new();
    CELLS.get_or_init(Arc::default)
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl State {
    /// Makes room for so many bytes, at the cost of cells that were read, and if need be of those that were not. True if there is room then.
    fn make_room(&mut self, bytes: u64, at_any_cost: bool) -> bool {
        for unread_too in [false, true] {
            if unread_too && !at_any_cost {
                break;
            }
            let mut at = 0;
            while self.bytes + bytes > KEPT {
                let Some(key) = self.order.get(at).copied() else { break };
                let goes = match self.cells.get(&key) {
                    Some(Cell::There(_, read)) => *read || unread_too,
                    Some(Cell::Failed(_)) | None => true,
                    Some(Cell::Coming) => false,
                };
                if goes {
                    self.remove(key);
                } else {
                    at += 1;
                }
            }
        }
        self.bytes + bytes <= KEPT
    }

    fn remove(&mut self, key: Key) {
        self.order.retain(|other| *other != key);
        if let Some(Cell::There(..) | Cell::Coming) = self.cells.remove(&key) {
            self.bytes -= key.2 - key.1;
        }
    }

    fn begin(&mut self, key: Key) {
        self.cells.insert(key, Cell::Coming);
        self.order.push_back(key);
        self.bytes += key.2 - key.1;
        self.coming += 1;
    }

    fn end(&mut self, key: Key, got: Result<Vec<u8>>) {
        self.coming -= 1;
        // Whoever opened it may have gone.
        if !self.cells.contains_key(&key) {
            return;
        }
        let cell = match got {
            Ok(bytes) => Cell::There(Arc::new(bytes), false),
            Err(error) => {
                self.bytes -= key.2 - key.1;
                Cell::Failed(Arc::new(error))
            }
        };
        self.cells.insert(key, cell);
    }
}

impl Cells {
    /// Has cells come that will be wanted, as far as there is room.
    fn prepare(self: &Arc<Self>, object: &Arc<Object>, wanted: &[Range<u64>]) {
        for range in wanted {
            let key = (object.number, range.start, range.end);
            {
                let mut state = lock(&self.state);
                if state.cells.contains_key(&key) {
                    continue;
                }
                if state.coming >= UNDER_WAY || !state.make_room(range.end - range.start, false) {
                    return;
                }
                state.begin(key);
            }
            let (cells, object, range) = (Arc::clone(self), Arc::clone(object), range.clone());
            let begun = std::thread::Builder::new().name("qmerge-read".into()).spawn(move || {
                let got = object.get(range);
                lock(&cells.state).end(key, got);
                cells.changed.notify_all();
            });
            if begun.is_err() {
                // It is asked for when it is wanted.
                let mut state = lock(&self.state);
                state.coming -= 1;
                state.remove(key);
                self.changed.notify_all();
                return;
            }
        }
    }

    /// The bytes of a cell. `to_its_end` says that nobody is expected to want them again.
    fn get(&self, object: &Object, range: &Range<u64>, to_its_end: bool) -> Result<Arc<Vec<u8>>> {
        let key = (object.number, range.start, range.end);
        let mut state = lock(&self.state);
        loop {
            match state.cells.get_mut(&key) {
                Some(Cell::There(bytes, read)) => {
                    *read |= to_its_end;
                    return Ok(Arc::clone(bytes));
                }
                Some(Cell::Coming) => {
                    state = self.changed.wait(state).unwrap_or_else(PoisonError::into_inner);
                }
                Some(Cell::Failed(error)) => {
                    let again = Error::new(error.kind(), error.message());
                    let again = match error.hint() {
                        Some(hint) => again.with_hint(hint),
                        None => again,
                    };
                    state.remove(key);
                    return Err(again);
                }
                None => {
                    state.make_room(range.end - range.start, true);
                    state.begin(key);
                    drop(state);
                    let got = object.get(range.clone());
                    state = lock(&self.state);
                    state.end(key, got);
                    self.changed.notify_all();
                }
            }
        }
    }

    fn forget(&self, number: u64) {
        let mut state = lock(&self.state);
        let own: Vec<Key> = state.order.iter().filter(|key| key.0 == number).copied().collect();
        own.into_iter().for_each(|key| state.remove(key));
        drop(state);
        // Nobody waits for a file that is closed, but the order of events is not ours to know.
        self.changed.notify_all();
    }
}

/// What is to be done next. Its own function, so that the lock does not last for the work.
pub(crate) fn next<T>(queue: &Mutex<Vec<T>>) -> Option<T> {
    lock(queue).pop()
}

/// Numbers of objects that were opened.
static NUMBER: AtomicU64 = AtomicU64::new(0);

/// True once an object was opened.
pub(crate) fn is_used() -> bool {
    NUMBER.load(Ordering::Relaxed) > 0
}

impl RemoteFile {
    pub(crate) fn new(path: PathBuf, source: Arc<dyn Source>, name: &str, found: Found) -> Self {
        let number = NUMBER.fetch_add(1, Ordering::Relaxed);
        let identity = format!("{} {}", found.len, found.tag);
        let object = Object { number, source, name: name.to_owned(), found };
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
        let mut at = offset;
        while at < end {
            let wanted: Vec<Range<u64>> = Self::cells_from(&expected, at).take(1 + AHEAD as usize).collect();
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
        let queue = Mutex::new(groups);
        let failed = Mutex::new(None);
        let work = || {
            while let Some((range, group)) = next(&queue) {
                let mut bytes = vec![0; (range.end - range.start) as usize];
                match self.read(range.start, &mut bytes) {
                    Ok(()) => {
                        for (offset, buffer) in group {
                            let at = (*offset - range.start) as usize;
                            if let Some(own) = bytes.get(at..at + buffer.len()) {
                                buffer.copy_from_slice(own);
                            }
                        }
                    }
                    Err(error) => {
                        lock(&failed).get_or_insert(error);
                        lock(&queue).clear();
                    }
                }
            }
        };
        let threads = lock(&queue).len().min(TOGETHER);
        std::thread::scope(|scope| {
            for _ in 1..threads {
                scope.spawn(work);
            }
            work();
        });
        failed
            .into_inner()
            .unwrap_or_else(PoisonError::into_inner)
            .map_or(Ok(()), |error: Error| Err(error.in_file(&self.path)))
    }
}
