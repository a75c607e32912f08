//! An output in a store: weight files are uploads in parts, which nobody sees before they are completed; all else waits beside the output and is put in its place at
//! the end, the configuration last. Nothing lies on a local disk.
//!
//! Beside `OUT`, under `OUT.partial`, lies what a resumed run needs: `records` ([`Record`]), `pieces` (bytes of parts that are not whole), `files` (of the output, but
//! for the weights) and `scratch`. Parts of one upload have one size, so a part waits until all its bytes are there; what waits longer than there is memory for
//! is let go, and fetched from `pieces` again.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Condvar, Mutex};

use object_store::ObjectStoreExt;
use object_store::path::Path as Key;
use qmerge::error::{Error, Kind, Result};
use qmerge::open::Store;
use qmerge::write::{Existing, Room, Sink, Start, path_beside};

use super::begin::Earlier;
use super::record::Record;
use super::shared::{Shared, WAITING, lock};
use super::written::Written;
use super::{Objects, failed, key, wait};
use crate::address::Address;
use crate::remote::{Failed, persist};

/// An output in a bucket.
#[derive(Debug)]
pub(crate) struct StoreSink {
    pub(super) path: PathBuf,
    pub(super) place: PathBuf,
    /// Of the folder, or of the file.
    pub(super) target: String,
    /// It is one weight file, and nothing else is wanted but the report.
    pub(super) is_file: bool,
    pub(super) shared: Arc<Shared>,
    pub(super) records: Mutex<u64>,
    /// Files of the output that wait for the end.
    pub(super) others: Mutex<BTreeSet<String>>,
    /// Of an interrupted run.
    pub(super) earlier: Option<Earlier>,
    pub(super) resumed: bool,
    /// It takes the place of what is there.
    pub(super) replaces: bool,
    /// Tells this run from any other that writes the same output.
    pub(super) owner: String,
}

impl StoreSink {
    /// An output at an address; `None` for a path.
    pub(crate) fn new(location: &Path) -> Result<Option<Self>> {
        let Some(address) = Address::parse(location)? else { return Ok(None) };
        if !address.is_bucket() || address.path().is_empty() {
            return Err(Error::new(Kind::Usage, "an output cannot lie there")
                .in_file(address.shown())
                .with_hint("name a path, or a folder in a bucket: s3://bucket/folder"));
        }
        let bucket = address.url().host_str().unwrap_or_default();
        Ok(Some(Self::in_objects(super::objects(&address)?, bucket, &address.path(), address.shown())))
    }

    pub(crate) fn in_objects(objects: Arc<dyn Objects>, bucket: &str, target: &str, shown: &Path) -> Self {
        let partial = format!("{target}.partial");
        let shared = Shared {
            objects,
            bucket: bucket.to_owned(),
            partial,
            files: Vec::new(),
            progress: Mutex::default(),
            changed: Condvar::new(),
            saving: Mutex::default(),
            most_copied: super::large::MOST_COPIED,
        };
        Self {
            path: shown.to_path_buf(),
            place: PathBuf::from(format!("{}.partial", shown.display())),
            target: target.to_owned(),
            is_file: target.ends_with(".safetensors") || target.ends_with(".gguf"),
            shared: Arc::new(shared),
            records: Mutex::new(0),
            others: Mutex::default(),
            earlier: None,
            resumed: false,
            replaces: false,
            owner: format!(
                "{:016x}-{}",
                std::hash::BuildHasher::hash_one(&std::hash::RandomState::new(), 0),
                std::process::id()
            ),
        }
    }

    pub(super) fn failed(&self, error: Error) -> Error {
        error.in_file(&self.place)
    }

    /// Where something of the output comes to lie. Of a single file, what is not the weights is the report.
    pub(super) fn final_key(&self, name: &str) -> Result<Key> {
        let path = match self.is_file {
            true => {
                let beside = path_beside(Path::new(&self.target));
                beside.to_string_lossy().replace('\\', "/")
            }
            false => format!("{}/{name}", self.target),
        };
        key(&path, "").map_err(Failed::error)
    }

    /// What lies under the output's name.
    pub(super) fn there(&self) -> Result<Vec<(Key, u64)>> {
        if !self.is_file {
            return self.shared.below(&self.target);
        }
        let mut found = Vec::new();
        for key in [key(&self.target, "").map_err(Failed::error)?, self.final_key("")?] {
            match persist(|| wait(self.shared.objects.head(&key)).map_err(failed)) {
                Ok(meta) => found.push((key, meta.size)),
                Err(Failed::Missing) => {}
                Err(failed) => return Err(failed.error()),
            }
        }
        Ok(found)
    }
}

impl Sink for StoreSink {
    fn path(&self) -> &Path {
        &self.path
    }

    fn place(&self) -> &Path {
        &self.place
    }

