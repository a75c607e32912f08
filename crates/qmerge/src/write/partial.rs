//! `OUT.partial`: what an earlier run left there is gone on with, given up because the user said so, or left alone.

use std::fs::{File, OpenOptions};
use std::path::{Path, PathBuf};

use super::fingerprint::Fingerprint;
use super::journal::{self, Finished, Journal};
use super::{Existing, SCRATCH, folder, remove};
use crate::error::{Error, Kind, Result, malformed, usage};
use crate::plan::{OutFile, Plan};

/// The name beside the target.
pub(super) fn path_of(target: &Path) -> Result<PathBuf> {
    let mut name = target.file_name().ok_or_else(|| usage("the output has no name").in_file(target))?.to_owned();
    name.push(".partial");
    Ok(target.with_file_name(name))
}

/// Errors if something is there that `existing` does not allow to remove or to go on with.
pub(super) fn refuse(partial: &Path, existing: Existing) -> Result<()> {
    let Ok(meta) = std::fs::symlink_metadata(partial) else { return Ok(()) };
    let refused =
        |problem: &str, hint: &str| Err(Error::new(Kind::Exists, problem).in_file(partial).with_hint(hint.to_owned()));
    if !meta.is_dir() {
        return refused(
            "this name is where the output is built, and something else has it",
            "choose another output, or move it away",
        );
    }
    if partial.join(journal::FILE_NAME).is_file() {
        journal::refuse_running(partial)?;
        if !existing.resume && !existing.force {
            return refused(
                "an interrupted run left its unfinished output here",
                "the same command goes on with --resume; --force begins anew and gives up what was done",
            );
        }
        return Ok(());
    }
    if std::fs::read_dir(partial).is_ok_and(|mut items| items.next().is_none()) {
        return Ok(());
    }
    if !folder::looks_like_model(partial) {
        return refused(
            "this folder is where the output is built, and holds something else",
            "choose another output, or move it away",
        );
    }
    // A merge that was complete but for its name has no journal any more, and neither has a folder of another command.
    if !existing.resume && !existing.force {
        return refused("an interrupted run left its unfinished output here", "--force begins anew and removes it");
    }
    Ok(())
}

/// Opens what an interrupted run of this merge left, if that is wanted and there is something. Else nothing is there afterwards.
pub(super) fn take(
    partial: &Path,
    merge: &Fingerprint,
    existing: Existing,
) -> Result<Option<(Journal, Vec<Finished>)>> {
    refuse(partial, existing)?;
    if existing.resume
        && partial.join(journal::FILE_NAME).is_file()
        && let Some(begun) = Journal::reopen(partial, merge)?
    {
        return Ok(Some(begun));
    }
    remove(partial)?;
    Ok(None)
}

/// Opens the journal and the weight files, with their final size; those of an interrupted run as it left them.
pub(super) fn open(
    partial: &Path,
    plan: &Plan,
    merge: &Fingerprint,
    begun: Option<(Journal, Vec<Finished>)>,
) -> Result<(Journal, Vec<Finished>, Vec<File>)> {
    let (journal, finished) = match begun {
        Some((journal, finished)) => {
            check(partial, plan, &finished)?;
            tidy(partial, plan)?;
            (journal, finished)
        }
        None => (Journal::create(partial, merge)?, Vec::new()),
    };
    let files = plan.files.iter().map(|file| open_file(partial, file)).collect::<Result<_>>()?;
    // The journal must not outlive the names of the files that it speaks of.
    folder::sync_folder(partial)?;
    Ok((journal, finished, files))
}

/// Errors if what the journal speaks of is not there whole.
fn check(partial: &Path, plan: &Plan, finished: &[Finished]) -> Result<()> {
    let damaged = |problem: &str, path: &Path| {
        malformed(format!("{problem}, so the merge cannot go on"))
            .in_file(path)
            .with_hint("--force in place of --resume begins anew")
    };
    for file in plan.files.iter().filter(|_| !finished.is_empty()) {
        let path = partial.join(&file.name);
        match std::fs::metadata(&path) {
            Ok(meta) if meta.len() >= least_bytes(file) => {}
            Ok(_) => return Err(damaged("the unfinished file was cut off", &path)),
            Err(_) => return Err(damaged("the unfinished file is gone", &path)),
        }
    }
    let fits = |step: &Finished| {
        let planned = plan.steps.get(step.step);
        planned.is_some_and(|planned| step.late.iter().all(|(part, _)| *part < planned.slots.len()))
    };
    if !finished.iter().all(fits) {
        return Err(damaged("it lists what this merge does not do", &partial.join(journal::FILE_NAME)));
    }
    Ok(())
}

/// Removes what is written again in any case, so that nothing of it is left over.
fn tidy(partial: &Path, plan: &Plan) -> Result<()> {
    let failed = |error| Error::io("list", partial, error);
    for item in std::fs::read_dir(partial).map_err(failed)? {
        let item = item.map_err(failed)?;
        let name = item.file_name();
        let keep = [journal::FILE_NAME, SCRATCH].iter().any(|kept| name == *kept)
            || plan.files.iter().any(|file| name == file.name.as_str());
        if keep {
            continue;
        }
        let path = item.path();
        if item.file_type().map_err(failed)?.is_dir() {
            remove(&path)?;
        } else {
            std::fs::remove_file(&path).map_err(|error| Error::io("remove", &path, error))?;
        }
    }
    Ok(())
}

/// Bytes that the file has at least, whatever becomes of parts whose length is not known.
fn least_bytes(file: &OutFile) -> u64 {
    let known = file.tensors.iter().filter(|tensor| tensor.shape.is_some());
    file.data_start + known.map(|tensor| tensor.offset + tensor.bytes).max().unwrap_or(0)
}

fn open_file(partial: &Path, file: &OutFile) -> Result<File> {
    let path = partial.join(&file.name);
    let opened = OpenOptions::new().write(true).create(true).truncate(false).open(&path);
    let opened = opened.map_err(|error| Error::io("create", &path, error))?;
    opened.set_len(file.max_bytes()).map_err(|error| Error::io("extend", &path, error))?;
    Ok(opened)
}
