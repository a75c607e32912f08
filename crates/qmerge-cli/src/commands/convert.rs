//! `qmerge convert`.

use anyhow::Result;
use qmerge::error;
use qmerge::plan::{Inputs, Options, Plan};
use qmerge::progress::Progress;

use super::merge::{Found, shown, without_data};
use super::{importance, refuse_unused, run_options, settings, target, usage};
use crate::Outcome;
use crate::args::ConvertArgs;

pub(crate) fn run(args: &ConvertArgs, command: &str) -> Result<Outcome> {
    shown(&args.running, &args.output, |bar, told| find(args, command, bar, told))
}

/// Converts, or plans to. `command` is the command line, for the report; `decided` gets the plan before any work is done.
pub(crate) fn find(
    args: &ConvertArgs,
    command: &str,
    progress: &dyn Progress,
    decided: &dyn Fn(&Plan),
) -> error::Result<Found> {
    let (to, export) = target(&args.to, &args.output)?;
    if to.is_none() && export.is_none() {
        return Err(usage("--to same would change nothing".into()));
    }
    let importance = importance(export, args.imatrix.as_deref())?;
    if args.imatrix.is_some() && importance.is_none() {
        return Err(usage(format!(
            "--imatrix is of no use to --to {}: it is for the quantized types of GGUF",
            args.to
        )));
    }
    let options = Options { to, export, importance, settings: settings(&args.quantization), ..Options::default() };
    let inputs = Inputs::new(qmerge_store::checkpoint(args.model.base())?, Vec::new())?;
    let run = run_options(&args.running, command);
    let plan = Plan::new(&inputs, &options)?;
    refuse_unused(&args.quantization, &plan)?;
    decided(&plan);
    without_data(&inputs, &plan, &args.output, &args.running, &run, progress)
}
