//! Command lines that a person can run as they stand.

use crate::adapters::ReadOptions;
use crate::edit::Joining;

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

/// What a merge is made of and how it is read, as options of any command that takes a base and adapters with their weights. An adapter may be a tuned model.
pub fn source_words(
    base: String,
    adapters: impl IntoIterator<Item = (bool, String, f64)>,
    maps: &[String],
    allow_unused: bool,
    read: &ReadOptions,
) -> Vec<String> {
    let mut words = vec!["--base".to_owned(), base];
    let mut has_tuned = false;
    for (is_tuned, adapter, weight) in adapters {
        has_tuned |= is_tuned;
        let factor = if weight == 1.0 { String::new() } else { format!("={weight}") };
        words.extend([if is_tuned { "--tuned" } else { "--adapter" }.into(), adapter + &factor]);
    }
    let Joining { operator, density, majority, seed } = read.joining;
    if has_tuned && operator != Joining::default().operator {
        words.extend(["--tuned-method".into(), operator.id().into()]);
        words.extend(density.into_iter().flat_map(|density| ["--density".into(), density.to_string()]));
        if operator.votes() && majority != Joining::default().majority {
            words.extend(["--majority-sign".into(), majority.id().into()]);
        }
        if operator.draws() && seed != 0 {
            words.extend(["--tuned-seed".into(), seed.to_string()]);
        }
    }
    for rule in read.scales.rules() {
        words.extend(["--lora-scale".into(), rule.to_owned()]);
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
