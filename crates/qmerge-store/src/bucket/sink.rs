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

use super::cells::{Cell, Cells};
use super::record::{Record, Upload};
use super::shared::{File, MOST_PARTS, PART, Shared, WAITING, lock};
use super::uploads;
use super::written::Written;
use super::{Objects, failed, key, wait};
use crate::address::Address;
use crate::remote::{Failed, ask, persist};

/// An output in a bucket.
#[derive(Debug)]
pub(crate) struct StoreSink {
    path: PathBuf,
    place: PathBuf,
    /// Of the folder, or of the file.
    target: String,
    /// It is one weight file, and nothing else is wanted but the report.
    is_file: bool,
    pub(super) shared: Arc<Shared>,
    records: Mutex<u64>,
    /// Files of the output that wait for the end.
    others: Mutex<BTreeSet<String>>,
    /// Of an interrupted run.
    earlier: Option<Earlier>,
    resumed: bool,
    /// It takes the place of what is there.
    replaces: bool,
    /// Tells this run from any other that writes the same output.
    owner: String,
}

/// What an interrupted run left.
#[derive(Debug, Default)]
struct Earlier {
    uploads: Vec<Upload>,
    records: Vec<Record>,
    pieces: u64,
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
        Ok(Some(Self::in_objects(super::objects(&address)?, &address.path(), address.shown())))
    }

    pub(crate) fn in_objects(objects: Arc<dyn Objects>, target: &str, shown: &Path) -> Self {
        let partial = format!("{target}.partial");
        let shared =
            Shared { objects, partial, files: Vec::new(), progress: Mutex::default(), changed: Condvar::new() };
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

    fn failed(&self, error: Error) -> Error {
        error.in_file(&self.place)
    }

    /// Where something of the output comes to lie. Of a single file, what is not the weights is the report.
    fn final_key(&self, name: &str) -> Result<Key> {
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
    fn there(&self) -> Result<Vec<(Key, u64)>> {
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

    /// Errors if `existing` does not allow to write here. Returns the objects of records of an interrupted run.
    pub(crate) fn refuse(&self, existing: Existing) -> Result<Vec<String>> {
        let folder = format!("{}/", self.shared.partial);
        let left = self.shared.below(&self.shared.partial).map_err(|error| self.failed(error))?;
        let name = |key: &Key| key.as_ref().strip_prefix(&folder).unwrap_or_default().to_owned();
        let names: Vec<String> = left.iter().map(|(key, _)| name(key)).collect();
        let is_ours = |name: &String| {
            ["records/", "pieces/", "files/", "scratch/"].iter().any(|own| name.starts_with(own)) || name == "owner"
        };
        let refused = |problem: &str, place: &Path, hint: &str| {
            Err(Error::new(Kind::Exists, problem).in_file(place).with_hint(hint))
        };
        if !names.iter().all(is_ours) {
            return refused(
                "this name is where the output is built, and something else has it",
                &self.place,
                "choose another output, or move it away",
            );
        }
        let mut records: Vec<String> = names.into_iter().filter(|name| name.starts_with("records/")).collect();
        records.sort();
        if !left.is_empty() && !existing.resume && !existing.force {
            return refused(
                "an interrupted run left its unfinished output here",
                &self.place,
                "the same command goes on with --resume; --force begins anew and gives up what was done",
            );
        }
        let there = self.there().map_err(|error| self.failed(error))?;
        // A run that was interrupted while it published goes on with what has its name already.
        let is_published = existing.resume && !records.is_empty();
        if !there.is_empty() && !existing.force && !is_published {
            return refused("the output exists already", &self.path, "choose another name, or replace it with --force");
        }
        let looks_like_model = |key: &Key| {
            let name = key.filename().unwrap_or_default();
            name == "config.json" || name.ends_with(".safetensors") || name.ends_with(".gguf")
        };
        if !there.is_empty() && !there.iter().any(|(key, _)| looks_like_model(key)) {
            return refused(
                "the output exists and does not look like a model, so --force will not replace it",
                &self.path,
                "choose another name, or remove it yourself",
            );
        }
        Ok(records)
    }

    /// Adds to the records, unless another run has taken the output over.
    fn record(&self, mut record: Record) -> Result<()> {
        let mut number = lock(&self.records);
        let owner = match self.shared.get(&self.shared.name("owner")?) {
            Err(Failed::Missing) => Vec::new(),
            owner => owner.map_err(Failed::error)?,
        };
        if owner != self.owner.as_bytes() {
            return Err(Error::new(Kind::Exists, "another run of qmerge is writing this output")
                .with_hint("wait for it, or choose another output"));
        }
        {
            let next = std::mem::take(&mut lock(&self.shared.progress).next);
            record.parts.extend(next.parts);
            record.pieces.extend(next.pieces);
            record.complete.extend(next.complete);
        }
        let bytes = serde_json::to_vec(&record).map_err(|error| Error::new(Kind::Bug, error.to_string()))?;
        *number += 1;
        self.shared.put(&self.shared.name(&format!("records/{:08}-{}", *number, self.owner))?, bytes)
    }

    fn take_over(&self) -> Result<()> {
        self.shared.put(&self.shared.name("owner")?, self.owner.clone().into_bytes())
    }

    fn shared_mut(&mut self) -> Result<&mut Shared> {
        Arc::get_mut(&mut self.shared)
            .ok_or_else(|| Error::new(Kind::Bug, "uploads are under way before there are files"))
    }

    fn anew(&mut self, files: &[Room], head: &[u8]) -> Result<()> {
        let earlier = self.earlier.take().unwrap_or_default();
        for upload in &earlier.uploads {
            self.shared.abort(&key(&upload.key, "").map_err(Failed::error)?, &upload.id);
        }
        self.shared.clear()?;
        self.take_over()?;
        let mut uploads = Vec::new();
        for file in files {
            let key = self.weights_key(file)?;
            let id = ask(|| wait(self.shared.objects.create_multipart(&key)).map_err(failed))?;
            let size = file.most.div_ceil(MOST_PARTS).div_ceil(1 << 20) << 20;
            uploads.push(Upload { key: key.to_string(), id, size: size.max(PART) });
        }
        self.begin_files(files, &uploads)?;
        *lock(&self.records) = 0;
        self.record(Record { uploads, lines: String::from_utf8_lossy(head).into_owned(), ..Record::default() })
    }

    fn weights_key(&self, file: &Room) -> Result<Key> {
        match self.is_file {
            true => key(&self.target, "").map_err(Failed::error),
            false => self.final_key(&file.name),
        }
    }

    fn begin_files(&mut self, files: &[Room], uploads: &[Upload]) -> Result<()> {
        let mut begun = Vec::new();
        for (file, upload) in files.iter().zip(uploads) {
            let mut cells = Cells::new(upload.size, file.most);
            for gap in &file.gaps {
                cells.fill(gap.clone());
            }
            let key = key(&upload.key, "").map_err(Failed::error)?;
            begun.push(File { key, upload: upload.id.clone(), cells: Mutex::new(cells) });
        }
        self.shared_mut()?.files = begun;
        Ok(())
    }

    fn go_on(&mut self, files: &[Room]) -> Result<()> {
        self.resumed = true;
        let Some(earlier) = self.earlier.take() else { return Err(Error::new(Kind::Bug, "nothing to go on with")) };
        let keys: Vec<String> =
            files.iter().map(|file| Ok(self.weights_key(file)?.to_string())).collect::<Result<_>>()?;
        if keys.iter().ne(earlier.uploads.iter().map(|upload| &upload.key)) {
            return Err(Error::new(
                Kind::Malformed,
                "the unfinished output has other files, so the merge cannot go on",
            )
            .with_hint("--force in place of --resume begins anew"));
        }
        self.take_over()?;
        self.begin_files(files, &earlier.uploads)?;
        let mut progress = lock(&self.shared.progress);
        progress.pieces = earlier.pieces;
        for record in earlier.records {
            for (file, cell, id) in record.parts {
                if let Some(file) = self.shared.files.get(file) {
                    lock(&file.cells).set(cell, Cell::Uploaded(id));
                }
            }
            for (file, offset, len, saved) in record.pieces {
                if let Some(file) = self.shared.files.get(file) {
                    lock(&file.cells).restore(offset, len, saved);
                }
            }
            progress.complete.extend(record.complete);
        }
        Ok(())
    }

    /// Reads what an interrupted run left.
    fn read(&self, records: &[String]) -> Result<(Earlier, Vec<u8>)> {
        let mut earlier = Earlier::default();
        let mut lines = Vec::new();
        for name in records {
            let bytes = self.shared.get(&self.shared.name(name)?).map_err(Failed::error)?;
            let mut record: Record = serde_json::from_slice(&bytes).map_err(|error| {
                Error::new(
                    Kind::Malformed,
                    format!("its record {name} cannot be read ({error}), so the merge cannot go on"),
                )
                .with_hint("--force in place of --resume begins anew")
            })?;
            lines.extend(std::mem::take(&mut record.lines).into_bytes());
            earlier.uploads.append(&mut record.uploads);
            earlier.records.push(record);
        }
        let saved = |record: &Record| record.pieces.iter().map(|piece| piece.3.object).max();
        earlier.pieces = earlier.records.iter().filter_map(saved).max().unwrap_or(0);
        // Records of this run come after all others.
        let number = |name: &String| name.get(8..16).and_then(|digits| digits.parse::<u64>().ok());
        *lock(&self.records) = records.iter().filter_map(number).max().unwrap_or(0);
        Ok((earlier, lines))
    }

    fn publish_all(&mut self, replace: bool) -> Result<()> {
        let others = std::mem::take(&mut *lock(&self.others));
        let is_last = |name: &String| name == "config.json" || name.ends_with(".index.json");
        let (last, first): (Vec<String>, Vec<String>) = others.iter().cloned().partition(is_last);
        let mut own: BTreeSet<Key> = self.shared.files.iter().map(|file| file.key.clone()).collect();
        for name in &others {
            own.insert(self.final_key(name)?);
        }
        let place = |names: &[String]| {
            names.iter().try_for_each(|name| {
                let (from, to) = (self.shared.name(&format!("files/{name}"))?, self.final_key(name)?);
                ask(|| wait(self.shared.objects.copy(&from, &to)).map_err(failed))
            })
        };
        if self.is_file {
            place(&first)?;
        }
        self.complete_all()?;
        if !self.is_file {
            place(&first)?;
        }
        place(&last)?;
        if replace {
            for (key, _) in self.there()? {
                if !own.contains(&key) {
                    self.shared.remove(&key)?;
                }
            }
        }
        self.abort_strays();
        self.shared.clear()
    }

    /// Has all weight files appear under their names. What came of it is recorded before and after, so that a run that goes on knows all parts.
    fn complete_all(&self) -> Result<()> {
        self.shared.settle()?;
        if lock(&self.shared.progress).complete.len() == self.shared.files.len() {
            return Ok(());
        }
        self.record(Record::default())?;
        if self.replaces {
            self.make_way()?;
        }
        for number in 0..self.shared.files.len() {
            self.shared.complete(number)?;
        }
        self.record(Record::default())
    }

    /// Takes away what makes the output that is replaced one, and what would be mistaken for this one's.
    fn make_way(&self) -> Result<()> {
        let own: BTreeSet<&Key> = self.shared.files.iter().map(|file| &file.key).collect();
        let complete: BTreeSet<Key> = {
            let progress = lock(&self.shared.progress);
            progress
                .complete
                .iter()
                .filter_map(|number| self.shared.files.get(*number))
                .map(|file| file.key.clone())
                .collect()
        };
        let mut there = self.there()?;
        let says_so = |key: &Key| key.as_ref().ends_with("config.json") || key.as_ref().ends_with(".index.json");
        there.sort_by_key(|(key, _)| !says_so(key));
        there
            .iter()
            .map(|(key, _)| key)
            .filter(|key| !complete.contains(*key) && (own.contains(key) || says_so(key)))
            .try_for_each(|key| self.shared.remove(key))
    }

    /// Aborts uploads to the same names that nobody knows of: the answer that named them was lost.
    fn abort_strays(&self) {
        let Some(s3) = self.shared.objects.as_s3() else { return };
        for file in &self.shared.files {
            for id in uploads::begun(s3, &file.key).unwrap_or_default() {
                self.shared.abort(&file.key, &id);
            }
        }
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
            let (new, whole) = {
                let mut cells = lock(&cells.cells);
                cells.add(offset, bytes)
            };
            let waiting = {
                let mut progress = lock(&self.shared.progress);
                progress.waiting += new;
                progress.waiting
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
        let mut bytes = Vec::new();
        for piece in pieces {
            bytes.extend(piece?);
        }
        let put = || self.shared.put(&self.shared.name(&format!("files/{name}"))?, bytes);
        put().map_err(|error| self.failed(error))?;
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
        drop(self.shared.settle());
        if self.resumed {
            return;
        }
        let complete = std::mem::take(&mut lock(&self.shared.progress).complete);
        for (number, file) in self.shared.files.iter().enumerate() {
            if complete.contains(&number) {
                drop(self.shared.remove(&file.key));
            } else {
                self.shared.abort(&file.key, &file.upload);
            }
        }
        self.abort_strays();
        drop(self.shared.clear());
    }
}
