//! `qmerge extract`.

use anyhow::Result;
use qmerge::adapters::Names;
use qmerge::arithmetic::{ExtractOptions, Extraction, Wanted, extract};
use qmerge::dtype::Dtype;
use qmerge::error;
use qmerge::formats;
use qmerge::progress::Progress;

use super::{Spoken, answered, floats, threads};
use crate::args::ExtractArgs;
use crate::{Outcome, show};

pub(crate) fn run(args: &ExtractArgs) -> Result<Outcome> {
    answered(Spoken { json: args.json, quiet: false }, |bar| find(args, bar), show::extraction)?;
    Ok(Outcome::Done)
}

/// Extracts the adapter.
pub(crate) fn find(args: &ExtractArgs, progress: &dyn Progress) -> error::Result<Extraction> {
    let by_energy = Wanted::Share(args.energy.unwrap_or(1.0));
    let options = ExtractOptions {
        wanted: args.rank.map_or(by_energy, |rank| Wanted::Rank(rank as usize)),
        full: !args.no_full,
        dtype: floats(&args.dtype).unwrap_or(Dtype::F32),
        seed: args.seed,
        force: args.force,
        threads: threads(args.workers.threads),
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
