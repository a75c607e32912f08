//! A merge in parts: each by a process of its own, on any machine that sees the inputs and the folder of the output, and one that puts them together.
//!
//! A part is some steps of the plan. It writes them into a folder of its own beside the target, with a journal of its own, and that is all that becomes of
//! it: nothing but [`finish`] writes what has the output's name. Processes never share a file, so any file system will do. Each byte is that of a merge by one process, since a step
//! depends on nothing but the inputs and the plan.

use std::collections::HashSet;
use std::path::Path;

use serde::Serialize;

use super::schedule::{step_reads, step_writes};
use super::{Run, RunOptions, begin, peak_rss, whole, work::Work};
use crate::error::{Error, Result, usage};
use crate::open::Blob;
use crate::plan::{Action, Inputs, Part, Plan, Step};
use crate::progress::{Progress, stopped};
use crate::report::Report;
use crate::round::{Calibration, Demand, LayerInputs, weight_of};
use crate::write::{Finished, LocalSink, Output, Took, WrittenPart, parts_beside};

/// Bytes that are copied at a time.
const COPIED: u64 = 4 << 20;
/// Bytes that are copied between two entries of the journal.
const LISTED: u64 = 256 << 20;

/// What a part would take.
#[derive(Clone, Debug, Serialize)]
pub struct PartEstimate {
    /// Its number, from 1.
    pub part: usize,
    /// Tensors and weights that it writes.
    pub steps: usize,
    /// The first and the last of them; `None` if there are none.
    pub first: Option<String>,
    /// The last of them.
    pub last: Option<String>,
    /// Bytes of the base that it merges or copies. A calibration reads the model besides.
    pub bytes_read: u64,
    /// Most bytes that it writes.
    pub bytes_written: u64,
    /// Numbers of the calibration's layers whose moments it needs, from 0.
    pub layers: Vec<usize>,
    /// Seconds, about, on the threads of the estimate.
    pub seconds: f64,
}

/// A part that is complete.
#[derive(Clone, Debug, Serialize)]
pub struct PartDone {
    /// Its number, from 1.
    pub part: usize,
    /// Of how many.
    pub of: usize,
    /// Where it waits to be put together with the others.
    pub folder: String,
    /// Tensors and weights in it.
    pub steps: usize,
    /// Bytes written.
    pub bytes_written: u64,
    /// Seconds.
    pub seconds: f64,
    /// Largest resident memory.
    pub peak_rss_bytes: Option<u64>,
    /// An earlier run of it had come to its end, and the figures are that one's.
    #[serde(skip)]
    pub was_complete: bool,
}

/// Predicts what each of so many parts takes, on so many threads. `demand` is that of the calibration, which every part does for itself.
pub fn estimate_parts(plan: &Plan, threads: usize, demand: &Demand, of: usize) -> Vec<PartEstimate> {
    let work = Work::new(plan, demand, threads.max(1));
    let one = |part: Part| {
        let range = plan.steps_of(part);
        let steps = &plan.steps[range.clone()];
        let own: u64 = work.steps[range].iter().sum();
        let calibrated: HashSet<&str> =
            steps.iter().filter(|step| is_calibrated(step)).map(|step| step.name.as_str()).collect();
        let needs = |layer: &Vec<LayerInputs>| {
            layer.iter().flat_map(|inputs| &inputs.weights).any(|name| calibrated.contains(weight_of(name).0))
        };
        PartEstimate {
            part: part.number(),
            steps: steps.len(),
            first: steps.first().map(|step| step.name.clone()),
            last: steps.last().map(|step| step.name.clone()),
            bytes_read: steps.iter().map(step_reads).sum(),
            bytes_written: steps.iter().map(|step| step_writes(step, plan)).sum(),
            layers: (0..).zip(&demand.layers).filter(|(_, layer)| needs(layer)).map(|(number, _)| number).collect(),
            seconds: (own + if !calibrated.is_empty() { demand.work } else { 0 }) as f64 * 1e-9 / threads.max(1) as f64,
        }
    };
    Part::all(of).map(one).collect()
}

