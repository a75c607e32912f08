//! `qmerge merge`.

use std::cell::RefCell;
use std::path::Path;

use anyhow::Result;
use qmerge::adapters::Adapter;
use qmerge::error;
use qmerge::merge::{self, Estimate, PartDone, PartEstimate, RunOptions};
use qmerge::plan::{self, Inputs, Options, Part, Plan, Tokenizer};
use qmerge::progress::Progress;
use qmerge::report::{By, PlanSummary, Report, quoted};
use qmerge::round::{Calibration, Demand};
use serde::Serialize;

use super::next::{self, Made};
use super::{
    calibrate, importance, open_both, promote, read_options, refuse_unused, rounding, run_options, settings, target,
    usage,
};
use crate::args::{Measure, MergeArgs, Running, TokenizerArg};
use crate::page::{self, Form};
use crate::progress::Bar;
use crate::{Outcome, show};

/// What a merge or a conversion comes to.
#[derive(Debug, Serialize)]
#[serde(untagged)]
pub(crate) enum Found {
    /// Where nothing was written.
    Plan(Box<Planned>),
    Part(PartDone),
    /// What it would be rounded by was stored; `None` where no model is run for that.
    Moments(Option<calibrate::Found>),
    Report(Box<Report>),
}

/// A plan, and its parts if it was asked for some.
#[derive(Debug, Serialize)]
pub(crate) struct Planned {
    #[serde(flatten)]
    plan: PlanSummary,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    parts: Vec<PartEstimate>,
    /// With parts: whether the model is run for what each is rounded by, on so many tokens that one should do it for all.
    #[serde(skip_serializing_if = "Option::is_none")]
    runs_model: Option<bool>,
    /// With parts: bytes that each reads from stores beside those of its own weights.
    #[serde(skip_serializing_if = "Option::is_none")]
    bytes_beside: Option<u64>,
}

/// How a merge is gone about.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Way {
    Whole,
    /// A part of it.
    Part(Part),
    /// Its parts are put together.
    Finish,
    /// Not at all: what so many parts would take.
    Plan(usize),
}

impl Way {
    /// That of the command `merge`.
    pub(crate) fn of(args: &MergeArgs) -> Self {
        args.part.map_or(Self::Whole, Self::Part)
    }
}

pub(crate) fn run(args: &MergeArgs, way: Way, command: &str) -> Result<Outcome> {
    let bar = Bar::new(args.running.quiet);
    let told = Told::default();
    let found = find(args, way, command, &bar, &|plan| told.tell(plan, &args.running));
    bar.clear();
    let found = found?;
    show(&found, &args.running, &told)?;
    if let (Found::Report(report), false, false) = (&found, args.running.json, args.running.quiet) {
        next(args, report);
    }
    if let (Found::Report(_), Some(repo), false) = (&found, &args.push, args.running.quiet) {
        let command = upload(repo, &args.output);
        // With --json, standard output holds the document alone.
        if args.running.json { show::note(&format!("upload it: {command}")) } else { show::then("upload it", &command) }
    }
    if let Found::Report(report) = &found {
        failures(args, report).iter().for_each(|text| show::warning(text));
    }
    Ok(outcome(args, &found))
}

/// The commands to go on with: the same merge by a method that keeps more, where the adapter was lost by one that does not look at what layers do, else to
/// try what was made.
fn next(args: &MergeArgs, report: &Report) {
    let made = Made { sources: &args.sources, tuned: &args.tuned, meaning: &args.meaning, scaling: &args.scaling };
    let by_little = report.summary.kept_output.is_none() || args.calibrating.fast;
    let can_do_better = report.verdict.advice.is_some() && by_little;
    match report.verdict.effect {
        "none" | "broken" => {}
        "lost" | "weakened" if can_do_better && next::runs(args.sources.base()) => {
            made.merge(&args.output, (!args.dequantize).then_some(args.to.as_str()));
        }
        _ => made.try_and_compare(&args.output),
    }
}

