//! Runs a plan: every step on all threads, chunk by chunk, in bounded memory.
//!
//! Workers take chunks in plan order from one counter. What a chunk goes through stands in `step.rs` and reads as the verbs of the
//! flow. Which thread does which chunk changes nothing: chunks write disjoint ranges, and sums are added in row order. A thread of its
//! own syncs what is written and keeps the journal, so that the disk works while the processor does.

pub(crate) mod budget;
mod edited;
mod fingerprint;
mod judge;
mod memory;
mod parallel;
mod progress;
mod residual;
mod schedule;
mod step;
mod whole;
mod work;

use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Mutex, mpsc};
use std::time::{Duration, Instant};

pub use edited::Edited;
pub(crate) use fingerprint::content;
pub use judge::Judge;
pub use memory::{Memory, PROGRAM_BYTES};
pub(crate) use parallel::parallel;
pub use progress::{Progress, Silent, stopped};
pub(crate) use whole::transposed;

use crate::adapters::Adapter;
use crate::error::{Error, Kind, Result};
use crate::formats;
use crate::measure::Sums;
use crate::open::model_order;
use crate::plan::{Action, Inputs, Plan, Recode, Source, refuse_repeat};
use crate::report::{
    self, AdapterReport, Behaviour, Evidence, Ignored, Model, Report, RoundingReport, Summary, Tool, Verdict,
    WeightReport, verdict,
};
use crate::round::{Calibration, Demand, Kept};
use crate::write::{Existing, Finished, Output, Tokenizer, copy_others};
use schedule::Schedule;
use step::{Buffers, Steps};

/// Choices of a run that change no byte of the output.
#[derive(Clone, Debug, Default)]
pub struct RunOptions<'a> {
    /// Worker threads; 0 for one per processor.
    pub threads: usize,
    /// Most memory to plan for, bytes.
    pub max_memory: Option<u64>,
    /// What to do with an output that exists.
    pub existing: Existing,
    /// Whose tokenizer.
    pub tokenizer: Tokenizer,
    /// When the work began, if something was done for it before the run, as the text of a calibration is.
    pub started: Option<Instant>,
    /// Runs the merged model before it gets its name, for the report.
    pub judge: Option<&'a dyn Judge>,
    /// True if whoever watches was told of the work already ([`Progress::start`]), as a part of more.
    pub announced: bool,
    /// The command line, for the report.
    pub command: Option<String>,
}

impl RunOptions<'_> {
    fn threads(&self) -> usize {
        threads(self.threads)
    }
}

/// Worker threads for a choice of them: 0 means one per processor.
pub(crate) fn threads(chosen: usize) -> usize {
    match chosen {
        0 => std::thread::available_parallelism().map_or(1, std::num::NonZero::get),
        n => n,
    }
}

/// What a run takes.
#[derive(Clone, Copy, Debug)]
pub struct Estimate {
    /// Memory, with threads and chunks that fit the bound.
    pub memory: Memory,
    /// Work, in nanoseconds of one thread as they were measured elsewhere: that of the calibration included.
    pub work: u64,
}

/// Predicts what a run takes. `demand` is that of its calibration. Errors if the bound on memory cannot be held.
pub fn estimate(plan: &Plan, options: &RunOptions<'_>, demand: &Demand) -> Result<Estimate> {
    let schedule = Schedule::new(plan, options, demand)?;
    Ok(Estimate { memory: schedule.memory, work: schedule.work.total() + demand.work })
}

