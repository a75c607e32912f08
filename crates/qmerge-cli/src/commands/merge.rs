//! `qmerge merge`.

use anyhow::{Context, Result};
use qmerge::merge;
use qmerge::plan::{Inputs, Options, Plan};
use qmerge::report::Report;
use qmerge::round;
use qmerge::write::Tokenizer;

use super::{format, open, read_options, run_options, settings};
use crate::args::{MergeArgs, Running, TokenizerArg};
use crate::page::{self, Form};
use crate::progress::Bar;
use crate::{Outcome, show};

pub(crate) fn run(args: &MergeArgs) -> Result<Outcome> {
    let options = Options {
        to: format(&args.to)?,
        settings: settings(&args.quantization)?,
        rounding: round::by_id(&args.rounding)?,
        maps: args.meaning.map.clone(),
        read: read_options(&args.meaning),
        allow_unused: args.meaning.allow_unused,
    };
    let mut run = run_options(&args.running);
    run.tokenizer = match args.tokenizer {
        TokenizerArg::Adapter => Tokenizer::Adapter,
        TokenizerArg::Base => Tokenizer::Base,
    };
    let inputs = open(&args.sources)?;
    let Some(report) = plan_and_run(&inputs, &options, &args.output, &run, &args.running)? else {
        return Ok(Outcome::Done);
    };
    match (args.min_survival, report.summary.survival) {
        (Some(least), Some(survival)) if survival < least => {
            show::warning(&format!("survival {survival:.3} is below --min-survival {least}"));
            Ok(Outcome::Failed)
        }
        (Some(_), None) => {
            show::warning("the adapter's delta is zero, so --min-survival cannot be met");
            Ok(Outcome::Failed)
        }
        _ => Ok(Outcome::Done),
    }
}

/// Plans, then merges or shows the plan. `None` after a dry run.
pub(super) fn plan_and_run(
    inputs: &Inputs,
    options: &Options,
    output: &std::path::Path,
    run: &merge::RunOptions,
    args: &Running,
) -> Result<Option<Report>> {
    let form = args.report.as_deref().map(page::form).transpose()?;
    let plan = Plan::new(inputs, options)?;
    if args.dry_run {
        let memory = merge::memory(&plan, run)?;
        let summary = plan.summary(inputs, output, memory);
        if args.json { print_json(&summary) } else { crate::show::plan(&summary) }?;
        return Ok(None);
    }
    let bar = Bar::new(args.quiet);
    let report = merge::run(inputs, &plan, options.rounding, output, run, &bar);
    bar.clear();
    let report = report?;
    if let (Some(path), Some(form)) = (&args.report, form) {
        match form {
            Form::Json => {
                std::fs::write(path, report.to_json()).with_context(|| format!("cannot write {}", path.display()))?;
            }
            Form::Html => page::write(path, Some(&serde_json::to_value(&report)?), None)?,
        }
    }
    if args.json {
        print_json(&report)?;
    } else if !args.quiet {
        for text in &report.warnings {
            show::warning(text);
        }
        show::report(&report);
    }
    Ok(Some(report))
}

/// One JSON document on standard output.
pub(super) fn print_json(value: &impl serde::Serialize) -> Result<()> {
    anstream::println!("{}", serde_json::to_string_pretty(value)?);
    Ok(())
}
