//! `qmerge unmerge`: a merge with what the adapters add subtracted.

use anyhow::Result;
use qmerge::arithmetic::undo;
use qmerge::error;
use qmerge::merge::RunOptions;
use qmerge::plan::{Inputs, Method, Options, Plan};
use qmerge::progress::Progress;
use qmerge::round::NEAREST;

use super::merge::{Found, shown, without_data};
use super::{open, read_options, run_options, target};
use crate::Outcome;
use crate::args::UnmergeArgs;

pub(crate) fn run(args: &UnmergeArgs, command: &str) -> Result<Outcome> {
    shown(&args.running, &args.output, |bar, told| find(args, command, bar, told))
}

/// Undoes a merge, or plans to. `command` is the command line, for the report; `decided` gets the plan before any work is done.
pub(crate) fn find(
    args: &UnmergeArgs,
    command: &str,
    progress: &dyn Progress,
    decided: &dyn Fn(&Plan),
) -> error::Result<Found> {
    let (to, export) = target(&args.to, &args.output)?;
    let options = Options {
        to,
        export,
        rounding: Method::Named(NEAREST),
        maps: args.meaning.map.clone(),
        read: read_options(&args.meaning, &args.scaling, None)?,
        allow_unused: args.meaning.allow_unused,
        ..Options::default()
    };
    let mut inputs = open(&args.merged.sources)?;
    let run = RunOptions { undoes: true, ..run_options(&args.running, command) };
    undo(&mut inputs, &options.maps, &options.read)?;
    let mut plan = Plan::new(&inputs, &options)?;
    plan.warnings.push(exactness(&inputs, &plan));
    decided(&plan);
    without_data(&inputs, &plan, &args.output, &args.running, &run, progress)
}

/// What (W + D) − D is to W.
fn exactness(inputs: &Inputs, plan: &Plan) -> String {
    let mut coded: Vec<&str> = Vec::new();
    for recode in plan.recodes().filter(|recode| !recode.edits.is_empty() && !recode.from.weight.is_plain()) {
        if !coded.contains(&recode.from.weight.format()) {
            coded.push(recode.from.weight.format());
        }
    }
    let base = inputs.base.path.display();
    if coded.is_empty() {
        return format!(
            "{base}: what merging rounded off is gone: W comes back as W + D was rounded, exactly where that rounding was finer than W's own last place, else within \
             it; and only if this adapter, with this weight, is in the merge"
        );
    }
    format!(
        "{base} is stored as {}: the codes of W + D do not say what W was, so what comes back is W with the rounding of the merge and of this step on it. \
         The original base is the better one, where it can be had",
        coded.join(", ")
    )
}
