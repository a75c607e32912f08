//! What is said of the project in several places is said alike: where it lives, and its version.

use std::path::{Path, PathBuf};

use regex::Regex;

/// Hosts that show a package under its own name, whoever owns the repository.
const REGISTRIES: &[&str] = &["crates.io", "docs.rs", "pypi.org"];

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../..")
}

fn read(name: &str) -> String {
    std::fs::read_to_string(root().join(name)).unwrap()
}

/// A value of `[workspace.package]`.
fn package(key: &str) -> String {
    let manifest = read("Cargo.toml");
    let table = manifest.split("[workspace.package]").nth(1).unwrap().split("\n[").next().unwrap();
    let line = table.lines().find(|line| line.starts_with(&format!("{key} = "))).unwrap();
    line.split('"').nth(1).unwrap().to_owned()
}

/// Texts that people or tools read: everything but code, data and what a build leaves.
fn texts(folder: &Path, found: &mut Vec<PathBuf>) {
    const SKIPPED: &[&str] = &[".git", "target", "testdata", "vendor", "node_modules", "snapshots"];
    const ENDINGS: &[&str] = &["md", "toml", "yml", "cff", "rb", "sh"];
    for item in std::fs::read_dir(folder).unwrap() {
        let path = item.unwrap().path();
        let name = path.file_name().unwrap().to_str().unwrap();
        if path.is_dir() {
            if !SKIPPED.contains(&name) {
                texts(&path, found);
            }
        } else if name == "Dockerfile" || ENDINGS.iter().any(|ending| name.ends_with(&format!(".{ending}"))) {
            found.push(path);
        }
    }
}

/// Addresses in a text that name the project and are neither its own nor a registry's.
fn foreign(text: &str, own: &str) -> Vec<String> {
    let address = Regex::new(r#"https?://([^\s/"'<>)`]+)[^\s"'<>)`]*"#).unwrap();
    address
        .captures_iter(text)
        .filter(|found| found[0].contains("qmerge"))
        .filter(|found| !REGISTRIES.contains(&&found[1]))
        .map(|found| found[0].to_owned())
        .filter(|url| url.strip_prefix(own).is_none_or(|rest| !(rest.is_empty() || rest.starts_with(['/', '.', ',']))))
        .collect()
}

#[test]
fn addresses_that_are_not_the_projects_are_found() {
    let own = "https://code.test/us/qmerge";
    let text = "[a](https://code.test/us/qmerge/issues), https://code.test/us/qmerge. https://crates.io/crates/qmerge <https://code.test/x>";
    assert!(foreign(text, own).is_empty(), "{:?}", foreign(text, own));
    let text = r#"url = "https://code.test/them/qmerge" https://qmerge.test/x https://code.test/us/qmerge2"#;
    assert_eq!(
        foreign(text, own),
        ["https://code.test/them/qmerge", "https://qmerge.test/x", "https://code.test/us/qmerge2"]
    );
}

#[test]
fn one_line_says_where_the_project_lives() {
    let own = package("repository");
    let mut paths = Vec::new();
    texts(&root(), &mut paths);
    assert!(paths.len() > 40, "{} texts were found", paths.len());
    let wrong: Vec<String> = paths
        .iter()
        .flat_map(|path| {
            let text = std::fs::read_to_string(path).unwrap();
            foreign(&text, &own).into_iter().map(move |url| format!("{}: {url}", path.display()))
        })
        .collect();
    assert!(wrong.is_empty(), "Cargo.toml says that the project lives at {own}\n{}", wrong.join("\n"));
}

#[test]
fn versions_agree() {
    let version = package("version");
    let manifest = read("Cargo.toml");
    let own = manifest.lines().filter(|line| line.starts_with("qmerge")).collect::<Vec<_>>();
    assert_eq!(own.len(), 4, "{own:?}");
    assert!(own.iter().all(|line| line.contains(&format!("version = \"{version}\""))), "{version}: {own:?}");
    assert!(read("CITATION.cff").lines().any(|line| line == format!("version: {version}")), "CITATION.cff: {version}");
}
