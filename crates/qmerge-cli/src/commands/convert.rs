//! `qmerge convert`.

use anyhow::Result;
use qmerge::error;
use qmerge::merge::{self, Estimate, Progress};
use qmerge::open::Checkpoint;
use qmerge::plan::{Inputs, Options, Plan};
use qmerge::round::Demand;

use super::merge::{Found, plan_and_run, show};
use super::{format, run_options, settings, usage};
use crate::Outcome;
use crate::args::ConvertArgs;
use crate::progress::Bar;

pub(crate) fn run(args: &ConvertArgs) -> Result<Outcome> {
    let bar = Bar::new(args.running.quiet);
    let found = find(args, &bar);
    bar.clear();
    show(&found?, &args.running)?;
    Ok(Outcome::Done)
}

/// Converts, or plans to.
pub(crate) fn find(args: &ConvertArgs, progress: &dyn Progress) -> error::Result<Found> {
    let to = format(&args.to)?.ok_or_else(|| usage("--to same would change nothing".into()))?;
    let options = Options { to: Some(to), settings: settings(&args.quantization)?, ..Options::default() };
    let inputs = Inputs::new(Checkpoint::open(&args.base)?, Vec::new())?;
    let run = run_options(&args.running);
    let prepare = |plan: &Plan| merge::estimate(plan, options.rounding, &run, &Demand::default());
    let takes = |estimate: &Estimate| (estimate.memory, estimate.work);
    plan_and_run(&inputs, &options, &args.output, &args.running, prepare, takes, |plan, _| {
        merge::run(&inputs, plan, options.rounding, None, &args.output, &run, progress)
    })
}