    fn is_single_file(&self) -> bool {
        self.is_file
    }

    fn begin(&mut self, existing: Existing) -> Result<Option<Vec<u8>>> {
        self.replaces = existing.force;
        let records = self.refuse(existing)?;
        if records.is_empty() {
            return Ok(None);
        }
        match self.read(&records) {
            Ok((earlier, lines)) => {
                let has_begun = !earlier.uploads.is_empty();
                self.earlier = Some(earlier);
                Ok((existing.resume && has_begun).then_some(lines))
            }
            // What is given up need not be read.
            Err(_) if !existing.resume => Ok(None),
            Err(error) => Err(self.failed(error)),
        }
    }

    fn reserve(&mut self, files: &[Room], start: Start<'_>) -> Result<()> {
        let reserved = match start {
            Start::Anew(head) => self.anew(files, head),
            Start::Resumed(_) => self.go_on(files),
        };
        reserved.map_err(|error| self.failed(error))
    }

    fn write_at(&self, file: usize, offset: u64, bytes: &mut Vec<u8>) -> Result<()> {
        let write = || -> Result<()> {
            self.shared.check()?;
            let Some(cells) = self.shared.files.get(file) else {
                return Err(Error::new(Kind::Bug, "no such file of the output"));
            };
            let (whole, waiting) = {
                let mut cells = lock(&cells.cells);
                let (new, whole) = cells.add(offset, bytes);
                // Counted before anybody can take it.
                let mut progress = lock(&self.shared.progress);
                progress.waiting += new;
                (whole, progress.waiting)
            };
            self.shared.upload(file, &whole)?;
            if waiting > WAITING {
                self.shared.settle()?;
                if lock(&self.shared.progress).waiting > WAITING {
                    self.shared.save(true)?;
                }
            }
            Ok(())
        };
        let wrote = write().map_err(|error| self.failed(error));
        bytes.clear();
        wrote
    }

    fn sync(&self) -> Result<()> {
        // In this order: what is not saved because it is no longer open is on its way.
        self.shared.save(false).and_then(|()| self.shared.settle()).map_err(|error| self.failed(error))
    }

    fn append(&self, lines: &[u8]) -> Result<()> {
        let lines = String::from_utf8_lossy(lines).into_owned();
        self.record(Record { lines, ..Record::default() }).map_err(|error| self.failed(error))
    }

    fn end(&self, file: usize, bytes: u64) -> Result<()> {
        let Some(cells) = self.shared.files.get(file) else {
            return Err(Error::new(Kind::Bug, "no such file of the output"));
        };
        let whole = {
            let mut cells = lock(&cells.cells);
            cells.end(bytes)
        };
        self.shared.upload(file, &whole).map_err(|error| self.failed(error))
    }

    fn put(&self, name: &str, pieces: &mut dyn Iterator<Item = Result<Vec<u8>>>) -> Result<()> {
        // An error of what is read names its own file.
        let mut unread = None;
        let mut read = pieces.map_while(|piece| piece.map_err(|error| unread = Some(error)).ok());
        let mut put = || self.shared.put_pieces(&self.shared.name(&format!("files/{name}"))?, &mut read);
        let put = put();
        if let Some(error) = unread {
            return Err(error);
        }
        put.map_err(|error| self.failed(error))?;
        lock(&self.others).insert(name.to_owned());
        Ok(())
    }

    fn stash(&self, name: &str, bytes: &[u8]) -> Result<()> {
        let put = || self.shared.put(&self.shared.name(&format!("scratch/{name}"))?, bytes.to_vec());
        put().map_err(|error| self.failed(error))
    }

    fn stashed(&self, name: &str) -> Result<Option<Vec<u8>>> {
        match self.shared.name(&format!("scratch/{name}")).map(|key| self.shared.get(&key)) {
            Ok(Ok(bytes)) => Ok(Some(bytes)),
            Ok(Err(Failed::Missing)) => Ok(None),
            Ok(Err(failed)) => Err(self.failed(failed.error())),
            Err(error) => Err(self.failed(error)),
        }
    }

    /// Weight files that are whole get their names for it; without a configuration beside them they are no model yet.
    fn written(&self) -> Result<Arc<dyn Store>> {
        self.complete_all().map_err(|error| self.failed(error))?;
        let weights = self.shared.files.iter().map(|file| file.key.clone()).collect();
        Ok(Arc::new(Written::new(
            Arc::clone(&self.shared.objects),
            &self.place,
            &self.shared.partial,
            weights,
            self.is_file,
        )))
    }

    fn can_be_resumed(&self) -> bool {
        *lock(&self.records) > 0
    }

    fn publish(&mut self, replace: bool) -> Result<()> {
        self.publish_all(replace).map_err(|error| self.failed(error))
    }

    fn abandon(&mut self) {
        self.remove_all();
    }
}
