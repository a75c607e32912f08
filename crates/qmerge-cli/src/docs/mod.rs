//! What the README and the book say, held against the program: command lines, options, fields of documents, links.

mod commands;
mod fields;
mod links;
mod registries;

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../..")
}

/// Paths of the Markdown files at the top and in the book.
fn files() -> Vec<PathBuf> {
    fn collect(folder: &Path, deep: bool, found: &mut Vec<PathBuf>) {
        for item in std::fs::read_dir(folder).unwrap() {
            let path = item.unwrap().path();
            if path.is_dir() && deep {
                collect(&path, deep, found);
            } else if path.extension().is_some_and(|ext| ext == "md") {
                found.push(path);
            }
        }
    }
    let mut found = Vec::new();
    collect(&root(), false, &mut found);
    collect(&root().join("docs/src"), true, &mut found);
    found.sort();
    found
}

fn read(path: &Path) -> String {
    std::fs::read_to_string(path).unwrap()
}

fn chapter(name: &str) -> String {
    read(&root().join("docs/src").join(name))
}

/// Lines with whether each stands in a fenced block, and the block's language. Fences themselves are left out.
fn lines(text: &str) -> Vec<(&str, Option<&str>)> {
    let mut inside = None;
    let mut found = Vec::new();
    for line in text.lines() {
        if let Some(language) = line.trim_start().strip_prefix("```") {
            inside = if inside.is_some() { None } else { Some(language.trim()) };
        } else {
            found.push((line, inside));
        }
    }
    found
}

/// The part of a text from `## name` to the next heading of that rank.
fn section<'t>(text: &'t str, name: &str) -> &'t str {
    let heading = format!("\n## {name}\n");
    let start = text.find(&heading).unwrap_or_else(|| panic!("no section `{name}`")) + heading.len();
    text[start..].split("\n## ").next().unwrap()
}

/// True if the text has the word by itself, not as a part of a longer name.
fn names(text: &str, word: &str) -> bool {
    let within = |c: char| c.is_alphanumeric() || c == '-' || c == '_';
    text.match_indices(word)
        .any(|(at, _)| !text[..at].ends_with(within) && !text[at + word.len()..].starts_with(within))
}

/// Names in the first column of the table whose heading begins so.
fn first_column(text: &str, heading: &str) -> BTreeSet<String> {
    let rows =
        text.lines().skip_while(|line| !line.starts_with(heading)).skip(2).take_while(|line| line.starts_with('|'));
    let cells = rows.map(|row| row.trim_start_matches('|').split(" |").next().unwrap());
    cells.flat_map(code).map(str::to_owned).collect()
}

/// What a text has between backticks.
fn code(text: &str) -> impl Iterator<Item = &str> {
    text.split('`').skip(1).step_by(2)
}

/// The sources of a file or a folder below the crates, as one text.
fn sources(path: &str) -> String {
    let path = root().join("crates").join(path);
    if path.is_file() {
        return read(&path);
    }
    std::fs::read_dir(&path).unwrap().map(|item| read(&item.unwrap().path())).collect()
}

/// What an expression's first group finds in a text.
fn all<'t>(text: &'t str, expression: &str) -> Vec<&'t str> {
    let expression = regex::Regex::new(expression).unwrap();
    expression.captures_iter(text).map(|found| found.get(1).unwrap().as_str()).collect()
}
