//! `qmerge convert`.

use anyhow::Result;
use qmerge::open::Checkpoint;
use qmerge::plan::{Inputs, Options};

use super::merge::plan_and_run;
use super::{format, run_options, settings, usage};
use crate::Outcome;
use crate::args::ConvertArgs;

pub(crate) fn run(args: &ConvertArgs) -> Result<Outcome> {
    let to = format(&args.to)?.ok_or_else(|| usage("--to same would change nothing".into()))?;
    let options = Options { to: Some(to), settings: settings(&args.quantization)?, ..Options::default() };
    let inputs = Inputs::new(Checkpoint::open(&args.base)?, Vec::new())?;
    plan_and_run(&inputs, &options, &args.output, &run_options(&args.running), &args.running)?;
    Ok(Outcome::Done)
}
