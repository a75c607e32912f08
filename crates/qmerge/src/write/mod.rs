//! The output: whole under its final name, or not there at all.
//!
//! Everything is written into `OUT.partial` beside the target. Files have their final size from the start and workers write
//! disjoint ranges by position. A journal of finished steps is kept behind the data it speaks of: a step is listed only after its
//! bytes were synced, so `--resume` can trust it even after a power cut. Once a write or a sync failed, nothing is listed any more, since the
//! bytes may be those of any step. At the end the headers are written, everything is synced, and the folder is renamed.

mod adapter;
mod fingerprint;
mod folder;
mod index;
mod journal;
mod names;
mod partial;
mod queue;
mod space;

use std::collections::HashMap;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};

pub(crate) use adapter::{Data, NewTensor, whole_folder, write_adapter};
pub(crate) use fingerprint::{CHANGES, Fingerprint, LAYOUT};
pub use folder::Tokenizer;
pub(crate) use folder::{copy_beside, copy_others};
pub(crate) use index::index_json;
pub(crate) use journal::Finished;
pub use names::{CARD_NAME, FILE_NAME, RESIDUAL_FOLDER, path_beside};
pub(crate) use queue::MOST_WAITING;
use queue::Queue;
pub(crate) use space::enough as enough_space;

use crate::error::{Error, Kind, Result, usage};
use crate::plan::Plan;

/// Where a run keeps what only a resumed one needs.
const SCRATCH: &str = "qmerge-scratch";

/// How to treat what is there already.
#[derive(Clone, Copy, Debug, Default)]
pub struct Existing {
    /// Replace an existing output; without `resume` an unfinished one too.
    pub force: bool,
    /// Go on where an interrupted run of the same merge stopped. Another merge's unfinished output is an error.
    pub resume: bool,
}

