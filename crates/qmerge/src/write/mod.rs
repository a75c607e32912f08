//! The output: whole under its final name, or not there at all.
//!
//! A [`Sink`] is the place: it takes bytes and publishes them whole, and a folder on a local disk is one (`local/`). The journal is what resumes: a step is listed
//! only after its bytes were synced, so `--resume` can trust it even after a power cut. Once a write or a sync failed, nothing is listed any more, since the
//! bytes may be those of any step. At the end the headers are written.

mod adapter;
mod beside;
mod fingerprint;
mod index;
mod journal;
mod local;
mod names;
mod nowhere;
mod sink;
mod took;

use std::collections::{HashMap, HashSet};
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};

pub(crate) use adapter::{Data, NewTensor, overflow, publish_file, publish_folder, refuse_replacing, write_adapter};
pub(crate) use beside::{copy_beside, copy_others, copy_tokenizer};
pub(crate) use fingerprint::{CALIBRATION, CHANGES, Fingerprint, LAYOUT};
pub(crate) use index::index_json;
pub(crate) use journal::{Finished, refuse_before};
#[doc(hidden)]
pub use local::make_parent;
pub(crate) use local::{
    LocalSink, MOST_WAITING, WrittenPart, enough_space, is_single_file, parts_beside, refuse_existing,
    refuse_unwritable, unfinished,
};
pub(crate) use names::name_of;
#[doc(hidden)]
pub use names::path_beside;
pub use names::{CARD_NAME, FILE_NAME, RESIDUAL_FOLDER};
pub(crate) use nowhere::Nowhere;
pub use sink::{Room, Sink, Start};
pub(crate) use took::Took;

use crate::error::{Error, Kind, Result, malformed, usage};
use crate::open::Store;
use crate::parallel::lock;
use crate::plan::{OutFile, Plan};

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
    sink: Box<dyn Sink>,
    /// Bytes written since the last sync.
    unsynced: AtomicU64,
    /// Bytes written in all.
    written: AtomicU64,
    /// The first write or sync that failed. Held while steps are listed, so that no line overtakes the sync of another's bytes.
    failed: Mutex<Option<Error>>,
}

impl Output {
    /// Begins an output of some of the plan's steps, or opens it to go on. Returns those that are done already.
    pub(crate) fn create(
        mut sink: Box<dyn Sink>,
        plan: &Plan,
        steps: &Range<usize>,
        merge: &Fingerprint,
        existing: Existing,
    ) -> Result<(Self, Vec<Finished>)> {
        if sink.is_single_file() {
            refuse_name(sink.path(), plan)?;
        }
        let begun = match sink.begin(existing)? {
            Some(text) => journal::read(&text, merge).map_err(|error| error.in_file(sink.place()))?,
            None => None,
        };
        let rooms = |listed: bool| -> Vec<Room> {
            let used: HashSet<usize> =
                plan.steps[steps.clone()].iter().flat_map(|step| &step.slots).map(|slot| slot.file).collect();
            // Files keep their numbers, and those that get nothing are empty.
            let room = |(number, file): (usize, &OutFile)| Room {
                name: file.name.clone(),
                most: if used.contains(&number) { file.max_bytes() } else { 0 },
                least: if listed && used.contains(&number) { least_bytes(file) } else { 0 },
                gaps: gaps(file),
            };
            plan.files.iter().enumerate().map(room).collect()
        };
        let finished = if let Some((finished, listed)) = begun {
            let opened = refuse_others(plan, steps, &finished, sink.place())
                .and_then(|()| sink.reserve(&rooms(!finished.is_empty()), Start::Resumed(listed)));
            opened.map_err(|error| if error.kind().is_passing() { resumable(&*sink, error) } else { error })?;
            finished
        } else {
            let opened = sink.reserve(&rooms(false), Start::Anew(&journal::head(merge)));
            // Nothing is lost with it; the error that ended it is the one to tell.
            opened.inspect_err(|_| sink.abandon())?;
            Vec::new()
        };
        let (unsynced, written) = (AtomicU64::new(0), AtomicU64::new(0));
        Ok((Self { sink, unsynced, written, failed: Mutex::new(None) }, finished))
    }

    /// The place that is being filled.
    pub(crate) fn sink(&self) -> &dyn Sink {
        &*self.sink
    }

    /// What was written so far.
    pub(crate) fn store(&self) -> Result<Arc<dyn Store>> {
        self.sink.written()
    }

    /// What messages call something that [`Sink::keep`] was given.
    pub(crate) fn scratch(&self, name: &str) -> PathBuf {
        self.sink.place().join(SCRATCH).join(name)
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
        self.sink.write_at(file, offset, bytes).inspect_err(|error| {
            lock(&self.failed).get_or_insert_with(|| error.again());
        })
    }

