//! Room on a local disk for cells that are read more than once, as those of weights that a model does not hold in memory.
//!
//! It is one file without a name, so that nothing is left of it however a run ends, and never longer than was said. What was put there first stays: models are run
//! from their first layer to the last and again, and of such a round whoever keeps what came last finds nothing.

use std::cell::RefCell;
use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::fs::File;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};

use qmerge::error::{Error, Kind, Result};

use super::cells::Key;
use super::{CELL, lock};

/// A file of places for cells.
#[derive(Debug)]
pub(crate) struct Scratch {
    folder: PathBuf,
    file: File,
    places: Mutex<Places>,
}

#[derive(Debug)]
struct Places {
    /// Places that the file may have, and that it has.
    most: u64,
    begun: u64,
    free: Vec<u64>,
    taken: HashMap<Key, u64>,
}

thread_local! {
    static OF_THIS_THREAD: RefCell<Option<Arc<Scratch>>> = const { RefCell::new(None) };
}

/// A scratch in use. What is opened on the same thread while it is there uses it.
#[derive(Debug)]
pub struct InUse(());

impl InUse {
    /// A scratch of at most so many bytes in a folder that is there.
    pub(crate) fn new(folder: &Path, bytes: u64) -> Result<Self> {
        let scratch = Scratch::new(folder, bytes)?;
        OF_THIS_THREAD.set(Some(Arc::new(scratch)));
        Ok(Self(()))
    }
}

impl Drop for InUse {
    fn drop(&mut self) {
        OF_THIS_THREAD.set(None);
    }
}

/// That of this thread, if there is one.
pub(super) fn current() -> Option<Arc<Scratch>> {
    OF_THIS_THREAD.with_borrow(Clone::clone)
}

impl Scratch {
    fn new(folder: &Path, bytes: u64) -> Result<Self> {
        if bytes < CELL {
            return Err(Error::new(Kind::Usage, format!("a scratch has at least {} MB", CELL.div_ceil(1_000_000)))
                .in_file(folder)
                .with_hint("write --scratch DIR=20G"));
        }
        if !folder.is_dir() {
            return Err(Error::new(Kind::Missing, "there is no such folder for a scratch")
                .in_file(folder)
                .with_hint("make it, or choose another with --scratch"));
        }
        let file = nameless(folder).map_err(|error| Error::io("make a scratch in", folder, error))?;
        let places = Places { most: bytes / CELL, begun: 0, free: Vec::new(), taken: HashMap::new() };
        Ok(Self { folder: folder.to_path_buf(), file, places: Mutex::new(places) })
    }

    /// The bytes of a cell, if they are there.
    pub(super) fn get(&self, key: Key) -> Option<Result<Vec<u8>>> {
        let place = *lock(&self.places).taken.get(&key)?;
        let mut bytes = vec![0; (key.2 - key.1) as usize];
        let read = read_at(&self.file, &mut bytes, place * CELL);
        Some(read.map(|()| bytes).map_err(|error| Error::io("read the scratch in", &self.folder, error)))
    }

    /// Keeps the bytes of a cell, if there is a place for them. Errors if the disk has none where there should be.
    pub(super) fn put(&self, key: Key, bytes: &[u8]) -> Result<()> {
        let place = {
            let mut places = lock(&self.places);
            if places.taken.contains_key(&key) {
                return Ok(());
            }
            match places.free.pop() {
                Some(place) => place,
                None if places.begun < places.most => {
                    places.begun += 1;
                    places.begun - 1
                }
                None => return Ok(()),
            }
        };
        let wrote = write_at(&self.file, bytes, place * CELL);
        let mut places = lock(&self.places);
        match wrote {
            Ok(()) => {
                // Another may have written the same cell meanwhile, and readers know its place.
                match places.taken.entry(key) {
                    Entry::Occupied(_) => places.free.push(place),
                    Entry::Vacant(own) => drop(own.insert(place)),
                }
                Ok(())
            }
            Err(error) => {
                places.free.push(place);
                let most = places.most * CELL;
                let problem =
                    format!("cannot write the scratch there, which was given {} MB: {error}", most / 1_000_000);
                Err(Error::new(Kind::Io, problem)
                    .in_file(&self.folder)
                    .with_hint("free some space, or choose another folder or a smaller size: --scratch DIR=SIZE"))
            }
        }
    }

