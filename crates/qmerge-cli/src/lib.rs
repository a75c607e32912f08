//! The program `qmerge` as a library: [`run`] is the program itself, [`call`] is for what carries it along, as the Python wheel does.

mod args;
mod commands;
#[cfg(test)]
mod docs;
mod hub;
mod interrupt;
mod page;
mod progress;
mod show;
mod sources;

use std::ffi::OsString;
use std::path::Path;

use qmerge::error::{Error, Kind, Result};
use qmerge::plan::Inputs;
use qmerge::progress::Progress;
use qmerge::report::command_line;
use serde::Serialize;

use args::{Cli, Command, MergeArgs};
use commands::merge::Way;

/// What a command came to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Outcome {
    /// Everything asked for was done.
    Done,
    /// Done, but a check or a threshold failed.
    Failed,
    /// It could not be decided.
    Undecided,
}

impl Outcome {
    fn status(self) -> u8 {
        match self {
            Self::Done => 0,
            Self::Failed => 1,
            Self::Undecided => 4,
        }
    }
}

/// Runs a command line, the program's name first, and returns its exit status.
pub fn run(args: impl IntoIterator<Item = OsString>) -> u8 {
    interrupt::outlive_large_files();
    let args: Vec<OsString> = args.into_iter().collect();
    show::take_spaced(args.iter().skip(1).filter_map(|word| word.to_str()));
    let line = line(&args);
    let mut command = match Cli::read(args.clone()) {
        Ok(cli) => {
            show::choose(cli.color, cli.verbose);
            cli.command
        }
        Err(error) => {
            show::wrong_words(&error);
            return error.exit_code() as u8;
        }
    };
    if let Some(cluster) = command.cluster() {
        return commands::on::run(cluster, &args).unwrap_or_else(|error| {
            let error = error.into();
            show::error(&error);
            exit_status(&error)
        });
    }
    let result = match provide(&mut command).and_then(|()| command.scratch()) {
        Ok(_scratch) => {
            interrupt::watch(&command);
            dispatch(command, &line)
        }
        Err(error) => Err(error.into()),
    };
    match result {
        Ok(outcome) => outcome.status(),
        Err(error) => {
            show::error(&error);
            exit_status(&error)
        }
    }
}

/// Downloads what is missing, behind a bar of its own.
fn provide(command: &mut Command) -> Result<()> {
    let quiet = hub::quiet(command);
    let bar = progress::Bar::new(quiet);
    let remarks = hub::provide(command, &bar);
    bar.clear();
    remarks?.iter().filter(|_| !quiet).for_each(|remark| show::note(remark));
    Ok(())
}

/// A command line as a POSIX shell reads it.
fn line(args: &[OsString]) -> String {
    // What is secret in an address is nobody's who reads the report.
    let words = args.iter().skip(1).map(|word| qmerge_store::redacted_word(&word.to_string_lossy()));
    command_line(std::iter::once("qmerge".to_owned()).chain(words))
}

fn dispatch(command: Command, line: &str) -> anyhow::Result<Outcome> {
    match command {
        Command::Merge(args) => commands::merge::run(&args, Way::of(&args), line),
        Command::Finish(args) => commands::merge::run(&args, Way::Finish, line),
        Command::Plan(args) => commands::merge::run(&args.merge, Way::Plan(args.parts), line),
        Command::Inspect(args) => commands::inspect::run(&args),
        Command::Convert(args) => commands::convert::run(&args, line),
        Command::Verify(args) => commands::verify::run(&args),
        Command::Report(args) => commands::report::run(&args),
        Command::Compare(args) => commands::compare::run(&args),
        Command::Calibrate(args) => commands::calibrate::run(&args),
        Command::Truncate(args) => commands::truncate::run(&args),
        Command::Combine(args) => commands::combine::run(&args),
        Command::Extract(args) => commands::extract::run(&args),
        Command::ConvertAdapter(args) => commands::convert_adapter::run(&args),
        Command::Unmerge(args) => commands::unmerge::run(&args, line),
        Command::Generate(args) => commands::generate::run(&args),
        Command::Demo(args) => commands::demo::run(&args),
        Command::Completions(args) => commands::shell::completions(&args),
        Command::Man(args) => commands::shell::man(&args),
    }
}

/// 3 if reading or writing failed, that of a shell after Ctrl-C, else 2.
fn exit_status(error: &anyhow::Error) -> u8 {
    match error.downcast_ref::<Error>().map(Error::kind) {
        Some(Kind::Io | Kind::Busy) => 3,
        Some(Kind::Cancelled) => interrupt::STATUS,
        None if error.is::<std::io::Error>() => 3,
        _ => 2,
    }
}

