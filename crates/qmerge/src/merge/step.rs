//! What a chunk goes through: read, decode, edit, encode, measure, write.

use std::collections::HashMap;
use std::ops::Range;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Condvar, Mutex, OnceLock};

use super::places::Places;
use super::schedule::{Pass, Schedule, Task, rows_per_chunk};
use super::target::{Target, on_grid, writer};
use crate::check;
use crate::edited::Edited;
use crate::error::{Error, Kind, Result};
use crate::formats::{Reader, StoredRows};
use crate::measure::Sums;
use crate::open::Entry;
use crate::parallel::lock;
use crate::plan::{Action, Inputs, ORIGINAL, Plan, Recode, Source, Step};
use crate::round::{Directions, Position, seed_of};
use crate::simd::differences::{Differences, all_finite, differences, first_nonfinite};
use crate::simd::floats::round_to;
use crate::simd::vectors::copy;
use crate::write::{Finished, Output};

/// A worker's memory, reused from chunk to chunk.
#[derive(Default)]
pub(super) struct Buffers {
    /// Bytes of a copy's range.
    copied: Vec<u8>,
    /// Bytes of the task's rows in the source.
    stored: StoredRows,
    /// Bytes of the task's rows, by part of the output.
    encoded: Vec<Vec<u8>>,
    /// Values of one chunk.
    base: Vec<f32>,
    values: Vec<f32>,
    output: Vec<f32>,
    original: Vec<f32>,
}

/// All steps of a run with the state of those in flight.
pub(super) struct Steps<'a> {
    inputs: &'a Inputs,
    plan: &'a Plan,
    /// Those that are to be done.
    wanted: &'a Range<usize>,
    schedule: &'a Schedule,
    places: Places<'a>,
    done: &'a HashMap<usize, Finished>,
    states: Vec<Mutex<Option<Arc<State<'a>>>>>,
    /// Guards nothing but the moments at which something becomes ready.
    gate: Mutex<()>,
    ready: Condvar,
}

/// A step in flight.
struct State<'a> {
    edited: OnceLock<Edited<'a>>,
    /// Known before `edited` is, where the method goes by them.
    directions: OnceLock<Directions>,
    /// What the base was quantized from.
    original: Option<Reader<'a>>,
    target: OnceLock<Target>,
    held: Mutex<Vec<Vec<f32>>>,
    sums: Mutex<Vec<Option<Sums>>>,
    left: [AtomicUsize; 2],
}

/// A task of a weight, and what its step has decided.
struct Weighed<'t> {
    step: &'t Step,
    recode: &'t Recode,
    edited: &'t Edited<'t>,
    /// Those of the inputs that the adapter reads, where the method goes by them.
    directions: Option<&'t Directions>,
    /// Rows of the task.
    rows: Range<usize>,
}

impl<'a> Steps<'a> {
    pub(super) fn new(
        inputs: &'a Inputs,
        (plan, wanted): (&'a Plan, &'a Range<usize>),
        schedule: &'a Schedule,
        output: &'a Output,
        done: &'a HashMap<usize, Finished>,
    ) -> Self {
        let states = plan.steps.iter().map(|_| Mutex::new(None)).collect();
        let places = Places { plan, output };
        Self { inputs, plan, wanted, schedule, places, done, states, gate: Mutex::new(()), ready: Condvar::new() }
    }

    /// Wakes workers that wait for a step, so that they see that the run is over.
    pub(super) fn wake(&self) {
        let _gate = lock(&self.gate);
        self.ready.notify_all();
    }

    /// True if the step is one of the run's, and was not done before it began.
    pub(super) fn is_open(&self, step: usize) -> bool {
        self.wanted.contains(&step) && !self.done.contains_key(&step)
    }

