//! What a chunk goes through: read, decode, edit, encode, measure, write.

use std::collections::HashMap;
use std::ops::Range;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, OnceLock};

use super::schedule::{Pass, Schedule, Task, rows_per_chunk};
use crate::check;
use crate::edit::{self, Edit};
use crate::error::{Error, Kind, Result};
use crate::formats::{MAX_WHOLE_PART, Reader, Weight};
use crate::measure::Sums;
use crate::open::{Checkpoint, Entry};
use crate::plan::{Action, Inputs, Plan, Recode, Source, Step};
use crate::round::{Place, seed_of};
use crate::simd::floats::round_to;
use crate::simd::moments::{all_finite, first_nonfinite, moments};
use crate::write::{Finished, Output};

/// A worker's memory, reused from chunk to chunk.
#[derive(Default)]
pub(super) struct Buffers {
    /// Bytes of the task's rows, by part of the source.
    read: Vec<Vec<u8>>,
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
    schedule: &'a Schedule,
    output: &'a Output,
    done: &'a HashMap<usize, Finished>,
    states: Vec<Mutex<Option<Arc<State<'a>>>>>,
    /// Guards nothing but the moments at which something becomes ready.
    gate: Mutex<()>,
    ready: Condvar,
}

/// A step in flight.
struct State<'a> {
    /// Parts of the source that are not cut by rows.
    whole: Vec<Option<Vec<u8>>>,
    /// What the base was quantized from.
    original: Option<Reader<'a>>,
    edits: OnceLock<Vec<Edit>>,
    target: OnceLock<Target>,
    held: Mutex<Vec<Vec<f32>>>,
    sums: Mutex<Vec<Option<Sums>>>,
    left: [AtomicUsize; 2],
}

/// The output's weight with its scales decided.
struct Target {
    weight: Arc<dyn Weight>,
    /// Complete parts; `None` for those that each chunk fills.
    parts: Vec<Option<Vec<u8>>>,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
}

impl<'a> Steps<'a> {
    pub(super) fn new(
        inputs: &'a Inputs,
        plan: &'a Plan,
        schedule: &'a Schedule,
        output: &'a Output,
        done: &'a HashMap<usize, Finished>,
    ) -> Self {
        let states = plan.steps.iter().map(|_| Mutex::new(None)).collect();
        Self { inputs, plan, schedule, output, done, states, gate: Mutex::new(()), ready: Condvar::new() }
    }

    /// Wakes workers that wait for a step, so that they see that the run is over.
    pub(super) fn wake(&self) {
        let _gate = lock(&self.gate);
        self.ready.notify_all();
    }

    /// True if the step was done before the run began.
    pub(super) fn is_done(&self, step: usize) -> bool {
        self.done.contains_key(&step)
    }

    /// Does one task. Returns the step if this was its last.
    pub(super) fn run(&self, task: &Task, buffers: &mut Buffers, stop: &AtomicBool) -> Result<Option<Finished>> {
        if self.done.contains_key(&task.step) {
            return Ok(None);
        }
        let step = &self.plan.steps[task.step];
        let state = self.state(task.step, step)?;
        match &step.action {
            Action::Copy { entry } => self.copy(entry, step, &task.range, buffers)?,
            Action::Recode(recode) => {
                let rows = task.range.start as usize..task.range.end as usize;
                match task.pass {
                    Pass::EditSurvey => {
                        let edits = self.survey_edits(recode, &state, buffers)?;
                        self.announce(|| state.edits.set(edits).is_ok());
                    }
                    Pass::Survey => {
                        let Some(edits) = self.wait_for(&state.edits, stop) else { return Ok(None) };
                        self.survey(recode, &state, edits, step, task.number, &rows, buffers)?;
                        if state.left[0].fetch_sub(1, Ordering::AcqRel) == 1 {
                            let held = std::mem::take(&mut *lock(&state.held)).concat();
                            let target = self.settle(recode.to.as_ref(), &held, step)?;
                            self.announce(|| state.target.set(target).is_ok());
                        }
                    }
                    _ => {
                        let Some(edits) = self.wait_for(&state.edits, stop) else { return Ok(None) };
                        let Some(target) = self.wait_for(&state.target, stop) else { return Ok(None) };
                        let sums = self.write(recode, &state, edits, target, step, &rows, buffers)?;
                        lock(&state.sums)[task.number] = Some(sums);
                    }
                }
            }
        }
        let last = matches!(task.pass, Pass::Copy | Pass::Write) && state.left[1].fetch_sub(1, Ordering::AcqRel) == 1;
        if !last {
            return Ok(None);
        }
        lock(&self.states[task.step]).take();
        Ok(Some(Self::finish(task.step, &step.action, &state)))
    }

