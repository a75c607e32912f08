//! A server of objects in memory: a store to read from and a sink to write to, with faults where a test wants them.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard};

use qmerge::error::{Error, Kind, Result};
use qmerge::open::{Blob, Item, ItemKind, Store};
use qmerge::write::{Existing, Room, Sink, Start};

/// What a server is asked for, in the order in which it happens.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Event {
    Read,
    ReadMany,
    WriteFailed,
    Listed,
}

/// All objects, by full name.
#[derive(Clone, Debug, Default)]
pub(crate) struct Server(Arc<Mutex<Objects>>);

#[derive(Debug, Default)]
pub(crate) struct Objects {
    pub(crate) bytes: BTreeMap<String, Vec<u8>>,
    /// How often an object was replaced.
    pub(crate) versions: BTreeMap<String, u32>,
    pub(crate) events: Vec<Event>,
    /// Reads until all fail.
    pub(crate) failing_reads: Option<usize>,
    /// Writes until one fails.
    pub(crate) failing_write: Option<usize>,
    /// Number of the read, counted from now on, after which an object is replaced by another of its length.
    pub(crate) replaced: Option<(usize, String)>,
}

impl Objects {
    fn version(&self, name: &str) -> String {
        format!("etag-{}", self.versions.get(name).copied().unwrap_or(0))
    }

    fn get(&self, name: &str) -> Result<&Vec<u8>> {
        self.bytes.get(name).ok_or_else(|| Error::new(Kind::Missing, "no such object").in_file(&address(name)))
    }
}

fn address(name: &str) -> PathBuf {
    PathBuf::from(format!("memory://{name}"))
}

fn unreachable(name: &str) -> Error {
    Error::new(Kind::Io, "the connection was reset").in_file(&address(name))
}

impl Server {
    pub(crate) fn objects(&self) -> MutexGuard<'_, Objects> {
        self.0.lock().unwrap()
    }

    /// Takes a folder's files over, under its name.
    pub(crate) fn load(&self, folder: &Path) {
        let name = folder.file_name().unwrap().to_str().unwrap();
        for item in std::fs::read_dir(folder).unwrap().flatten() {
            let file = item.file_name().into_string().unwrap();
            self.objects().bytes.insert(format!("{name}/{file}"), std::fs::read(item.path()).unwrap());
        }
    }

    pub(crate) fn folder(&self, name: &str) -> Arc<dyn Store> {
        Arc::new(Folder { server: self.clone(), name: name.to_owned(), path: address(name) })
    }

    pub(crate) fn sink(&self, name: &str) -> Box<dyn Sink> {
        let partial = format!("{name}.partial");
        Box::new(Upload {
            server: self.clone(),
            path: address(name),
            name: name.to_owned(),
            partial,
            files: Vec::new(),
        })
    }

    /// Objects of a folder, by their name in it.
    pub(crate) fn within(&self, name: &str) -> BTreeMap<String, Vec<u8>> {
        let inside = |(full, bytes): (&String, &Vec<u8>)| {
            Some((full.strip_prefix(name)?.strip_prefix('/')?.to_owned(), bytes.clone()))
        };
        self.objects().bytes.iter().filter_map(inside).collect()
    }
}

#[derive(Debug)]
struct Folder {
    server: Server,
    name: String,
    path: PathBuf,
}

impl Store for Folder {
    fn path(&self) -> &Path {
        &self.path
    }

    fn list(&self, folder: &str) -> Result<Vec<Item>> {
        let prefix = if folder.is_empty() { self.name.clone() } else { format!("{}/{folder}", self.name) };
        let mut items: Vec<Item> = Vec::new();
        for (name, bytes) in self.server.within(&prefix) {
            let (name, kind) = match name.split_once('/') {
                Some((below, _)) => (below.to_owned(), ItemKind::Folder),
                None => (name, ItemKind::File),
            };
            if items.last().is_none_or(|last| last.name != name) {
                items.push(Item { name, kind, len: bytes.len() as u64 });
            }
        }
        Ok(items)
    }

    fn open(&self, name: &str) -> Result<Box<dyn Blob>> {
        let name = format!("{}/{name}", self.name);
        let objects = self.server.objects();
        let (len, identity) = (objects.get(&name)?.len() as u64, objects.version(&name));
        Ok(Box::new(Object { server: self.server.clone(), path: address(&name), name, len, identity }))
    }
}

#[derive(Debug)]
struct Object {
    server: Server,
    name: String,
    path: PathBuf,
    len: u64,
    identity: String,
}

impl Object {
    fn copy(&self, objects: &Objects, offset: u64, buffer: &mut [u8]) -> Result<()> {
        let range = offset as usize..offset as usize + buffer.len();
        let bytes = objects.get(&self.name)?.get(range);
        buffer.copy_from_slice(bytes.ok_or_else(|| Error::new(Kind::Malformed, "too short").in_file(&self.path))?);
        Ok(())
    }
}

impl Blob for Object {
    fn path(&self) -> &Path {
        &self.path
    }

    fn len(&self) -> u64 {
        self.len
    }

    fn identity(&self) -> &str {
        &self.identity
    }

    fn grain(&self) -> usize {
        4096
    }