    /// Syncs what was written, then lists the steps as finished. All their bytes were given to [`Output::write_at`] before; whichever thread then
    /// wrote them, a failure is the output's and is found here.
    pub(crate) fn record(&self, finished: &[Finished]) -> Result<()> {
        let mut failed = lock(&self.failed);
        self.unsynced.store(0, Ordering::Relaxed);
        let listed = match &*failed {
            Some(error) => return Err(error.again()),
            None => self.sink.sync().and_then(|()| self.sink.append(&journal::lines(finished))),
        };
        listed.inspect_err(|error| *failed = Some(error.again()))
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
            self.sink.end(number, file.padded(end))?;
            total += end;
        }
        Ok(total)
    }

    /// Writes a small file of the output.
    pub(crate) fn write_file(&self, name: &str, text: &[u8]) -> Result<()> {
        self.sink.put(name, &mut std::iter::once(Ok(text.to_vec())))
    }

    /// Gives the output its name.
    pub(crate) fn publish(mut self, replace: bool) -> Result<()> {
        let published = self.sink.publish(replace);
        published.map_err(|error| self.to_be_resumed(error))
    }

    /// Adds to an error that left the output unfinished how to go on.
    pub(crate) fn to_be_resumed(&self, error: Error) -> Error {
        resumable(&*self.sink, error)
    }

    /// Removes what this run wrote, for errors that trying again would not cure. What an earlier run finished stays.
    pub(crate) fn abandon(mut self) {
        self.sink.abandon();
    }
}

/// Errors if the name of a single file is not that of what a plan writes.
pub(crate) fn refuse_name(target: &Path, plan: &Plan) -> Result<()> {
    let [file] = plan.files.as_slice() else {
        let problem = format!("the output has {} weight files, so it must be a folder", plan.files.len());
        return Err(usage(problem).in_file(target));
    };
    let ending = file.container.ending();
    if target.to_string_lossy().ends_with(ending) {
        return Ok(());
    }
    let kind = ending.trim_start_matches('.');
    let hint = format!("name a folder, or a file that ends in {ending}");
    let why = if plan.is_export { "as --to says" } else { "since the base is" };
    Err(usage(format!("the output is a file of {kind}, {why}")).in_file(target).with_hint(if kind == "gguf" {
        hint
    } else {
        format!("{hint}; what becomes GGUF takes one of its types: --to q4_k_m, --to q8_0, --to bf16")
    }))
}

fn resumable(sink: &dyn Sink, error: Error) -> Error {
    if !sink.can_be_resumed() {
        return error;
    }
    let go_on = "run the same command with --resume to go on";
    let hint = error.hint().map_or_else(|| go_on.to_owned(), |hint| format!("{hint}; {go_on}"));
    error.with_hint(hint)
}

/// Errors if a journal lists what a merge does not do.
fn refuse_others(plan: &Plan, steps: &Range<usize>, finished: &[Finished], place: &Path) -> Result<()> {
    let fits = |step: &Finished| {
        let planned = plan.steps.get(step.step).filter(|_| steps.contains(&step.step));
        planned.is_some_and(|planned| step.late.iter().all(|(part, _)| *part < planned.slots.len()))
    };
    if finished.iter().all(fits) {
        Ok(())
    } else {
        Err(damaged("its journal lists what this merge does not do", place))
    }
}

/// What an interrupted run left is not what it listed.
fn damaged(problem: &str, path: &Path) -> Error {
    malformed(format!("{problem}, so the merge cannot go on"))
        .in_file(path)
        .with_hint("--force in place of --resume begins anew")
}

/// What lies between tensors whose length is known, and is no tensor's.
fn gaps(file: &OutFile) -> Vec<Range<u64>> {
    let known = file.tensors.iter().filter(|tensor| tensor.shape.is_some());
    let mut ranges: Vec<Range<u64>> = known.map(|tensor| tensor.offset..tensor.offset + tensor.bytes).collect();
    ranges.sort_unstable_by_key(|range| (range.start, range.end));
    let (mut at, mut gaps) = (0, Vec::new());
    for range in ranges {
        if range.start > at {
            gaps.push(file.data_start + at..file.data_start + range.start);
        }
        at = at.max(range.end);
    }
    gaps
}

/// Bytes that the file has at least, whatever becomes of parts whose length is not known.
fn least_bytes(file: &OutFile) -> u64 {
    let known = file.tensors.iter().filter(|tensor| tensor.shape.is_some());
    file.data_start + known.map(|tensor| tensor.offset + tensor.bytes).max().unwrap_or(0)
}