/// Merges: writes the output and its report, and returns the report.
pub fn run(
    inputs: &Inputs,
    plan: &Plan,
    mut calibration: Option<&mut dyn Calibration>,
    target: &Path,
    options: &RunOptions<'_>,
    progress: &dyn Progress,
) -> Result<Report> {
    let started = options.started.unwrap_or_else(Instant::now);
    refuse_inputs(inputs, target)?;
    let hashes = inputs
        .adapters
        .iter()
        .map(|adapter| content(adapter.tensors.files.get(..1).unwrap_or_default()))
        .collect::<Result<Vec<_>>>()?;
    if !options.existing.force {
        refuse_repeat(&inputs.base, &hashes)?;
    }
    residual::refuse(plan, target.extension().is_some_and(|ext| ext == "safetensors"))?;
    let demand = calibration.as_ref().map(|calibration| calibration.demand()).unwrap_or_default();
    let schedule = Schedule::new(plan, options, &demand)?;
    let about = calibration.as_ref().map(|calibration| calibration.about());
    let taken_from = calibration.as_ref().map(|calibration| calibration.identity()).transpose()?;
    let fingerprint = fingerprint::of(inputs, plan, options, &hashes, taken_from)?;
    let (output, finished) = Output::create(target, plan, &fingerprint, options.existing)?;
    residual::check(plan, &output, &finished)?;
    let run = Run { inputs, plan, schedule: &schedule, output: &output, progress };
    run.announce(&finished, &demand, options);
    let weights = || {
        let not_copied = run.other_files(options)?;
        let finished = run.all(finished, calibration.take())?;
        progress.phase("bringing the output to the disk", "");
        let bytes = output.close_files(plan, &late_parts(plan, &finished))?;
        if let Some(index) = &plan.index {
            output.write_file(index, index_json(inputs, plan, bytes, index)?.as_bytes())?;
        }
        progress.advance(schedule.work.sync);
        let residual = run.residual()?;
        judge::behaviour(options.judge, inputs, plan, &output)
            .map(|behaviour| (finished, bytes, residual, behaviour, not_copied))
    };
    let (finished, bytes, residual, (behaviour, unmeasured), not_copied) = match weights() {
        Ok(written) => written,
        // What a second try could cure is worth keeping for --resume; a bad input is not.
        Err(error) if matches!(error.kind(), Kind::Io | Kind::Cancelled) => return Err(output.to_be_resumed(error)),
        Err(error) => {
            output.abandon();
            return Err(error);
        }
    };
    let mut report = assemble(inputs, plan, target, &hashes, &finished, bytes, behaviour);
    report.warnings.extend(unmeasured);
    report.warnings.extend(not_copied);
    if let Some(residual) = residual {
        report.summary.bytes_written += residual.bytes;
        report.take_residual(residual);
    }
    report.rounding.calibration = about;
    report.command.clone_from(&options.command);
    report.summary.bytes_read = schedule.bytes_read;
    report.summary.bytes_written += output.written();
    report.summary.peak_rss_bytes = peak_rss();
    report.summary.seconds = started.elapsed().as_secs_f64();
    let beside = || {
        output.write_file(report::FILE_NAME, report.to_json().as_bytes())?;
        if !output.is_single_file() && !inputs.adapters.is_empty() {
            output.write_file(report::CARD_NAME, report::card(&report, inputs, plan).as_bytes())?;
        }
        Ok(())
    };
    beside().map_err(|error| output.to_be_resumed(error))?;
    output.publish(plan, options.existing.force)?;
    Ok(report)
}

/// Errors if the disk of `target` has not enough free space for what [`run`] would write.
pub fn enough_space(target: &Path, plan: &Plan) -> Result<()> {
    crate::write::enough_space(target, plan)
}

/// Errors if [`run`] would refuse the output: for callers that do long work before.
pub fn refuse_existing(target: &Path, options: &RunOptions<'_>) -> Result<()> {
    crate::write::refuse_existing(target, options.existing)
}

/// The output must not be, or contain, what is read.
fn refuse_inputs(inputs: &Inputs, target: &Path) -> Result<()> {
    let Ok(target_path) = target.canonicalize() else { return Ok(()) };
    let original = inputs.original.iter().map(|original| original.checkpoint.path.as_path());
    let sources = std::iter::once(inputs.base.path.as_path())
        .chain(inputs.adapters.iter().map(|adapter| adapter.path.as_path()))
        .chain(original);
    for source in sources {
        if source.canonicalize().is_ok_and(|source| source.starts_with(&target_path)) {
            return Err(Error::new(Kind::Usage, "the output would replace an input")
                .in_file(target)
                .with_hint("choose another output"));
        }
    }
    Ok(())
}

