//! Links lead somewhere, every chapter and image is shown, and tables have no empty columns.

use super::*;

#[test]
fn no_column_of_a_table_is_empty() {
    let mut empty = Vec::new();
    for path in files() {
        let text = read(&path).replace(r"\|", "");
        let mut table: Vec<Vec<&str>> = Vec::new();
        // A line more ends the last table.
        for (line, language) in lines(&text).into_iter().chain([("", None)]) {
            if language.is_none() && line.starts_with('|') {
                table.push(line.trim().trim_matches('|').split('|').map(str::trim).collect());
                continue;
            }
            for at in 0..table.first().map_or(0, Vec::len) {
                if table.iter().skip(2).all(|row| row.get(at).is_none_or(|cell| cell.is_empty())) {
                    empty.push(format!("{}: column {} of | {} |", path.display(), at + 1, table[0].join(" | ")));
                }
            }
            table.clear();
        }
    }
    assert!(empty.is_empty(), "{empty:#?}");
}

/// The anchor that a heading gets.
fn anchor(heading: &str) -> String {
    let kept = heading.trim().chars().filter(|c| c.is_alphanumeric() || matches!(c, ' ' | '-' | '_'));
    kept.map(|c| if c == ' ' { '-' } else { c }).collect::<String>().to_lowercase()
}

/// Targets of the links and images of a text, without code.
fn links(text: &str) -> Vec<String> {
    let mut found = Vec::new();
    for (line, language) in lines(text) {
        if language.is_some() {
            continue;
        }
        // Every second piece between backticks is code.
        let prose: String = line.split('`').step_by(2).collect();
        for piece in prose.split("](").skip(1) {
            found.extend(piece.split(')').next().map(str::to_owned));
        }
    }
    found
}

#[test]
fn links_lead_somewhere() {
    let mut broken = Vec::new();
    let mut count = 0;
    for path in files() {
        let text = read(&path);
        for link in links(&text) {
            if link.contains("://") || link.starts_with("mailto:") {
                continue;
            }
            count += 1;
            let (file, part) = link.split_once('#').map_or((link.as_str(), None), |(file, part)| (file, Some(part)));
            let target = if file.is_empty() { path.clone() } else { path.parent().unwrap().join(file) };
            let there = match part {
                _ if !target.exists() => false,
                None => true,
                Some(part) => lines(&read(&target))
                    .iter()
                    .filter(|(line, language)| language.is_none() && line.starts_with('#'))
                    .any(|(line, _)| anchor(line.trim_start_matches('#')) == part),
            };
            if !there {
                broken.push(format!("{}: {link}", path.display()));
            }
        }
    }
    assert!(broken.is_empty(), "{broken:#?}");
    assert!(count > 50, "{count} links were found");
}

#[test]
fn every_chapter_is_in_the_summary_and_every_image_is_used() {
    let source = root().join("docs/src");
    let summary = links(&chapter("SUMMARY.md"));
    let mut used = BTreeSet::new();
    for path in files() {
        let name = path.strip_prefix(&source).map(|name| name.to_string_lossy().into_owned());
        if let Ok(name) = name {
            assert!(name == "SUMMARY.md" || summary.contains(&name), "{name} is not in SUMMARY.md");
        }
        let near = path.parent().unwrap();
        used.extend(links(&read(&path)).iter().filter_map(|link| near.join(link).canonicalize().ok()));
    }
    for item in std::fs::read_dir(source.join("images")).unwrap() {
        let path = item.unwrap().path().canonicalize().unwrap();
        assert!(used.contains(&path), "no text shows {}", path.display());
    }
}
