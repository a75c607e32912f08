//! A folder beside the target on a local disk.
//!
//! Everything is written into `OUT.partial`. Files have their final size from the start and workers write disjoint ranges by position. A journal of finished
//! steps is kept behind the data it speaks of. At the end everything is synced, and the folder is renamed.

mod folder;
mod journal;
mod partial;
mod parts;
mod queue;
mod space;

use std::io::Write;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

use journal::Journal;
pub(crate) use queue::MOST_WAITING;
use queue::Queue;
pub(crate) use space::{enough as enough_space, refuse_unwritable};

use super::{Existing, Room, SCRATCH, Sink, Start, names};
use crate::error::{Error, Kind, Result};
use crate::open::Store;
use crate::open::local::LocalFolder;
use crate::parallel::lock;
use crate::plan::Part;
pub use folder::make_parent;
use folder::{parent_of, remove, rename};
pub(crate) use parts::{WrittenPart, parts_beside};

/// An output on a local disk: a folder, or one `.safetensors` or `.gguf` file.
#[derive(Debug)]
pub(crate) struct LocalSink {
    target: PathBuf,
    /// The part of it that is written, if it is not all.
    part: Option<Part>,
    /// Known once it begins.
    partial: PathBuf,
    files: Vec<(PathBuf, Queue)>,
    journal: Mutex<Option<Journal>>,
    /// It goes on with what an earlier run left.
    resumed: bool,
}

impl LocalSink {
    pub(crate) fn new(target: &Path) -> Self {
        Self {
            target: target.to_path_buf(),
            part: None,
            partial: PathBuf::new(),
            files: Vec::new(),
            journal: Mutex::new(None),
            resumed: false,
        }
    }

    /// A part of an output, which gets no name of its own.
    pub(crate) fn of_part(target: &Path, part: Part) -> Self {
        Self { part: Some(part), ..Self::new(target) }
    }

    fn queue(&self, file: usize) -> Result<&Queue> {
        self.files.get(file).map(|(_, queue)| queue).ok_or_else(|| Error::new(Kind::Bug, "no such file of the output"))
    }

    fn failed(&self, error: std::io::Error) -> Error {
        Error::io("write", &self.partial, error)
    }

    fn anew(&mut self, files: &[Room], head: &[u8]) -> Result<()> {
        // Nobody may go on with it any more, and its lock goes with it.
        *self.journal.get_mut().unwrap_or_else(PoisonError::into_inner) = None;
        remove(&self.partial)?;
        space::enough(&self.target, files.iter().map(|file| file.most).sum())?;
        std::fs::create_dir(&self.partial).map_err(|error| Error::io("create", &self.partial, error))?;
        if head.is_empty() {
            return Ok(());
        }
        self.journal = Mutex::new(Some(Journal::open(&self.partial)?));
        self.append(head)
    }

    fn go_on(&mut self, files: &[Room], listed: u64) -> Result<()> {
        self.resumed = true;
        if let Some(journal) = self.journal.get_mut().unwrap_or_else(PoisonError::into_inner) {
            let path = self.partial.join(journal::FILE_NAME);
            journal.cut(listed).map_err(|error| Error::io("read", &path, error))?;
        }
        partial::check(&self.partial, files)?;
        partial::tidy(&self.partial, files)
    }

    /// Takes the journal out of the folder, whose steps nobody has to do again.
    fn unlist(&self) -> Result<()> {
        let mut journal = lock(&self.journal);
        if journal.is_some() {
            let path = self.partial.join(journal::FILE_NAME);
            std::fs::remove_file(&path).map_err(|error| Error::io("remove", &path, error))?;
            *journal = None;
        }
        Ok(())
    }
}

impl Sink for LocalSink {
    fn path(&self) -> &Path {
        &self.target
    }

    fn place(&self) -> &Path {
        &self.partial
    }

    fn is_single_file(&self) -> bool {
        is_single_file(&self.target)
    }