fn is_calibrated(step: &Step) -> bool {
    matches!(&step.action, Action::Recode(recode) if recode.rounding.whole().is_some())
}

/// Merges one part of `target`, which [`finish`] puts together with the others. All parts, and `finish`, are given the same inputs, plan and calibration.
pub fn run_part(
    (inputs, plan): (&Inputs, &Plan),
    calibration: Option<&mut dyn Calibration>,
    target: &Path,
    part: Part,
    options: &RunOptions<'_>,
    progress: &dyn Progress,
) -> Result<PartDone> {
    refuse_residual(plan)?;
    let sink = Box::new(LocalSink::of_part(target, part));
    let steps = plan.steps_of(part);
    let begun = begin(inputs, plan, calibration.as_deref(), steps.clone(), &*sink, options)?;
    let (output, finished) = Output::create(sink, plan, &steps, &begun.fingerprint, options.existing)?;
    let run =
        Run { inputs, plan, steps: steps.clone(), is_part: true, schedule: &begun.schedule, output: &output, progress };
    run.announce(&finished, &begun.demand, options);
    let earlier = match finished.len() == steps.len() {
        true => output.sink().stashed(Took::FILE_NAME).ok().flatten(),
        false => None,
    };
    let earlier: Option<Took> = earlier.and_then(|text| serde_json::from_slice(&text).ok());
    let weights = || -> Result<_> {
        run.all(finished, calibration)?;
        inputs.check_unchanged()
    };
    match weights() {
        Ok(()) => {}
        Err(error) if error.kind().is_passing() => return Err(output.to_be_resumed(error)),
        Err(error) => {
            output.abandon();
            return Err(error);
        }
    }
    let own = || Took {
        seconds: begun.started.elapsed().as_secs_f64(),
        bytes_read: plan.steps[steps.clone()].iter().map(step_reads).sum(),
        bytes_written: output.written(),
        peak_rss_bytes: peak_rss(),
    };
    let took = earlier.unwrap_or_else(own);
    let text = serde_json::to_vec(&took).unwrap_or_default();
    output.sink().stash(Took::FILE_NAME, &text).map_err(|error| output.to_be_resumed(error))?;
    progress.advance(begun.schedule.work.sync);
    Ok(PartDone {
        part: part.number(),
        of: part.of(),
        folder: output.sink().place().display().to_string(),
        steps: steps.len(),
        bytes_written: took.bytes_written,
        seconds: took.seconds,
        peak_rss_bytes: took.peak_rss_bytes,
        was_complete: earlier.is_some(),
    })
}

/// Puts the parts of `target` together, gives the output its name, and removes the parts. Errors if one is missing, incomplete, or another merge's.
pub fn finish(
    inputs: &Inputs,
    plan: &Plan,
    calibration: Option<&mut dyn Calibration>,
    target: &Path,
    options: &RunOptions<'_>,
    progress: &dyn Progress,
) -> Result<Report> {
    refuse_residual(plan)?;
    let sink = Box::new(LocalSink::new(target));
    let mut begun = begin(inputs, plan, calibration.as_deref(), 0..0, &*sink, options)?;
    for part in all_parts(target)? {
        begun.parts.push(WrittenPart::open(target, part, plan, &begun.fingerprint)?);
    }
    let report = whole(inputs, plan, calibration, sink, options, progress, &begun)?;
    for part in begun.parts {
        let folder = part.folder.clone();
        drop(part);
        std::fs::remove_dir_all(&folder).map_err(|error| {
            Error::io("remove", &folder, error).with_hint("the output is complete; remove what is left of its parts")
        })?;
    }
    Ok(report)
}

/// Errors if [`finish`] would miss a part: for callers that do long work before.
#[doc(hidden)]
pub fn refuse_missing(target: &Path) -> Result<()> {
    all_parts(target).map(drop)
}

