//! `qmerge completions` and `qmerge man`: what a shell and `man` know of the program, made from the command line's own definition.

use std::io::Write;

use anyhow::Result;
use qmerge::error::Error;

use crate::args::{Cli, CompletionsArgs, ManArgs};
use crate::{Outcome, show};

pub(crate) fn completions(args: &CompletionsArgs) -> Result<Outcome> {
    // Into memory first: the generator panics where its writer fails, as a closed pipe does.
    let mut script = Vec::new();
    clap_complete::generate(args.shell, &mut Cli::all(), "qmerge", &mut script);
    std::io::stdout().write_all(&script)?;
    Ok(Outcome::Done)
}

pub(crate) fn man(args: &ManArgs) -> Result<Outcome> {
    let command = Cli::all().disable_help_subcommand(true);
    let Some(folder) = &args.output else {
        clap_mangen::Man::new(command).render(&mut std::io::stdout())?;
        return Ok(Outcome::Done);
    };
    std::fs::create_dir_all(folder).map_err(|error| Error::io("create", folder, error))?;
    clap_mangen::generate_to(command, folder).map_err(|error| Error::io("write the pages into", folder, error))?;
    show::note(&format!("wrote qmerge.1 and a page per command into {}", folder.display()));
    Ok(Outcome::Done)
}
