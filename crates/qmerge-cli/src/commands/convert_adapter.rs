//! `qmerge convert-adapter`.

use anyhow::Result;
use qmerge::arithmetic::{Conversion, ConvertOptions, convert, convert_to_gguf};
use qmerge::error;
use qmerge::plan::Plan;
use qmerge::progress::Progress;

use super::{Spoken, answered, apart_options, open, usage};
use crate::args::ConvertAdapterArgs;
use crate::{Outcome, show};

pub(crate) fn run(args: &ConvertAdapterArgs) -> Result<Outcome> {
    answered(Spoken { json: args.made.json, quiet: false }, |bar| find(args, bar), show::conversion)?;
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
    if !is_gguf && !args.cut.is_given() {
        return Err(usage("a LoRA of which rank?".into()).with_hint(
            "say --rank R, or --energy SHARE for as much rank as holds that share; --to gguf-lora needs neither",
        ));
    }
    let inputs = open(&args.sources)?;
    let plan = Plan::new(&inputs, &apart_options(&args.meaning, &args.scaling)?)?;
    let options = ConvertOptions {
        wanted: args.cut.wanted(),
        dtype: args.made.dtype(),
        seed: args.cut.seed,
        force: args.made.force,
        allow_unused: args.meaning.allow_unused,
        threads: args.made.threads(),
    };
    let convert = if is_gguf { convert_to_gguf } else { convert };
    let mut found = convert(&inputs, &plan, &args.output, &options, progress)?;
    found.warnings.splice(0..0, plan.warnings);
    Ok(found)
}
