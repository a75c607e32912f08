//! The files beside the weights: copied from the base, the adapter's tokenizer first where it has one.
//!
//! A folder from elsewhere may hold a symbolic link to anything, and an output is uploaded. So links are followed within the folder, and in the hub's
//! cache to its `blobs`, where all files of a snapshot lie; no further.

use std::collections::BTreeMap;
use std::fs::File;
use std::path::{Path, PathBuf};

use crate::error::{Error, Result};

/// Whose tokenizer and chat template the output takes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Tokenizer {
    /// The adapter's where it has them, else the base's.
    #[default]
    Adapter,
    /// The base's.
    Base,
}

/// Files of a tokenizer, as transformers writes them.
const TOKENIZER_FILES: &[&str] = &[
    "tokenizer.json",
    "tokenizer_config.json",
    "tokenizer.model",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.json",
    "vocab.txt",
    "merges.txt",
    "spiece.model",
    "sentencepiece.bpe.model",
    "chat_template.jinja",
    "chat_template.json",
];

/// Endings of files that hold weights, in any framework: not copied, or the output would carry the unmerged model along.
const WEIGHT_ENDINGS: &[&str] = &[
    ".safetensors",
    ".bin",
    ".pt",
    ".pth",
    ".ckpt",
    ".gguf",
    ".ggml",
    ".h5",
    ".msgpack",
    ".onnx",
    ".onnx_data",
    ".tflite",
    ".ot",
    ".mlmodel",
    ".index.json",
];

/// Copies the files beside the weights into `to`. Returns a warning for each link that was not followed. The base's card is not copied where an adapter is merged: it describes another model, and the output
/// gets a card of its own.
pub(crate) fn copy_others(base: &Path, adapters: &[&Path], tokenizer: Tokenizer, to: &Path) -> Result<Vec<String>> {
    let mut sources: BTreeMap<PathBuf, PathBuf> = BTreeMap::new();
    let mut warnings = Vec::new();
    collect(&Bounds::of(base)?, base, Path::new(""), &mut sources, &mut warnings)?;
    if !adapters.is_empty() {
        sources.remove(Path::new(super::names::CARD_NAME));
    }
    if tokenizer == Tokenizer::Adapter {
        for adapter in adapters {
            let bounds = Bounds::of(adapter)?;
            for name in TOKENIZER_FILES {
                let path = adapter.join(name);
                if path.is_file() && bounds.hold(&path, &mut warnings) {
                    sources.insert(PathBuf::from(name), path);
                }
            }
        }
    }
    for (name, from) in sources {
        let target = to.join(&name);
        if let Some(folder) = target.parent() {
            std::fs::create_dir_all(folder).map_err(|error| Error::io("create", folder, error))?;
        }
        copy(&from, &target)?;
    }
    Ok(warnings)
}

/// Copies what may stand beside an adapter: its card, which names the licence, and its tokenizer. Returns a warning for each link that was not followed.
pub(crate) fn copy_beside(adapter: &Path, to: &Path) -> Result<Vec<String>> {
    let bounds = Bounds::of(adapter)?;
    let mut warnings = Vec::new();
    for name in TOKENIZER_FILES.iter().chain([&super::names::CARD_NAME]) {
        let from = adapter.join(name);
        if from.is_file() && bounds.hold(&from, &mut warnings) {
            copy(&from, &to.join(name))?;
        }
    }
    Ok(warnings)
}

/// Copies the bytes alone: a file of a read-only base becomes one that its owner can change and replace.
fn copy(from: &Path, to: &Path) -> Result<()> {
    let mut source = File::open(from).map_err(|error| Error::io("copy", from, error))?;
    let mut target = File::create(to).map_err(|error| Error::io("create", to, error))?;
    std::io::copy(&mut source, &mut target).map(drop).map_err(|error| Error::io("copy", from, error))
}

/// Where the links of a folder may lead.
struct Bounds {
    folder: PathBuf,
    /// The files of all snapshots, if the folder is one of the hub's cache.
    blobs: Option<PathBuf>,
}

impl Bounds {
    fn of(folder: &Path) -> Result<Self> {
        let folder = folder.canonicalize().map_err(|error| Error::io("open", folder, error))?;
        let repository = folder.ancestors().find_map(|above| {
            let snapshots =
                above.parent().filter(|parent| parent.file_name().is_some_and(|name| name == "snapshots"))?;
            let repository = snapshots.parent()?;
            let name = repository.file_name()?.to_str()?;
            name.starts_with("models--").then(|| repository.to_path_buf())
        });
        let blobs = repository.and_then(|repository| repository.join("blobs").canonicalize().ok());
        Ok(Self { folder, blobs })
    }

    /// True if a path does not lead out of them; else a warning says so.
    fn hold(&self, path: &Path, warnings: &mut Vec<String>) -> bool {
        let Ok(end) = path.canonicalize() else { return false };
        let within = |bound: &Path| end.starts_with(bound);
        let held = within(&self.folder) || self.blobs.as_deref().is_some_and(within);
        if !held {
            warnings.push(format!(
                "`{}` is a symbolic link out of its folder, to {}: not copied; if it belongs to the model, put the file in the link's place",
                path.display(),
                end.display()
            ));
        }
        held
    }
}

fn collect(
    bounds: &Bounds,
    folder: &Path,
    prefix: &Path,
    sources: &mut BTreeMap<PathBuf, PathBuf>,
    warnings: &mut Vec<String>,
) -> Result<()> {
    /// Deeper folders than this are no part of a model.
    const MAX_DEPTH: usize = 4;
    let items = std::fs::read_dir(folder).map_err(|error| Error::io("list", folder, error))?;
    for item in items {
        let item = item.map_err(|error| Error::io("list", folder, error))?;
        let name = item.file_name();
        let text = name.to_string_lossy();
        let path = item.path();
        if text.starts_with('.') || text.ends_with(".partial") {
            continue;
        }
        if path.is_dir() {
            if prefix.components().count() < MAX_DEPTH
                && !path.join("adapter_config.json").exists()
                && bounds.hold(&path, warnings)
            {
                collect(bounds, &path, &prefix.join(&name), sources, warnings)?;
            }
        } else if path.is_file()
            && !WEIGHT_ENDINGS.iter().any(|ending| text.ends_with(ending))
            && text != super::names::FILE_NAME
            && bounds.hold(&path, warnings)
        {
            sources.insert(prefix.join(&name), path);
        }
    }
    Ok(())
}

/// True for an empty folder and for one that holds what a model's folder holds.
pub(super) fn looks_like_model(folder: &Path) -> bool {
    let names: Vec<String> = std::fs::read_dir(folder)
        .into_iter()
        .flatten()
        .filter_map(|item| item.ok()?.file_name().into_string().ok())
        .collect();
    names.is_empty()
        || names
            .iter()
            .any(|name| name == super::names::FILE_NAME || name == "config.json" || name.ends_with(".safetensors"))
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
fn sync_file(path: &Path) -> std::io::Result<()> {
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
            return remove(new);
        }
    }
    let mut aside = old.as_os_str().to_owned();
    aside.push(".replaced");
    let aside = PathBuf::from(aside);
    std::fs::rename(old, &aside).map_err(|error| Error::io("rename", old, error))?;
    std::fs::rename(new, old).map_err(|error| Error::io("rename into place", old, error))?;
    remove(&aside)
}

fn remove(path: &Path) -> Result<()> {
    let removed = if path.is_dir() { std::fs::remove_dir_all(path) } else { std::fs::remove_file(path) };
    removed.map_err(|error| Error::io("remove", path, error))
}