/// One run in progress.
struct Run<'a> {
    inputs: &'a Inputs,
    plan: &'a Plan,
    schedule: &'a Schedule,
    output: &'a Output,
    progress: &'a dyn Progress,
}

/// The first error in plan order, and the flag that stops everyone.
#[derive(Default)]
struct Failure {
    stop: AtomicBool,
    first: Mutex<Option<(u64, Error)>>,
}

impl Failure {
    fn report(&self, at: u64, error: Error) {
        let mut first = self.first.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        if first.as_ref().is_none_or(|(before, _)| at < *before) {
            *first = Some((at, error));
        }
        self.stop.store(true, Ordering::Release);
    }
}

/// Unsynced bytes from which the disk is set to work.
const SYNC_EVERY: u64 = 96 << 20;
/// Shortest and longest time that finished steps wait for the journal.
const JOURNAL_EVERY: [Duration; 2] = [Duration::from_millis(50), Duration::from_secs(2)];
/// Between these, as many times as long as the disk took before: so syncing takes a small share of its time.
const JOURNAL_SHARE: u32 = 20;

impl Run<'_> {
    /// Tells who watches how much there is to do, without what an earlier run did.
    fn announce(&self, finished: &[Finished], demand: &Demand, options: &RunOptions<'_>) {
        let work = &self.schedule.work;
        let done = finished.iter().map(|step| work.steps[step.step]).sum();
        if !options.announced {
            self.progress.start(work.total() + demand.work);
        }
        self.progress.skip(done);
    }

    /// Does all steps that are not done. Returns all finished steps in plan order.
    fn all(&self, finished: Vec<Finished>, calibration: Option<&mut dyn Calibration>) -> Result<Vec<Finished>> {
        let mut done: HashMap<usize, Finished> = finished.into_iter().map(|step| (step.step, step)).collect();
        if let Some(calibration) = calibration {
            self.whole(calibration, &mut done)?;
        }
        self.turned(&mut done)?;
        self.progress.phase("writing", "tensors");
        let before = done.len();
        let steps = Steps::new(self.inputs, self.plan, self.schedule, self.output, &done);
        let failure = Failure::default();
        let next = AtomicU64::new(0);
        let working = AtomicUsize::new(self.schedule.threads);
        let (sender, receiver) = mpsc::channel();
        let fresh = std::thread::scope(|scope| {
            for _ in 0..self.schedule.threads {
                let sender = sender.clone();
                let (steps, failure, next, working) = (&steps, &failure, &next, &working);
                scope.spawn(move || {
                    self.work(steps, failure, next, &sender);
                    working.fetch_sub(1, Ordering::AcqRel);
                });
            }
            drop(sender);
            self.keep_journal(&receiver, &failure, before)
        });
        if let Some((_, error)) = failure.first.into_inner().unwrap_or_else(std::sync::PoisonError::into_inner) {
            return Err(error);
        }
        if self.progress.cancelled() {
            return Err(stopped());
        }
        let mut all: Vec<Finished> = done.into_values().chain(fresh).collect();
        all.sort_by_key(|step| step.step);
        Ok(all)
    }

    /// Copies the files beside the weights. Returns warnings on those that were not.
    fn other_files(&self, options: &RunOptions<'_>) -> Result<Vec<String>> {
        let mut not_copied = Vec::new();
        if self.output.is_single_file() {
            return Ok(not_copied);
        }
        let base = self.inputs.base.folder();
        let adapters: Vec<&Path> = self.inputs.adapters.iter().map(|adapter| adapter.path.as_path()).collect();
        // A single file among others is no model folder: only what belongs to it is known.
        if self.inputs.base.config.is_some() {
            not_copied = copy_others(base, &adapters, options.tokenizer, self.output.folder())?;
        }
        if let Some(config) = &self.plan.config {
            self.output.write_file("config.json", config.to_text().as_bytes())?;
        }
        Ok(not_copied)
    }

    fn work(&self, steps: &Steps<'_>, failure: &Failure, next: &AtomicU64, sender: &mpsc::Sender<Finished>) {
        let mut buffers = Buffers::default();
        loop {
            if self.progress.cancelled() {
                failure.stop.store(true, Ordering::Release);
            }
            if failure.stop.load(Ordering::Acquire) {
                steps.wake();
                return;
            }
            let at = next.fetch_add(1, Ordering::Relaxed);
            let Some(task) = self.schedule.task(at) else { return };
            let attempt = std::panic::AssertUnwindSafe(|| steps.run(&task, &mut buffers, &failure.stop));
            let name = &self.plan.steps[task.step].name;
            match std::panic::catch_unwind(attempt) {
                Ok(Ok(done)) => {
                    // Steps that were done before are counted already.
                    if !steps.is_done(task.step) {
                        self.progress.advance(task.work);
                    }
                    if let Some(finished) = done {
                        // The receiver outlives the workers.
                        let _ = sender.send(finished);
                    }
                }
                Ok(Err(error)) => failure.report(at, error.in_tensor(name)),
                Err(panic) => failure.report(at, bug(panic.as_ref()).in_tensor(name)),
            }
            if failure.stop.load(Ordering::Acquire) {
                steps.wake();
            }
        }
    }

    /// Syncs and journals until all workers are gone; returns what they finished. `before` steps were done when they began.
    fn keep_journal(&self, receiver: &mpsc::Receiver<Finished>, failure: &Failure, before: usize) -> Vec<Finished> {
        let mut all = Vec::new();
        let mut listed = 0;
        let (mut last, mut every) = (Instant::now(), JOURNAL_EVERY[0]);
        loop {
            let gone = match receiver.recv_timeout(Duration::from_millis(20)) {
                Ok(finished) => {
                    all.push(finished);
                    all.extend(receiver.try_iter());
                    self.progress.part((before + all.len()) as u64, self.plan.steps.len() as u64);
                    false
                }
                Err(mpsc::RecvTimeoutError::Timeout) => false,
                Err(mpsc::RecvTimeoutError::Disconnected) => true,
            };
            let due = self.output.unsynced() >= SYNC_EVERY || listed < all.len() && last.elapsed() >= every;
            if due && !gone {
                let upto = all.len();
                last = Instant::now();
                if let Err(error) = self.output.checkpoint(&all[listed..upto]) {
                    failure.report(u64::MAX, error);
                }
                listed = upto;
                every = (JOURNAL_SHARE * last.elapsed()).clamp(JOURNAL_EVERY[0], JOURNAL_EVERY[1]);
                last = Instant::now();
            }
            if gone {
                // An interrupted run keeps what it finished; a complete one is synced as a whole at the end.
                if failure.stop.load(Ordering::Acquire)
                    && let Err(error) = self.output.checkpoint(&all[listed..])
                {
                    failure.report(u64::MAX, error);
                }
                return all;
            }
        }
    }
}

