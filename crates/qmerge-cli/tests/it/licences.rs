//! Every dependency may be used under a licence that asks for no more than a notice.

use std::process::Command;

const ALLOWED: &[&str] = &[
    "MIT",
    "Apache-2.0",
    "Apache-2.0 WITH LLVM-exception",
    "BSD-2-Clause",
    "BSD-3-Clause",
    "ISC",
    "Zlib",
    "Unicode-3.0",
    "Unlicense",
    "0BSD",
    "CC0-1.0",
    "BSL-1.0",
    // Data: the list of root certificates.
    "CDLA-Permissive-2.0",
];

/// True if an SPDX expression can be met with allowed licences alone.
fn allowed(expression: &str) -> bool {
    let expression = expression.replace('/', " OR ");
    let group = expression.trim();
    if ALLOWED.contains(&group) {
        return true;
    }
    // Outermost OR, then AND, then brackets: enough for the expressions that occur.
    for (word, any) in [(" OR ", true), (" AND ", false)] {
        let parts = split(group, word);
        if parts.len() > 1 {
            let mut each = parts.into_iter().map(allowed);
            return if any { each.any(|ok| ok) } else { each.all(|ok| ok) };
        }
    }
    group.strip_prefix('(').and_then(|inner| inner.strip_suffix(')')).is_some_and(allowed)
}

/// Splits at a word outside brackets.
fn split<'a>(text: &'a str, word: &str) -> Vec<&'a str> {
    let (mut parts, mut depth, mut start) = (Vec::new(), 0, 0);
    for (at, byte) in text.bytes().enumerate() {
        depth += i32::from(byte == b'(') - i32::from(byte == b')');
        if depth == 0 && text[at..].starts_with(word) {
            parts.push(&text[start..at]);
            start = at + word.len();
        }
    }
    parts.push(&text[start..]);
    parts
}

#[test]
fn expressions_are_understood() {
    assert!(allowed("MIT OR GPL-3.0-only"));
    assert!(allowed("(MIT OR Apache-2.0) AND Unicode-3.0"));
    assert!(allowed("MIT/Apache-2.0"));
    assert!(!allowed("GPL-3.0-only"));
    assert!(!allowed("MIT AND LGPL-3.0-only"));
}

#[test]
fn dependencies_ask_for_a_notice_at_most() {
    // Packages of other platforms may not be on this machine.
    let version = Command::new("rustc").arg("-vV").output().unwrap();
    let version = String::from_utf8(version.stdout).unwrap();
    let host = version.lines().find_map(|line| line.strip_prefix("host: ")).unwrap();
    let output = Command::new(env!("CARGO"))
        .args(["metadata", "--format-version", "1", "--offline", "--filter-platform", host, "--manifest-path"])
        .arg(concat!(env!("CARGO_MANIFEST_DIR"), "/Cargo.toml"))
        .output()
        .unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let metadata: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
    let packages = metadata["packages"].as_array().unwrap();
    assert!(packages.len() > 20);
    let refused: Vec<String> = packages
        .iter()
        .filter(|package| !package["license"].as_str().is_some_and(allowed))
        .map(|package| format!("{}: {}", package["name"], package["license"]))
        .collect();
    assert!(refused.is_empty(), "{refused:#?}");
}
