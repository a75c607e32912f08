//! The output: whole under its final name, or not there at all.
//!
//! Everything is written into `OUT.partial` beside the target. Files have their final size from the start and workers write
//! disjoint ranges by position. A journal of finished steps is kept behind the data it speaks of: a step is listed only after its
//! bytes were synced, so `--resume` can trust it even after a power cut. At the end the headers are written, everything is synced, and the
//! folder is renamed.

mod adapter;
mod folder;
mod journal;
mod queue;

use std::collections::HashMap;
use std::fs::{File, OpenOptions};
use std::path::{Path, PathBuf};
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

pub(crate) use adapter::{Data, NewTensor, whole_folder, write_adapter};
pub use folder::Tokenizer;
pub(crate) use folder::{copy_beside, copy_others};
pub(crate) use journal::Finished;
pub(crate) use queue::MOST_WAITING;
use queue::Queue;

use crate::error::{Error, Kind, Result, usage};
use crate::plan::{OutFile, Plan};

/// Where a run keeps what only a resumed one needs.
const SCRATCH: &str = "qmerge-scratch";

/// How to treat what is there already.
#[derive(Clone, Copy, Debug, Default)]
pub struct Existing {
    /// Replace an existing output.
    pub force: bool,
    /// Go on where an interrupted run of the same merge stopped.
    pub resume: bool,
}

/// An output under construction.
#[derive(Debug)]
pub(crate) struct Output {
    target: PathBuf,
    partial: PathBuf,
    single_file: bool,
    files: Vec<Queue>,
    dirty: Vec<AtomicBool>,
    /// Bytes written since the last sync.
    unsynced: AtomicU64,
    /// Bytes written in all.
    written: AtomicU64,
    journal: Mutex<journal::Journal>,
}

impl Output {
    /// Creates `OUT.partial` with files of their final size, or opens it to go on. Returns the steps that are done already.
    pub(crate) fn create(
        target: &Path,
        plan: &Plan,
        fingerprint: &str,
        existing: Existing,
    ) -> Result<(Self, Vec<Finished>)> {
        let single_file = target.extension().is_some_and(|ext| ext == "safetensors");
        if single_file && plan.files.len() != 1 {
            return Err(usage(format!("the output has {} weight files, so it must be a folder", plan.files.len()))
                .in_file(target));
        }
        refuse_existing(target, existing)?;
        let name = target.file_name().ok_or_else(|| usage("the output has no name").in_file(target))?;
        let mut partial_name = name.to_owned();
        partial_name.push(".partial");
        let partial = target.with_file_name(partial_name);
        let parent = parent_of(target);
        std::fs::create_dir_all(&parent).map_err(|error| Error::io("create", &parent, error))?;
        let mut finished = Vec::new();
        let mut opened = None;
        if existing.resume && partial.is_dir() {
            opened = journal::Journal::reopen(&partial, fingerprint, &mut finished)?;
        }
        let resumed = opened.is_some();
        if !resumed {
            journal::refuse_running(&partial)?;
            remove(&partial)?;
            enough_space(&parent, plan)?;
            std::fs::create_dir(&partial).map_err(|error| Error::io("create", &partial, error))?;
        }
        let journal = match opened {
            Some(journal) => journal,
            None => journal::Journal::create(&partial, fingerprint)?,
        };
        let files = plan
            .files
            .iter()
            .map(|file| open_file(&partial, file, resumed).map(Queue::new))
            .collect::<Result<Vec<_>>>()?;
        let output = Self {
            target: target.to_path_buf(),
            partial,
            single_file,
            dirty: files.iter().map(|_| AtomicBool::new(true)).collect(),
            files,
            unsynced: AtomicU64::new(0),
            written: AtomicU64::new(0),
            journal: Mutex::new(journal),
        };
        Ok((output, finished))
    }

    /// The folder that is being filled.
    pub(crate) fn folder(&self) -> &Path {
        &self.partial
    }

    /// A folder within it for what only a resumed run needs, as long as there is a journal. It is made by whoever needs it.
    pub(crate) fn scratch(&self) -> PathBuf {
        self.partial.join(SCRATCH)
    }

    /// True if only the one weight file is wanted.
    pub(crate) fn is_single_file(&self) -> bool {
        self.single_file
    }

    /// Bytes written so far.
    pub(crate) fn written(&self) -> u64 {
        self.written.load(Ordering::Relaxed)
    }

    /// Bytes that the next sync would have to wait for, at most.
    pub(crate) fn unsynced(&self) -> u64 {
        self.unsynced.load(Ordering::Relaxed)
    }

    /// Writes into a weight file, at the latest with the next sync, and leaves an empty buffer. Ranges of different calls do not overlap.
    pub(crate) fn write_at(&self, file: usize, offset: u64, bytes: &mut Vec<u8>) -> Result<()> {
        self.dirty[file].store(true, Ordering::Release);
        self.unsynced.fetch_add(bytes.len() as u64, Ordering::Relaxed);
        self.written.fetch_add(bytes.len() as u64, Ordering::Relaxed);
        self.files[file].write(offset, bytes).map_err(|error| Error::io("write", &self.partial, error))
    }

    /// Syncs what was written, then lists the steps as finished.
    pub(crate) fn checkpoint(&self, finished: &[Finished]) -> Result<()> {
        self.unsynced.store(0, Ordering::Relaxed);
        for (file, dirty) in self.files.iter().zip(&self.dirty) {
            if dirty.swap(false, Ordering::AcqRel) {
                file.drain().map_err(|error| Error::io("write", &self.partial, error))?;
                file.file().sync_data().map_err(|error| Error::io("sync", &self.partial, error))?;
            }
        }
        let mut journal = self.journal.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        journal.append(finished).map_err(|error| error.in_file(&self.partial))
    }