    /// The step's state; the first worker that comes loads it.
    fn state(&self, number: usize, step: &Step) -> Result<Arc<State<'a>>> {
        let mut slot = lock(&self.states[number]);
        if let Some(state) = &*slot {
            return Ok(Arc::clone(state));
        }
        let tasks = |pass| self.schedule.tasks_of(number, pass);
        let state = State {
            whole: Vec::new(),
            original: None,
            edits: OnceLock::new(),
            target: OnceLock::new(),
            held: Mutex::new(vec![Vec::new(); tasks(Pass::Survey)]),
            sums: Mutex::new(vec![None; tasks(Pass::Write)]),
            left: [AtomicUsize::new(tasks(Pass::Survey)), AtomicUsize::new(tasks(Pass::Write).max(tasks(Pass::Copy)))],
        };
        let state = match &step.action {
            Action::Copy { .. } => state,
            Action::Recode(recode) => self.load(recode, step, state)?,
        };
        let state = Arc::new(state);
        *slot = Some(Arc::clone(&state));
        Ok(state)
    }

    fn load(&self, recode: &Recode, step: &Step, mut state: State<'a>) -> Result<State<'a>> {
        let source = self.source(recode);
        let weight = &recode.from.weight;
        state.whole = (0..recode.from.entries.len())
            .map(|part| match weight.part_rows(part, &(0..0)) {
                Some(_) => Ok(None),
                None => source.read_small(&recode.from.entries[part], MAX_WHOLE_PART).map(Some),
            })
            .collect::<Result<_>>()?;
        if let (Some(claim), Some(original)) = (&recode.original, &self.inputs.original) {
            state.original = Some(Reader::new(&original.checkpoint, claim)?);
        }
        if !recode.edits.iter().any(|(_, edit)| edit.plan.needs_survey()) {
            let _ = state.edits.set(self.load_edits(recode)?);
        }
        if recode.keep {
            let target = Target { weight: Arc::clone(&recode.to), parts: state.whole.clone() };
            self.write_parts(&target.parts, step)?;
            let _ = state.target.set(target);
        } else if !recode.to.needs_survey() {
            let _ = state.target.set(self.settle(recode.to.as_ref(), &[], step)?);
        }
        Ok(state)
    }

    fn load_edits(&self, recode: &Recode) -> Result<Vec<Edit>> {
        recode.edits.iter().map(|(adapter, edit)| edit.plan.load(&self.inputs.adapters[*adapter].tensors)).collect()
    }

    fn source(&self, recode: &Recode) -> &Checkpoint {
        match recode.source {
            Source::Base => &self.inputs.base,
            Source::Adapter(number) => &self.inputs.adapters[number].tensors,
        }
    }

    /// Decides the scales and writes the parts that are complete with that.
    fn settle(&self, weight: &dyn Weight, held: &[f32], step: &Step) -> Result<Target> {
        let settled = weight.settle(held);
        self.write_parts(&settled.parts, step)?;
        Ok(Target { weight: settled.weight, parts: settled.parts })
    }

    /// Writes complete parts, except those whose place depends on lengths not known yet.
    fn write_parts(&self, parts: &[Option<Vec<u8>>], step: &Step) -> Result<()> {
        for (part, bytes) in parts.iter().enumerate() {
            let slot = step.slots[part];
            let tensor = &self.plan.files[slot.file].tensors[slot.tensor];
            if let Some(bytes) = bytes
                && tensor.shape.is_some()
            {
                self.put(step, part, 0, &mut bytes.clone())?;
            }
        }
        Ok(())
    }

    /// Writes into a part's place in the output.
    fn put(&self, step: &Step, part: usize, offset: u64, bytes: &mut Vec<u8>) -> Result<()> {
        let slot = step.slots[part];
        let file = &self.plan.files[slot.file];
        self.output.write_at(slot.file, file.data_start + file.tensors[slot.tensor].offset + offset, bytes)
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
        let buffer = first_buffer(&mut buffers.read);
        buffer.resize((range.end - range.start) as usize, 0);
        self.inputs.base.read_at(entry, range.start, buffer)?;
        self.put(step, 0, range.start, buffer)
    }

    /// Reads the bytes of a task's rows.
    fn read(&self, recode: &Recode, rows: &Range<usize>, buffers: &mut Buffers) -> Result<()> {
        let source = self.source(recode);
        buffers.read.resize_with(buffers.read.len().max(recode.from.entries.len()), Vec::new);
        for (part, entry) in recode.from.entries.iter().enumerate() {
            if let Some(range) = recode.from.weight.part_rows(part, rows) {
                let buffer = &mut buffers.read[part];
                buffer.resize((range.end - range.start) as usize, 0);
                source.read_at(entry, range.start, buffer)?;
            }
        }
        Ok(())
    }

    /// The chunks of a task.
    fn chunks(&self, recode: &Recode, task: &Range<usize>) -> impl Iterator<Item = Range<usize>> + use<> {
        let per_chunk = rows_per_chunk(recode, self.schedule.chunk_elements);
        let end = task.end;
        task.clone().step_by(per_chunk).map(move |start| start..(start + per_chunk).min(end))
    }

    /// Decodes a chunk into `base` and applies the edits into `values`.
    fn edited(
        &self,
        recode: &Recode,
        state: &State<'_>,
        edits: &[Edit],
        task: &Range<usize>,
        rows: &Range<usize>,
        buffers: &mut Buffers,
    ) {
        decode(recode, state, task, rows, buffers);
        let Buffers { base, values, .. } = buffers;
        values.resize(base.len(), 0.0);
        edit::apply(edits, rows, recode.from.weight.geometry().cols, base, values);
    }

    fn survey_edits(&self, recode: &Recode, state: &State<'_>, buffers: &mut Buffers) -> Result<Vec<Edit>> {
        let mut edits = self.load_edits(recode)?;
        let geometry = recode.from.weight.geometry();
        for edit in &mut edits {
            if let Edit::Map(map) = edit
                && map.needs_survey()
            {
                let mut sums = Vec::new();
                for rows in self.chunks(recode, &(0..geometry.rows)) {
                    self.read(recode, &rows, buffers)?;
                    decode(recode, state, &rows, &rows, buffers);
                    map.survey(rows, geometry.cols, &buffers.base, &mut sums);
                }
                map.settle(sums);
            }
        }
        Ok(edits)
    }

    #[allow(clippy::too_many_arguments)]
    fn survey(
        &self,
        recode: &Recode,
        state: &State<'_>,
        edits: &[Edit],
        step: &Step,
        number: usize,
        task: &Range<usize>,
        buffers: &mut Buffers,
    ) -> Result<()> {
        self.read(recode, task, buffers)?;
        let mut held = Vec::new();
        for rows in self.chunks(recode, task) {
            self.edited(recode, state, edits, task, &rows, buffers);
            // What is held of all rows would carry the damage into rows that are sound.
            if !all_finite(&buffers.values) {
                let Buffers { base, values, .. } = &*buffers;
                return Err(explain(recode, step, rows.start, base, values, values));
            }
            if let Some(dtype) = recode.values {
                round_to(dtype, &mut buffers.values);
            }
            recode.to.survey(rows, &buffers.values, &mut held);
        }
        lock(&state.held)[number] = held;
        Ok(())
    }

    /// Reads, decodes, edits, encodes, measures and writes the rows of a task.
    #[allow(clippy::too_many_arguments)]
    fn write(
        &self,
        recode: &Recode,
        state: &State<'_>,
        edits: &[Edit],
        target: &Target,
        step: &Step,
        task: &Range<usize>,
        buffers: &mut Buffers,
    ) -> Result<Sums> {
        self.read(recode, task, buffers)?;
        buffers.encoded.resize_with(buffers.encoded.len().max(target.parts.len()), Vec::new);
        buffers.encoded.iter_mut().for_each(Vec::clear);
        let mut total = Sums::zero();
        for rows in self.chunks(recode, task) {
            self.edited(recode, state, edits, task, &rows, buffers);
            self.encode(recode, state, target, task, &rows, buffers)?;
            let Buffers { base, values, output, encoded, .. } = &mut *buffers;
            output.resize(values.len(), 0.0);
            target.weight.decode(&target_parts(target, encoded, task, &rows), rows.clone(), output);
            let moments = moments(base, values, output);
            if !moments.sound() {
                return Err(explain(recode, step, rows.start, base, values, output));
            }
            total.add(&Sums { elements: values.len() as u64, moments });
        }
        for part in 0..target.parts.len() {
            if target.parts[part].is_none()
                && let Some(range) = target.weight.part_rows(part, task)
            {
                self.put(step, part, range.start, &mut buffers.encoded[part])?;
            }
        }
        Ok(total)
    }

    /// Appends a chunk's codes. What is encoded differs from what was meant only where a method or the reference moves it first.
    fn encode(
        &self,
        recode: &Recode,
        state: &State<'_>,
        target: &Target,
        task: &Range<usize>,
        rows: &Range<usize>,
        buffers: &mut Buffers,
    ) -> Result<()> {
        let Buffers { read, encoded, base, values, output, original } = buffers;
        let rounding = recode.streamed();
        let moves = recode.keep && rounding.moves_values();
        let moved: &[f32] = if recode.values.is_some() || moves || state.original.is_some() {
            output.clear();
            output.extend_from_slice(values);
            if let Some(reader) = &state.original {
                reader.rows(rows, original)?;
                if let Some(at) = first_nonfinite(original) {
                    return Err(reader.error(Kind::NotFinite, format!("the original holds {}", original[at])));
                }
                output.iter_mut().zip(original.iter().zip(base.iter())).for_each(|(x, (own, base))| *x += own - base);
            }
            if let Some(dtype) = recode.values {
                round_to(dtype, output);
            }
            if moves {
                let parts = source_parts(recode, state, read, task, rows);
                let first = (rows.start * target.weight.geometry().cols) as u64;
                let place = Place { seed: seed_of(target.weight.name(), self.plan.seed), first };
                rounding.round(&target.weight.grid(&parts, rows.clone()), output, place);
            }
            output
        } else {
            values
        };
        if recode.keep {
            target.weight.pack(&source_parts(recode, state, read, task, rows), rows.clone(), moved, encoded);
        } else {
            target.weight.encode(rows.clone(), moved, encoded);
        }
        Ok(())
    }

    fn finish(number: usize, action: &Action, state: &State<'_>) -> Finished {
        let Action::Recode(recode) = action else {
            return Finished { step: number, sums: None, kept: None, late: Vec::new() };
        };
        let mut total = Sums::zero();
        for sums in lock(&state.sums).iter().flatten() {
            total.add(sums);
        }
        let late = state.target.get().map_or_else(Vec::new, |target| {
            let unknown = |part: &usize| recode.to.parts()[*part].shape.is_none();
            (0..target.parts.len())
                .filter(unknown)
                .filter_map(|part| Some((part, target.parts[part].clone()?)))
                .collect()
        });
        Finished { step: number, sums: Some(total), kept: None, late }
    }
}

