//! `qmerge convert-adapter`.

use anyhow::Result;
use qmerge::arithmetic::{Conversion, ConvertOptions, Wanted, convert, convert_to_gguf};
use qmerge::dtype::Dtype;
use qmerge::error;
use qmerge::plan::Plan;
use qmerge::progress::Progress;

use super::{Spoken, answered, apart_options, floats, open, threads, usage};
use crate::args::ConvertAdapterArgs;
use crate::{Outcome, show};

pub(crate) fn run(args: &ConvertAdapterArgs) -> Result<Outcome> {
    answered(Spoken { json: args.json, quiet: false }, |bar| find(args, bar), show::conversion)?;
    Ok(Outcome::Done)
}

/// Converts the adapter.
pub(crate) fn find(args: &ConvertAdapterArgs, progress: &dyn Progress) -> error::Result<Conversion> {
    if args.sources.adapter.len() > 1 {
        return Err(
            usage("one adapter is converted at a time".into()).with_hint("`qmerge combine` makes one LoRA of several")
        );
    }
    let is_gguf = args.to == "gguf-lora";
    if !is_gguf && args.rank.is_none() && args.energy.is_none() {
        return Err(usage("a LoRA of which rank?".into()).with_hint(
            "say --rank R, or --energy SHARE for as much rank as holds that share; --to gguf-lora needs neither",
        ));
    }
    let inputs = open(&args.sources)?;
    let plan = Plan::new(&inputs, &apart_options(&args.meaning, &args.scaling)?)?;
    let by_energy = Wanted::Share(args.energy.unwrap_or(1.0));
    let options = ConvertOptions {
        wanted: args.rank.map_or(by_energy, |rank| Wanted::Rank(rank as usize)),
        dtype: floats(&args.dtype).unwrap_or(Dtype::F32),
        seed: args.seed,
        force: args.force,
        threads: threads(args.workers.threads),
    };
    let convert = if is_gguf { convert_to_gguf } else { convert };
    let mut found = convert(&inputs, &plan, &args.output, &options, progress)?;
    found.warnings.splice(0..0, plan.warnings);
    Ok(found)
}
