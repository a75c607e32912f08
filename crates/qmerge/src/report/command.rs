//! Command lines that a person can run as they stand.

use crate::adapters::ReadOptions;

/// A word as a POSIX shell reads it back.
pub fn quoted(word: &str) -> String {
    let safe = |c: char| c.is_ascii_alphanumeric() || "-_./@=+:,%".contains(c);
    if !word.is_empty() && word.chars().all(safe) {
        word.to_owned()
    } else {
        format!("'{}'", word.replace('\'', r"'\''"))
    }
}

/// Words as one line that a POSIX shell takes apart again.
pub fn command_line(words: impl IntoIterator<Item = impl AsRef<str>>) -> String {
    words.into_iter().map(|word| quoted(word.as_ref())).collect::<Vec<_>>().join(" ")
}

/// What a merge is made of and how it is read, as options of any command that takes a base and adapters with their weights.
pub fn source_words(
    base: String,
    adapters: impl IntoIterator<Item = (String, f64)>,
    maps: &[String],
    allow_unused: bool,
    read: &ReadOptions,
) -> Vec<String> {
    let mut words = vec!["--base".to_owned(), base];
    for (adapter, weight) in adapters {
        let factor = if weight == 1.0 { String::new() } else { format!("={weight}") };
        words.extend(["--adapter".into(), adapter + &factor]);
    }
    for map in maps {
        words.extend(["--map".into(), map.clone()]);
    }
    let flags = [
        ("--allow-unused", allow_unused),
        ("--base-is-residual", read.base_is_residual),
        ("--peft-bugs", read.peft_bugs),
    ];
    words.extend(flags.into_iter().filter(|(_, set)| *set).map(|(flag, _)| flag.to_owned()));
    words
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_are_quoted_where_a_shell_needs_it() {
        assert_eq!(quoted("org/name@main=0.5"), "org/name@main=0.5");
        assert_eq!(quoted("a b"), "'a b'");
        assert_eq!(quoted("it's"), r"'it'\''s'");
        assert_eq!(quoted(""), "''");
    }
}
