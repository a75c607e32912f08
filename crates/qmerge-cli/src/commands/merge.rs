//! `qmerge merge`.

use std::path::Path;

use anyhow::Result;
use qmerge::error;
use qmerge::merge::{self, Memory, Progress};
use qmerge::open::{Checkpoint, HubId};
use qmerge::plan::{Inputs, Options, Plan, PlanSummary};
use qmerge::report::{By, Report, quoted};
use qmerge::write::Tokenizer;
use serde::Serialize;

use super::{format, open, read_options, refuse_unused, rounding, run_options, settings, usage};
use crate::args::{Meaning, MergeArgs, Running, TokenizerArg};
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

pub(crate) fn run(args: &MergeArgs, command: &str) -> Result<Outcome> {
    let bar = Bar::new(args.running.quiet);
    let found = find(args, command, &bar);
    bar.clear();
    let found = found?;
    show(&found, &args.running)?;
    if let (Found::Report(report), false, false) = (&found, args.running.json, args.running.quiet) {
        compare_line(report, &args.meaning).iter().for_each(|line| show::next(line));
    }
    if let (Found::Report(_), Some(repo), false) = (&found, &args.push, args.running.quiet) {
        let text = format!("upload it: {}", upload(repo, &args.output));
        // With --json, standard output holds the document alone.
        if args.running.json { show::note(&text) } else { anstream::println!("{text}") }
    }
    if let Found::Report(report) = &found {
        failures(args, report).iter().for_each(|text| show::warning(text));
    }
    Ok(outcome(args, &found))
}

/// The command that compares this merge with its adapter kept apart, where the model can be run.
fn compare_line(report: &Report, meaning: &Meaning) -> Option<String> {
    let (base, output) = (Path::new(&report.base.path), Path::new(&report.output.path));
    let adapters = || report.adapters.iter().map(|adapter| Path::new(&adapter.path));
    let runs = |path: &Path| {
        let checkpoint = Checkpoint::open(path).ok()?;
        qmerge_run::families::spec(checkpoint.config.as_ref()?).ok()
    };
    let has_tokenizer = adapters().chain([base]).any(|folder| folder.join("tokenizer.json").is_file());
    if adapters().next().is_none() || !output.is_dir() || !has_tokenizer || runs(base).is_none() {
        return None;
    }
    let named = |path: &Path| {
        HubId::of_snapshot(path).map_or_else(|| path.display().to_string(), |id| format!("{id}@{}", id.revision))
    };
    let mut words = vec!["qmerge".into(), "compare".into(), "--base".into(), named(base)];
    for (path, adapter) in adapters().zip(&report.adapters) {
        let factor = if adapter.weight == 1.0 { String::new() } else { format!("={}", adapter.weight) };
        words.extend(["--adapter".into(), named(path) + &factor]);
    }
    words.extend(["--merged".into(), report.output.path.clone()]);
    for map in &meaning.map {
        words.extend(["--map".into(), map.clone()]);
    }
    let flags = [
        ("--allow-unused", meaning.allow_unused),
        ("--base-is-residual", meaning.base_is_residual),
        ("--peft-bugs", meaning.peft_bugs),
    ];
    words.extend(flags.into_iter().filter(|(_, set)| *set).map(|(flag, _)| flag.to_owned()));
    words.extend(["--text".into(), "held-out.txt".into()]);
    Some(words.iter().map(|word| quoted(word)).collect::<Vec<_>>().join(" "))
}

/// The command that uploads an output: a folder as the whole repository, a file under its own name.
fn upload(repo: &str, output: &Path) -> String {
    let within = if output.is_dir() { ".".into() } else { output.file_name().unwrap_or_default().to_string_lossy() };
    // What begins with a dash would be taken for an option.
    let path = output.to_string_lossy();
    let path = if path.starts_with('-') { format!("./{path}") } else { path.into_owned() };
    format!("hf upload {repo} {} {}", quoted(&path), quoted(&within))
}