/// What rounding leaves is cut from all weights together.
fn refuse_residual(plan: &Plan) -> Result<()> {
    if plan.residual_rank.is_none() {
        return Ok(());
    }
    Err(usage("a merge in parts writes no residual adapter").with_hint("leave out --residual-rank, or --part"))
}

/// The parts beside a target. Errors if they are not all there, or not of one cut.
fn all_parts(target: &Path) -> Result<Vec<Part>> {
    let parts = parts_beside(target)?;
    let Some(of) = parts.first().map(|part| part.of()) else {
        return Err(usage("there are no parts of this output").in_file(target).with_hint(
            "merge each with --part 1/N to --part N/N first, into the same output; without parts, merge does it all",
        ));
    };
    if let Some(other) = parts.iter().find(|part| part.of() != of) {
        let problem = format!("parts of {of} and parts of {} lie beside this output", other.of());
        return Err(usage(problem).in_file(target).with_hint("remove those that are not meant"));
    }
    let missing: Vec<String> =
        Part::all(of).filter(|part| !parts.contains(part)).map(|part| part.number().to_string()).collect();
    if missing.is_empty() {
        return Ok(parts);
    }
    let problem = match missing.as_slice() {
        [one] => format!("part {one} of {of} is missing"),
        all => format!("parts {} of {of} are missing", all.join(", ")),
    };
    Err(usage(problem).in_file(target).with_hint("merge them with --part, or wait for those who do"))
}

impl Run<'_> {
    /// Copies what parts hold and the output does not into its place. Returns all finished steps.
    pub(super) fn gather(&self, finished: Vec<Finished>, parts: &[WrittenPart]) -> Result<Vec<Finished>> {
        if parts.is_empty() {
            return Ok(finished);
        }
        self.progress.phase("putting the parts together", "tensors");
        let mut done = vec![false; self.plan.steps.len()];
        finished.iter().for_each(|step| done[step.step] = true);
        let mut all = finished;
        let (mut listed, mut bytes) = (all.len(), 0);
        for part in parts {
            let mut files: Vec<Option<Box<dyn Blob>>> = Vec::new();
            files.resize_with(self.plan.files.len(), || None);
            for step in &part.finished {
                if std::mem::replace(&mut done[step.step], true) {
                    continue;
                }
                if self.progress.cancelled() {
                    self.output.record(&all[listed..])?;
                    return Err(stopped());
                }
                bytes += self.take(step, part, &mut files)?;
                all.push(step.clone());
                self.progress.advance(self.schedule.work.steps[step.step]);
                self.progress.part(all.len() as u64, self.plan.steps.len() as u64);
                if bytes >= LISTED {
                    self.output.record(&all[listed..])?;
                    (listed, bytes) = (all.len(), 0);
                }
            }
        }
        Ok(all)
    }

    /// Copies a step's tensors. Returns the number of bytes.
    fn take(&self, step: &Finished, part: &WrittenPart, files: &mut [Option<Box<dyn Blob>>]) -> Result<u64> {
        let mut taken = 0;
        for slot in &self.plan.steps[step.step].slots {
            let file = &self.plan.files[slot.file];
            let tensor = &file.tensors[slot.tensor];
            // What has no shape yet stands in the journal.
            if tensor.shape.is_none() {
                continue;
            }
            let blob = match &mut files[slot.file] {
                Some(blob) => blob,
                none => none.insert(part.weights(&file.name)?),
            };
            let start = file.data_start + tensor.offset;
            let mut at = 0;
            while at < tensor.bytes {
                let count = COPIED.min(tensor.bytes - at);
                let mut buffer = vec![0; count as usize];
                blob.read_at(start + at, &mut buffer)?;
                self.output.write_at(slot.file, start + at, &mut buffer)?;
                at += count;
            }
            taken += tensor.bytes;
        }
        Ok(taken)
    }
}
