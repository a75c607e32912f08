//! Lines that fit a terminal. They break between words, and never inside a path, a command or a number with its unit.
//!
//! Where there is no terminal and no `QMERGE_WIDTH`, in a pipe or a file, nothing is broken, cut or left out: what reads it next may be a program.

use std::io::IsTerminal;
use std::sync::OnceLock;

use terminal_size::{Width, terminal_size_of};
use unicode_width::UnicodeWidthStr;

/// Where lines go.
#[derive(Clone, Copy)]
pub(super) enum Stream {
    Out,
    Err,
}

/// Narrower terminals are taken to be this wide.
const NARROWEST: usize = 40;
/// Where a broken line goes on.
const INDENT: usize = 2;
/// Stands for a space that no line is broken at.
const UNBROKEN: char = '\u{e000}';

/// Words of the command line that have spaces in them, as paths may.
static SPACED: OnceLock<Vec<String>> = OnceLock::new();

/// Takes the command line, so that its words stay whole in what is printed.
pub(crate) fn take_spaced<'w>(words: impl Iterator<Item = &'w str>) {
    let parts = words.flat_map(|word| word.split('=')).filter(|part| part.contains(' '));
    // It is called once.
    let _ = SPACED.set(parts.map(str::to_owned).collect());
}

/// Columns of what a stream goes to: as many as `QMERGE_WIDTH` says, wherever it goes; else, on a terminal alone, as many as `COLUMNS` says or it has. Programs
/// that read what is printed may have `COLUMNS` in their environment without knowing: Python's readline puts it there.
pub(super) fn width(stream: Stream) -> Option<usize> {
    let given = |name| std::env::var(name).ok().and_then(|text| text.trim().parse().ok()).filter(|width| *width > 0);
    let (is_terminal, size) = match stream {
        Stream::Out => (std::io::stdout().is_terminal(), terminal_size_of(std::io::stdout())),
        Stream::Err => (std::io::stderr().is_terminal(), terminal_size_of(std::io::stderr())),
    };
    let terminal = || given("COLUMNS").or_else(|| size.map(|(Width(columns), _)| usize::from(columns)));
    given("QMERGE_WIDTH").or_else(|| is_terminal.then(terminal)?).map(|width| width.max(NARROWEST))
}

/// A sentence on standard output.
pub(crate) fn say(text: &str) {
    anstream::println!("{}", wrapped(text, width(Stream::Out)));
}

/// A sentence on standard error.
pub(crate) fn tell(text: &str) {
    anstream::eprintln!("{}", wrapped(text, width(Stream::Err)));
}

/// A text that no line is broken in.
pub(super) fn unbroken(text: &str) -> String {
    text.replace(' ', &UNBROKEN.to_string())
}

/// The columns that a text takes on a terminal, where colours take none.
pub(super) fn columns(text: &str) -> usize {
    let mut parts = text.split('\u{1b}');
    let plain = parts.next().map_or(0, UnicodeWidthStr::width);
    plain + parts.map(|part| part.split_once('m').map_or(0, |(_, behind)| behind.width())).sum::<usize>()
}

/// The text in lines of that width.
pub(super) fn wrapped(text: &str, width: Option<usize>) -> String {
    let text =
        SPACED.get().into_iter().flatten().fold(text.to_owned(), |text, part| text.replace(part, &unbroken(part)));
    let lines: Vec<String> = text.split('\n').map(|line| wrapped_line(line, width)).collect();
    lines.join("\n").replace(UNBROKEN, " ")
}

fn wrapped_line(line: &str, width: Option<usize>) -> String {
    let Some(width) = width.filter(|width| columns(line) > *width) else { return line.to_owned() };
    let mut text = String::new();
    let (mut used, mut words) = (0, 0);
    for word in words_of(line) {
        let wide = columns(&word);
        // What fits no line stays behind its label.
        let fits = used + 1 + wide <= width || (words == 1 && INDENT + wide > width);
        if words == 0 || fits {
            text += if words == 0 { "" } else { " " };
            used += wide + usize::from(words > 0);
            words += 1;
        } else {
            text += "\n";
            text += &" ".repeat(INDENT);
            (used, words) = (INDENT + wide, 1);
        }
        text += &word;
    }
    text
}

/// What may stand on a line of its own.
fn words_of(line: &str) -> Vec<String> {
    let mut words: Vec<String> = Vec::new();
    let is_paired = line.matches('`').count().is_multiple_of(2);
    let mut is_code = false;
    for word in line.split(' ') {
        match words.last_mut() {
            Some(last) if is_code || last.trim().is_empty() || belongs(last, word) => {
                last.push(' ');
                last.push_str(word);
            }
            _ => words.push(word.to_owned()),
        }
        is_code ^= is_paired && !word.matches('`').count().is_multiple_of(2);
    }
    words
}

/// True of a number's unit, and of what stands around a sign.
fn belongs(before: &str, word: &str) -> bool {
    const UNITS: [&str; 13] = ["%", "kB", "MB", "GB", "MiB", "ms", "s", "min", "h", "k", "M", "G", "×"];
    let last = before.rsplit(' ').next().unwrap_or(before);
    let is_number = last.ends_with(|c: char| c.is_ascii_digit()) && !last.contains('/');
    let unit = word.trim_end_matches([',', ';', '.', ':', ')']);
    ["±", "×"].contains(&last) || unit == "±" || is_number && UNITS.contains(&unit)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_break_between_words() {
        let text = "the adapter's effect is kept: 96.2 ± 1.3 % of it is left";
        assert_eq!(
            wrapped(text, Some(40)),
            "the adapter's effect is kept:\n  96.2 ± 1.3 % of it is left",
            "a number is whole"
        );
        assert_eq!(wrapped(text, None), text);
        assert_eq!(wrapped(text, Some(80)), text);
        let command = "to compare, run `qmerge compare --merged a --text b` on it";
        assert_eq!(
            wrapped(command, Some(40)),
            "to compare, run\n  `qmerge compare --merged a --text b` on\n  it".replace(" on\n  it", "\n  on it")
        );
        // An apostrophe of code that is not closed holds nothing together.
        assert!(wrapped("a ` b and words and words and words and more words", Some(40)).contains('\n'));
    }

    #[test]
    fn what_fits_nowhere_stays_whole() {
        let path = format!("/{}", "long/".repeat(20));
        assert_eq!(wrapped(&format!("error: {path} is not there"), Some(40)), format!("error: {path}\n  is not there"));
        let command = unbroken("qmerge compare --base base --adapter adapter --merged merged");
        assert_eq!(wrapped(&format!("next: {command}"), Some(40)), format!("next: {}", command.replace(UNBROKEN, " ")));
    }

    #[test]
    fn colours_take_no_room() {
        let bold = anstyle::Style::new().bold();
        assert_eq!(columns(&format!("{bold}merged{bold:#} → x")), 10);
        let text = format!("{bold}warning{bold:#}: these are words in a row");
        assert_eq!(wrapped(&text, Some(40)), text);
    }
}