/// What is not finite in the rows of a weight from the first on.
pub(super) fn explain(
    recode: &Recode,
    step: &Step,
    first_row: usize,
    base: &[f32],
    target: &[f32],
    output: &[f32],
) -> Error {
    check::explain(&check::Chunk {
        name: &step.name,
        first_row,
        cols: recode.to.geometry().cols,
        base,
        target,
        output,
        format: recode.to.format(),
        from_base: recode.source == Source::Base,
    })
}

fn first_buffer(buffers: &mut Vec<Vec<u8>>) -> &mut Vec<u8> {
    if buffers.is_empty() {
        buffers.push(Vec::new());
    }
    &mut buffers[0]
}

fn decode(recode: &Recode, state: &State<'_>, task: &Range<usize>, rows: &Range<usize>, buffers: &mut Buffers) {
    let weight = &recode.from.weight;
    buffers.base.resize(rows.len() * weight.geometry().cols, 0.0);
    let parts = source_parts(recode, state, &buffers.read, task, rows);
    weight.decode(&parts, rows.clone(), &mut buffers.base);
}

/// The bytes of each part of the source that belong to `rows`, of those read for the task.
fn source_parts<'b>(
    recode: &Recode,
    state: &'b State<'_>,
    read: &'b [Vec<u8>],
    task: &Range<usize>,
    rows: &Range<usize>,
) -> Vec<&'b [u8]> {
    (0..recode.from.entries.len())
        .map(|part| match &state.whole[part] {
            Some(bytes) => bytes.as_slice(),
            None => within(recode.from.weight.as_ref(), part, &read[part], task, rows),
        })
        .collect()
}

/// The bytes of each part of the output that belong to `rows`.
fn target_parts<'b>(
    target: &'b Target,
    encoded: &'b [Vec<u8>],
    task: &Range<usize>,
    rows: &Range<usize>,
) -> Vec<&'b [u8]> {
    let weight = target.weight.as_ref();
    (0..target.parts.len())
        .map(|part| match (&target.parts[part], weight.part_rows(part, rows)) {
            (Some(bytes), Some(range)) => &bytes[range.start as usize..range.end as usize],
            (Some(bytes), None) => bytes,
            (None, _) => within(weight, part, &encoded[part], task, rows),
        })
        .collect()
}

/// Cuts the bytes of `rows` out of those of a task.
fn within<'b>(weight: &dyn Weight, part: usize, bytes: &'b [u8], task: &Range<usize>, rows: &Range<usize>) -> &'b [u8] {
    match (weight.part_rows(part, task), weight.part_rows(part, rows)) {
        (Some(all), Some(some)) => &bytes[(some.start - all.start) as usize..(some.end - all.start) as usize],
        _ => bytes,
    }
}
