//! `qmerge verify`.

use anyhow::Result;
use qmerge::open::Checkpoint;
use qmerge::plan::Plan;
use qmerge::verify::{Answer, VerifyOptions, verify};

use super::merge::print_json;
use super::{apart_options, open};
use crate::args::VerifyArgs;
use crate::{Outcome, show};

pub(crate) fn run(args: &VerifyArgs) -> Result<Outcome> {
    let inputs = open(&args.sources)?;
    let merged = Checkpoint::open(&args.merged)?;
    let plan = Plan::new(&inputs, &apart_options(&args.meaning))?;
    let choices = VerifyOptions { min_survival: args.min_survival, threads: args.threads };
    let found = verify(&inputs, &plan, &merged, &choices)?;
    if args.json {
        print_json(&found)?;
    } else {
        for text in &found.warnings {
            show::warning(text);
        }
        show::verification(&found);
    }
    Ok(match found.answer {
        Answer::Yes => Outcome::Done,
        Answer::No => Outcome::Failed,
        Answer::Undecided => Outcome::Undecided,
    })
}
