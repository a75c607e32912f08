//! `qmerge calibrate`.

use anyhow::Result;
use qmerge::dtype::Dtype;
use qmerge::error::{self, Error, Kind};
use qmerge::merge::Progress;
use qmerge::plan::{Inputs, Plan};
use qmerge::round::{self, Calibration};
use qmerge_run::calibrate::FromModel;
use qmerge_run::tensors::Tensors;
use qmerge_run::text::Tokenizer;
use qmerge_run::{Model, Options};
use serde::Serialize;

use super::compare::read_text;
use super::generate::folders;
use super::{apart_options, open_with};
use crate::args::CalibrateArgs;
use crate::progress::Bar;
use crate::{Outcome, show};

/// What was stored.
#[derive(Debug, Serialize)]
pub(crate) struct Found {
    pub(crate) output: String,
    pub(crate) taken_from: String,
    pub(crate) bytes: u64,
}

pub(crate) fn run(args: &CalibrateArgs) -> Result<Outcome> {
    let bar = Bar::new(false);
    let found = find(args, &bar);
    bar.clear();
    let found = found?;
    show::note(&format!("{} of moments, from {}, in {}", show::bytes(found.bytes), found.taken_from, found.output));
    Ok(Outcome::Done)
}

/// Runs the model and stores what its layers are given.
pub(crate) fn find(args: &CalibrateArgs, progress: &dyn Progress) -> error::Result<Found> {
    if args.output.exists() && !args.force {
        return Err(Error::new(Kind::Exists, "it exists already")
            .in_file(&args.output)
            .with_hint("--force replaces it"));
    }
    let inputs = open_with(&args.base, &args.adapter)?;
    let plan = Plan::new(&inputs, &apart_options(&args.meaning))?;
    let held = args.engine.max_memory.map(|limit| limit / 4);
    let engine = Options { threads: args.engine.threads, held, progress: Some(progress) };
    let model = Model::new(&Tensors::new(&inputs, Some(&plan)), engine)?;
    let mut calibration =
        from_model(&inputs, &model, args.text.as_deref(), (args.seed, false), args.engine.max_memory, progress)?;
    progress.phase("reading it");
    let dtype = if args.dtype == "bf16" { Dtype::BF16 } else { Dtype::F32 };
    let bytes = round::store(&inputs.base, &mut calibration, dtype, &args.output)?;
    Ok(Found { output: args.output.display().to_string(), taken_from: calibration.about(), bytes })
}

/// A calibration on a text, or on one that the model writes, with this seed; and whether it writes more, to be judged by.
pub(super) fn from_model<'m, 'a>(
    inputs: &Inputs,
    model: &'m Model<'a>,
    text: Option<&std::path::Path>,
    (seed, hold): (u64, bool),
    max_memory: Option<u64>,
    progress: &dyn Progress,
) -> error::Result<FromModel<'m, 'a>> {
    let Some(path) = text else {
        progress.phase("writing text to calibrate on");
        return FromModel::own_text(model, seed, max_memory.map(|limit| limit / 2), hold);
    };
    let tokenizer = Tokenizer::open(&folders(inputs))?;
    let tokens = tokenizer.encode(&read_text(path)?)?;
    tokenizer.check(&tokens, model.spec().vocab)?;
    FromModel::text(model, &tokens, path)
}
