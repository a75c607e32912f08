//! Models in several GGUF files: `STEM-00001-of-00003.gguf`, each a whole file, of which the first has the keys.

use std::collections::BTreeSet;

use super::{Metadata, expert};
use crate::error::{Error, Result, malformed};
use crate::open::{Entry, Item, ItemKind, Opened, Store, is_plain_name};

const ENDING: &str = ".gguf";
/// More parts than a model has.
const MOST: u64 = 1 << 16;

/// Stem, number and count of a part's name.
fn numbered(name: &str) -> Option<(&str, u64, u64)> {
    let (rest, of) = name.strip_suffix(ENDING)?.rsplit_once("-of-")?;
    let (stem, number) = rest.rsplit_once('-')?;
    let digits = |text: &str| text.len() >= 5 && text.bytes().all(|byte| byte.is_ascii_digit());
    let (number, of) = Some((number, of)).filter(|(number, of)| digits(number) && digits(of))?;
    Some((stem, number.parse().ok()?, of.parse().ok()?))
}

/// Stem and count of the parts of the model that a file is a part of, if it is one.
fn part(name: &str) -> Option<(&str, u64)> {
    let (stem, number, of) = numbered(name)?;
    ((1..=of).contains(&number) && of <= MOST && is_plain_name(name)).then_some((stem, of))
}

fn name_of(stem: &str, number: u64, of: u64) -> String {
    format!("{stem}-{number:05}-of-{of:05}{ENDING}")
}

/// The names of all files of the model that a file is, or is a part of: its own alone, where its name is no part's.
pub(super) fn parts(name: &str) -> Vec<String> {
    match part(name) {
        Some((stem, of)) => (1..=of).map(|number| name_of(stem, number, of)).collect(),
        None => vec![name.to_owned()],
    }
}

/// The name of the first of them.
fn first_part(name: &str) -> String {
    part(name).map_or_else(|| name.to_owned(), |(stem, of)| name_of(stem, 1, of))
}

/// The GGUF files of a folder that make up a model: one file, or all parts of one. Errors if there are several models.
pub(in crate::open) fn of_folder(items: &[Item]) -> Result<Vec<String>> {
    let names = items.iter().filter(|item| item.kind == ItemKind::File && item.name.ends_with(ENDING));
    // What helps a model to see is a file beside it.
    let names = names.filter(|item| !item.name.starts_with("mmproj"));
    let models: BTreeSet<String> = names.map(|item| first_part(&item.name)).collect();
    let mut all = models.iter();
    match (all.next(), all.next()) {
        (None, _) => Ok(Vec::new()),
        (Some(model), None) => Ok(parts(model)),
        (Some(first), Some(second)) => Err(malformed(format!(
            "{} models in GGUF files: `{}`, `{}`{}",
            models.len(),
            first,
            second,
            if models.len() > 2 { " and others" } else { "" }
        ))
        .with_hint("give the path of the one that is meant")),
    }
}

/// Errors if files are not all parts of one model, in their order. `store` is where they lie.
pub(in crate::open) fn refuse_incomplete(files: &[Opened], store: &dyn Store) -> Result<()> {
    let Some(first) = files.first().and_then(|file| file.contents.gguf.as_deref()) else { return Ok(()) };
    let count = |metadata: &Metadata| metadata.integer("split.count").unwrap_or(0);
    let of = files.len() as u64;
    // A file that was put together again says 0 or 1.
    if of == 1 && count(first) > 1 {
        return Err(in_file(
            malformed(format!(
                "it is one of {} parts of a model, and its name does not say which: the others are not found",
                count(first)
            ))
            .with_hint("parts are named STEM-00001-of-00003.gguf, as llama.cpp names them"),
            files.first(),
        ));
    }
    if of <= 1 {
        return Ok(());
    }
    for (number, file) in files.iter().enumerate() {
        let Some(metadata) = file.contents.gguf.as_deref() else { continue };
        let said = (metadata.integer("split.no"), count(metadata));
        if said != (Some(number as u64), of) {
            return Err(in_file(
                malformed(format!(
                    "its name says that it is part {} of {of}, and its keys `split.no` and `split.count` say otherwise",
                    number.saturating_add(1)
                ))
                .with_hint("name the parts as llama.cpp's gguf-split did, or download them again"),
                Some(file),
            ));
        }
    }
    // Experts of a stack are one tensor there.
    let is_counted = |entry: &&Entry| expert(&entry.name).is_none_or(|(_, number)| number == 0);
    let tensors: usize = files.iter().map(|file| file.contents.entries.iter().filter(is_counted).count()).sum();
    match first.integer("split.tensors.count") {
        Some(said) if said != tensors as u64 => Err(malformed(format!(
            "the first part says that the model has {said} tensors, and its {of} parts have {tensors}"
        ))
        .in_file(store.path())
        .with_hint("parts of several models are mixed: download them again")),
        _ => Ok(()),
    }
}

fn in_file(error: Error, file: Option<&Opened>) -> Error {
    match file {
        Some(file) => error.in_file(file.blob.path()),
        None => error,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn any_part_names_all() {
        let all = ["m-00001-of-00002.gguf", "m-00002-of-00002.gguf"];
        assert_eq!(parts("m-00002-of-00002.gguf"), all);
        for alone in ["m.gguf", "m-00003-of-00002.gguf", "m-1-of-2.gguf", "m-00000-of-00002.gguf", "m-of-00002.gguf"] {
            assert_eq!(parts(alone), [alone]);
        }
        let item = |name: &str| Item { name: name.to_owned(), kind: ItemKind::File, len: 1 };
        let folder = |names: &[&str]| of_folder(&names.iter().map(|name| item(name)).collect::<Vec<_>>());
        assert_eq!(folder(&["a.gguf", "mmproj-a.gguf", "b.txt"]).unwrap(), ["a.gguf"]);
        assert_eq!(folder(&[all[1], all[0]]).unwrap(), all);
        assert!(folder(&["a.txt"]).unwrap().is_empty());
        let error = folder(&["a.gguf", "b.gguf"]).unwrap_err();
        assert!(error.to_string().contains("`a.gguf`, `b.gguf`"), "{error}");
    }
}
