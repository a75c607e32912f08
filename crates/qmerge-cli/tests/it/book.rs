//! What the book's reference shows of the program's output is what the program prints.

use std::path::{Path, PathBuf};

use crate::model::{Folder, run, stderr, stdout};

fn reference() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../docs/src/reference")
}

/// Fenced blocks that begin with a command: the command, and what it prints.
fn blocks(text: &str) -> Vec<(&str, Vec<&str>)> {
    let mut found: Vec<(&str, Vec<&str>)> = Vec::new();
    let mut inside = false;
    for line in text.lines() {
        match line.strip_prefix("$ ") {
            _ if line.starts_with("```") => inside = false,
            Some(command) => {
                found.push((command, Vec::new()));
                inside = true;
            }
            None if inside => found.last_mut().unwrap().1.push(line),
            None => {}
        }
    }
    found
}

#[test]
fn what_the_reference_shows_is_what_is_printed() {
    let folder = Folder::new();
    let output = run(folder.path(), &["demo"]);
    assert!(output.status.success(), "{}", stderr(&output));
    let mut commands = 0;
    for item in std::fs::read_dir(reference()).unwrap() {
        let path = item.unwrap().path();
        let text = std::fs::read_to_string(&path).unwrap();
        for (command, shown) in blocks(&text) {
            let printed = match command.strip_prefix("qmerge ") {
                Some(words) => stdout(&run(folder.path(), &words.split(' ').collect::<Vec<_>>())),
                None => {
                    // Python's view of a weight's report.
                    assert!(
                        command.contains("qmerge-demo/merged-nf4/qmerge-report.json'))['weights'][0]"),
                        "{command}"
                    );
                    let report = std::fs::read(folder.join("qmerge-demo/merged-nf4/qmerge-report.json")).unwrap();
                    let report: serde_json::Value = serde_json::from_slice(&report).unwrap();
                    serde_json::to_string_pretty(&report["weights"][0]).unwrap().replace("  ", " ")
                }
            };
            let wrong: Vec<_> =
                shown.iter().filter(|line| **line != "…" && !printed.lines().any(|l| l == **line)).collect();
            assert!(wrong.is_empty(), "{}: `{command}` does not print {wrong:#?}, but\n{printed}", path.display());
            commands += 1;
        }
    }
    assert!(commands >= 2, "{commands} commands were found");
}
