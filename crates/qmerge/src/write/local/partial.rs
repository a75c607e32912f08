//! `OUT.partial`, and `OUT.part-2-of-7` of a merge in parts: what an earlier run left there is gone on with, given up because the user said so, or left alone.

use std::fs::{File, OpenOptions};
use std::path::{Path, PathBuf};

use super::folder::{self, remove};
use super::{SCRATCH, journal};
use crate::error::{Error, Kind, Result, usage};
use crate::plan::Part;
use crate::write::{Existing, Room, Took, damaged};

/// The name beside the target.
pub(super) fn path_of(target: &Path, part: Option<Part>) -> Result<PathBuf> {
    let mut name = target.file_name().ok_or_else(|| usage("the output has no name").in_file(target))?.to_owned();
    match part {
        None => name.push(".partial"),
        Some(part) => name.push(format!(".part-{}-of-{}", part.number(), part.of())),
    }
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
        if !existing.resume && !existing.force && partial.join(SCRATCH).join(Took::FILE_NAME).is_file() {
            return refused(
                "this part is complete",
                "`qmerge finish` puts the parts together; --resume finds it done, and --force merges it anew",
            );
        }
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

/// Errors if what the journal speaks of is not there whole.
pub(super) fn check(partial: &Path, files: &[Room]) -> Result<()> {
    for file in files.iter().filter(|file| file.least > 0) {
        let path = partial.join(&file.name);
        match std::fs::metadata(&path) {
            Ok(meta) if meta.len() >= file.least => {}
            Ok(_) => return Err(damaged("the unfinished file was cut off", &path)),
            Err(_) => return Err(damaged("the unfinished file is gone", &path)),
        }
    }
    Ok(())
}

/// Removes what is written again in any case, so that nothing of it is left over.
pub(super) fn tidy(partial: &Path, files: &[Room]) -> Result<()> {
    let failed = |error| Error::io("list", partial, error);
    for item in std::fs::read_dir(partial).map_err(failed)? {
        let item = item.map_err(failed)?;
        let name = item.file_name();
        let keep = [journal::FILE_NAME, SCRATCH].iter().any(|kept| name == *kept)
            || files.iter().any(|file| name == file.name.as_str());
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

/// Opens a weight file with the most bytes that it can take.
pub(super) fn open(partial: &Path, file: &Room) -> Result<File> {
    let path = partial.join(&file.name);
    let opened = OpenOptions::new().write(true).create(true).truncate(false).open(&path);
    let opened = opened.map_err(|error| Error::io("create", &path, error))?;
    opened.set_len(file.most).map_err(|error| Error::io("extend", &path, error))?;
    Ok(opened)
}