    fn read_at(&self, offset: u64, buffer: &mut [u8]) -> Result<()> {
        let mut objects = self.server.objects();
        objects.events.push(Event::Read);
        match objects.failing_reads {
            Some(0) => return Err(unreachable(&self.name)),
            left => objects.failing_reads = left.map(|left| left - 1),
        }
        self.copy(&objects, offset, buffer)?;
        if let Some((left, name)) = objects.replaced.take() {
            match left.checked_sub(1) {
                Some(left) => objects.replaced = Some((left, name)),
                None => *objects.versions.entry(name).or_default() += 1,
            }
        }
        Ok(())
    }

    fn read_many(&self, reads: &mut [(u64, &mut [u8])]) -> Result<()> {
        let mut objects = self.server.objects();
        objects.events.push(Event::ReadMany);
        reads.iter_mut().try_for_each(|(offset, buffer)| self.copy(&objects, *offset, buffer))
    }

    fn check_unchanged(&self) -> Result<()> {
        if self.server.objects().version(&self.name) == self.identity {
            return Ok(());
        }
        Err(Error::new(Kind::Malformed, "it was replaced while it was read").in_file(&self.path))
    }
}

const JOURNAL: &str = ".journal";
const KEPT: &str = ".kept";

/// An output under another name until it is published.
#[derive(Debug)]
struct Upload {
    server: Server,
    path: PathBuf,
    name: String,
    partial: String,
    files: Vec<String>,
}

impl Upload {
    fn place(&self, name: &str) -> String {
        format!("{}/{name}", self.partial)
    }

    fn remove(&self) {
        let prefix = self.place("");
        self.server.objects().bytes.retain(|name, _| !name.starts_with(&prefix));
    }
}

impl Sink for Upload {
    fn path(&self) -> &Path {
        &self.path
    }

    fn begin(&mut self, existing: Existing) -> Result<Option<Vec<u8>>> {
        if !existing.force && !self.server.within(&self.name).is_empty() {
            return Err(Error::new(Kind::Exists, "the output exists already").in_file(&self.path));
        }
        let journal = self.server.objects().bytes.get(&self.place(JOURNAL)).cloned();
        Ok(journal.filter(|_| existing.resume))
    }

    fn reserve(&mut self, files: &[Room], start: Start<'_>) -> Result<()> {
        self.files = files.iter().map(|file| self.place(&file.name)).collect();
        let head = match start {
            Start::Anew(head) => head,
            Start::Resumed(listed) => {
                let mut objects = self.server.objects();
                objects.bytes.get_mut(&self.place(JOURNAL)).unwrap().truncate(listed as usize);
                return Ok(());
            }
        };
        self.remove();
        let mut objects = self.server.objects();
        objects.bytes.insert(self.place(JOURNAL), head.to_vec());
        for (name, file) in self.files.iter().zip(files) {
            objects.bytes.insert(name.clone(), vec![0; file.most as usize]);
        }
        Ok(())
    }

    fn write_at(&self, file: usize, offset: u64, bytes: &mut Vec<u8>) -> Result<()> {
        let mut objects = self.server.objects();
        if let Some(left) = objects.failing_write.take() {
            if left == 0 {
                objects.events.push(Event::WriteFailed);
                return Err(unreachable(&self.files[file]));
            }
            objects.failing_write = Some(left - 1);
        }
        let offset = offset as usize;
        objects.bytes.get_mut(&self.files[file]).unwrap()[offset..offset + bytes.len()].copy_from_slice(bytes);
        bytes.clear();
        Ok(())
    }

    fn sync(&self) -> Result<()> {
        Ok(())
    }

    fn append(&self, lines: &[u8]) -> Result<()> {
        let mut objects = self.server.objects();
        objects.events.push(Event::Listed);
        objects.bytes.get_mut(&self.place(JOURNAL)).unwrap().extend(lines);
        Ok(())
    }

    fn end(&self, file: usize, bytes: u64) -> Result<()> {
        self.server.objects().bytes.get_mut(&self.files[file]).unwrap().truncate(bytes as usize);
        Ok(())
    }

    fn put(&self, name: &str, pieces: &mut dyn Iterator<Item = Result<Vec<u8>>>) -> Result<()> {
        // Not held meanwhile: the pieces may come out of the same server.
        let bytes = pieces.collect::<Result<Vec<_>>>()?.concat();
        self.server.objects().bytes.insert(self.place(name), bytes);
        Ok(())
    }

    fn stash(&self, name: &str, bytes: &[u8]) -> Result<()> {
        self.server.objects().bytes.insert(self.place(&format!("{KEPT}/{name}")), bytes.to_vec());
        Ok(())
    }

    fn stashed(&self, name: &str) -> Result<Option<Vec<u8>>> {
        Ok(self.server.objects().bytes.get(&self.place(&format!("{KEPT}/{name}"))).cloned())
    }

    fn written(&self) -> Result<Arc<dyn Store>> {
        Ok(self.server.folder(&self.partial))
    }

    fn can_be_resumed(&self) -> bool {
        self.server.objects().bytes.contains_key(&self.place(JOURNAL))
    }

    fn publish(&mut self, _replace: bool) -> Result<()> {
        let (from, to) = (self.place(""), format!("{}/", self.name));
        let mut objects = self.server.objects();
        objects.bytes.retain(|name, _| !name.starts_with(&to));
        for (name, bytes) in std::mem::take(&mut objects.bytes) {
            match name.strip_prefix(&from) {
                Some(JOURNAL) => None,
                Some(own) if own.starts_with(KEPT) => None,
                Some(own) => objects.bytes.insert(format!("{to}{own}"), bytes),
                None => objects.bytes.insert(name, bytes),
            };
        }
        Ok(())
    }

    fn abandon(&mut self) {
        self.remove();
    }
}
