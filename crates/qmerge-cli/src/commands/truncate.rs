//! `qmerge truncate`.

use anyhow::Result;
use qmerge::error;
use qmerge::plan::{Inputs, Plan};
use qmerge::progress::Progress;
use qmerge::round::Calibration;
use qmerge::truncate::{TruncateOptions, Truncation, refuse_uncuttable, truncate, work};
use qmerge_run::tensors::Tensors;
use qmerge_run::{Model, Options};

use super::calibrate::{Text, needs_alone};
use super::rounding::{stored, weights};
use super::{Spoken, answered, apart_options, read_options, usage};
use crate::args::{Scaling, TruncateArgs, floats, threads};
use crate::{Outcome, show};

pub(crate) fn run(args: &TruncateArgs) -> Result<Outcome> {
    answered(Spoken { json: args.json, quiet: false }, |bar| find(args, bar), show::truncation)?;
    Ok(Outcome::Done)
}

/// Cuts the adapter.
pub(crate) fn find(args: &TruncateArgs, progress: &dyn Progress) -> error::Result<Truncation> {
    let mut options = TruncateOptions {
        rank: args.rank as usize,
        dtype: floats(&args.dtype),
        force: args.force,
        threads: threads(args.engine.workers.threads),
        read: read_options(&args.meaning, &Scaling::default(), None)?,
        reason: None,
        announced: false,
    };
    let Some(base) = &args.base else {
        let needs_base = [(args.calibrate.is_some(), "--calibrate"), (args.calibration.is_some(), "--calibration")];
        if let Some((_, option)) = needs_base.iter().find(|(given, _)| *given) {
            return Err(usage(format!("{option} says what a base's layers are given, and there is no base"))
                .with_hint("give --base too"));
        }
        options.reason =
            Some("no --base, so nothing is known of its inputs: cut in the plain norm of its values".into());
        return truncate(&qmerge_store::adapter(args.adapter(), 1.0)?, None, None, &args.output, &options, progress);
    };
    let inputs = Inputs::new(qmerge_store::checkpoint(base)?, vec![qmerge_store::adapter(args.adapter(), 1.0)?])?;
    let adapter = &inputs.adapters[0];
    refuse_uncuttable(adapter, &args.output, &options)?;
    let plan = Plan::new(&inputs, &apart_options(&args.meaning, &Scaling::default())?)?;
    let cut = |calibration: Option<&mut dyn Calibration>, options: &TruncateOptions| {
        truncate(adapter, Some(&plan), calibration, &args.output, options, progress)
    };
    let (untrained, modules) = adapter.untrained();
    if untrained.len() == modules {
        options.reason = Some("no module was trained, so the model is not run: there is nothing to weigh".into());
        return cut(None, &options);
    }
    if let Some(path) = &args.calibration {
        return cut(Some(&mut stored(path, &inputs, &args.meaning.map)?), &options);
    }
    if let Err(reason) = weights(&inputs) {
        if args.calibrate.is_some() {
            return Err(usage(format!("--calibrate needs to run the model, but {reason}"))
                .with_hint("leave it out to cut in the plain norm"));
        }
        options.reason = Some(format!("the model cannot be run ({reason}): cut in the plain norm of its values"));
        return cut(None, &options);
    }
    let text = Text::read(&inputs, args.calibrate.as_deref(), args.amount.amount(), progress)?;
    let needs = needs_alone(&inputs, &plan, &text, &args.engine)?;
    progress.start(needs.before + needs.demand.work + work(adapter, &options)?);
    options.announced = true;
    let engine = Options { threads: args.engine.workers.threads, held: Some(needs.weights), progress: Some(progress) };
    let model = Model::new(&Tensors::new(&inputs, Some(&plan)), engine)?;
    let mut calibration = text.calibration(&model, args.writing.seed, false, needs)?;
    cut(Some(&mut calibration), &options)
}
