//! `qmerge extract`.

use anyhow::Result;
use qmerge::adapters::Names;
use qmerge::arithmetic::{ExtractOptions, Extraction, extract};
use qmerge::error;
use qmerge::formats;
use qmerge::progress::Progress;

use super::{Spoken, answered};
use crate::args::ExtractArgs;
use crate::{Outcome, show};

pub(crate) fn run(args: &ExtractArgs) -> Result<Outcome> {
    answered(Spoken { json: args.made.json, quiet: false }, |bar| find(args, bar), show::extraction)?;
    Ok(Outcome::Done)
}

/// Extracts the adapter.
pub(crate) fn find(args: &ExtractArgs, progress: &dyn Progress) -> error::Result<Extraction> {
    let options = ExtractOptions {
        wanted: args.cut.wanted(),
        full: !args.no_full,
        dtype: args.made.dtype(),
        seed: args.cut.seed,
        force: args.made.force,
        threads: args.made.threads(),
    };
    let [base, tuned] = args.trained.both();
    let (base, tuned) = (qmerge_store::checkpoint(base)?, qmerge_store::checkpoint(tuned)?);
    let Some(file) = &args.calibration else {
        return extract(&base, &tuned, None, &args.output, &options, progress);
    };
    let inventory = formats::inventory(&base)?;
    let mut calibration = qmerge_store::moments(file, &Names::new(&base, &inventory.weights, &[])?)?;
    extract(&base, &tuned, Some(&mut calibration), &args.output, &options, progress)
}
