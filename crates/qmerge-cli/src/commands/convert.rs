//! `qmerge convert`.

use anyhow::Result;
use qmerge::error;
use qmerge::merge::{self, Progress};
use qmerge::open::Checkpoint;
use qmerge::plan::{Inputs, Options, Plan};
use qmerge::round::Demand;

use super::merge::{Found, dry_or_run, show};
use super::{format, refuse_unused, run_options, settings, usage};
use crate::Outcome;
use crate::args::ConvertArgs;
use crate::progress::Bar;

pub(crate) fn run(args: &ConvertArgs, command: &str) -> Result<Outcome> {
    let bar = Bar::new(args.running.quiet);
    let found = find(args, command, &bar);
    bar.clear();
    show(&found?, &args.running)?;
    Ok(Outcome::Done)
}

/// Converts, or plans to. `command` is the command line, for the report.
pub(crate) fn find(args: &ConvertArgs, command: &str, progress: &dyn Progress) -> error::Result<Found> {
    let to = format(&args.to)?.ok_or_else(|| usage("--to same would change nothing".into()))?;
    let options = Options { to: Some(to), settings: settings(&args.quantization)?, ..Options::default() };
    let inputs = Inputs::new(Checkpoint::open(&args.base)?, Vec::new())?;
    let run = run_options(&args.running, command);
    let plan = Plan::new(&inputs, &options)?;
    refuse_unused(&args.quantization, &plan)?;
    let estimate = merge::estimate(&plan, &run, &Demand::default())?;
    dry_or_run(&inputs, &plan, &args.output, &args.running, (estimate.memory, estimate.work), || {
        merge::run(&inputs, &plan, None, &args.output, &run, progress)
    })
}
