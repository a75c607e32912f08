//! Where bytes lie: objects of known length, and folders that hold them.
//!
//! All that a checkpoint or an adapter consists of is read through these two. Local files are one of each (`local.rs`); whoever keeps models elsewhere
//! implements both and opens them with [`Checkpoint::open_in`](super::Checkpoint::open_in) and [`Adapter::open_in`](crate::adapters::Adapter::open_in).

use std::fmt::Debug;
use std::ops::Range;
use std::path::{Path, PathBuf};

use super::foreign;
use crate::error::{Error, Result, malformed};

/// A readable object: a file of a local disk, an object of a store.
///
/// It is read from several threads at once, at any place, and stays open for as long as a checkpoint does.
#[allow(clippy::len_without_is_empty)] // Nobody asks.
pub trait Blob: Debug + Send + Sync {
    /// What messages call it: the path of a file, the address of an object.
    fn path(&self) -> &Path;

    /// Its length in bytes, when it was opened.
    fn len(&self) -> u64;

    /// What tells this content from any other, when it was opened: size and times of a file, an ETag. Two merges are the same, so that one can go on where
    /// the other stopped, if the identities of their inputs are.
    fn identity(&self) -> &str;

    /// True if the identity is that of the content alone, as an ETag is and a time is not.
    fn is_known_by_content(&self) -> bool {
        false
    }

    /// Bytes that a read is worth making, where whoever reads all of it may choose.
    fn grain(&self) -> usize {
        1 << 20
    }

    /// What of it will be read, of several threads' reads all and in about this order: who reads over a network may have it come before it is asked for.
    fn expect(&self, _ranges: &[Range<u64>]) {}

    /// Fills `buffer` from `offset`, in bytes. Errors name the object: malformed if it ends before the buffer is full, I/O otherwise. A store that can make its
    /// reads depend on the identity does, and one that cannot says in [`Blob::check_unchanged`] what it knows.
    fn read_at(&self, offset: u64, buffer: &mut [u8]) -> Result<()>;

    /// Many small reads at once: offsets in bytes, and buffers to fill. It errors as [`Blob::read_at`] does, and the buffers are of no use then.
    fn read_many(&self, reads: &mut [(u64, &mut [u8])]) -> Result<()> {
        reads.iter_mut().try_for_each(|(offset, buffer)| self.read_at(*offset, buffer))
    }

    /// Errors if what was read may not be the content of one moment, since it changed after it was opened. Asked once all is read.
    fn check_unchanged(&self) -> Result<()> {
        Ok(())
    }
}

/// A folder of objects.
///
/// Names are relative, with `/` between folders. Those that come out of a file, such as an index, are plain ([`is_plain_path`](super::is_plain_path)) before
/// they come here.
pub trait Store: Debug + Send + Sync {
    /// What messages call it.
    fn path(&self) -> &Path;

    /// What messages call an object in it.
    fn path_of(&self, name: &str) -> PathBuf {
        self.path().join(name)
    }

    /// What lies in a folder of it ("" for itself), not in those below, sorted by name.
    fn list(&self, folder: &str) -> Result<Vec<Item>>;

    /// Opens an object. Errors if there is none of that name.
    fn open(&self, name: &str) -> Result<Box<dyn Blob>>;

    /// True if there is an object of that name. What cannot be told is told by whoever opens it.
    fn has(&self, name: &str) -> bool {
        let (folder, name) = name.rsplit_once('/').unwrap_or(("", name));
        self.list(folder).is_ok_and(|items| items.iter().any(|item| item.name == name && item.kind == ItemKind::File))
    }

    /// Reads a small object whole; `None` if there is none of that name. Errors if it is larger than `limit` bytes, or only points to what was not downloaded.
    fn small(&self, name: &str, limit: u64) -> Result<Option<Vec<u8>>> {
        if !self.has(name) {
            return Ok(None);
        }
        let blob = self.open(name)?;
        if blob.len() > limit {
            return Err(too_large(limit).in_file(blob.path()));
        }
        let mut bytes = vec![0; blob.len() as usize];
        blob.read_at(0, &mut bytes)?;
        foreign::refuse_pointer(&bytes).map_err(|error| error.in_file(blob.path()))?;
        Ok(Some(bytes))
    }

    /// Where a name leads to if that is out of the store, so that its content must not be published with a model: a symbolic link may.
    fn leads_out(&self, _name: &str) -> Result<Option<PathBuf>> {
        Ok(None)
    }
}

/// Something in a folder of a [`Store`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Item {
    /// Its name in that folder.
    pub name: String,
    /// What it is.
    pub kind: ItemKind,
    /// Length of an object in bytes.
    pub len: u64,
}

/// What a name in a [`Store`] stands for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ItemKind {
    /// An object that can be opened.
    File,
    /// A folder.
    Folder,
    /// What cannot be read: a link that leads nowhere, a device.
    Other,
    /// What has a name that is not UTF-8: it is listed as far as that can be written, and cannot be opened.
    Unnamed,
}

pub(super) fn too_large(limit: u64) -> Error {
    malformed(format!("larger than {limit} bytes, which no such file is"))
        .with_hint("copy the file again from where it was published")
}

/// Reads a small text, as [`Store::small`] does.
pub(crate) fn small_text(store: &dyn Store, name: &str, limit: u64) -> Result<Option<String>> {
    let text = store.small(name, limit)?.map(String::from_utf8).transpose();
    text.map_err(|_| malformed("not UTF-8").in_file(&store.path_of(name)))
}

/// The content of an object from its start to its end, in pieces of its grain.
pub(crate) fn pieces(blob: &dyn Blob) -> impl Iterator<Item = Result<Vec<u8>>> + '_ {
    let grain = blob.grain().max(1);
    (0..blob.len()).step_by(grain).map(move |at| {
        let mut piece = vec![0; blob.len().saturating_sub(at).min(grain as u64) as usize];
        blob.read_at(at, &mut piece).map(|()| piece)
    })
}

/// An object as a file that is read on and sought in.
pub(super) struct Cursor<'a> {
    blob: &'a dyn Blob,
    at: u64,
}

impl<'a> Cursor<'a> {
    pub(super) fn new(blob: &'a dyn Blob) -> Self {
        Self { blob, at: 0 }
    }
}

impl std::io::Read for Cursor<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> std::io::Result<usize> {
        let n = self.blob.len().saturating_sub(self.at).min(buffer.len() as u64);
        let place = buffer.get_mut(..n as usize).unwrap_or_default();
        self.blob.read_at(self.at, place).map_err(std::io::Error::other)?;
        self.at = self.at.saturating_add(n);
        Ok(n as usize)
    }
}

impl std::io::Seek for Cursor<'_> {
    fn seek(&mut self, to: std::io::SeekFrom) -> std::io::Result<u64> {
        let (from, by) = match to {
            std::io::SeekFrom::Start(at) => (at, 0),
            std::io::SeekFrom::End(by) => (self.blob.len(), by),
            std::io::SeekFrom::Current(by) => (self.at, by),
        };
        self.at = from.checked_add_signed(by).ok_or(std::io::ErrorKind::InvalidInput)?;
        Ok(self.at)
    }
}