fn bug(panic: &(dyn std::any::Any + Send)) -> Error {
    let text = panic
        .downcast_ref::<&str>()
        .map(|text| (*text).to_owned())
        .or_else(|| panic.downcast_ref::<String>().cloned())
        .unwrap_or_default();
    Error::new(Kind::Bug, format!("internal error: {text}")).with_hint("this is a defect of qmerge: please report it")
}

/// Parts of unknown length by their place in the output.
fn late_parts(plan: &Plan, finished: &[Finished]) -> HashMap<(usize, usize), Vec<u8>> {
    let place = |step: &Finished, part: usize| {
        let slot = plan.steps[step.step].slots[part];
        (slot.file, slot.tensor)
    };
    finished
        .iter()
        .flat_map(|step| step.late.iter().map(move |(part, bytes)| (place(step, *part), bytes.clone())))
        .collect()
}

/// The index of the output: the base's with the new places and sizes.
fn index_json(inputs: &Inputs, plan: &Plan, bytes: u64, name: &str) -> Result<String> {
    let path: PathBuf = inputs.base.folder().join(name);
    let text = crate::open::read_small_text(&path, crate::open::MAX_INDEX)?;
    let mut index = crate::open::json::parse_object(&text)
        .map_err(|error| Error::new(Kind::Malformed, format!("not a JSON object: {error}")).in_file(&path))?;
    let mut map: Vec<(&str, &str)> = plan
        .files
        .iter()
        .flat_map(|file| file.tensors.iter().map(|tensor| (tensor.name.as_str(), file.name.as_str())))
        .collect();
    map.sort_unstable();
    let map = map.into_iter().map(|(tensor, file)| (tensor.to_owned(), file.into())).collect();
    index.insert("weight_map".into(), serde_json::Value::Object(map));
    let metadata = index.entry("metadata").or_insert_with(|| serde_json::json!({}));
    if let Some(metadata) = metadata.as_object_mut() {
        metadata.insert("total_size".into(), bytes.into());
        if metadata.contains_key("total_parameters") {
            metadata.insert("total_parameters".into(), logical_parameters(inputs, plan).into());
        }
    }
    Ok(serde_json::to_string_pretty(&index).unwrap_or_default() + "\n")
}

