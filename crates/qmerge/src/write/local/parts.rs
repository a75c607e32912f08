//! Parts of an output that wait beside the target, each in a folder of its own, to be put together.

use std::path::{Path, PathBuf};

use super::folder::parent_of;
use super::journal::{self, Journal};
use super::partial;
use crate::error::{Error, Kind, Result};
use crate::open::local::LocalFolder;
use crate::open::{Blob, Store};
use crate::plan::{Part, Plan};
use crate::write::{Fingerprint, Finished, SCRATCH, Took, journal as listed, refuse_others};

/// A part that is complete. Nobody else writes it while this lives.
#[derive(Debug)]
pub(crate) struct WrittenPart {
    pub(crate) folder: PathBuf,
    store: LocalFolder,
    /// All its steps.
    pub(crate) finished: Vec<Finished>,
    /// What it took.
    pub(crate) took: Took,
    _lock: Journal,
}

impl WrittenPart {
    /// Opens a part of a merge. Errors if it is not complete, or another merge's.
    pub(crate) fn open(target: &Path, part: Part, plan: &Plan, merge: &Fingerprint) -> Result<Self> {
        let folder = partial::path_of(target, Some(part))?;
        let (number, of, again) = (part.number(), part.of(), "run it again with --resume");
        let path = folder.join(journal::FILE_NAME);
        let mut lock = Journal::open(&folder)?;
        let text = lock.read().map_err(|error| Error::io("read", &path, error))?;
        let read = listed::read_part(&text, merge).map_err(|error| error.in_file(&folder))?;
        let (finished, _) = read.unwrap_or_default();
        let steps = plan.steps_of(part);
        refuse_others(plan, &steps, &finished, &folder)?;
        let mut missing = vec![true; steps.len()];
        finished.iter().for_each(|step| missing[step.step - steps.start] = false);
        let count = missing.iter().filter(|missing| **missing).count();
        let store = LocalFolder::new(&folder);
        let took = store.small(&format!("{SCRATCH}/{}", Took::FILE_NAME), 1 << 16)?;
        let took = took.and_then(|text| serde_json::from_slice(&text).ok());
        match (count, took) {
            (0, Some(took)) => Ok(Self { folder, store, finished, took, _lock: lock }),
            (0, None) => Err(Error::new(Kind::Malformed, format!("part {number} of {of} has not come to its end"))
                .in_file(&folder)
                .with_hint(again)),
            (count, _) => Err(Error::new(
                Kind::Usage,
                format!("part {number} of {of} is not complete: {count} of its {} tensors are missing", steps.len()),
            )
            .in_file(&folder)
            .with_hint(again)),
        }
    }

    /// A weight file as this part has it.
    pub(crate) fn weights(&self, name: &str) -> Result<Box<dyn Blob>> {
        self.store.open(name)
    }
}

/// The parts that lie beside a target, in order.
pub(crate) fn parts_beside(target: &Path) -> Result<Vec<Part>> {
    let parent = parent_of(target);
    let failed = |error| Error::io("list", &parent, error);
    let Some(name) = target.file_name() else { return Ok(Vec::new()) };
    let mut parts = Vec::new();
    for item in std::fs::read_dir(&parent).map_err(failed)? {
        let item = item.map_err(failed)?.file_name();
        let rest =
            item.as_encoded_bytes().strip_prefix(name.as_encoded_bytes()).and_then(|rest| str::from_utf8(rest).ok());
        let numbers = rest.and_then(|rest| rest.strip_prefix(".part-")?.split_once("-of-"));
        let part = numbers.and_then(|(number, of)| Part::new(number.parse().ok()?, of.parse().ok()?));
        // Other spellings of a number are not ours.
        let is_ours =
            |part: &Part| partial::path_of(target, Some(*part)).is_ok_and(|path| path.file_name() == Some(&item));
        parts.extend(part.filter(is_ours));
    }
    parts.sort_unstable();
    Ok(parts)
}