/// An output under construction.
#[derive(Debug)]
pub(crate) struct Output {
    target: PathBuf,
    partial: PathBuf,
    single_file: bool,
    files: Vec<Queue>,
    /// It goes on with what an earlier run left.
    resumed: bool,
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
        merge: &Fingerprint,
        existing: Existing,
    ) -> Result<(Self, Vec<Finished>)> {
        let single_file = is_single_file(target);
        if single_file && plan.files.len() != 1 {
            return Err(usage(format!("the output has {} weight files, so it must be a folder", plan.files.len()))
                .in_file(target));
        }
        refuse_existing(target, existing)?;
        let partial = partial::path_of(target)?;
        let parent = parent_of(target);
        std::fs::create_dir_all(&parent).map_err(|error| Error::io("create", &parent, error))?;
        let begun = partial::take(&partial, merge, existing)?;
        let resumed = begun.is_some();
        if !resumed {
            enough_space(target, plan)?;
            std::fs::create_dir(&partial).map_err(|error| Error::io("create", &partial, error))?;
        }
        let (journal, finished, files) = partial::open(&partial, plan, merge, begun).map_err(|error| {
            if resumed {
                return if error.kind() == Kind::Io { resumable(&partial, error) } else { error };
            }
            // Nothing is lost with it; the error that ended it is the one to tell.
            drop(remove(&partial));
            error
        })?;
        let files = files.into_iter().map(Queue::new).collect();
        let output = Self {
            target: target.to_path_buf(),
            partial,
            single_file,
            files,
            resumed,
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

    /// Writes a file into it that a line of the journal will speak of: it is on the disk under its name afterwards.
    pub(crate) fn keep_in_scratch(&self, name: &str, bytes: &[u8]) -> Result<()> {
        let folder = self.scratch();
        std::fs::create_dir_all(&folder).map_err(|error| Error::io("create", &folder, error))?;
        let path = folder.join(name);
        let write = || {
            let mut file = std::fs::File::create(&path)?;
            file.write_all(bytes)?;
            file.sync_all()
        };
        write().map_err(|error| Error::io("write", &path, error))?;
        folder::sync_folder(&folder)?;
        folder::sync_folder(&self.partial)
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

    /// Writes into a weight file, at the latest with the next sync, and leaves an empty buffer. Ranges of different calls do not overlap. An error
    /// may be that of an earlier write.
    pub(crate) fn write_at(&self, file: usize, offset: u64, bytes: &mut Vec<u8>) -> Result<()> {
        self.unsynced.fetch_add(bytes.len() as u64, Ordering::Relaxed);
        self.written.fetch_add(bytes.len() as u64, Ordering::Relaxed);
        self.files[file].write(offset, bytes).map_err(|error| Error::io("write", &self.partial, error))
    }

    /// Syncs what was written, then lists the steps as finished. All their bytes were given to [`Output::write_at`] before; whichever thread then
    /// wrote them, a failure is the file's and is found here.
    pub(crate) fn checkpoint(&self, finished: &[Finished]) -> Result<()> {
        // Held throughout, so that no line overtakes the sync of another's bytes.
        let mut journal = self.journal.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        self.unsynced.store(0, Ordering::Relaxed);
        for file in &self.files {
            file.sync().map_err(|error| Error::io("write", &self.partial, error))?;
        }
        journal.append(finished).map_err(|error| Error::io("write", &self.partial.join(journal::FILE_NAME), error))
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
            self.files[number].end(file.data_start + end).map_err(|error| Error::io("write", &self.partial, error))?;
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
        let partial = self.partial.clone();
        self.rename(plan, force).map_err(|error| resumable(&partial, error))
    }

    fn rename(self, plan: &Plan, force: bool) -> Result<()> {
        for (file, out) in self.files.iter().zip(&plan.files) {
            file.sync_all().map_err(|error| Error::io("write", &self.partial.join(&out.name), error))?;
        }
        let Self { target, partial, single_file, files, journal, .. } = self;
        drop(files);
        folder::sync_others(&partial)?;
        let unlist = || {
            let path = partial.join(journal::FILE_NAME);
            std::fs::remove_file(&path).map_err(|error| Error::io("remove", &path, error))
        };
        if single_file {
            rename(&partial.join(names::FILE_NAME), &names::path_beside(&target))?;
            unlist()?;
            drop(journal);
            rename(&partial.join(&plan.files[0].name), &target)?;
            remove(&partial)?;
        } else {
            unlist()?;
            drop(journal);
            let scratch = partial.join(SCRATCH);
            if scratch.exists() {
                // Not before the journal, which says that what lies there is done.
                folder::sync_folder(&partial)?;
                remove(&scratch)?;
            }
            if force && target.exists() {
                folder::exchange(&partial, &target)?;
            } else {
                rename(&partial, &target)?;
            }
            folder::sync_folder(&target)?;
        }
        folder::sync_folder(&parent_of(&target))
    }

    /// Adds to an error that left the output unfinished how to go on.
    pub(crate) fn to_be_resumed(&self, error: Error) -> Error {
        resumable(&self.partial, error)
    }

    /// Removes what this run wrote, for errors that trying again would not cure. What an earlier run finished stays.
    pub(crate) fn abandon(self) {
        let Self { partial, files, journal, resumed, .. } = self;
        drop(files);
        drop(journal);
        if !resumed {
            // Nothing more can be done about a folder that cannot be removed; the final name is free either way.
            drop(remove(&partial));
        }
    }
}

fn resumable(partial: &Path, error: Error) -> Error {
    if !partial.join(journal::FILE_NAME).exists() {
        return error;
    }
    let go_on = "run the same command with --resume to go on";
    let hint = error.hint().map_or_else(|| go_on.to_owned(), |hint| format!("{hint}; {go_on}"));
    error.with_hint(hint)
}

fn is_single_file(target: &Path) -> bool {
    target.extension().is_some_and(|ext| ext == "safetensors")
}

fn parent_of(path: &Path) -> PathBuf {
    match path.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => parent.to_path_buf(),
        _ => PathBuf::from("."),
    }
}

/// Errors if `existing` does not allow to write where the output, or an unfinished one, is already.
pub(crate) fn refuse_existing(target: &Path, existing: Existing) -> Result<()> {
    refuse_target(target, existing)?;
    partial::refuse(&partial::path_of(target)?, existing)
}

fn refuse_target(target: &Path, existing: Existing) -> Result<()> {
    let report = names::path_beside(target);
    if is_single_file(target) && !existing.force && !existing.resume && report.exists() {
        return Err(Error::new(Kind::Exists, "the report of another output is there already")
            .in_file(&report)
            .with_hint("choose another name for the output, or replace it with --force"));
    }
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

fn remove(path: &Path) -> Result<()> {
    match std::fs::remove_dir_all(path) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => Err(Error::io("remove", path, error)),
        _ => Ok(()),
    }
}

fn rename(from: &Path, to: &Path) -> Result<()> {
    std::fs::rename(from, to).map_err(|error| Error::io("rename into place", to, error))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::dtype::Dtype;
    use crate::plan::{OutFile, OutTensor};

    fn plan() -> Plan {
        let file = |name: &str| {
            let tensor = OutTensor { name: "w".into(), dtype: Dtype::U8, shape: Some(vec![8]), bytes: 8, offset: 0 };
            OutFile::new(name.into(), Vec::new(), vec![tensor])
        };
        Plan {
            steps: Vec::new(),
            files: vec![file("a.safetensors"), file("b.safetensors")],
            index: None,
            config: None,
            accounting: Vec::new(),
            output_format: String::new(),
            rounding: crate::round::NEAREST,
            untrained: false,
            untrained_modules: 0,
            reason: None,
            seed: 0,
            residual_rank: None,
            maps: Vec::new(),
            read: crate::adapters::ReadOptions::default(),
            warnings: Vec::new(),
        }
    }

    /// A worker whose write failed took another step's bytes along. That step was reported as finished, and must not be listed.
    #[test]
    fn nothing_is_listed_after_a_write_that_failed() {
        let target = std::env::temp_dir().join(format!("qmerge-output-{}", std::process::id()));
        let (plan, merge) = (plan(), Fingerprint::default());
        let (mut output, _) = Output::create(&target, &plan, &merge, Existing::default()).unwrap();
        let step = |step| Finished { step, sums: None, kept: None, late: Vec::new() };
        output.write_at(0, 0, &mut vec![1; 4]).unwrap();
        output.checkpoint(&[step(0)]).unwrap();
        // A file that is open for reading refuses every write.
        let read_only = std::fs::File::open(output.folder().join("b.safetensors")).unwrap();
        output.files[1] = Queue::new(read_only);
        assert!(output.write_at(1, 0, &mut vec![2; 4]).is_err());
        for attempt in 1..3 {
            let error = output.checkpoint(&[step(attempt)]).unwrap_err();
            assert_eq!(error.kind(), Kind::Io, "{error}");
        }
        let journal = std::fs::read_to_string(output.folder().join(journal::FILE_NAME)).unwrap();
        assert_eq!(journal.lines().count(), 2, "{journal}");
        output.abandon();
        assert!(!target.with_extension("partial").exists());
    }
}
