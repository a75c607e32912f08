//! `qmerge combine`.

use anyhow::Result;
use qmerge::adapters::ReadOptions;
use qmerge::arithmetic::{Combination, CombineOptions, Method, combine};
use qmerge::dtype::Dtype;
use qmerge::error;
use qmerge::progress::Progress;

use super::{answered, floats, open_adapters, threads};
use crate::args::{CombineArgs, majority};
use crate::{Outcome, show};

pub(crate) fn run(args: &CombineArgs) -> Result<Outcome> {
    answered(args.json, |bar| find(args, bar), show::combination)?;
    Ok(Outcome::Done)
}

/// Combines the adapters.
pub(crate) fn find(args: &CombineArgs, progress: &dyn Progress) -> error::Result<Combination> {
    let usual = if args.rank.is_some() { "svd" } else { "exact" };
    let options = CombineOptions {
        rank: args.rank.map(|rank| rank as usize),
        density: args.density,
        majority: majority(&args.majority_sign),
        seed: args.seed,
        scales: args.lora_scale.clone(),
        dtype: floats(&args.dtype).unwrap_or(Dtype::F32),
        force: args.force,
        threads: threads(args.workers.threads),
        read: ReadOptions { base_is_residual: args.base_is_residual, ..ReadOptions::default() },
        ..CombineOptions::new(Method::by_id(args.method.as_deref().unwrap_or(usual))?)
    };
    combine(&open_adapters(&args.adapter)?, &args.output, &options, progress)
}
