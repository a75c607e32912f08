//! The files beside the weights: copied from the base, the adapter's tokenizer first where it has one.

use std::collections::BTreeMap;

use super::Sink;
use crate::error::Result;
use crate::open::{Item, ItemKind, QUANTIZATION_FILES, Store, TOKENIZER_FILES, pieces};
use crate::plan::Tokenizer;

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

/// Copies the files beside the weights into `to`; those that describe quantized weights only where the output `keeps_format`. Returns a warning for each link that was not followed. The base's card is not copied where an adapter is merged: it describes another model, and the output
/// gets a card of its own.
pub(crate) fn copy_others(
    base: &dyn Store,
    adapters: &[&dyn Store],
    tokenizer: Tokenizer,
    keeps_format: bool,
    to: &dyn Sink,
) -> Result<Vec<String>> {
    let mut sources: BTreeMap<String, &dyn Store> = BTreeMap::new();
    let mut warnings = Vec::new();
    for name in collect(base, "", &mut warnings)? {
        sources.insert(name, base);
    }
    if !keeps_format {
        sources.retain(|name, _| !QUANTIZATION_FILES.contains(&name.as_str()));
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
pub(crate) fn copy_beside(adapter: &dyn Store, to: &dyn Sink) -> Result<Vec<String>> {
    copy_named(adapter, &[TOKENIZER_FILES, &[super::names::CARD_NAME]].concat(), to)
}

/// Copies the tokenizer alone: beside what another card would have to speak of.
pub(crate) fn copy_tokenizer(from: &dyn Store, to: &dyn Sink) -> Result<Vec<String>> {
    copy_named(from, TOKENIZER_FILES, to)
}

fn copy_named(adapter: &dyn Store, names: &[&str], to: &dyn Sink) -> Result<Vec<String>> {
    let mut warnings = Vec::new();
    for name in names {
        if adapter.has(name) && may_be_copied(adapter, name, &mut warnings)? {
            copy(adapter, name, to)?;
        }
    }
    Ok(warnings)
}

/// Copies the bytes alone: a file of a read-only base becomes one that its owner can change and replace.
fn copy(from: &dyn Store, name: &str, to: &dyn Sink) -> Result<()> {
    let blob = from.open(name).map_err(|error| error.doing("copy"))?;
    to.put(name, &mut pieces(&*blob).map(|piece| piece.map_err(|error| error.doing("copy"))))
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
        if kind == ItemKind::Unnamed {
            warnings.push(format!("{} is not copied: its name is not UTF-8", store.path_of(&path).display()));
        } else if kind == ItemKind::Folder {
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
