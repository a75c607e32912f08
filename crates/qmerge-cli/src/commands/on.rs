//! `qmerge merge --on CLUSTER`: the Python package has the machines of a Ray cluster do the parts. The program has no Python of its own, so it starts one.

use std::ffi::OsString;
use std::process::{Command, Stdio};

use qmerge::error::{Error, Kind, Result};

/// Names the interpreter in which the package is installed.
const PYTHON: &str = "QMERGE_PYTHON";
/// The module that does it, and what it exits with where Ray is missing.
const MODULE: &str = "qmerge._on";
const NO_RAY: i32 = 9;

/// Has a merge done by a cluster. `words` are those of the command line, the program and the command among them. Returns the exit status; what is to be read is
/// printed.
pub(crate) fn run(cluster: &str, words: &[OsString]) -> Result<u8> {
    let python = std::env::var_os(PYTHON).unwrap_or_else(|| OsString::from("python3"));
    let missing = |problem: String| {
        Error::new(Kind::Missing, problem).with_hint(format!(
            "in a checkout of this version: pip install \"./bindings/python[ray]\"; and name the Python in {PYTHON} if it is not the first python3 of the path"
        ))
    };
    // Said before Ray's own lines, and without them.
    let is_there = Command::new(&python)
        .args(["-c", "import importlib.util as i, sys; sys.exit(not i.find_spec('qmerge'))"])
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .status();
    let shown = python.to_string_lossy().into_owned();
    match is_there {
        Ok(status) if status.success() => {}
        Ok(_) => return Err(missing(format!("--on needs the Python package qmerge, which {shown} does not have"))),
        Err(error) => return Err(missing(format!("--on needs Python, and {shown} cannot be started: {error}"))),
    }
    let mut command = Command::new(&python);
    command.args(["-m", MODULE, "--on", cluster, "--version", env!("CARGO_PKG_VERSION"), "--"]).args(without(words));
    // Ctrl-C reaches both; this one waits for what the other says.
    let _ = ctrlc::try_set_handler(|| ());
    let status = command.status().map_err(|error| missing(format!("{shown} cannot be started: {error}")))?;
    match status.code() {
        Some(NO_RAY) => Err(missing(format!("--on needs Ray, which {shown} does not have"))),
        Some(code) => Ok(u8::try_from(code).unwrap_or(2)),
        // As a shell counts signals.
        None => Ok(crate::interrupt::STATUS),
    }
}

/// The words behind the command, without `--on` and its value.
fn without(words: &[OsString]) -> Vec<OsString> {
    let mut kept = Vec::new();
    let mut words = words.iter().skip(1);
    let mut is_command = true;
    while let Some(word) = words.next() {
        match word.to_str() {
            Some("merge" | "fuse") if is_command => is_command = false,
            Some("--on") => drop(words.next()),
            Some(text) if text.starts_with("--on=") => {}
            // Behind it there are no options.
            Some("--") => {
                kept.push(word.clone());
                kept.extend(words.by_ref().cloned());
            }
            _ => kept.push(word.clone()),
        }
    }
    kept
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_option_is_taken_out() {
        let words = |text: &str| text.split(' ').map(OsString::from).collect::<Vec<_>>();
        for (given, kept) in [
            ("qmerge merge --on ray a b -o c", "a b -o c"),
            ("qmerge --color never merge a b -o c --on=ray://h:1 --fast", "--color never a b -o c --fast"),
            ("qmerge fuse --on ray -o merge -- a merge", "-o merge -- a merge"),
        ] {
            assert_eq!(without(&words(given)), words(kept));
        }
    }
}