/// The command that uploads an output: a folder as the whole repository, a file under its own name.
fn upload(repo: &str, output: &Path) -> String {
    let within = if output.is_dir() { ".".into() } else { output.file_name().unwrap_or_default().to_string_lossy() };
    // What begins with a dash would be taken for an option.
    let path = output.to_string_lossy();
    let path = if path.starts_with('-') { format!("./{path}") } else { path.into_owned() };
    format!("hf upload {repo} {} {}", quoted(&path), quoted(&within))
}

/// Warnings that were printed before the work.
#[derive(Default)]
struct Told(RefCell<Vec<String>>);

impl Told {
    /// Prints what a plan warns of, where a person reads along.
    fn tell(&self, plan: &Plan, args: &Running) {
        if !args.quiet && !args.json && !args.dry_run {
            plan.warnings.iter().for_each(|text| show::warning(text));
            self.0.borrow_mut().extend(plan.warnings.iter().cloned());
        }
    }
}

/// Merges, or plans to. `command` is the command line, for the report; `decided` gets the plan before any work is done.
pub(crate) fn find(
    args: &MergeArgs,
    way: Way,
    command: &str,
    progress: &dyn Progress,
    decided: &dyn Fn(&Plan),
) -> error::Result<Found> {
    let measure = measure(args, way)?;
    let mut options = options(args)?;
    let looked_at = qmerge_store::looked_at();
    let mut inputs = open_both(&args.sources, &args.tuned)?;
    if let Some(original) = &args.calibrating.original {
        inputs = inputs.with_original(qmerge_store::checkpoint(original)?)?;
    }
    if args.promote.is_some() {
        plan::refuse_promotion(&inputs, &options)?;
    }
    let mut run = run_options(&args.running, command);
    let mut calibrating = args.calibrating.clone();
    let not_taken = rounding::look_beside(&inputs, &options, &mut calibrating);
    let (data, told) = rounding::data(&inputs, &options, &calibrating)?;
    options.data = data;
    let mut plan = Plan::new(&inputs, &options)?;
    plan.warnings.extend(not_taken.into_iter().chain(told));
    rounding::refuse_useless(&plan, &options, &args.calibrating)?;
    refuse_unused(&args.quantization, &plan)?;
    if plan.is_calibrated() {
        run.beside += qmerge_run::text::Tokenizer::memory(&inputs);
    }
    if let Some(path) = &args.moments {
        let prepared =
            rounding::prepare(&inputs, &plan, (&options.data, &calibrating), Measure::Never, &run, progress)?;
        return rounding::store(&inputs, &plan, prepared, path, &run, progress).map(Found::Moments);
    }
    let is_dry = args.running.dry_run || matches!(way, Way::Plan(_));
    let sink = if is_dry { None } else { super::sink(&inputs, &args.output, &args.running)? };
    if let Some(sink) = &sink {
        run.beside += qmerge_store::sink_held();
        merge::refuse_name(&**sink, &plan)?;
        decided(&plan);
    } else if !is_dry {
        refuse_output(args, way, (&inputs, &plan), &run)?;
        decided(&plan);
    }
    if is_dry {
        promote::warn(args, &mut plan);
    } else {
        plan = promote::widened(&inputs, plan, &mut options, (args, &calibrating), &run, progress)?;
    }
    let prepared = rounding::prepare(&inputs, &plan, (&options.data, &calibrating), measure, &run, progress)?;
    let takes = Estimate { work: prepared.work(), ..prepared.estimate };
    let sink = RefCell::new(sink);
    let whole = |run: &RunOptions<'_>, calibration: Option<&mut dyn Calibration>, progress: &dyn Progress| match way {
        Way::Finish => merge::finish(&inputs, &plan, calibration, &args.output, run, progress),
        _ => match sink.take() {
            Some(sink) => merge::run_into(&inputs, &plan, calibration, sink, run, progress),
            None => merge::run(&inputs, &plan, calibration, &args.output, run, progress),
        },
    };
    if let (Way::Part(part), false) = (way, is_dry) {
        let done = rounding::run(&inputs, &plan, prepared, &run, progress, |run, calibration, progress| {
            merge::run_part((&inputs, &plan), calibration, &args.output, part, run, progress)
        })?;
        return Ok(Found::Part(done));
    }
    if is_dry {
        let of = match way {
            Way::Plan(of) => of,
            Way::Part(part) => part.of(),
            Way::Whole | Way::Finish => 1,
        };
        let mut planned = planned(&inputs, &plan, &args.output, &args.running, &takes)?;
        if of > 1 {
            planned.parts = merge::estimate_parts(&plan, takes.memory.threads, &prepared.demand, of);
            planned.runs_model = Some(prepared.runs_model());
            planned.bytes_beside = Some(beside(&inputs, looked_at));
        }
        return Ok(Found::Plan(Box::new(planned)));
    }
    written(&args.running, || rounding::run(&inputs, &plan, prepared, &run, progress, whole))
}

