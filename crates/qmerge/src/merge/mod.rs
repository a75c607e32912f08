//! Runs a plan: every step on all threads, chunk by chunk, in bounded memory.
//!
//! Workers take chunks in plan order from one counter. What a chunk goes through stands in `step.rs` and reads as the verbs of the
//! flow. Which thread does which chunk changes nothing: chunks write disjoint ranges, and sums are added in row order. A thread of its
//! own syncs what is written and keeps the journal, so that the disk works while the processor does.

mod calibrated;
mod fingerprint;
mod from_adapter;
mod judge;
mod memory;
mod parts;
mod places;
mod queue;
mod refuse;
mod residual;
mod schedule;
mod step;
mod stream;
mod target;
#[cfg(test)]
mod tests;
mod whole;
mod work;

use std::collections::HashMap;
use std::ops::Range;
use std::path::Path;
use std::time::Instant;

pub use from_adapter::FromAdapter;
pub use judge::Judge;
pub use memory::Memory;
#[doc(hidden)]
pub use memory::PROGRAM_BYTES;
#[doc(hidden)]
pub use parts::refuse_missing;
pub use parts::{PartDone, PartEstimate, estimate_parts, finish, run_part};
#[doc(hidden)]
pub use refuse::{enough_space, refuse_another, refuse_existing, refuse_file_name, refuse_name};

use crate::error::Result;
use crate::open::{Checkpoint, Store};
use crate::parallel::threads;
use crate::plan::{Action, Inputs, Plan, Step};
use crate::progress::Progress;
use crate::report::{self, Made, Report, Written, assemble, hashes_of};
use crate::round::{Calibration, Demand, Seen};
use crate::write::{
    Existing, Fingerprint, Finished, LocalSink, Nowhere, Output, Sink, Took, WrittenPart, copy_others, index_json,
};
use refuse::{refuse_inputs, refuse_mistaken};
use schedule::{Schedule, step_writes};

/// Choices of a run that change no byte of the output.
#[derive(Clone, Debug, Default)]
pub struct RunOptions<'a> {
    /// Worker threads; 0 for one per processor.
    pub threads: usize,
    /// Most memory to plan for, bytes.
    pub max_memory: Option<u64>,
    /// Bytes that whoever reads the inputs or writes the output holds besides, where they lie elsewhere.
    pub beside: u64,
    /// What to do with an output that exists.
    pub existing: Existing,
    /// When the work began, if something was done for it before the run, as the text of a calibration is.
    pub started: Option<Instant>,
    /// Runs the merged model before it gets its name, for the report.
    pub judge: Option<&'a dyn Judge>,
    /// True if whoever watches was told of the work already ([`Progress::start`]), as a part of more.
    pub announced: bool,
    /// The command line, for the report.
    pub command: Option<String>,
    /// The base is a merge, and the adapters are [taken out](crate::arithmetic::undo) of it.
    pub undoes: bool,
}

