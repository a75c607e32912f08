//! The program `qmerge`.

mod args;
mod commands;
mod page;
mod progress;
mod show;

use std::process::ExitCode;

use clap::Parser;

use args::{Cli, Command};

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

fn main() -> ExitCode {
    let result = match Cli::parse().command {
        Command::Merge(args) => commands::merge::run(&args),
        Command::Inspect(args) => commands::inspect::run(&args),
        Command::Convert(args) => commands::convert::run(&args),
        Command::Verify(args) => commands::verify::run(&args),
        Command::Compare(args) => commands::compare::run(&args),
        Command::Report(args) => commands::report::run(&args),
        Command::Generate(args) => commands::generate::run(&args),
        Command::Demo(args) => commands::demo::run(&args),
    };
    match result {
        Ok(Outcome::Done) => ExitCode::SUCCESS,
        Ok(Outcome::Failed) => ExitCode::from(1),
        Ok(Outcome::Undecided) => ExitCode::from(4),
        Err(error) => {
            show::error(&error);
            ExitCode::from(exit_status(&error))
        }
    }
}

/// 3 if reading or writing failed, else 2.
fn exit_status(error: &anyhow::Error) -> u8 {
    let io = match error.downcast_ref::<qmerge::error::Error>() {
        Some(error) => error.kind() == qmerge::error::Kind::Io,
        None => error.is::<std::io::Error>(),
    };
    if io { 3 } else { 2 }
}
