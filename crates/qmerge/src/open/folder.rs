//! Which files of a folder are a model's weights.

use std::collections::HashSet;
use std::sync::Arc;

use serde::Deserialize;

use super::safetensors::Safetensors;
use super::{Checkpoint, Item, ItemKind, MAX_INDEX, Opened, Store, foreign, gguf, is_plain_name, json, small_text};
use crate::error::{Result, malformed};

const SINGLE: &str = "model.safetensors";
const ENDING: &str = ".safetensors";
/// What stands between stem and ending where a file holds the same weights as another, in other types or from another time of the training.
const VARIANTS: &[&str] = &["fp16", "bf16", "fp32", "fp8", "non_ema", "ema"];
const INDEX: &str = "model.safetensors.index.json";

/// Opens a folder: `model.safetensors`, else the shards of an index, else a whole set of numbered shards, else every `.safetensors` file there; else the one model in GGUF.
///
/// Where a folder holds two sets of weights, this is transformers' choice: it takes `model.safetensors` and does not look at an index then.
pub(super) fn open(store: Arc<dyn Store>) -> Result<Checkpoint> {
    let items = store.list("")?;
    let names: Vec<&str> = items.iter().map(|item| item.name.as_str()).collect();
    if names.contains(&SINGLE) {
        return open_files(store, &[SINGLE]);
    }
    if names.contains(&INDEX) {
        return open_index(store, INDEX, &items);
    }
    let mut indices = names.iter().filter(|name| name.ends_with(".safetensors.index.json"));
    if let (Some(index), None) = (indices.next(), indices.next()) {
        return open_index(store, index, &items);
    }
    let tensors = |name: &&str| name.ends_with(ENDING) && !name.starts_with("adapter_");
    let files: Vec<&str> = names.iter().copied().filter(tensors).collect();
    if files.is_empty() {
        let parts = gguf::of_folder(&items).map_err(|error| error.in_file(store.path()))?;
        if !parts.is_empty() {
            let path = store.path().to_path_buf();
            return open_parts(store, &parts).map(|checkpoint| Checkpoint { path, ..checkpoint });
        }
        return Err(foreign::no_weights(store.path(), &names));
    }
    let files = without_variants(&files);
    let files = set_of_shards(&files).map_err(|error| error.in_file(store.path()))?;
    open_files(store, &files)
}

fn open_files(store: Arc<dyn Store>, names: &[&str]) -> Result<Checkpoint> {
    let parts = names.iter().map(|name| open_file(&*store, name)).collect::<Result<Vec<_>>>()?;
    Checkpoint::from_opened(store, None, parts, None)
}

/// Opens a model whose files name each other, in their order.
pub(super) fn open_parts(store: Arc<dyn Store>, names: &[String]) -> Result<Checkpoint> {
    let open = |name: &String| {
        if !store.has(name) {
            return Err(malformed(format!("the part `{name}` is missing"))
                .in_file(store.path())
                .with_hint("the download is incomplete: fetch the missing file"));
        }
        store.open(name)
    };
    let blobs = names.iter().map(open).collect::<Result<Vec<_>>>()?;
    Checkpoint::from_blobs(store, blobs)
}

fn open_file(store: &dyn Store, name: &str) -> Result<Opened> {
    let blob = store.open(name)?;
    if gguf::is_gguf(&foreign::read_head(&*blob)?) {
        return Err(malformed("a GGUF file, in spite of its name")
            .in_file(blob.path())
            .with_hint("name it as one, and give its path"));
    }
    Opened::new(blob, &Safetensors)
}

/// Of files that hold one model in several types (`STEM.safetensors`, `STEM.fp16.safetensors`), the one without a variant, which is what diffusers takes.
fn without_variants<'a>(files: &[&'a str]) -> Vec<&'a str> {
    let has = |stem: &str| files.iter().any(|file| file.strip_suffix(ENDING) == Some(stem));
    let is_variant = |file: &str| {
        let named = file.strip_suffix(ENDING).and_then(|rest| rest.rsplit_once('.'));
        named.is_some_and(|(stem, variant)| VARIANTS.contains(&variant) && has(stem))
    };
    files.iter().copied().filter(|file| !is_variant(file)).collect()
}

/// Of files without an index, those that make up one checkpoint: the numbered shards where there are some, which must be one set and whole.
fn set_of_shards<'a>(files: &[&'a str]) -> Result<Vec<&'a str>> {
    let shards: Vec<(&str, &str, &str)> = files.iter().filter_map(|file| shard(file)).collect();
    let Some(&(stem, _, of)) = shards.first() else { return Ok(files.to_vec()) };
    if let Some(other) = shards.iter().find(|shard| (shard.0, shard.2) != (stem, of)) {
        return Err(malformed(format!(
            "two sets of weights and no index that says which: {stem}-…-of-{of}.safetensors and {}-…-of-{}.safetensors",
            other.0, other.2
        ))
        .with_hint("move one of them out of the folder"));
    }
    // More than any number is missing some.
    let count = of.parse().unwrap_or(usize::MAX);
    let there: HashSet<usize> = shards.iter().filter_map(|shard| shard.1.parse().ok()).collect();
    if let Some(number) = (1..=count).find(|number| !there.contains(number)) {
        return Err(malformed(format!("the shard {number} of {of} is missing, and there is no index"))
            .with_hint("the download is incomplete: fetch the missing file"));
    }
    Ok(files.iter().copied().filter(|file| shard(file).is_some()).collect())
}

/// Stem, number and count of `STEM-00001-of-00003.safetensors`.
fn shard(name: &str) -> Option<(&str, &str, &str)> {
    let (rest, of) = name.strip_suffix(ENDING)?.rsplit_once("-of-")?;
    let (stem, number) = rest.rsplit_once('-')?;
    let digits = |text: &str| !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit());
    (digits(number) && digits(of)).then_some((stem, number, of))
}

/// Only the part of an index that says where tensors lie.
#[derive(Deserialize)]
struct Index {
    weight_map: std::collections::BTreeMap<String, String>,
}

fn open_index(store: Arc<dyn Store>, name: &str, items: &[Item]) -> Result<Checkpoint> {
    let path = store.path_of(name);
    let text = small_text(&*store, name, MAX_INDEX)?.unwrap_or_default();
    let index: Index =
        json::parse_as(&text).map_err(|error| malformed(format!("not a safetensors index: {error}")).in_file(&path))?;
    let mut files: Vec<&String> = index.weight_map.values().collect();
    files.sort();
    files.dedup();
    let mut parts = Vec::with_capacity(files.len());
    for file in &files {
        // A shard is a plain file name beside the index: an index must not reach into other folders.
        if !is_plain_name(file) {
            return Err(malformed(format!("shard name {file:?} is not a plain file name")).in_file(&path));
        }
        if !items.iter().any(|item| item.name == **file && item.kind == ItemKind::File) {
            return Err(malformed(format!("the shard `{file}` is missing"))
                .in_file(&path)
                .with_hint("the download is incomplete: fetch the missing file"));
        }
        parts.push(open_file(&*store, file)?);
    }
    let checkpoint = Checkpoint::from_opened(store, None, parts, Some(name.to_owned()))?;
    for (tensor, file) in &index.weight_map {
        let found = checkpoint.get(tensor).and_then(|entry| files.get(entry.file));
        if found != Some(&file) {
            return Err(malformed(format!("the index places it in `{file}`, which does not hold it"))
                .in_file(&path)
                .in_tensor(tensor));
        }
    }
    Ok(checkpoint)
}