    /// Writes the parts whose length is known only now, and the headers. Returns the total of all tensors' bytes.
    pub(crate) fn close_files(&self, plan: &Plan, late: &HashMap<(usize, usize), Vec<u8>>) -> Result<u64> {
        let mut total = 0;
        for (number, file) in plan.files.iter().enumerate() {
            let lengths: HashMap<usize, u64> = late
                .iter()
                .filter(|((of, _), _)| *of == number)
                .map(|((_, tensor), bytes)| (*tensor, bytes.len() as u64))
                .collect();
            let (header, offsets) = file.header(&lengths);
            let mut end = file
                .tensors
                .iter()
                .filter(|tensor| tensor.shape.is_some())
                .map(|tensor| tensor.offset + tensor.bytes)
                .max()
                .unwrap_or(0);
            for (tensor, offset) in offsets {
                let bytes = late.get(&(number, tensor)).ok_or_else(|| {
                    Error::new(Kind::Bug, "its state was never made").in_tensor(&file.tensors[tensor].name)
                })?;
                self.write_at(number, file.data_start + offset, &mut bytes.clone())?;
                end = end.max(offset + bytes.len() as u64);
            }
            self.write_at(number, 0, &mut header.clone())?;
            self.files[number].drain().map_err(|error| Error::io("write", &self.partial, error))?;
            self.files[number]
                .file()
                .set_len(file.data_start + end)
                .map_err(|error| Error::io("truncate", &self.partial, error))?;
            total += end;
        }
        Ok(total)
    }

    /// Writes a small file of the output.
    pub(crate) fn write_file(&self, name: &str, text: &[u8]) -> Result<()> {
        let path = self.partial.join(name);
        std::fs::write(&path, text).map_err(|error| Error::io("write", &path, error))
    }

    /// Syncs everything and gives the output its name.
    pub(crate) fn publish(self, plan: &Plan, force: bool) -> Result<()> {
        for (file, out) in self.files.iter().zip(&plan.files) {
            file.file().sync_all().map_err(|error| Error::io("sync", &self.partial.join(&out.name), error))?;
        }
        let Self { target, partial, single_file, files, journal, .. } = self;
        drop(files);
        drop(journal);
        folder::sync_others(&partial)?;
        if single_file {
            let report = crate::report::path_beside(&target);
            rename(&partial.join(crate::report::FILE_NAME), &report)?;
            rename(&partial.join(&plan.files[0].name), &target)?;
            remove(&partial)?;
        } else {
            let journal = partial.join(journal::FILE_NAME);
            std::fs::remove_file(&journal).map_err(|error| Error::io("remove", &journal, error))?;
            // Not before the journal, which says that what lies there is done.
            remove(&partial.join(SCRATCH))?;
            folder::sync_folder(&partial)?;
            if force && target.exists() {
                folder::exchange(&partial, &target)?;
            } else {
                rename(&partial, &target)?;
            }
        }
        folder::sync_folder(&parent_of(&target))
    }

    /// Removes what was written, for errors that trying again would not cure.
    pub(crate) fn abandon(self) {
        let Self { partial, files, journal, .. } = self;
        drop(files);
        drop(journal);
        // Nothing more can be done about a folder that cannot be removed; the final name is free either way.
        let _ = remove(&partial);
    }
}

fn parent_of(path: &Path) -> PathBuf {
    match path.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => parent.to_path_buf(),
        _ => PathBuf::from("."),
    }
}

pub(crate) fn refuse_existing(target: &Path, existing: Existing) -> Result<()> {
    if !target.exists() {
        return Ok(());
    }
    if !existing.force {
        return Err(Error::new(Kind::Exists, "the output exists already")
            .in_file(target)
            .with_hint("choose another name, or replace it with --force"));
    }
    if target.is_dir() && !folder::looks_like_model(target) {
        return Err(Error::new(
            Kind::Exists,
            "the output exists and does not look like a model, so --force will not replace it",
        )
        .in_file(target)
        .with_hint("choose another name, or remove it yourself"));
    }
    Ok(())
}

/// Space must do for everything, or nothing is begun.
fn enough_space(parent: &Path, plan: &Plan) -> Result<()> {
    let need = plan.output_bytes();
    let Some(free) = free_bytes(parent) else { return Ok(()) };
    if need > free {
        return Err(Error::new(
            Kind::Io,
            format!("not enough space: the output takes {}, {} are free", megabytes(need), megabytes(free)),
        )
        .in_file(parent)
        .with_hint("free some space or choose another disk"));
    }
    Ok(())
}

#[cfg(unix)]
fn free_bytes(folder: &Path) -> Option<u64> {
    let stat = rustix::fs::statvfs(folder).ok()?;
    Some(stat.f_bavail.saturating_mul(stat.f_frsize))
}

#[cfg(not(unix))]
fn free_bytes(_: &Path) -> Option<u64> {
    None
}

fn megabytes(bytes: u64) -> String {
    format!("{:.1} MB", bytes as f64 / 1e6)
}

fn open_file(partial: &Path, file: &OutFile, resumed: bool) -> Result<File> {
    let path = partial.join(&file.name);
    let open = OpenOptions::new().write(true).create(true).truncate(!resumed).open(&path);
    let opened = open.map_err(|error| Error::io("create", &path, error))?;
    opened.set_len(file.max_bytes()).map_err(|error| Error::io("extend", &path, error))?;
    Ok(opened)
}

fn remove(path: &Path) -> Result<()> {
    match std::fs::remove_dir_all(path) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => Err(Error::io("remove", path, error)),
        _ => Ok(()),
    }
}

fn rename(from: &Path, to: &Path) -> Result<()> {
    std::fs::rename(from, to).map_err(|error| Error::io("rename into place", to, error))
}
