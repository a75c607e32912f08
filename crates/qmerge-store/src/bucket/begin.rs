//! How an output begins: anew, or where an interrupted run stopped; and what is recorded for the next one.

use std::path::Path;
use std::sync::{Arc, Mutex};

use object_store::path::Path as Key;
use qmerge::error::{Error, Kind, Result};
use qmerge::write::{Existing, Room};

use super::cells::{Cell, Cells};
use super::record::{Record, Upload};
use super::shared::{File, MOST_PARTS, PART, Shared, lock};
use super::sink::StoreSink;
use super::{failed, key, wait};
use crate::remote::{Failed, ask};

/// What an interrupted run left.
#[derive(Debug, Default)]
pub(super) struct Earlier {
    pub(super) uploads: Vec<Upload>,
    records: Vec<Record>,
    pieces: u64,
}

/// Bytes of a cell of a file of at most so many bytes.
fn cell_size(most: u64) -> u64 {
    (most.div_ceil(MOST_PARTS).div_ceil(1 << 20) << 20).max(PART)
}

impl StoreSink {
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
        // Models in folders below are others.
        let looks_like_model = |key: &Key| {
            let below = key.as_ref().strip_prefix(self.target.trim_matches('/'));
            let name = key.filename().unwrap_or_default();
            let is_own = self.is_file || below.is_some_and(|below| below.trim_start_matches('/') == name);
            is_own && (name == "config.json" || name.ends_with(".safetensors") || name.ends_with(".gguf"))
        };
        if !there.is_empty() && !is_published && !there.iter().any(|(key, _)| looks_like_model(key)) {
            return refused(
                "the output exists and does not look like a model, so --force will not replace it",
                &self.path,
                "choose another name, or remove it yourself",
            );
        }
        Ok(records)
    }

    /// Adds to the records, unless another run has taken the output over.
    pub(super) fn record(&self, mut record: Record) -> Result<()> {
        let mut number = lock(&self.records);
        if !self.is_ours()? {
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

    /// False if another run has taken the output over.
    pub(super) fn is_ours(&self) -> Result<bool> {
        match self.shared.get(&self.shared.name("owner")?) {
            Err(Failed::Missing) => Ok(false),
            owner => Ok(owner.map_err(Failed::error)? == self.owner.as_bytes()),
        }
    }

    fn take_over(&self) -> Result<()> {
        self.shared.put(&self.shared.name("owner")?, self.owner.clone().into_bytes())
    }

    /// Reads what an interrupted run left.
    pub(super) fn read(&self, records: &[String]) -> Result<(Earlier, Vec<u8>)> {
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

    fn shared_mut(&mut self) -> Result<&mut Shared> {
        Arc::get_mut(&mut self.shared)
            .ok_or_else(|| Error::new(Kind::Bug, "uploads are under way before there are files"))
    }

    pub(super) fn anew(&mut self, files: &[Room], head: &[u8]) -> Result<()> {
        let earlier = self.earlier.take().unwrap_or_default();
        for upload in &earlier.uploads {
            self.shared.abort(&key(&upload.key, "").map_err(Failed::error)?, &upload.id);
        }
        self.shared.abort_begun(&self.shared.name("")?);
        self.shared.clear()?;
        self.take_over()?;
        let keys: Vec<Key> = files.iter().map(|file| self.weights_key(file)).collect::<Result<_>>()?;
        let mut uploads = Vec::new();
        for (file, key) in files.iter().zip(&keys) {
            let begun = self.shared.mark(key).and_then(|before| {
                let id = ask(|| wait(self.shared.objects.create_multipart(key)).map_err(failed))?;
                Ok(Upload { key: key.to_string(), id, size: cell_size(file.most), before })
            });
            match begun {
                Ok(upload) => uploads.push(upload),
                Err(error) => {
                    // Nobody else knows of them.
                    uploads.iter().zip(&keys).for_each(|(upload, key)| self.shared.abort(key, &upload.id));
                    self.abort_strays(&keys);
                    return Err(error);
                }
            }
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
            let (upload, before) = (upload.id.clone(), upload.before.clone());
            begun.push(File { key, upload, before, cells: Mutex::new(cells) });
        }
        self.shared_mut()?.files = begun;
        Ok(())
    }

    pub(super) fn go_on(&mut self, files: &[Room]) -> Result<()> {
        self.resumed = true;
        let Some(earlier) = self.earlier.take() else { return Err(Error::new(Kind::Bug, "nothing to go on with")) };
        let keys: Vec<String> =
            files.iter().map(|file| Ok(self.weights_key(file)?.to_string())).collect::<Result<_>>()?;
        let sizes = files.iter().map(|file| cell_size(file.most));
        if keys.iter().ne(earlier.uploads.iter().map(|upload| &upload.key))
            || sizes.ne(earlier.uploads.iter().map(|upload| upload.size))
        {
            return Err(Error::new(
                Kind::Malformed,
                "the unfinished output has other files, so the merge cannot go on",
            )
            .with_hint("--force in place of --resume begins anew"));
        }
        self.take_over()?;
        self.begin_files(files, &earlier.uploads)?;
        lock(&self.shared.progress).pieces = earlier.pieces;
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
            lock(&self.shared.progress).complete.extend(record.complete);
        }
        Ok(())
    }
}