impl RunOptions<'_> {
    fn threads(&self) -> usize {
        threads(self.threads)
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

impl Estimate {
    /// Seconds on its threads, about: measured on one machine, whose threads another's may outrun.
    pub fn seconds(&self) -> f64 {
        self.work as f64 * 1e-9 / self.memory.threads.max(1) as f64
    }
}

/// Predicts what a run takes. `demand` is that of its calibration. Errors if the bound on memory cannot be held.
pub fn estimate(plan: &Plan, options: &RunOptions<'_>, demand: &Demand) -> Result<Estimate> {
    let schedule = Schedule::new(plan, options, demand)?;
    Ok(Estimate { memory: schedule.memory, work: schedule.work.total() + demand.work })
}

/// Merges: writes the output and its report, and returns the report.
///
/// Rounding methods that go by the inputs of layers take them from `calibration`; without one, weights are rounded as the plan says for that case.
///
/// ```
/// # fn main() -> qmerge::error::Result<()> {
/// # use qmerge::{adapters::Adapter, open::Checkpoint, plan::{Inputs, Options, Plan}, progress::Silent};
/// use qmerge::merge::{self, RunOptions};
/// use qmerge::round::Demand;
///
/// # let base = Checkpoint::open("testdata/tiny-llama/bases/base-nf4dq".as_ref())?;
/// # let adapter = Adapter::open("testdata/tiny-llama/adapters/plain".as_ref(), 1.0)?;
/// # let inputs = Inputs::new(base, vec![adapter])?;
/// # let plan = Plan::new(&inputs, &Options::default())?;
/// # let output = std::env::temp_dir().join(format!("qmerge-run-{}", std::process::id()));
/// let options = RunOptions { threads: 2, max_memory: Some(1 << 30), ..RunOptions::default() };
/// let estimate = merge::estimate(&plan, &options, &Demand::default())?;
/// assert!(estimate.memory.peak_bytes <= 1 << 30);
/// let report = merge::run(&inputs, &plan, None, &output, &options, &Silent)?;
/// assert_eq!(report.summary.weights_merged, report.weights.len());
/// # std::fs::remove_dir_all(&output).ok();
/// # Ok(()) }
/// ```
pub fn run(
    inputs: &Inputs,
    plan: &Plan,
    calibration: Option<&mut dyn Calibration>,
    target: &Path,
    options: &RunOptions<'_>,
    progress: &dyn Progress,
) -> Result<Report> {
    run_into(inputs, plan, calibration, Box::new(LocalSink::new(target)), options, progress)
}

/// [`run`] with an output that is built wherever `sink` does.
pub fn run_into(
    inputs: &Inputs,
    plan: &Plan,
    calibration: Option<&mut dyn Calibration>,
    sink: Box<dyn Sink>,
    options: &RunOptions<'_>,
    progress: &dyn Progress,
) -> Result<Report> {
    let begun = begin(inputs, plan, calibration.as_deref(), 0..plan.steps.len(), &*sink, options)?;
    whole(inputs, plan, calibration, sink, options, progress, &begun)
}

/// Does all that [`run`] does and keeps nothing but the report: what each weight would lose. `target` is the name that an output would have.
pub fn rehearse(
    inputs: &Inputs,
    plan: &Plan,
    calibration: Option<&mut dyn Calibration>,
    target: &Path,
    options: &RunOptions<'_>,
    progress: &dyn Progress,
) -> Result<Report> {
    run_into(inputs, plan, calibration, Box::new(Nowhere { target: target.to_path_buf() }), options, progress)
}

/// What is known once a run may begin.
struct Begun {
    started: Instant,
    /// Of the adapters' contents.
    hashes: Vec<String>,
    demand: Demand,
    schedule: Schedule,
    fingerprint: Fingerprint,
    /// Parts that are there, if it was written in parts.
    parts: Vec<WrittenPart>,
}

/// Refuses what must not be merged, and plans the run.
fn begin(
    inputs: &Inputs,
    plan: &Plan,
    calibration: Option<&(dyn Calibration + '_)>,
    steps: Range<usize>,
    sink: &dyn Sink,
    options: &RunOptions<'_>,
) -> Result<Begun> {
    let started = options.started.unwrap_or_else(Instant::now);
    refuse_inputs(inputs, sink.path())?;
    let hashes = hashes_of(&inputs.adapters)?;
    if !options.existing.force {
        refuse_mistaken(inputs, &hashes, options.undoes)?;
    }
    residual::refuse(plan, sink.is_single_file())?;
    let demand = calibration.map(Calibration::demand).unwrap_or_default();
    let schedule = Schedule::new(plan, options, &demand)?;
    let taken_from = calibration.map(Calibration::identity).transpose()?;
    let fingerprint = fingerprint::of(inputs, plan, &hashes, taken_from)?;
    expect(&inputs.base, &plan.steps[steps]);
    Ok(Begun { started, hashes, demand, schedule, fingerprint, parts: Vec::new() })
}

/// Tells the files of a base what steps read of them.
fn expect(base: &Checkpoint, steps: &[Step]) {
    let mut ranges: Vec<Vec<Range<u64>>> = vec![Vec::new(); base.files.len()];
    for step in steps {
        let entries = match &step.action {
            Action::Copy { entry } => std::slice::from_ref(entry),
            Action::Recode(recode) if matches!(recode.source, crate::plan::Source::Base) => {
                recode.from.entries.as_slice()
            }
            Action::Recode(_) | Action::Constant(_) => &[],
        };
        // A weight that an adapter brings lies in another file.
        for entry in entries.iter().filter(|entry| base.get(&entry.name) == Some(entry)) {
            ranges[entry.file].push(entry.start..entry.start + entry.bytes);
        }
    }
    base.files.iter().zip(ranges).for_each(|(file, ranges)| file.expect(&ranges));
}

/// Writes the whole output, with what parts of it hold.
fn whole(
    inputs: &Inputs,
    plan: &Plan,
    mut calibration: Option<&mut dyn Calibration>,
    sink: Box<dyn Sink>,
    options: &RunOptions<'_>,
    progress: &dyn Progress,
    begun: &Begun,
) -> Result<Report> {
    let target = sink.path().to_path_buf();
    let single_file = sink.is_single_file();
    let Begun { started, hashes, demand, schedule, fingerprint, parts } = begun;
    let all = 0..plan.steps.len();
    let (output, finished) = Output::create(sink, plan, &all, fingerprint, options.existing)?;
    residual::check(plan, &output, &finished)?;
    let run = Run { inputs, plan, steps: all, is_part: false, schedule, output: &output, progress };
    run.announce(&finished, demand, options);
    // What parts brought is this merge's own.
    let before: u64 = finished.iter().map(|done| step_writes(&plan.steps[done.step], plan)).sum();
    let weights = || -> Result<_> {
        let finished = run.gather(finished, parts)?;
        let not_copied = run.other_files()?;
        // Lent, for a lifetime of its own.
        let lent: Option<&mut dyn Calibration> = match &mut calibration {
            Some(calibration) => Some(&mut **calibration),
            None => None,
        };
        let finished = run.all(finished, lent)?;
        progress.phase("bringing the output to the disk", "");
        let bytes = output.close_files(plan, &late_parts(plan, &finished))?;
        if let Some(index) = &plan.index {
            output.write_file(index, index_json(inputs, plan, bytes, index)?.as_bytes())?;
        }
        progress.advance(schedule.work.sync);
        let residual = run.residual()?;
        let behaviour = judge::behaviour(options.judge, inputs, plan, &output)?;
        inputs.check_unchanged()?;
        Ok((finished, bytes, residual, behaviour, not_copied))
    };
    let (finished, bytes, residual, (behaviour, unmeasured), not_copied) = match weights() {
        Ok(written) => written,
        // What a second try could cure is worth keeping for --resume; a bad input is not.
        Err(error) if error.kind().is_passing() => return Err(output.to_be_resumed(error)),
        Err(error) => {
            output.abandon();
            return Err(error);
        }
    };
    let seen = calibration.as_ref().map_or(Seen::Many, |calibration| calibration.seen());
    let written = Written { finished: &finished, bytes, behaviour, seen };
    let mut report = assemble(inputs, plan, &target, hashes, written);
    if options.undoes {
        report.verdict = report::undone(report.verdict, report.summary.survival);
    }
    report.warnings.extend(unmeasured);
    report.warnings.extend(not_copied);
    if let Some(residual) = residual {
        report.summary.bytes_written += residual.bytes;
        report.take_residual(residual);
    }
    // What it says may hold what it saw.
    report.rounding.calibration = calibration.map(|calibration| calibration.about());
    report.command.clone_from(&options.command);
    let own = Took {
        seconds: started.elapsed().as_secs_f64(),
        bytes_read: if parts.is_empty() { schedule.bytes_read } else { 0 },
        bytes_written: report.summary.bytes_written + output.written(),
        peak_rss_bytes: peak_rss(),
    };
    let took = parts.iter().map(|part| part.took).reduce(Took::and).map_or(own, |took| took.then(own));
    report.summary.bytes_read = took.bytes_read;
    report.summary.bytes_written = took.bytes_written;
    report.summary.bytes_before = Some(before).filter(|bytes| *bytes > 0);
    report.summary.peak_rss_bytes = took.peak_rss_bytes;
    report.summary.seconds = took.seconds;
    let beside = || {
        output.write_file(report::FILE_NAME, report.to_json().as_bytes())?;
        let made = match inputs.adapters.is_empty() {
            true => Made::Conversion,
            false if options.undoes => Made::Unmerge,
            false => Made::Merge,
        };
        // A folder that was converted has its own, and a file none.
        if !single_file && (made != Made::Conversion || inputs.base.is_self_contained()) {
            output.write_file(report::CARD_NAME, report::card(&report, inputs, plan, made).as_bytes())?;
        }
        Ok(())
    };
    beside().map_err(|error| output.to_be_resumed(error))?;
    output.publish(options.existing.force)?;
    Ok(report)
}

/// One run in progress.
struct Run<'a> {
    inputs: &'a Inputs,
    plan: &'a Plan,
    /// The steps that are to be done: all, or those of a part.
    steps: Range<usize>,
    /// True if that is all that becomes of the output here.
    is_part: bool,
    schedule: &'a Schedule,
    output: &'a Output,
    progress: &'a dyn Progress,
}

impl Run<'_> {
    /// Tells who watches how much there is to do, without what an earlier run did.
    fn announce(&self, finished: &[Finished], demand: &Demand, options: &RunOptions<'_>) {
        let work = &self.schedule.work;
        let others = work.steps.iter().enumerate().filter(|(number, _)| !self.steps.contains(number));
        let done = others.map(|(_, work)| work).chain(finished.iter().map(|step| &work.steps[step.step])).sum();
        if !options.announced {
            self.progress.start(work.total() + demand.work);
        }
        self.progress.skip(done);
    }

    /// Copies the files beside the weights. Returns warnings on those that were not.
    fn other_files(&self) -> Result<Vec<String>> {
        let mut not_copied = Vec::new();
        if self.output.sink().is_single_file() {
            return Ok(not_copied);
        }
        let base = &*self.inputs.base.store;
        let adapters: Vec<&dyn Store> = self.inputs.adapters.iter().filter_map(|adapter| adapter.beside()).collect();
        // A single file among others is no model folder: only what belongs to it is known.
        if self.inputs.base.config.is_some() && !self.inputs.base.is_self_contained() && !self.plan.is_export {
            let keeps_format = self.plan.keeps_format(self.inputs);
            not_copied = copy_others(base, &adapters, self.plan.tokenizer, keeps_format, self.output.sink())?;
        }
        for (name, bytes) in &self.plan.beside {
            self.output.write_file(name, bytes)?;
        }
        if let Some(config) = &self.plan.config {
            self.output.write_file("config.json", config.to_text().as_bytes())?;
        }
        Ok(not_copied)
    }
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

/// Largest resident memory of this process, from the kernel.
fn peak_rss() -> Option<u64> {
    let status = std::fs::read_to_string("/proc/self/status").ok()?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:"))?;
    line.trim().strip_suffix("kB")?.trim().parse::<u64>().ok().map(|kib| kib * 1024)
}
