//! The journal as a file: its lock tells a second process that the folder is being written.

use std::fs::{File, OpenOptions};
use std::io::{Read, Seek, SeekFrom, Write};
use std::path::Path;

use super::queue::Failed;
use crate::error::{Error, Kind, Result};

/// Its name in the folder where an output is built.
pub(super) const FILE_NAME: &str = "qmerge-journal.jsonl";

/// The open journal.
#[derive(Debug)]
pub(super) struct Journal {
    file: File,
    /// A line may have been cut off: none can follow it.
    failed: Option<Failed>,
}

impl Journal {
    /// Opens it, or makes an empty one.
    pub(super) fn open(partial: &Path) -> Result<Self> {
        let path = partial.join(FILE_NAME);
        let file = open(&path)?;
        lock(&file, &path)?;
        Ok(Self { file, failed: None })
    }

    /// All that stands in it.
    pub(super) fn read(&mut self) -> std::io::Result<Vec<u8>> {
        let mut text = Vec::new();
        self.file.read_to_end(&mut text).map(|_| text)
    }

    /// Ends it there: what comes next begins a line of its own.
    pub(super) fn cut(&mut self, len: u64) -> std::io::Result<()> {
        self.file.set_len(len)?;
        self.file.seek(SeekFrom::Start(len)).map(drop)
    }

    /// Appends lines, and returns when they are on the disk.
    pub(super) fn append(&mut self, lines: &[u8]) -> std::io::Result<()> {
        if let Some(failed) = self.failed {
            return Err(failed.error());
        }
        let written = self.file.write_all(lines).and_then(|()| self.file.sync_data());
        written.inspect_err(|error| self.failed = Some(Failed::new(error)))
    }
}

fn open(path: &Path) -> Result<File> {
    OpenOptions::new()
        .read(true)
        .write(true)
        .create(true)
        .truncate(false)
        .open(path)
        .map_err(|error| Error::io("open", path, error))
}

fn lock(file: &File, path: &Path) -> Result<()> {
    match file.try_lock() {
        Ok(()) => Ok(()),
        Err(std::fs::TryLockError::WouldBlock) => Err(running(path)),
        // A file system without locks: go without.
        Err(std::fs::TryLockError::Error(_)) => Ok(()),
    }
}

/// Errors if another process is writing this folder.
pub(super) fn refuse_running(partial: &Path) -> Result<()> {
    let path = partial.join(FILE_NAME);
    match File::open(&path) {
        Ok(file) => lock(&file, &path),
        Err(_) => Ok(()),
    }
}

fn running(path: &Path) -> Error {
    Error::new(Kind::Exists, "another qmerge is writing this output")
        .in_file(path)
        .with_hint("wait for it, or choose another output")
}

#[cfg(all(test, target_os = "linux"))]
mod tests {
    use super::*;

    #[test]
    fn no_line_follows_one_that_failed() {
        // The device refuses every write as a full disk does.
        let file = OpenOptions::new().read(true).write(true).open("/dev/full").unwrap();
        let mut journal = Journal { file, failed: None };
        let first = journal.append(b"{}\n").unwrap_err();
        journal.file = unnamed();
        assert_eq!(journal.append(b"{}\n").unwrap_err().to_string(), first.to_string());
        assert_eq!(journal.file.metadata().unwrap().len(), 0);
    }

    fn unnamed() -> File {
        let path = std::env::temp_dir().join(format!("qmerge-journal-unnamed-{}", std::process::id()));
        let file = open(&path).unwrap();
        std::fs::remove_file(&path).unwrap();
        file
    }
}
