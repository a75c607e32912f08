//! What README and book show of the program's output is what the program prints.

use std::path::{Path, PathBuf};

use crate::model::{Folder, run, stderr, stdout};

/// README, the first merge and the chapters of the reference.
fn texts() -> Vec<PathBuf> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("../..");
    let chapters = std::fs::read_dir(root.join("docs/src/reference")).unwrap().map(|item| item.unwrap().path());
    chapters.chain([root.join("README.md"), root.join("docs/src/first-merge.md")]).collect()
}

/// Fenced blocks that begin with a command: the command, and what it prints.
fn blocks(text: &str) -> Vec<(String, Vec<&str>)> {
    let mut found: Vec<(String, Vec<&str>)> = Vec::new();
    let mut inside = false;
    for line in text.replace("\\\n", "").leak().lines() {
        match line.strip_prefix("$ ") {
            _ if line.starts_with("```") => inside = false,
            Some(command) => {
                found.push((command.to_owned(), Vec::new()));
                inside = true;
            }
            None if inside => found.last_mut().unwrap().1.push(line),
            None => {}
        }
    }
    found
}

/// A line without what differs from run to run: seconds and memory.
fn steady(line: &str) -> String {
    match line.split_once(" written in ") {
        Some((before, after)) if after.ends_with(" of memory") => format!("{before} written"),
        _ => line.trim_end().to_owned(),
    }
}

#[test]
fn what_the_texts_show_is_what_is_printed() {
    let folder = Folder::new();
    let output = run(folder.path(), &["demo"]);
    assert!(output.status.success(), "{}", stderr(&output));
    let mut commands = 0;
    for path in texts() {
        let text = std::fs::read_to_string(&path).unwrap();
        for (command, shown) in blocks(&text) {
            let words: Vec<&str> = command.split_whitespace().collect();
            let printed = match words[..] {
                ["qmerge", ref words @ ..] => {
                    // What the text writes is there from before.
                    if let Some(at) = words.iter().position(|word| *word == "-o") {
                        let _ = std::fs::remove_dir_all(folder.join(words[at + 1]));
                    }
                    let output = run(folder.path(), words);
                    assert!(output.status.code() < Some(2), "{command}: {}", stderr(&output));
                    stdout(&output)
                }
                // How to build and to test.
                ["cargo", ..] => continue,
                _ => {
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
            let printed: Vec<String> = printed.lines().map(steady).collect();
            let wrong: Vec<_> = shown.iter().filter(|line| **line != "…" && !printed.contains(&steady(line))).collect();
            let all = printed.join("\n");
            assert!(wrong.is_empty(), "{}: `{command}` does not print {wrong:#?}, but\n{all}", path.display());
            commands += 1;
        }
    }
    assert!(commands >= 8, "{commands} commands were found");
}