    fn begin(&mut self, existing: Existing) -> Result<Option<Vec<u8>>> {
        refuse_existing(&self.target, self.part, existing)?;
        self.partial = partial::path_of(&self.target, self.part)?;
        let path = self.partial.join(journal::FILE_NAME);
        if !existing.resume || !path.is_file() {
            return Ok(None);
        }
        let mut journal = Journal::open(&self.partial)?;
        let text = journal.read().map_err(|error| Error::io("read", &path, error))?;
        self.journal = Mutex::new(Some(journal));
        Ok(Some(text))
    }

    fn reserve(&mut self, files: &[Room], start: Start<'_>) -> Result<()> {
        make_parent(&self.target)?;
        match start {
            Start::Resumed(listed) => self.go_on(files, listed)?,
            Start::Anew(head) => self.anew(files, head)?,
        }
        for file in files {
            let queue = Queue::new(partial::open(&self.partial, file)?);
            self.files.push((self.partial.join(&file.name), queue));
        }
        // The journal must not outlive the names of the files that it speaks of.
        folder::sync_folder(&self.partial)
    }

    fn write_at(&self, file: usize, offset: u64, bytes: &mut Vec<u8>) -> Result<()> {
        self.queue(file)?.write(offset, bytes).map_err(|error| self.failed(error))
    }

    fn sync(&self) -> Result<()> {
        self.files.iter().try_for_each(|(_, queue)| queue.sync()).map_err(|error| self.failed(error))
    }

    fn append(&self, lines: &[u8]) -> Result<()> {
        let mut journal = lock(&self.journal);
        let journal = journal.as_mut().ok_or_else(|| Error::new(Kind::Bug, "the output has no journal"))?;
        journal.append(lines).map_err(|error| Error::io("write", &self.partial.join(journal::FILE_NAME), error))
    }

    fn end(&self, file: usize, bytes: u64) -> Result<()> {
        self.queue(file)?.end(bytes).map_err(|error| self.failed(error))
    }

    fn put(&self, name: &str, pieces: &mut dyn Iterator<Item = Result<Vec<u8>>>) -> Result<()> {
        let path = self.partial.join(name);
        make_parent(&path)?;
        let failed = |error| Error::io("write", &path, error);
        let mut file = std::fs::File::create(&path).map_err(failed)?;
        for piece in pieces {
            file.write_all(&piece?).map_err(failed)?;
        }
        Ok(())
    }

    fn stash(&self, name: &str, bytes: &[u8]) -> Result<()> {
        self.put(&format!("{SCRATCH}/{name}"), &mut std::iter::once(Ok(bytes.to_vec())))?;
        let folder = self.partial.join(SCRATCH);
        let path = folder.join(name);
        folder::sync_file(&path).map_err(|error| Error::io("write", &path, error))?;
        folder::sync_folder(&folder)?;
        folder::sync_folder(&self.partial)
    }

    fn stashed(&self, name: &str) -> Result<Option<Vec<u8>>> {
        let path = self.partial.join(SCRATCH).join(name);
        match std::fs::read(&path) {
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(None),
            read => read.map(Some).map_err(|error| Error::io("read", &path, error)),
        }
    }

    fn written(&self) -> Result<Arc<dyn Store>> {
        Ok(Arc::new(LocalFolder::new(&self.partial)))
    }

    fn can_be_resumed(&self) -> bool {
        self.partial.join(journal::FILE_NAME).exists()
    }

    fn publish(&mut self, replace: bool) -> Result<()> {
        for (path, queue) in &self.files {
            queue.sync_all().map_err(|error| Error::io("write", path, error))?;
        }
        let files = std::mem::take(&mut self.files);
        let weights: Vec<PathBuf> = files.into_iter().map(|(path, _)| path).collect();
        let (target, partial) = (&self.target, &self.partial);
        folder::sync_others(partial)?;
        if let ([weights], true) = (weights.as_slice(), self.is_single_file()) {
            rename(&partial.join(names::FILE_NAME), &names::path_beside(target))?;
            self.unlist()?;
            rename(weights, target)?;
            remove(partial)?;
        } else {
            self.unlist()?;
            let scratch = partial.join(SCRATCH);
            if scratch.exists() {
                // Not before the journal, which says that what lies there is done.
                folder::sync_folder(partial)?;
                remove(&scratch)?;
            }
            if replace && target.exists() {
                folder::exchange(partial, target)?;
            } else {
                rename(partial, target)?;
            }
            folder::sync_folder(target)?;
        }
        folder::sync_folder(&parent_of(target))
    }