/// Elements of all weights, unpacked; companions of quantized weights do not count.
fn logical_parameters(inputs: &Inputs, plan: &Plan) -> u64 {
    let by_lead: HashMap<&str, u64> = inputs
        .inventory
        .weights
        .iter()
        .map(|claim| (claim.weight.name(), claim.weight.geometry().elements() as u64))
        .collect();
    plan.steps
        .iter()
        .map(|step| match &step.action {
            Action::Recode(recode) => recode.to.geometry().elements() as u64,
            Action::Copy { entry } => by_lead.get(entry.name.as_str()).copied().unwrap_or(0),
        })
        .sum()
}

fn assemble(
    inputs: &Inputs,
    plan: &Plan,
    target: &Path,
    hashes: &[String],
    finished: &[Finished],
    bytes: u64,
    behaviour: Option<Behaviour>,
) -> Report {
    let mut total = Sums::zero();
    let mut weights = Vec::new();
    let mut warnings = plan.warnings.clone();
    let mut merged = 0;
    let mut is_coarse = false;
    let mut unchanged = Vec::new();
    for step in finished {
        let Some(sums) = &step.sums else { continue };
        let planned = &plan.steps[step.step];
        let Action::Recode(recode) = &planned.action else { continue };
        let loss = sums.loss();
        if !recode.edits.is_empty() {
            merged += 1;
            total.add(sums);
            is_coarse |= !recode.to.is_plain();
            if loss.survival.is_none() {
                unchanged.push(planned.name.as_str());
            }
        }
        let mut weight =
            WeightReport::new(&planned.name, recode.from.weight.format(), recode.to.format(), recode.to.shape(), &loss);
        weight.rounding = match &step.kept {
            Some(kept) => {
                if !recode.edits.is_empty() {
                    (weight.kept_output, weight.noise_output) = (Some(kept.output), Some(kept.noise));
                }
                recode.rounding.id()
            }
            None => recode.streamed().id(),
        }
        .to_owned();
        weights.push(weight);
    }
    // Of modules that were not trained the plan has warned.
    let first = unchanged.iter().copied().min_by(|a, b| model_order(a, b));
    if let Some(first) = first.filter(|_| !plan.untrained && unchanged.len() > plan.untrained_modules) {
        warnings.push(format!("the delta is zero in {} of {merged} weights, first `{first}`", unchanged.len()));
    }
    let loss = total.loss();
    let edited =
        |step: &&Finished| matches!(&plan.steps[step.step].action, Action::Recode(recode) if !recode.edits.is_empty());
    let kept: Vec<&Kept> = finished.iter().filter(edited).filter_map(|step| step.kept.as_ref()).collect();
    let mean = |of: fn(&Kept) -> f64| {
        (!kept.is_empty()).then(|| kept.iter().map(|kept| of(kept)).sum::<f64>() / kept.len() as f64)
    };
    let (kept_output, noise_output) = (mean(|kept| kept.output), mean(|kept| kept.noise));
    Report {
        schema_version: report::SCHEMA_VERSION,
        tool: Tool::THIS,
        date: report::now(),
        command: None,
        base: Model {
            path: inputs.base.path.display().to_string(),
            format: formats::in_words(&inputs.inventory),
            bytes: inputs.base.total_bytes(),
        },
        adapters: inputs.adapters.iter().zip(&plan.accounting).zip(hashes).map(adapter_report).collect(),
        output: Model { path: target.display().to_string(), format: plan.output_format.clone(), bytes },
        rounding: RoundingReport {
            method: plan.rounding.id().to_owned(),
            reason: plan.reason.clone(),
            seed: plan.recodes().any(|recode| recode.rounding.is_random()).then_some(plan.seed),
            calibration: None,
        },
        summary: Summary {
            weights_merged: merged,
            elements: total.elements,
            survival: loss.survival,
            noise_to_delta: loss.noise_to_delta,
            kept_output,
            noise_output,
            changed_fraction: loss.changed_fraction,
            nonfinite: 0,
            seconds: 0.0,
            bytes_read: 0,
            bytes_written: 0,
            peak_rss_bytes: None,
        },
        verdict: judged(inputs, plan, &Evidence { loss: &loss, is_coarse, kept_output, behaviour: behaviour.as_ref() }),
        behaviour,
        residual: None,
        weights,
        warnings,
    }
}