/// When the merge is measured. Errors on options that do not go together.
fn measure(args: &MergeArgs, way: Way) -> error::Result<Measure> {
    if args.part.is_some() && !matches!(way, Way::Part(_)) {
        return Err(usage("--part is an option of merge alone".into()));
    }
    if args.on.is_some() {
        return Err(usage("--on is an option of merge alone".into()));
    }
    Ok(match (way, args.measuring.when().map_err(usage)?) {
        (Way::Part(_), Measure::Always) => {
            return Err(usage("a part of a merge is not measured".into())
                .with_hint("leave out --measure; qmerge finish measures the whole"));
        }
        (Way::Part(_), _) => Measure::Never,
        (_, measure) => measure,
    })
}

/// What the command line says of the plan.
fn options(args: &MergeArgs) -> error::Result<Options> {
    let (to, export) = target(if args.dequantize { "bf16" } else { &args.to }, &args.output)?;
    let mut options = Options {
        to,
        export,
        importance: importance(export, args.calibrating.imatrix.as_deref())?,
        tokenizer: match args.tokenizer {
            TokenizerArg::Adapter => Tokenizer::Adapter,
            TokenizerArg::Base => Tokenizer::Base,
        },
        settings: settings(&args.quantization),
        rounding: rounding::method(&args.rounding)?,
        seed: args.calibrating.seed,
        residual_rank: args.residual_rank.map(|rank| rank as usize),
        maps: args.meaning.map.clone(),
        read: read_options(&args.meaning, &args.scaling, Some(&args.tuned))?,
        allow_unused: args.meaning.allow_unused,
        ..Options::default()
    };
    options.promote = args.promote.as_deref().map(promote::promotion).transpose()?;
    Ok(options)
}

/// Errors if the output, a folder of this machine, cannot be written once the work is done.
fn refuse_output(
    args: &MergeArgs,
    way: Way,
    (inputs, plan): (&Inputs, &Plan),
    run: &RunOptions<'_>,
) -> error::Result<()> {
    merge::refuse_existing(inputs, &args.output, args.part, plan, run)?;
    // What an interrupted run wrote has its space already.
    if !args.running.resume && way == Way::Whole {
        merge::enough_space(&args.output, plan)?;
    }
    // Which weights get a wider type is known later.
    if args.promote.is_none() {
        merge::refuse_another(inputs, plan, &args.output, args.part, run)?;
    }
    if way == Way::Finish {
        merge::refuse_missing(&args.output)?;
    }
    Ok(())
}