    fn abandon(&mut self) {
        self.files.clear();
        *self.journal.get_mut().unwrap_or_else(PoisonError::into_inner) = None;
        if !self.resumed {
            // Nothing more can be done about a folder that cannot be removed; the final name is free either way.
            drop(remove(&self.partial));
        }
    }
}

/// True for the name of a weight file: it is the whole output then, but for the report beside it.
pub(crate) fn is_single_file(target: &Path) -> bool {
    target.extension().is_some_and(|ext| ext == "safetensors" || ext == "gguf")
}

/// Errors if `existing` does not allow to write where the output, or what is unfinished of it or of a part of it, is already.
pub(crate) fn refuse_existing(target: &Path, part: Option<Part>, existing: Existing) -> Result<()> {
    refuse_target(target, existing)?;
    partial::refuse(&partial::path_of(target, part)?, existing)
}

/// The list of what an interrupted run finished, as far as one is there.
pub(crate) fn unfinished(target: &Path, part: Option<Part>) -> Result<Option<Vec<u8>>> {
    let path = partial::path_of(target, part)?.join(journal::FILE_NAME);
    match std::fs::read(&path) {
        Ok(text) => Ok(Some(text)),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(Error::io("read", &path, error)),
    }
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
    let is_model = if target.is_dir() { folder::looks_like_model(target) } else { is_single_file(target) };
    if !is_model {
        return Err(Error::new(
            Kind::Exists,
            "the output exists and does not look like a model, so --force will not replace it",
        )
        .in_file(target)
        .with_hint("choose another name, or remove it yourself"));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn begun(name: &str) -> LocalSink {
        let target = std::env::temp_dir().join(format!("qmerge-sink-{name}-{}", std::process::id()));
        let mut sink = LocalSink::new(&target);
        assert!(sink.begin(Existing::default()).unwrap().is_none());
        let room = |name: &str| Room { name: name.to_owned(), most: 8, least: 8, gaps: Vec::new() };
        sink.reserve(&[room("a.safetensors"), room("b.safetensors")], Start::Anew(b"head\n")).unwrap();
        sink
    }

    /// A worker whose write failed took another step's bytes along: whoever syncs must hear of it.
    #[test]
    fn a_write_that_failed_is_told_with_every_sync() {
        let mut sink = begun("failed");
        sink.write_at(0, 0, &mut vec![1; 4]).unwrap();
        sink.sync().unwrap();
        // A file that is open for reading refuses every write.
        sink.files[1].1 = Queue::new(std::fs::File::open(&sink.files[1].0).unwrap());
        assert!(sink.write_at(1, 0, &mut vec![2; 4]).is_err());
        for _ in 0..2 {
            assert_eq!(sink.sync().unwrap_err().kind(), Kind::Io);
        }
        sink.abandon();
        assert!(!sink.partial.exists());
    }

    #[test]
    fn what_is_listed_after_a_torn_line_is_found_the_next_time() {
        let sink = begun("torn");
        sink.append(b"step\nto").unwrap();
        let target = sink.target.clone();
        let resume = Existing { resume: true, force: false };
        let running = LocalSink::new(&target).begin(resume).unwrap_err();
        assert!(running.to_string().contains("another qmerge"), "{running}");
        drop(sink);
        let mut sink = LocalSink::new(&target);
        assert_eq!(sink.begin(resume).unwrap().unwrap(), b"head\nstep\nto");
        sink.reserve(&[], Start::Resumed(10)).unwrap();
        sink.append(b"next\n").unwrap();
        drop(sink);
        let mut sink = LocalSink::new(&target);
        assert_eq!(sink.begin(resume).unwrap().unwrap(), b"head\nstep\nnext\n");
        std::fs::remove_dir_all(&sink.partial).unwrap();
    }
}
