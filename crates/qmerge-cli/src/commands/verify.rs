//! `qmerge verify`.

use anyhow::Result;
use qmerge::open::Checkpoint;
use qmerge::plan::{Options, Plan};
use qmerge::verify::{Answer, VerifyOptions, verify};

use super::merge::print_json;
use super::{open, read_options};
use crate::args::VerifyArgs;
use crate::{Outcome, show};

pub(crate) fn run(args: &VerifyArgs) -> Result<Outcome> {
    let inputs = open(&args.sources)?;
    let merged = Checkpoint::open(&args.merged)?;
    let options = Options {
        maps: args.meaning.map.clone(),
        read: read_options(&args.meaning),
        allow_unused: args.meaning.allow_unused,
        ..Options::default()
    };
    let plan = Plan::new(&inputs, &options)?;
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