    /// Gives the places of an object to others.
    pub(super) fn forget(&self, number: u64) {
        let mut places = lock(&self.places);
        let own: Vec<Key> = places.taken.keys().filter(|key| key.0 == number).copied().collect();
        for key in own {
            if let Some(place) = places.taken.remove(&key) {
                places.free.push(place);
            }
        }
    }
}

/// A file that goes with the last who has it open.
fn nameless(folder: &Path) -> io::Result<File> {
    use std::hash::{BuildHasher, RandomState};
    let name = format!(".qmerge-scratch-{}-{:016x}", std::process::id(), RandomState::new().hash_one(0));
    let path = folder.join(name);
    let mut options = File::options();
    options.read(true).write(true).create_new(true);
    #[cfg(windows)]
    {
        // FILE_FLAG_DELETE_ON_CLOSE.
        std::os::windows::fs::OpenOptionsExt::custom_flags(&mut options, 0x0400_0000);
    }
    let file = options.open(&path)?;
    #[cfg(unix)]
    std::fs::remove_file(&path)?;
    Ok(file)
}

#[cfg(unix)]
fn read_at(file: &File, buffer: &mut [u8], offset: u64) -> io::Result<()> {
    std::os::unix::fs::FileExt::read_exact_at(file, buffer, offset)
}

#[cfg(unix)]
fn write_at(file: &File, bytes: &[u8], offset: u64) -> io::Result<()> {
    std::os::unix::fs::FileExt::write_all_at(file, bytes, offset)
}

#[cfg(windows)]
fn read_at(file: &File, mut buffer: &mut [u8], mut offset: u64) -> io::Result<()> {
    while !buffer.is_empty() {
        let count = std::os::windows::fs::FileExt::seek_read(file, buffer, offset)?;
        if count == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        buffer = buffer.get_mut(count..).unwrap_or_default();
        offset += count as u64;
    }
    Ok(())
}

#[cfg(windows)]
fn write_at(file: &File, mut bytes: &[u8], mut offset: u64) -> io::Result<()> {
    while !bytes.is_empty() {
        let count = std::os::windows::fs::FileExt::seek_write(file, bytes, offset)?;
        bytes = bytes.get(count..).unwrap_or_default();
        offset += count as u64;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_is_never_longer_than_was_said_and_leaves_nothing() {
        let folder = std::env::temp_dir().join(format!("qmerge-scratch-test-{}", std::process::id()));
        std::fs::create_dir_all(&folder).unwrap();
        let scratch = Scratch::new(&folder, 2 * CELL + 1).unwrap();
        let key = |object: u64, number: u64| (object, number * CELL, number * CELL + 1000);
        let bytes = |key: Key| vec![(key.0 + key.1 / CELL) as u8; 1000];
        for (object, number) in [(1, 0), (2, 0), (1, 1), (1, 0)] {
            scratch.put(key(object, number), &bytes(key(object, number))).unwrap();
        }
        for (object, number, is_there) in [(1, 0, true), (2, 0, true), (1, 1, false)] {
            let found = scratch.get(key(object, number)).map(Result::unwrap);
            assert_eq!(found, is_there.then(|| bytes(key(object, number))));
        }
        assert!(scratch.file.metadata().unwrap().len() <= 2 * CELL);
        scratch.forget(1);
        assert!(scratch.get(key(1, 0)).is_none());
        scratch.put(key(1, 1), &bytes(key(1, 1))).unwrap();
        assert_eq!(scratch.get(key(1, 1)).unwrap().unwrap(), bytes(key(1, 1)));
        assert!(scratch.file.metadata().unwrap().len() <= 2 * CELL);
        assert_eq!(std::fs::read_dir(&folder).unwrap().count(), 0);
        for (place, bytes) in [(folder.clone(), CELL - 1), (folder.join("none"), CELL)] {
            assert!(Scratch::new(&place, bytes).unwrap_err().hint().is_some());
        }
        std::fs::remove_dir_all(&folder).unwrap();
    }
}