/// Merges, or plans to. `command` is the command line, for the report.
pub(crate) fn find(args: &MergeArgs, command: &str, progress: &dyn Progress) -> error::Result<Found> {
    let measure = args.measuring.when().map_err(usage)?;
    let mut options = Options {
        to: format(if args.dequantize { "bf16" } else { &args.to })?,
        settings: settings(&args.quantization)?,
        rounding: rounding::method(&args.rounding)?,
        seed: args.calibrating.seed,
        residual_rank: args.residual_rank.map(|rank| rank as usize),
        maps: args.meaning.map.clone(),
        read: read_options(&args.meaning),
        allow_unused: args.meaning.allow_unused,
        ..Options::default()
    };
    let mut run = run_options(&args.running, command);
    run.tokenizer = match args.tokenizer {
        TokenizerArg::Adapter => Tokenizer::Adapter,
        TokenizerArg::Base => Tokenizer::Base,
    };
    let mut inputs = open(&args.sources)?;
    if let Some(original) = &args.calibrating.original {
        inputs = inputs.with_original(Checkpoint::open(original)?)?;
    }
    options.data = rounding::data(&inputs, &options, &args.calibrating)?;
    let plan = Plan::new(&inputs, &options)?;
    rounding::refuse_useless(&plan, options.rounding, &args.calibrating)?;
    refuse_unused(&args.quantization, &plan)?;
    if !args.running.dry_run {
        merge::refuse_existing(&args.output, &run)?;
    }
    let prepared = rounding::prepare(&inputs, &plan, &args.calibrating, measure, &run, progress)?;
    let takes = (prepared.estimate.memory, prepared.work());
    dry_or_run(&inputs, &plan, &args.output, &args.running, takes, || {
        rounding::run(&inputs, &plan, prepared, &args.output, &run, progress)
    })
}

/// Thresholds that the merge does not reach, in words that name the figure that was compared.
fn failures(args: &MergeArgs, report: &Report) -> Vec<String> {
    let verdict = &report.verdict;
    let measured = verdict.kept.filter(|_| verdict.by == Some(By::Behaviour));
    let thresholds = [
        ("--min-kept", args.measuring.min_kept, measured),
        ("--min-survival", args.measuring.min_survival, verdict.kept),
    ];
    let below = |(option, least, kept): (&str, Option<f64>, Option<f64>)| {
        let least = least?;
        let by = verdict.by.map_or("", By::name);
        match kept {
            Some(kept) if kept >= least => None,
            Some(kept) => Some(format!("{by} {kept:.3} is below {option} {least}")),
            // Tensors that stand in place of the base's are kept without a share.
            None if verdict.effect == "kept" && verdict.by.is_none() => None,
            None => Some(format!("{option} {least} cannot be met: {}", verdict.text)),
        }
    };
    thresholds.into_iter().filter_map(below).collect()
}

/// Whether as much is left as was asked for.
pub(crate) fn outcome(args: &MergeArgs, found: &Found) -> Outcome {
    match found {
        Found::Report(report) if !failures(args, report).is_empty() => Outcome::Failed,
        _ => Outcome::Done,
    }
}

/// Merges if it is no dry run.
pub(super) fn dry_or_run(
    inputs: &Inputs,
    plan: &Plan,
    output: &Path,
    args: &Running,
    (memory, work): (Memory, u64),
    merge: impl FnOnce() -> error::Result<Report>,
) -> error::Result<Found> {
    let form = args.report.as_deref().map(page::form).transpose()?;
    if args.dry_run {
        let mut summary = plan.summary(inputs, output, memory, work);
        summary.warnings.extend(merge::enough_space(output, plan).err().map(|error| error.to_string()));
        return Ok(Found::Plan(Box::new(summary)));
    }
    if let Some(path) = &args.report {
        page::refuse_existing(path, args.force)?;
    }
    let report = merge()?;
    if let (Some(path), Some(form)) = (&args.report, form) {
        let document = serde_json::to_value(&report).unwrap_or_default();
        match form {
            Form::Json => page::write_json(path, &document)?,
            Form::Html => page::write(path, &[document], None)?,
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
