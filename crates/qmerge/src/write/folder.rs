//! The files beside the weights: copied from the base, the adapter's tokenizer first where it has one.

use std::collections::BTreeMap;
use std::fs::File;
use std::path::{Path, PathBuf};

use crate::error::{Error, Result};
use crate::open::{Item, ItemKind, Store, pieces};

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
pub(crate) fn copy_others(
    base: &dyn Store,
    adapters: &[&dyn Store],
    tokenizer: Tokenizer,
    to: &Path,
) -> Result<Vec<String>> {
    let mut sources: BTreeMap<String, &dyn Store> = BTreeMap::new();
    let mut warnings = Vec::new();
    for name in collect(base, "", &mut warnings)? {
        sources.insert(name, base);
    }
    if !adapters.is_empty() {
        sources.remove(super::names::CARD_NAME);
    }
    if tokenizer == Tokenizer::Adapter {
        for adapter in adapters {
            for name in TOKENIZER_FILES {
                if adapter.has(name) && may_be_copied(*adapter, name, &mut warnings)? {
                    sources.insert((*name).to_owned(), *adapter);
                }
            }
        }
    }
    for (name, from) in sources {
        copy(from, &name, to)?;
    }
    Ok(warnings)
}

/// Copies what may stand beside an adapter: its card, which names the licence, and its tokenizer. Returns a warning for each link that was not followed.
pub(crate) fn copy_beside(adapter: &dyn Store, to: &Path) -> Result<Vec<String>> {
    let mut warnings = Vec::new();
    for name in TOKENIZER_FILES.iter().chain([&super::names::CARD_NAME]) {
        if adapter.has(name) && may_be_copied(adapter, name, &mut warnings)? {
            copy(adapter, name, to)?;
        }
    }
    Ok(warnings)
}

/// Copies the bytes alone: a file of a read-only base becomes one that its owner can change and replace.
fn copy(from: &dyn Store, name: &str, to: &Path) -> Result<()> {
    let target = to.join(name);
    if let Some(folder) = target.parent() {
        std::fs::create_dir_all(folder).map_err(|error| Error::io("create", folder, error))?;
    }
    let source = from.open(name)?;
    let mut file = File::create(&target).map_err(|error| Error::io("create", &target, error))?;
    for piece in pieces(&*source) {
        std::io::Write::write_all(&mut file, &piece?).map_err(|error| Error::io("write", &target, error))?;
    }
    Ok(())
}

/// True if a name does not lead out of its store; else a warning says so.
fn may_be_copied(store: &dyn Store, name: &str, warnings: &mut Vec<String>) -> Result<bool> {
    let Some(end) = store.leads_out(name)? else { return Ok(true) };
    warnings.push(format!(
        "`{}` is a symbolic link out of its folder, to {}: not copied; if it belongs to the model, put the file in the link's place",
        store.path_of(name).display(),
        end.display()
    ));
    Ok(false)
}

/// The files of a folder that belong to a model beside its weights, and those of the folders below.
fn collect(store: &dyn Store, folder: &str, warnings: &mut Vec<String>) -> Result<Vec<String>> {
    /// Deeper folders than this are no part of a model.
    const MAX_DEPTH: usize = 4;
    let mut found = Vec::new();
    for Item { name, kind, .. } in store.list(folder)? {
        if name.starts_with('.') || name.ends_with(".partial") {
            continue;
        }
        let path = if folder.is_empty() { name.clone() } else { format!("{folder}/{name}") };
        if kind == ItemKind::Folder {
            if path.split('/').count() <= MAX_DEPTH
                && !store.has(&format!("{path}/adapter_config.json"))
                && may_be_copied(store, &path, warnings)?
            {
                found.extend(collect(store, &path, warnings)?);
            }
        } else if kind == ItemKind::File
            && !WEIGHT_ENDINGS.iter().any(|ending| name.ends_with(ending))
            && name != super::names::FILE_NAME
            && may_be_copied(store, &path, warnings)?
        {
            found.push(path);
        }
    }
    Ok(found)
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
