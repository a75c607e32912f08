//! What a person reads: tables on standard output, errors on standard error. Colour only on a terminal, and never with NO_COLOR.
//!
//! `lines` breaks sentences and `table` fits tables to the terminal; every other file shows what one command found.

mod combine;
mod compare;
mod conversion;
mod extract;
mod figures;
mod inspect;
mod lines;
mod merge;
mod names;
mod parts;
mod plan;
mod table;
mod truncate;
mod verify;

use std::sync::atomic::{AtomicBool, Ordering};

use anstyle::{AnsiColor, Style};

use crate::args::Color;

pub(crate) use combine::combination;
pub(crate) use compare::comparison;
pub(crate) use conversion::conversion;
pub(crate) use extract::extraction;
pub(crate) use figures::{bytes, counted};
pub(crate) use inspect::inspection;
pub(crate) use lines::{say, take_spaced};
pub(crate) use merge::report;
pub(crate) use parts::{part, parts};
pub(crate) use plan::plan;
pub(crate) use truncate::truncation;
pub(crate) use verify::verification;

/// Whether tables show every row.
static VERBOSE: AtomicBool = AtomicBool::new(false);

/// Takes the choices that go for all of what is printed.
pub(crate) fn choose(color: Color, verbose: bool) {
    VERBOSE.store(verbose, Ordering::Relaxed);
    match color {
        Color::Auto => {}
        Color::Always => anstream::ColorChoice::Always.write_global(),
        Color::Never => anstream::ColorChoice::Never.write_global(),
    }
}

/// Rows of a table that are shown, of so many that usually are.
fn rows(usually: usize) -> usize {
    if VERBOSE.load(Ordering::Relaxed) { usize::MAX } else { usually }
}

/// What stands for the rows that are not shown.
fn more_rows(all: usize, usually: usize) -> Option<String> {
    let left = all.saturating_sub(rows(usually));
    (left > 0).then(|| format!("… and {left} more (--verbose shows all)"))
}

/// Rows of a table of the worst.
const WORST: usize = 6;

const BOLD: Style = Style::new().bold();
const DIM: Style = Style::new().dimmed();

fn colour(colour: AnsiColor) -> Style {
    Style::new().fg_color(Some(colour.into())).bold()
}

/// One JSON document on standard output.
pub(crate) fn json(value: &impl serde::Serialize) -> anyhow::Result<()> {
    anstream::println!("{}", serde_json::to_string_pretty(value)?);
    Ok(())
}

/// `error: …`, then `hint: …`.
pub(crate) fn error(error: &anyhow::Error) {
    let red = colour(AnsiColor::Red);
    let Some(known) = error.downcast_ref::<qmerge::error::Error>() else {
        return lines::tell(&format!("{red}error{red:#}: {error:#}"));
    };
    // Its text holds the cause already.
    lines::tell(&format!("{red}error{red:#}: {known}"));
    if let Some(hint) = known.hint() {
        let cyan = colour(AnsiColor::Cyan);
        lines::tell(&format!("{cyan}hint{cyan:#}: {hint}"));
    }
}

/// What is wrong with a command line, or the help that was asked for. Help is in lines already, where it fits the terminal.
pub(crate) fn wrong_words(error: &clap::Error) {
    if error.use_stderr() {
        lines::tell(error.render().ansi().to_string().trim_end());
    } else {
        // Nothing is left to do where not even this can be written.
        let _ = error.print();
    }
}

/// A line on standard error.
pub(crate) fn warning(text: &str) {
    let yellow = colour(AnsiColor::Yellow);
    lines::tell(&format!("{yellow}warning{yellow:#}: {text}"));
}

/// A remark on standard error.
pub(crate) fn note(text: &str) {
    lines::tell(&format!("{DIM}{text}{DIM:#}"));
}

/// A command to go on with. It stands on its line whole, so that it can be copied.
pub(crate) fn next(command: &str) {
    say(&format!("{BOLD}next{BOLD:#}: {}", lines::unbroken(command)));
}

/// Another, with what has to be there for it.
pub(crate) fn then(what: &str, command: &str) {
    say(&format!("{DIM}{what}:{DIM:#} {}", lines::unbroken(command)));
}

/// Where a report was written that was asked for.
pub(crate) fn written(path: Option<&std::path::Path>) {
    if let Some(path) = path {
        note(&format!("the report is in {}", path.display()));
    }
}

fn effect_style(effect: &str) -> Style {
    match effect {
        "kept" | "converted" => colour(AnsiColor::Green),
        "lost" | "none" | "broken" => colour(AnsiColor::Red),
        _ => colour(AnsiColor::Yellow),
    }
}
