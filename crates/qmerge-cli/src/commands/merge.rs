//! `qmerge merge`.

use std::path::Path;

use anyhow::Result;
use qmerge::error;
use qmerge::merge::{self, Memory, Progress};
use qmerge::open::Checkpoint;
use qmerge::plan::{Inputs, Options, Plan, PlanSummary};
use qmerge::report::{Report, quoted};
use qmerge::write::Tokenizer;
use serde::Serialize;

use super::rounding::Prepared;
use super::{format, open, read_options, rounding, run_options, settings};
use crate::args::{MergeArgs, Running, TokenizerArg};
use crate::page::{self, Form};
use crate::progress::Bar;
use crate::{Outcome, show};

/// What a merge or a conversion comes to.
#[derive(Debug, Serialize)]
#[serde(untagged)]
pub(crate) enum Found {
    /// After `--dry-run`.
    Plan(Box<PlanSummary>),
    Report(Box<Report>),
}

pub(crate) fn run(args: &MergeArgs) -> Result<Outcome> {
    let bar = Bar::new(args.running.quiet);
    let found = find(args, &bar);
    bar.clear();
    let found = found?;
    show(&found, &args.running)?;
    if let (Found::Report(_), Some(repo), false) = (&found, &args.push, args.running.quiet) {
        let text = format!("upload it: {}", upload(repo, &args.output));
        // With --json, standard output holds the document alone.
        if args.running.json { show::note(&text) } else { anstream::println!("{text}") }
    }
    let outcome = outcome(args, &found);
    if let (Found::Report(report), Some(least), Outcome::Failed) = (&found, args.min_survival, outcome) {
        match survived(report) {
            Some(survival) => show::warning(&format!("survival {survival:.3} is below --min-survival {least}")),
            None => show::warning("the adapter's delta is zero, so --min-survival cannot be met"),
        }
    }
    Ok(outcome)
}

/// The command that uploads an output: a folder as the whole repository, a file under its own name.
fn upload(repo: &str, output: &Path) -> String {
    let within = if output.is_dir() { ".".into() } else { output.file_name().unwrap_or_default().to_string_lossy() };
    // What begins with a dash would be taken for an option.
    let path = output.to_string_lossy();
    let path = if path.starts_with('-') { format!("./{path}") } else { path.into_owned() };
    format!("hf upload {repo} {} {}", quoted(&path), quoted(&within))
}

/// Merges, or plans to.
pub(crate) fn find(args: &MergeArgs, progress: &dyn Progress) -> error::Result<Found> {
    let options = Options {
        to: format(&args.to)?,
        settings: settings(&args.quantization)?,
        seed: args.calibrating.seed,
        residual_rank: args.residual_rank.map(|rank| rank as usize),
        maps: args.meaning.map.clone(),
        read: read_options(&args.meaning),
        allow_unused: args.meaning.allow_unused,
        ..Options::default()
    };
    let mut run = run_options(&args.running);
    run.tokenizer = match args.tokenizer {
        TokenizerArg::Adapter => Tokenizer::Adapter,
        TokenizerArg::Base => Tokenizer::Base,
    };
    let mut inputs = open(&args.sources)?;
    if let Some(original) = &args.calibrating.original {
        inputs = inputs.with_original(Checkpoint::open(original)?)?;
    }
    let choice = rounding::choose(&inputs, &options, args)?;
    rounding::refuse_useless(&choice, &args.calibrating)?;
    let options = Options { rounding: choice.rounding, reason: choice.reason.clone(), ..options };
    let prepare = |plan: &Plan| {
        if !args.running.dry_run {
            merge::refuse_existing(&args.output, &run)?;
        }
        rounding::prepare(&inputs, plan, choice.rounding, &args.calibrating, &run, progress)
    };
    let takes = |prepared: &Prepared<'_>| (prepared.estimate.memory, prepared.work());
    plan_and_run(&inputs, &options, &args.output, &args.running, prepare, takes, |plan, prepared| {
        rounding::run(&inputs, plan, choice.rounding, prepared, &args.output, &run, progress)
    })
}

/// The share of the adapter that is left: of its outputs where they are known, else of its delta.
fn survived(report: &Report) -> Option<f64> {
    report.summary.survival.map(|survival| report.summary.kept_output.unwrap_or(survival))
}

/// Whether as much survived as was asked for.
pub(crate) fn outcome(args: &MergeArgs, found: &Found) -> Outcome {
    match (found, args.min_survival) {
        (Found::Report(report), Some(least)) if survived(report).is_none_or(|survival| survival < least) => {
            Outcome::Failed
        }
        _ => Outcome::Done,
    }
}

/// Plans, then merges if it is no dry run.
pub(super) fn plan_and_run<P>(
    inputs: &Inputs,
    options: &Options,
    output: &Path,
    args: &Running,
    prepare: impl FnOnce(&Plan) -> error::Result<P>,
    takes: impl FnOnce(&P) -> (Memory, u64),
    merge: impl FnOnce(&Plan, P) -> error::Result<Report>,
) -> error::Result<Found> {
    let form = args.report.as_deref().map(page::form).transpose()?;
    let plan = Plan::new(inputs, options)?;
    let prepared = prepare(&plan)?;
    if args.dry_run {
        let (memory, work) = takes(&prepared);
        return Ok(Found::Plan(Box::new(plan.summary(inputs, output, memory, work))));
    }
    let report = merge(&plan, prepared)?;
    if let (Some(path), Some(form)) = (&args.report, form) {
        let document = serde_json::to_value(&report).unwrap_or_default();
        match form {
            Form::Json => page::write_json(path, &document)?,
            Form::Html => page::write(path, Some(&document), None)?,
        }
    }
    Ok(Found::Report(Box::new(report)))
}

/// Prints what was found.
pub(super) fn show(found: &Found, args: &Running) -> Result<()> {
    match found {
        _ if args.json => show::json(found)?,
        Found::Plan(plan) => show::plan(plan)?,
        Found::Report(_) if args.quiet => {}
        Found::Report(report) => {
            for text in &report.warnings {
                show::warning(text);
            }
            show::report(report);
        }
    }
    if !args.quiet && matches!(found, Found::Report(_)) {
        show::written(args.report.as_deref());
    }
    Ok(())
}