/// Does a plan that needs no calibration, or says what it would do.
pub(super) fn without_data(
    inputs: &Inputs,
    plan: &Plan,
    output: &Path,
    args: &Running,
    run: &RunOptions<'_>,
    progress: &dyn Progress,
) -> error::Result<Found> {
    if args.dry_run {
        let estimate = merge::estimate(plan, run, &Demand::default())?;
        return Ok(Found::Plan(Box::new(planned(inputs, plan, output, args, &estimate)?)));
    }
    match super::sink(inputs, output, args)? {
        Some(sink) => {
            let run = RunOptions { beside: run.beside + qmerge_store::sink_held(), ..run.clone() };
            written(args, || merge::run_into(inputs, plan, None, sink, &run, progress))
        }
        None => written(args, || merge::run(inputs, plan, None, output, run, progress)),
    }
}

/// Has a command without data of its own done, and shows what came of it.
pub(super) fn shown(
    args: &Running,
    output: &Path,
    find: impl FnOnce(&dyn Progress, &dyn Fn(&Plan)) -> error::Result<Found>,
) -> Result<Outcome> {
    let bar = Bar::new(args.quiet);
    let told = Told::default();
    let found = find(&bar, &|plan| told.tell(plan, args));
    bar.clear();
    let found = found?;
    show(&found, args, &told)?;
    if let (Found::Report(_), false, false) = (&found, args.json, args.quiet) {
        next::try_it(output);
    }
    Ok(Outcome::Done)
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

/// What would be done.
fn planned(inputs: &Inputs, plan: &Plan, output: &Path, args: &Running, expected: &Estimate) -> error::Result<Planned> {
    args.report.as_deref().map(page::form).transpose()?;
    merge::refuse_file_name(output, plan)?;
    // What is there already may be moved away before the merge is run.
    let refused = || merge::refuse_existing(inputs, output, None, plan, &run_options(args, "")).err();
    let mut summary =
        plan.summary(inputs, output, expected.memory.threads, expected.seconds(), expected.memory.peak_bytes);
    if !qmerge_store::is_address(output) {
        summary.warnings.extend(refused().map(|error| format!("without --dry-run this would be refused: {error}")));
        let space = if args.resume { None } else { merge::enough_space(output, plan).err() };
        summary.warnings.extend(space.map(|error| error.to_string()));
    }
    Ok(Planned { plan: summary, parts: Vec::new(), runs_model: None, bytes_beside: None })
}

/// Bytes that whoever merges a part reads from stores beside its weights: what this plan did, since so many were, and adapters whole.
fn beside(inputs: &Inputs, looked_at: u64) -> u64 {
    let is_elsewhere = |adapter: &&Adapter| qmerge_store::is_address(&adapter.path) && !adapter.is_tuned();
    let files = inputs.adapters.iter().filter(is_elsewhere).flat_map(|adapter| &adapter.tensors.files);
    qmerge_store::looked_at() - looked_at + files.map(|file| file.len()).sum::<u64>()
}

/// Merges, and writes the report where it was asked for too.
fn written(args: &Running, merge: impl FnOnce() -> error::Result<Report>) -> error::Result<Found> {
    let form = args.report.as_deref().map(page::form).transpose()?;
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
fn show(found: &Found, args: &Running, told: &Told) -> Result<()> {
    match found {
        _ if args.json => show::json(found)?,
        Found::Plan(planned) => {
            show::plan(&planned.plan);
            show::parts(&planned.parts, planned.bytes_beside);
        }
        Found::Moments(_) if args.quiet => {}
        Found::Moments(stored) => calibrate::show(stored.as_ref()),
        Found::Part(_) if args.quiet => {}
        Found::Part(part) => show::part(part),
        Found::Report(_) if args.quiet => {}
        Found::Report(report) => {
            let told = told.0.borrow();
            report.warnings.iter().filter(|text| !told.contains(text)).for_each(|text| show::warning(text));
            show::report(report);
        }
    }
    if !args.quiet && matches!(found, Found::Report(_)) {
        show::written(args.report.as_deref());
    }
    Ok(())
}
