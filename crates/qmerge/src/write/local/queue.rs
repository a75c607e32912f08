//! Writes to one file, one at a time, without waiting in line.
//!
//! A kernel lets one thread at a time write to a file; others spin meanwhile. Here a worker that finds the file busy leaves its bytes to the
//! thread that is writing, and goes on computing. So a write may fail in another thread than the one whose step it belongs to: the first
//! failure is the file's, and from then on nothing is written to it and every call says so.

use crate::parallel::lock;
use std::fs::File;
use std::io::{Error, ErrorKind, Result};
use std::sync::Mutex;

/// Writes left behind before a worker waits after all: this bounds the memory.
pub(crate) const MOST_WAITING: usize = 4;

/// A file and what is to be written into it.
#[derive(Debug)]
pub(super) struct Queue {
    file: File,
    /// Held by the thread that writes, until it has noted what came of it.
    writing: Mutex<()>,
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    waiting: Vec<(u64, Vec<u8>)>,
    /// Empty buffers to give back.
    spare: Vec<Vec<u8>>,
    /// Bytes were left or written since the last sync began.
    unsynced: bool,
    failed: Option<Failed>,
}

impl State {
    fn check(&self) -> Result<()> {
        self.failed.map_or(Ok(()), |failed| Err(failed.error()))
    }
}

/// A failure that can be told again.
#[derive(Clone, Copy, Debug)]
pub(super) struct Failed {
    code: Option<i32>,
    kind: ErrorKind,
}

impl Failed {
    pub(super) fn new(error: &Error) -> Self {
        Self { code: error.raw_os_error(), kind: error.kind() }
    }

    pub(super) fn error(self) -> Error {
        self.code.map_or_else(|| self.kind.into(), Error::from_raw_os_error)
    }
}

impl Queue {
    /// What an earlier run wrote to the file may not be on the disk yet, so the first sync is never left out.
    pub(super) fn new(file: File) -> Self {
        let state = State { unsynced: true, ..State::default() };
        Self { file, writing: Mutex::new(()), state: Mutex::new(state) }
    }

    /// Writes the bytes, or leaves them to the thread that is writing; [`Queue::drain`] makes sure of them. `bytes` becomes an empty buffer.
    pub(super) fn write(&self, offset: u64, bytes: &mut Vec<u8>) -> Result<()> {
        let waiting = {
            let mut state = lock(&self.state);
            state.check()?;
            let empty = state.spare.pop().unwrap_or_default();
            state.waiting.push((offset, std::mem::replace(bytes, empty)));
            state.unsynced = true;
            state.waiting.len()
        };
        match self.writing.try_lock() {
            Ok(_writing) => self.write_waiting(),
            Err(_) if waiting > MOST_WAITING => self.drain(),
            Err(_) => Ok(()),
        }
    }

    /// Returns once everything left before is written. Errors if any write or sync of this file ever failed.
    pub(super) fn drain(&self) -> Result<()> {
        let _writing = lock(&self.writing);
        self.write_waiting()
    }

    /// Returns once everything left before is on the disk. Errors if any write or sync of this file ever failed.
    pub(super) fn sync(&self) -> Result<()> {
        // What is left once the flag is taken sets it again, whether it is written before this sync begins or after.
        let unsynced = std::mem::take(&mut lock(&self.state).unsynced);
        self.drain()?;
        if unsynced {
            self.file.sync_data().map_err(|error| self.fail(error))?;
        }
        Ok(())
    }

    /// Ends the file at `len`, once everything is written.
    pub(super) fn end(&self, len: u64) -> Result<()> {
        self.drain()?;
        self.file.set_len(len).map_err(|error| self.fail(error))
    }

    /// [`Queue::sync`] with what the system knows of the file besides.
    pub(super) fn sync_all(&self) -> Result<()> {
        self.drain()?;
        self.file.sync_all().map_err(|error| self.fail(error))
    }

    /// Call it with `writing` held.
    fn write_waiting(&self) -> Result<()> {
        loop {
            let next = {
                let mut state = lock(&self.state);
                state.check()?;
                state.waiting.pop()
            };
            let Some((offset, mut bytes)) = next else { return Ok(()) };
            write_all_at(&self.file, &bytes, offset).map_err(|error| self.fail(error))?;
            bytes.clear();
            lock(&self.state).spare.push(bytes);
        }
    }

    /// Notes a failure: what could not be written, or may not be on the disk, is nobody's any more.
    fn fail(&self, error: Error) -> Error {
        lock(&self.state).failed.get_or_insert(Failed::new(&error));
        error
    }
}

#[cfg(unix)]
fn write_all_at(file: &File, bytes: &[u8], offset: u64) -> Result<()> {
    std::os::unix::fs::FileExt::write_all_at(file, bytes, offset)
}

#[cfg(windows)]
fn write_all_at(file: &File, mut bytes: &[u8], mut offset: u64) -> Result<()> {
    while !bytes.is_empty() {
        let n = std::os::windows::fs::FileExt::seek_write(file, bytes, offset)?;
        bytes = &bytes[n..];
        offset += n as u64;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn queue(name: &str, write: bool) -> (std::path::PathBuf, Queue) {
        let path = std::env::temp_dir().join(format!("qmerge-queue-{name}-{}", std::process::id()));
        std::fs::write(&path, [0; 8]).unwrap();
        let file = std::fs::OpenOptions::new().read(true).write(write).open(&path).unwrap();
        (path, Queue::new(file))
    }

    #[test]
    fn bytes_left_behind_are_written_by_the_next() {
        let (path, queue) = queue("left", true);
        let writing = queue.writing.lock().unwrap();
        queue.write(0, &mut vec![1, 2]).unwrap();
        queue.write(6, &mut vec![7, 8]).unwrap();
        assert_eq!(std::fs::read(&path).unwrap(), [0; 8]);
        drop(writing);
        queue.sync().unwrap();
        assert_eq!(std::fs::read(&path).unwrap(), [1, 2, 0, 0, 0, 0, 7, 8]);
        std::fs::remove_file(&path).unwrap();
    }

    /// Another thread's write took the bytes along and failed: whoever asks later must hear of it.
    #[test]
    fn a_failure_stays() {
        // A file that is open for reading refuses every write.
        let (path, queue) = queue("failed", false);
        let writing = queue.writing.lock().unwrap();
        queue.write(0, &mut vec![1]).unwrap();
        drop(writing);
        let first = queue.write(1, &mut vec![2]).unwrap_err();
        for again in [queue.drain(), queue.sync(), queue.sync_all(), queue.write(2, &mut vec![3]), queue.sync()] {
            assert_eq!(again.unwrap_err().to_string(), first.to_string());
        }
        std::fs::remove_file(&path).unwrap();
    }

    #[test]
    fn what_is_left_during_a_sync_is_not_taken_for_synced() {
        let (path, queue) = queue("sync", true);
        queue.sync().unwrap();
        assert!(!queue.state.lock().unwrap().unsynced);
        queue.write(0, &mut vec![1]).unwrap();
        assert!(queue.state.lock().unwrap().unsynced);
        // A write that comes once a sync has begun may reach the file after it.
        let writing = queue.writing.lock().unwrap();
        std::thread::scope(|scope| {
            let sync = scope.spawn(|| queue.sync());
            while queue.state.lock().unwrap().unsynced {
                std::thread::yield_now();
            }
            queue.write(1, &mut vec![2]).unwrap();
            drop(writing);
            sync.join().unwrap().unwrap();
        });
        assert!(queue.state.lock().unwrap().unsynced);
        std::fs::remove_file(&path).unwrap();
    }
}
