//! The chapter on the report has every field of every document.

use std::ffi::OsString;

use qmerge::progress::Progress;
use serde_json::Value;

use super::*;

struct Quiet;

impl Progress for Quiet {}

/// The names of all fields of a document.
fn fields(value: &Value, found: &mut BTreeSet<String>) {
    match value {
        Value::Object(map) => map.iter().for_each(|(key, value)| {
            found.insert(key.clone());
            fields(value, found);
        }),
        Value::Array(items) => items.iter().for_each(|item| fields(item, found)),
        _ => {}
    }
}

#[test]
fn the_book_has_every_field_of_the_documents() {
    let folder = std::env::temp_dir().join(format!("qmerge-docs-{}", std::process::id()));
    std::fs::create_dir_all(&folder).unwrap();
    let demo = Path::new(env!("CARGO_MANIFEST_DIR")).join("demo");
    let path = |folder: &Path, name: &str| folder.join(name).display().to_string();
    let sources = ["--base".into(), path(&demo, "base-nf4"), "--adapter".into(), path(&demo, "adapter")];
    let mut found = BTreeSet::new();
    let mut ask = |command: &str, more: &[&str]| {
        let words =
            std::iter::once(command.to_owned()).chain(sources.clone()).chain(more.iter().map(|&word| word.into()));
        let answer = crate::call(words.map(OsString::from), &Quiet).unwrap();
        fields(&serde_json::from_str(&answer.json).unwrap(), &mut found);
    };
    let (kept, lost, text) = (path(&folder, "kept"), path(&folder, "lost"), path(&demo, "eval.txt"));
    ask("merge", &["-o", &kept, "--residual-rank", "1"]);
    ask("merge", &["-o", &lost, "--rounding", "nearest"]);
    ask("merge", &["-o", &path(&folder, "none"), "--fast", "--dry-run"]);
    ask("verify", &["--merged", &kept]);
    ask("compare", &["--merged", &kept, "--text", &text, "--context", "64", "--windows", "2", "--continuation", "2"]);
    ask("truncate", &["--rank", "1", "-o", &path(&folder, "cut")]);
    let (adapter, combined) = (path(&demo, "adapter"), path(&folder, "combined"));
    let drawn = ["--method", "dare_ties", "--density", "0.5"];
    let words = [&["combine", "--adapter", &adapter, "-o", &combined], &drawn[..]].concat();
    fields(
        &serde_json::from_str(&crate::call(words.iter().map(OsString::from), &Quiet).unwrap().json).unwrap(),
        &mut found,
    );
    let (base, tuned, both) = (path(&demo, "base-nf4"), path(&folder, "tuned"), path(&folder, "both"));
    for words in [
        &["merge", "--base", &base, "--adapter", &adapter, "--to", "bf16", "--fast", "-o", &tuned][..],
        &[
            "merge",
            "--base",
            &base,
            "--adapter",
            &adapter,
            "--lora-scale",
            "q_proj=0.5",
            "--tuned",
            &tuned,
            "--fast",
            "-o",
            &both,
        ],
        &["extract", "--base", &base, "--tuned", &tuned, "--rank", "2", "-o", &path(&folder, "extracted")],
        &["convert-adapter", &base, &adapter, "--rank", "2", "-o", &path(&folder, "converted")],
        &["unmerge", &tuned, &adapter, "-o", &path(&folder, "unmerged")],
    ] {
        let answer = crate::call(words.iter().map(OsString::from), &Quiet).unwrap();
        fields(&serde_json::from_str(&answer.json).unwrap(), &mut found);
    }
    std::fs::remove_dir_all(&folder).unwrap();

    let chapter = chapter("reference/report.md");
    let missing: Vec<&String> = found.iter().filter(|name| !chapter.contains(&format!("`{name}`"))).collect();
    assert!(missing.is_empty(), "not in the chapter: {missing:?}");
    // And nothing that no document has, but for fields of rarer merges.
    let rare = ["beside", "unused_tensors", "ignored", "without", "reason", "added", "left_out", "promoted"];
    let rows = chapter.lines().filter_map(|line| line.strip_prefix("| `")).map(|row| row.split(" |").next().unwrap());
    let unknown: Vec<&str> = rows
        .flat_map(|cell| cell.split(['`', ',', ' ']))
        .filter(|name| !name.is_empty() && !found.contains(*name) && !rare.contains(name))
        .collect();
    assert!(unknown.is_empty(), "in the chapter only: {unknown:?}");
}