    /// Does one task. Returns the step if this was its last.
    pub(super) fn run(&self, task: &Task, buffers: &mut Buffers, stop: &AtomicBool) -> Result<Option<Finished>> {
        if !self.is_open(task.step) {
            return Ok(None);
        }
        let step = &self.plan.steps[task.step];
        let state = self.state(task.step, step)?;
        match &step.action {
            Action::Copy { entry } => self.copy(entry, step, &task.range, buffers)?,
            Action::Constant(constant) => {
                let bytes = constant.bytes();
                let range = task.range.start as usize..task.range.end as usize;
                self.places.put(step, 0, task.range.start, &mut bytes[range].to_vec())?;
            }
            Action::Recode(recode) if task.pass == Pass::EditSurvey => {
                self.settle_edits(recode, step, &state)?;
            }
            Action::Recode(recode) => {
                let Some(edited) = self.wait_for(&state.edited, stop) else { return Ok(None) };
                let rows = task.range.start as usize..task.range.end as usize;
                let directions = state.directions.get();
                let weighed = Weighed { step, recode, edited, directions, rows };
                if task.pass == Pass::Survey {
                    let held = self.survey(&weighed, buffers)?;
                    lock(&state.held)[task.number] = held;
                    if state.left[0].fetch_sub(1, Ordering::AcqRel) == 1 {
                        let held = std::mem::take(&mut *lock(&state.held)).concat();
                        let target = Target::settled(recode, &held, edited.base().uncut())?;
                        self.decide(step, &state, target)?;
                    }
                } else {
                    let Some(target) = self.wait_for(&state.target, stop) else { return Ok(None) };
                    let sums = self.write(&weighed, target, state.original.as_ref(), buffers)?;
                    lock(&state.sums)[task.number] = Some(sums);
                }
            }
        }
        let last = matches!(task.pass, Pass::Copy | Pass::Write) && state.left[1].fetch_sub(1, Ordering::AcqRel) == 1;
        if !last {
            return Ok(None);
        }
        lock(&self.states[task.step]).take();
        Self::finish(task.step, &step.action, &state).map(Some)
    }

