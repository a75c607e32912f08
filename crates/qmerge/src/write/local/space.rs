//! Whether an output has a place: free space on its disk, and the right to write there.

use std::path::{Path, PathBuf};

use super::folder::parent_of;
use crate::error::{Error, Kind, Result};

/// Errors if the disk of `target` has less free space than `need` bytes.
pub(crate) fn enough(target: &Path, need: u64) -> Result<()> {
    let folder = existing(parent_of(target));
    let Some(free) = free_bytes(&folder) else { return Ok(()) };
    if need > free {
        return Err(Error::new(
            Kind::Io,
            format!("not enough space: the output takes {}, {} are free", megabytes(need), megabytes(free)),
        )
        .in_file(&folder)
        .with_hint("free some space or choose another disk"));
    }
    Ok(())
}

/// Errors if nothing can be made where `target` is to be.
pub(crate) fn refuse_unwritable(target: &Path) -> Result<()> {
    #[cfg(unix)]
    {
        use rustix::fs::{Access, access};
        use rustix::io::Errno;
        let folder = existing(parent_of(target));
        let found = match folder.is_dir() {
            true => access(&folder, Access::WRITE_OK | Access::EXEC_OK),
            false => Err(Errno::NOTDIR),
        };
        found.map_err(|error| Error::io("write in", &folder, error.into()).with_hint("choose another output"))?;
    }
    let _ = target;
    Ok(())
}

/// The nearest folder above that is there already: a new one comes to the same disk.
fn existing(mut folder: PathBuf) -> PathBuf {
    while !folder.exists() && folder.as_os_str() != "." {
        folder = parent_of(&folder);
    }
    folder
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