/// The verdict on what this plan does: a conversion has no adapter, and an adapter need not have a delta.
fn judged(inputs: &Inputs, plan: &Plan, evidence: &Evidence<'_>) -> Verdict {
    let replaced: usize = plan.accounting.iter().map(|accounting| accounting.replaced).sum();
    if inputs.adapters.is_empty() {
        report::converted(plan.recodes().count())
    } else if replaced > 0 && plan.recodes().all(|recode| recode.edits.is_empty()) {
        let from_adapter = |recode: &&Recode| matches!(recode.source, Source::Adapter(_));
        report::replaced(replaced, plan.recodes().filter(from_adapter).all(|recode| recode.to.is_plain()))
    } else {
        verdict(evidence)
    }
}

fn adapter_report(((adapter, accounting), sha256): ((&Adapter, &crate::plan::Accounting), &String)) -> AdapterReport {
    AdapterReport {
        path: adapter.path.display().to_string(),
        peft_type: adapter.config.peft_type.clone(),
        weight: adapter.weight,
        sha256: sha256.clone(),
        base_model: adapter.config.base_model.clone(),
        tensors: accounting.tensors,
        merged: accounting.merged,
        replaced: accounting.replaced,
        added: accounting.added,
        beside: accounting.beside.clone(),
        left_out: accounting.left_out.clone(),
        unused: accounting.unused.len(),
        unused_tensors: accounting.unused.clone(),
        ignored: accounting.ignored.iter().map(|(tensor, reason)| Ignored { tensor: tensor.clone(), reason }).collect(),
    }
}

/// Largest resident memory of this process, from the kernel.
fn peak_rss() -> Option<u64> {
    let status = std::fs::read_to_string("/proc/self/status").ok()?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:"))?;
    line.trim().strip_suffix("kB")?.trim().parse::<u64>().ok().map(|kib| kib * 1024)
}