    /// The step's state; the first worker that comes loads it.
    fn state(&self, number: usize, step: &Step) -> Result<Arc<State<'a>>> {
        let mut slot = lock(&self.states[number]);
        if let Some(state) = &*slot {
            return Ok(Arc::clone(state));
        }
        let tasks = |pass| self.schedule.tasks_of(number, pass);
        let mut state = State {
            edited: OnceLock::new(),
            directions: OnceLock::new(),
            original: None,
            target: OnceLock::new(),
            held: Mutex::new(vec![Vec::new(); tasks(Pass::Survey)]),
            sums: Mutex::new(vec![None; tasks(Pass::Write)]),
            left: [AtomicUsize::new(tasks(Pass::Survey)), AtomicUsize::new(tasks(Pass::Write).max(tasks(Pass::Copy)))],
        };
        if let Action::Recode(recode) = &step.action {
            if let (Some(claim), Some(original)) = (&recode.original, &self.inputs.original) {
                state.original = Some(Reader::new(&original.checkpoint, claim)?);
            }
            if tasks(Pass::EditSurvey) == 0 {
                self.settle_edits(recode, step, &state)?;
            }
        }
        let state = Arc::new(state);
        *slot = Some(Arc::clone(&state));
        Ok(state)
    }

    /// Loads the edits, with the sums that some need of the whole weight, and decides the scales where the values have no say in them.
    fn settle_edits(&self, recode: &Recode, step: &Step, state: &State<'a>) -> Result<()> {
        let edited = Edited::new(self.inputs, recode)?;
        if recode.streamed().goes_by_directions() && !recode.transposed {
            let geometry = recode.from.weight.geometry();
            if let Some(directions) =
                edited.edits().and_then(|edits| Directions::of(edits, 0..geometry.rows, geometry.cols))
            {
                state.directions.get_or_init(|| directions);
            }
        }
        if recode.keeps_scales {
            self.decide(step, state, Target::of_base(recode, edited.base().uncut()))?;
        } else if !recode.is_surveyed() {
            self.decide(step, state, Target::settled(recode, &[], edited.base().uncut())?)?;
        }
        self.announce(|| state.edited.set(edited).is_ok());
        Ok(())
    }

    /// Writes the parts that are complete with the scales; those whose place depends on their lengths wait for the end.
    fn decide(&self, step: &Step, state: &State<'a>, target: Target) -> Result<()> {
        let complete = target.parts.iter().enumerate().filter_map(|(part, bytes)| Some((part, bytes.clone()?)));
        self.places.put_uncut(step, complete)?;
        self.announce(|| state.target.set(target).is_ok());
        Ok(())
    }

    fn announce(&self, set: impl FnOnce() -> bool) {
        let _gate = lock(&self.gate);
        let first = set();
        debug_assert!(first, "set once");
        self.ready.notify_all();
    }

    /// Waits until it is set; `None` if the run stops first.
    fn wait_for<'s, T>(&self, cell: &'s OnceLock<T>, stop: &AtomicBool) -> Option<&'s T> {
        if let Some(value) = cell.get() {
            return Some(value);
        }
        let mut gate = lock(&self.gate);
        loop {
            if let Some(value) = cell.get() {
                return Some(value);
            }
            if stop.load(Ordering::Acquire) {
                return None;
            }
            gate = self.ready.wait(gate).unwrap_or_else(std::sync::PoisonError::into_inner);
        }
    }

    fn copy(&self, entry: &Entry, step: &Step, range: &Range<u64>, buffers: &mut Buffers) -> Result<()> {
        let buffer = &mut buffers.copied;
        buffer.resize((range.end - range.start) as usize, 0);
        self.inputs.base.read_at(entry, range.start, buffer)?;
        self.places.put(step, 0, range.start, buffer)
    }

    /// The chunks of a task.
    fn chunks(&self, task: &Weighed<'_>) -> impl Iterator<Item = Range<usize>> + use<> {
        let per_chunk = rows_per_chunk(task.recode, self.schedule.chunk_elements);
        let end = task.rows.end;
        task.rows.clone().step_by(per_chunk).map(move |start| start..(start + per_chunk).min(end))
    }

    /// What fresh scales need of the rows of a task.
    fn survey(&self, task: &Weighed<'_>, buffers: &mut Buffers) -> Result<Vec<f32>> {
        let Buffers { stored, base, values, .. } = buffers;
        let writer = writer(task.recode.to.as_ref())?;
        task.edited.base().load(&task.rows, stored)?;
        let mut held = Vec::new();
        for rows in self.chunks(task) {
            task.edited.decode(stored, &rows, base, values)?;
            // What is held of all rows would carry the damage into rows that are sound.
            if !all_finite(values) {
                let cols = task.recode.to.geometry().cols;
                return Err(explain(task.recode, task.step, rows.start, cols, (base, values, values)));
            }
            if let Some(dtype) = task.recode.values {
                round_to(dtype, values);
            }
            writer.survey(rows, values, &mut held);
        }
        Ok(held)
    }

    /// Reads, decodes, edits, encodes, measures and writes the rows of a task.
    fn write(
        &self,
        task: &Weighed<'_>,
        target: &Target,
        original: Option<&Reader<'_>>,
        buffers: &mut Buffers,
    ) -> Result<Sums> {
        task.edited.base().load(&task.rows, &mut buffers.stored)?;
        buffers.encoded.resize_with(buffers.encoded.len().max(target.parts.len()), Vec::new);
        buffers.encoded.iter_mut().for_each(Vec::clear);
        let mut total = Sums::zero();
        for rows in self.chunks(task) {
            let Buffers { stored, base, values, .. } = &mut *buffers;
            task.edited.decode(stored, &rows, base, values)?;
            self.encode(task, target, original, &rows, buffers)?;
            let Buffers { base, values, output, encoded, .. } = &mut *buffers;
            output.resize(values.len(), 0.0);
            target.weight.decode(&target.parts_of(encoded, &task.rows, &rows), rows.clone(), output);
            let differences = differences(base, values, output);
            if !differences.sound() {
                let cols = task.recode.to.geometry().cols;
                return Err(explain(task.recode, task.step, rows.start, cols, (base, values, output)));
            }
            total.add(&Sums { elements: values.len() as u64, differences });
        }
        for part in 0..target.parts.len() {
            if target.parts[part].is_none()
                && let Some(range) = target.weight.part_rows(part, &task.rows)
            {
                self.places.put(task.step, part, range.start, &mut buffers.encoded[part])?;
            }
        }
        Ok(total)
    }

    /// Appends a chunk's codes. Values are encoded as they are, or first moved: by the base's original, to a type that the reference rounds to, by a rounding method.
    fn encode(
        &self,
        task: &Weighed<'_>,
        target: &Target,
        original: Option<&Reader<'_>>,
        rows: &Range<usize>,
        buffers: &mut Buffers,
    ) -> Result<()> {
        let Buffers { stored, encoded, base, values, output, original: own, .. } = buffers;
        let (recode, weight, directions) = (task.recode, target.weight.as_ref(), task.directions);
        let rounding = recode.streamed();
        let moves = (recode.keeps_scales || weight.is_plain()) && rounding.moves_values();
        let moved: &[f32] = if recode.values.is_some() || moves || original.is_some() {
            output.resize(values.len(), 0.0);
            copy(values, output);
            if let Some(reader) = original {
                reader.rows(rows, own)?;
                if let Some(at) = first_nonfinite(own) {
                    return Err(reader.error(Kind::NotFinite, format!("the original holds {}", own[at])));
                }
                output.iter_mut().zip(own.iter().zip(base.iter())).for_each(|(x, (own, base))| *x += own - base);
            }
            if let Some(dtype) = recode.values {
                round_to(dtype, output);
            }
            if moves {
                let parts = task.edited.base().parts(stored, rows);
                let first = (rows.start * weight.geometry().cols) as u64;
                let seed = seed_of(weight.name(), self.plan.seed);
                let position = Position { seed, first, directions };
                rounding.round(&on_grid(weight)?.grid(&parts, rows.clone()), output, position);
            }
            output
        } else {
            values
        };
        if recode.keeps_scales {
            let parts = task.edited.base().parts(stored, rows);
            on_grid(weight)?.store(&parts, rows.clone(), moved, None, encoded);
        } else {
            writer(weight)?.encode(&target.parts, rows.clone(), moved, encoded);
        }
        Ok(())
    }

    fn finish(number: usize, action: &Action, state: &State<'_>) -> Result<Finished> {
        let Action::Recode(recode) = action else {
            return Ok(Finished { step: number, sums: None, kept: None, late: Vec::new() });
        };
        let mut total = Sums::zero();
        for sums in lock(&state.sums).iter().flatten() {
            total.add(sums);
        }
        if let Some(original) = &state.original {
            refuse_another_original(original, &total.differences)?;
        }
        let late = state.target.get().map_or_else(Vec::new, |target| {
            let unknown = |part: &usize| recode.to.parts()[*part].shape.is_none();
            (0..target.parts.len())
                .filter(unknown)
                .filter_map(|part| Some((part, target.parts[part].clone()?)))
                .collect()
        });
        Ok(Finished { step: number, sums: Some(total), kept: None, late })
    }
}

/// Refuses an original that the base was not made from. The codes nearest to the right one are the base's own but where the delta moves them; of another model's
/// values, or of rows in another order, next to nothing is the base's.
fn refuse_another_original(original: &Reader<'_>, sums: &Differences) -> Result<()> {
    // A base of zeros stores no delta either.
    if sums.error2 <= sums.weight2 / 2.0 + 4.0 * sums.delta2 {
        return Ok(());
    }
    Err(original
        .error(Kind::Mismatch, "its values are not those that the base was quantized from".to_owned())
        .with_hint(ORIGINAL))
}

/// What is not finite in rows of so many columns of a weight, from the first on: in its base, its target, or what is stored.
pub(super) fn explain(
    recode: &Recode,
    step: &Step,
    first_row: usize,
    cols: usize,
    (base, target, output): (&[f32], &[f32], &[f32]),
) -> Error {
    check::explain(&check::Chunk {
        name: &step.name,
        first_row,
        cols,
        base,
        target,
        output,
        format: recode.to.format(),
        from_base: recode.source == Source::Base,
    })
}
