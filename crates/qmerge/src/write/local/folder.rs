//! Folders on a local disk: on the disk for good, and in each other's place.

use std::fs::File;
use std::path::{Path, PathBuf};

use crate::error::{Error, Result};
use crate::write::names;

/// True for an empty folder and for one that holds what a model's folder holds.
pub(super) fn looks_like_model(folder: &Path) -> bool {
    let names: Vec<String> = std::fs::read_dir(folder)
        .into_iter()
        .flatten()
        .filter_map(|item| item.ok()?.file_name().into_string().ok())
        .collect();
    names.is_empty()
        || names.iter().any(|name| {
            name == names::FILE_NAME
                || name == "config.json"
                || [".safetensors", ".gguf"].iter().any(|ending| name.ends_with(ending))
        })
}

/// Syncs the small files and the folders, so that a rename never publishes what is not on disk.
pub(super) fn sync_others(folder: &Path) -> Result<()> {
    for item in std::fs::read_dir(folder).map_err(|error| Error::io("list", folder, error))? {
        let path = item.map_err(|error| Error::io("list", folder, error))?.path();
        if path.is_dir() {
            sync_others(&path)?;
        } else {
            sync_file(&path).map_err(|error| Error::io("sync", &path, error))?;
        }
    }
    sync_folder(folder)
}

/// Windows syncs only a file that is open for writing, and a copy of a read-only file cannot be opened so: that one is left to the system.
pub(super) fn sync_file(path: &Path) -> std::io::Result<()> {
    match File::options().read(true).write(cfg!(windows)).open(path) {
        Err(error) if cfg!(windows) && error.kind() == std::io::ErrorKind::PermissionDenied => Ok(()),
        opened => opened?.sync_all(),
    }
}

/// Syncs a folder's list of names. Systems that cannot are left to their ways.
pub(super) fn sync_folder(folder: &Path) -> Result<()> {
    match File::open(folder).and_then(|folder| folder.sync_all()) {
        Err(error) if cfg!(unix) => Err(Error::io("sync", folder, error)),
        _ => Ok(()),
    }
}

/// Gives `new` the place of `old` and removes `old`: in one step where the system can.
pub(super) fn exchange(new: &Path, old: &Path) -> Result<()> {
    #[cfg(target_os = "linux")]
    {
        use rustix::fs::{CWD, RenameFlags, renameat_with};
        if renameat_with(CWD, new, CWD, old, RenameFlags::EXCHANGE).is_ok() {
            return replaced(new);
        }
    }
    let mut aside = old.as_os_str().to_owned();
    aside.push(".replaced");
    let aside = PathBuf::from(aside);
    std::fs::rename(old, &aside).map_err(|error| Error::io("rename", old, error))?;
    if let Err(error) = std::fs::rename(new, old) {
        // What was there stays; of two errors the first is the one to tell.
        let _ = std::fs::rename(&aside, old);
        return Err(Error::io("rename into place", old, error));
    }
    replaced(&aside)
}

fn replaced(path: &Path) -> Result<()> {
    let removed = if path.is_dir() { std::fs::remove_dir_all(path) } else { std::fs::remove_file(path) };
    removed.map_err(|error| Error::io("remove", path, error))
}

/// Removes a folder, if there is one.
pub(super) fn remove(path: &Path) -> Result<()> {
    match std::fs::remove_dir_all(path) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => Err(Error::io("remove", path, error)),
        _ => Ok(()),
    }
}

pub(super) fn rename(from: &Path, to: &Path) -> Result<()> {
    std::fs::rename(from, to).map_err(|error| Error::io("rename into place", to, error))
}

/// The folder that a path lies in.
pub(super) fn parent_of(path: &Path) -> PathBuf {
    match path.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => parent.to_path_buf(),
        _ => PathBuf::from("."),
    }
}

/// Makes the folder that a file is to lie in, where it is not there yet.
pub fn make_parent(path: &Path) -> Result<()> {
    let parent = parent_of(path);
    std::fs::create_dir_all(&parent).map_err(|error| Error::io("create", &parent, error))
}
