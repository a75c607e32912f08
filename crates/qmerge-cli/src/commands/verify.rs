//! `qmerge verify`.

use std::collections::BTreeSet;
use std::path::Path;

use anyhow::Result;
use qmerge::adapters::InputFactors;
use qmerge::error;
use qmerge::plan::Plan;
use qmerge::progress::Progress;
use qmerge::verify::{Answer, Verification, VerifyOptions, verify};

use super::next::Made;
use super::{Spoken, answered, apart_options, open_both};
use crate::args::VerifyArgs;
use crate::{Outcome, show};

pub(crate) fn run(args: &VerifyArgs) -> Result<Outcome> {
    let show = |found: &Verification| {
        found.warnings.iter().for_each(|text| show::warning(text));
        show::verification(found);
        let made = Made { sources: &args.sources, tuned: &args.tuned, meaning: &args.meaning, scaling: &args.scaling };
        match found.answer {
            Answer::Yes => made.try_and_compare(args.merged()),
            Answer::Undecided => made.only_compare(args.merged()),
            Answer::No => made.merge(Path::new("merged"), None),
        }
    };
    let found = answered(Spoken { json: args.json, quiet: args.quiet }, |bar| find(args, bar), show)?;
    Ok(outcome(&found))
}

/// Examines a merge.
pub(crate) fn find(args: &VerifyArgs, progress: &dyn Progress) -> error::Result<Verification> {
    let inputs = open_both(&args.sources, &args.tuned)?;
    let merged = qmerge_store::checkpoint(args.merged())?;
    let mut options = apart_options(&args.meaning, &args.scaling)?;
    options.read.joining = args.tuned.joining()?;
    let plan = Plan::new(&inputs, &options)?;
    let choices = VerifyOptions { min_survival: args.min_survival, threads: args.workers.threads };
    let found = verify(&inputs, &plan, &merged, &choices, progress)?;
    if found.answer == Answer::Yes {
        return Ok(found);
    }
    // Factors that a quantized merge has in the layer before, another has where they were trained; and what the base is stored as need not say which.
    let changed = |plan: &Plan| plan.recodes().map(|recode| recode.to.name().to_owned()).collect::<BTreeSet<_>>();
    let mut best = found;
    for other in [InputFactors::InPlace, InputFactors::Moved] {
        options.read.input_factors = other;
        let other = Plan::new(&inputs, &options)?;
        if changed(&other) == changed(&plan) {
            continue;
        }
        let found = verify(&inputs, &other, &merged, &choices, progress)?;
        // What was changed otherwise has no place in the right plan.
        let rank = |found: &Verification| {
            (found.answer != Answer::Yes, found.altered.len(), found.answer != Answer::Undecided)
        };
        if rank(&found) < rank(&best) {
            best = found;
        }
    }
    Ok(best)
}

pub(crate) fn outcome(found: &Verification) -> Outcome {
    match found.answer {
        Answer::Yes => Outcome::Done,
        Answer::No => Outcome::Failed,
        Answer::Undecided => Outcome::Undecided,
    }
}
