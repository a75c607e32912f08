//! Cells of all objects: bytes that come ahead of who asks for them, under one bound on memory.

use std::collections::{HashMap, VecDeque};
use std::ops::Range;
use std::sync::{Arc, Condvar, Mutex, OnceLock, PoisonError};

use qmerge::error::{Error, Kind, Result};

use super::{KEPT, Object, lock};

/// Requests for what will be wanted later that are under way at a time.
const UNDER_WAY: usize = 8;

/// A cell: the object's number, and where it begins and ends.
pub(super) type Key = (u64, u64, u64);

#[derive(Debug)]
enum Cell {
    Coming,
    /// The bytes, and whether they were read to their end.
    There(Arc<Vec<u8>>, bool),
    Failed(Arc<Error>),
}

/// The cells of all objects.
#[derive(Debug, Default)]
pub(super) struct Cells {
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

pub(super) fn cells() -> &'static Arc<Cells> {
    static CELLS: OnceLock<Arc<Cells>> = OnceLock::new();
    CELLS.get_or_init(Arc::default)
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

/// The bytes of a cell from their store. Whoever else waits for them must hear of a panic too.
fn fetched(object: &Object, range: Range<u64>) -> Result<Vec<u8>> {
    let got = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| object.cell(range)));
    got.unwrap_or_else(|_| Err(Error::new(Kind::Bug, "reading a cell panicked")))
}

impl Cells {
    /// Has cells come that will be wanted, as far as there is room.
    pub(super) fn prepare(self: &Arc<Self>, object: &Arc<Object>, wanted: &[Range<u64>]) {
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
                let got = fetched(&object, range);
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
    pub(super) fn get(&self, object: &Object, range: &Range<u64>, to_its_end: bool) -> Result<Arc<Vec<u8>>> {
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
                    let again = error.again();
                    state.remove(key);
                    return Err(again);
                }
                None => {
                    state.make_room(range.end - range.start, true);
                    state.begin(key);
                    drop(state);
                    let got = fetched(object, range.clone());
                    state = lock(&self.state);
                    state.end(key, got);
                    self.changed.notify_all();
                }
            }
        }
    }

    pub(super) fn forget(&self, number: u64) {
        let mut state = lock(&self.state);
        let own: Vec<Key> = state.order.iter().filter(|key| key.0 == number).copied().collect();
        own.into_iter().for_each(|key| state.remove(key));
        drop(state);
        // Nobody waits for a file that is closed, but the order of events is not ours to know.
        self.changed.notify_all();
    }
}
