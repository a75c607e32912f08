//! `qmerge combine`.

use anyhow::Result;
use qmerge::adapters::ReadOptions;
use qmerge::arithmetic::{Combination, CombineOptions, Method, Seen, combine};
use qmerge::error::{self, Error, Kind};
use qmerge::plan::{Inputs, Options, Plan};
use qmerge::progress::Progress;

use super::rounding::stored;
use super::{Spoken, answered, open_adapters};
use crate::args::{CombineArgs, majority};
use crate::{Outcome, show};

pub(crate) fn run(args: &CombineArgs) -> Result<Outcome> {
    answered(Spoken { json: args.made.json, quiet: false }, |bar| find(args, bar), show::combination)?;
    Ok(Outcome::Done)
}

/// Combines the adapters.
pub(crate) fn find(args: &CombineArgs, progress: &dyn Progress) -> error::Result<Combination> {
    let usual = if args.rank.is_some() { "svd" } else { "exact" };
    let method = Method::by_id(args.method.as_deref().unwrap_or(usual))?;
    if args.majority_sign.is_some() && !method.takes_majority() {
        let problem = format!("--majority-sign is of no use: {} lets no signs vote", method.id);
        return Err(Error::new(Kind::Usage, problem).with_hint("leave it out"));
    }
    let options = CombineOptions {
        rank: args.rank.map(|rank| rank as usize),
        density: args.density,
        majority: majority(args.majority_sign.as_deref().unwrap_or_default()),
        seed: args.seed,
        scales: args.lora_scale.clone(),
        dtype: args.made.dtype(),
        force: args.made.force,
        threads: args.made.threads(),
        read: ReadOptions { base_is_residual: args.base_is_residual, ..ReadOptions::default() },
        ..CombineOptions::new(method)
    };
    let adapters = open_adapters(&args.adapter)?;
    let Some((base, file)) = args.base.as_ref().zip(args.calibration.as_ref()) else {
        return combine(&adapters, None, &args.output, &options, progress);
    };
    let inputs = Inputs::new(qmerge_store::checkpoint(base)?, adapters)?;
    let plan = Plan::new(&inputs, &Options { read: options.read.clone(), ..Options::default() })?;
    let mut calibration = stored(file, &inputs, &[])?;
    let seen = Seen { plan: &plan, calibration: &mut calibration };
    combine(&inputs.adapters, Some(seen), &args.output, &options, progress)
}
