//! Bytes of a file by positional reads.

use std::fs::File;
use std::path::{Path, PathBuf};

use super::foreign;
use crate::error::{Error, Result, malformed};

/// An open file, read at any offset from any thread.
#[derive(Debug)]
pub struct Source {
    /// Where it was opened.
    pub path: PathBuf,
    /// Length when it was opened, bytes.
    pub len: u64,
    /// Modification time in nanoseconds since 1970, for recognising a changed input on resume.
    pub modified_ns: u128,
    /// Time of the last change of content or attributes, likewise; 0 where the system does not tell. Nobody can set it.
    pub changed_ns: i128,
    file: File,
}

impl Source {
    /// Opens a regular file for reading; what is recognised as another tool's is refused.
    pub fn open(path: &Path) -> Result<Self> {
        let file = File::open(path).map_err(|error| Error::io("open", path, error))?;
        let meta = file.metadata().map_err(|error| Error::io("open", path, error))?;
        if !meta.is_file() {
            return Err(malformed("not a regular file").in_file(path));
        }
        let modified_ns = meta
            .modified()
            .ok()
            .and_then(|time| time.duration_since(std::time::UNIX_EPOCH).ok())
            .map_or(0, |since| since.as_nanos());
        let source =
            Self { path: path.to_path_buf(), len: meta.len(), modified_ns, changed_ns: changed_ns(&meta), file };
        let mut head = [0; 64];
        let head = head.get_mut(..source.len.min(64) as usize).unwrap_or_default();
        source.read_at(0, head)?;
        foreign::refuse_head(head).map_err(|error| error.in_file(path))?;
        Ok(source)
    }

    /// Fills `buffer` from `offset`. A file that ends too early is malformed, not an I/O error.
    pub fn read_at(&self, offset: u64, buffer: &mut [u8]) -> Result<()> {
        read_exact_at(&self.file, buffer, offset).map_err(|error| {
            if error.kind() == std::io::ErrorKind::UnexpectedEof {
                malformed(format!("truncated: ends before byte {}", offset.saturating_add(buffer.len() as u64)))
                    .in_file(&self.path)
                    .with_hint("download or copy the file again")
            } else {
                Error::io("read", &self.path, error)
            }
        })
    }
}

#[cfg(unix)]
fn changed_ns(meta: &std::fs::Metadata) -> i128 {
    use std::os::unix::fs::MetadataExt;
    i128::from(meta.ctime()).saturating_mul(1_000_000_000).saturating_add(i128::from(meta.ctime_nsec()))
}

#[cfg(not(unix))]
fn changed_ns(_: &std::fs::Metadata) -> i128 {
    0
}

#[cfg(unix)]
fn read_exact_at(file: &File, buffer: &mut [u8], offset: u64) -> std::io::Result<()> {
    std::os::unix::fs::FileExt::read_exact_at(file, buffer, offset)
}

#[cfg(windows)]
fn read_exact_at(file: &File, mut buffer: &mut [u8], mut offset: u64) -> std::io::Result<()> {
    while !buffer.is_empty() {
        match std::os::windows::fs::FileExt::seek_read(file, buffer, offset) {
            Ok(0) => return Err(std::io::ErrorKind::UnexpectedEof.into()),
            Ok(n) => {
                buffer = &mut buffer[n..];
                offset += n as u64;
            }
            Err(error) if error.kind() == std::io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    Ok(())
}
