//! Writes to one file, one at a time, without waiting in line.
//!
//! A kernel lets one thread at a time write to a file; others spin meanwhile. Here a worker that finds the file busy leaves its bytes to the
//! thread that is writing, and goes on computing.

use std::fs::File;
use std::sync::{Mutex, MutexGuard, PoisonError};

/// Writes left behind before a worker waits after all: this bounds the memory.
pub(crate) const MOST_WAITING: usize = 4;

/// A file and what is to be written into it.
#[derive(Debug)]
pub(super) struct Queue {
    file: File,
    /// Held by the thread that writes.
    writing: Mutex<()>,
    waiting: Mutex<Vec<(u64, Vec<u8>)>>,
    /// Empty buffers to give back.
    spare: Mutex<Vec<Vec<u8>>>,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Queue {
    pub(super) fn new(file: File) -> Self {
        Self { file, writing: Mutex::new(()), waiting: Mutex::default(), spare: Mutex::default() }
    }

    pub(super) fn file(&self) -> &File {
        &self.file
    }

    /// Writes the bytes, or leaves them to the thread that is writing; [`Queue::drain`] makes sure of them. `bytes` becomes an empty buffer.
    /// An error may be that of an earlier write.
    pub(super) fn write(&self, offset: u64, bytes: &mut Vec<u8>) -> std::io::Result<()> {
        let empty = lock(&self.spare).pop().unwrap_or_default();
        let waiting = {
            let mut waiting = lock(&self.waiting);
            waiting.push((offset, std::mem::replace(bytes, empty)));
            waiting.len()
        };
        match self.writing.try_lock() {
            Ok(_writing) => self.write_waiting(),
            Err(_) if waiting > MOST_WAITING => self.drain(),
            Err(_) => Ok(()),
        }
    }

    /// Returns once everything left so far is written.
    pub(super) fn drain(&self) -> std::io::Result<()> {
        let _writing = lock(&self.writing);
        self.write_waiting()
    }

    fn write_waiting(&self) -> std::io::Result<()> {
        loop {
            let next = lock(&self.waiting).pop();
            let Some((offset, mut bytes)) = next else { return Ok(()) };
            write_all_at(&self.file, &bytes, offset)?;
            bytes.clear();
            lock(&self.spare).push(bytes);
        }
    }
}

#[cfg(unix)]
fn write_all_at(file: &File, bytes: &[u8], offset: u64) -> std::io::Result<()> {
    std::os::unix::fs::FileExt::write_all_at(file, bytes, offset)
}

#[cfg(windows)]
fn write_all_at(file: &File, mut bytes: &[u8], mut offset: u64) -> std::io::Result<()> {
    while !bytes.is_empty() {
        let n = std::os::windows::fs::FileExt::seek_write(file, bytes, offset)?;
        bytes = &bytes[n..];
        offset += n as u64;
    }
    Ok(())
}