/// What [`call`] returns.
#[derive(Clone, Debug)]
pub struct Answer {
    /// The exit status that the program would have: 0, 1 or 4.
    pub status: u8,
    /// The document that the program would print with `--json`.
    pub json: String,
}

/// Does what a command line says without printing anything. `args` starts with the command, without the program's name.
pub fn call(args: impl IntoIterator<Item = OsString>, progress: &dyn Progress) -> Result<Answer> {
    let args: Vec<OsString> = std::iter::once(OsString::from("qmerge")).chain(args).collect();
    let line = line(&args);
    let mut command = Cli::read(args).map_err(|error| wrong_use(&error))?.command;
    if command.cluster().is_some() {
        return Err(Error::new(Kind::Usage, "--on is for a terminal").with_hint("call qmerge.ray.merge"));
    }
    hub::provide(&mut command, &hub::Beside(progress))?;
    let _scratch = command.scratch()?;
    let merge = |args: &MergeArgs, way: Way| {
        let found = commands::merge::find(args, way, &line, progress, &|_| ())?;
        answer(&found, commands::merge::outcome(args, &found))
    };
    match command {
        Command::Merge(args) => merge(&args, Way::of(&args)),
        Command::Finish(args) => merge(&args, Way::Finish),
        Command::Plan(args) => merge(&args.merge, Way::Plan(args.parts)),
        Command::Inspect(args) => answer(&qmerge::inspect::inspect(&args.path)?, Outcome::Done),
        Command::Convert(args) => answer(&commands::convert::find(&args, &line, progress, &|_| ())?, Outcome::Done),
        Command::Verify(args) => {
            let found = commands::verify::find(&args, progress)?;
            answer(&found, commands::verify::outcome(&found))
        }
        Command::Compare(args) => answer(&commands::compare::find(&args, progress)?, Outcome::Done),
        Command::Calibrate(args) => answer(&commands::calibrate::find(&args, progress)?, Outcome::Done),
        Command::Truncate(args) => answer(&commands::truncate::find(&args, progress)?, Outcome::Done),
        Command::Combine(args) => answer(&commands::combine::find(&args, progress)?, Outcome::Done),
        Command::Extract(args) => answer(&commands::extract::find(&args, progress)?, Outcome::Done),
        Command::ConvertAdapter(args) => answer(&commands::convert_adapter::find(&args, progress)?, Outcome::Done),
        Command::Unmerge(args) => answer(&commands::unmerge::find(&args, &line, progress, &|_| ())?, Outcome::Done),
        Command::Generate(args) => answer(&commands::generate::find(&args, progress, &mut |_| Ok(()))?, Outcome::Done),
        Command::Report(args) => {
            commands::report::write(&args)?;
            answer(&args.output.display().to_string(), Outcome::Done)
        }
        Command::Demo(_) | Command::Completions(_) | Command::Man(_) => {
            Err(Error::new(Kind::Usage, "this command is for a terminal").with_hint("run the program qmerge"))
        }
    }
}

/// Why a base cannot be run here, so that nothing is known of what its layers are given; `None` if it can.
pub fn why_not_run(base: &Path) -> Result<Option<String>> {
    let inputs = Inputs::new(qmerge_store::checkpoint(base)?, Vec::new())?;
    Ok(commands::rounding::weights(&inputs).err())
}

/// The page of a merge's report, of a comparison, or of both, from their JSON.
pub fn page(report: Option<&str>, comparison: Option<&str>) -> Result<String> {
    let parse = |text: &str| {
        serde_json::from_str(text).map_err(|error| Error::new(Kind::Malformed, format!("not JSON: {error}")))
    };
    let (report, comparison) = (report.map(parse).transpose()?, comparison.map(parse).transpose()?);
    Ok(page::render(report.as_slice(), comparison.as_ref()))
}

fn answer(found: &impl Serialize, outcome: Outcome) -> Result<Answer> {
    let json = serde_json::to_string(found).map_err(|error| Error::new(Kind::Bug, error.to_string()))?;
    Ok(Answer { status: outcome.status(), json })
}

/// The first line of what clap says, and the rest as the remedy.
fn wrong_use(error: &clap::Error) -> Error {
    let text = error.to_string();
    let mut lines = text.lines().map(|line| line.trim().trim_matches(['[', ']'])).filter(|line| !line.is_empty());
    let first = lines.next().unwrap_or_default().trim_start_matches("error: ");
    let rest: Vec<&str> =
        lines.take_while(|line| !line.starts_with("Usage:") && !line.starts_with("For more")).collect();
    let error = Error::new(Kind::Usage, first);
    if rest.is_empty() { error } else { error.with_hint(rest.join("; ")) }
}
