//! In which order chunks are done, and how large they are.
//!
//! A step is one or more passes over its rows: sums for an edit that needs them (one task, rows in order), block maxima for scales that
//! depend on the whole weight, and the pass that writes. The pass that writes a surveyed weight is put behind the next weight's survey, so
//! that no worker waits for the last chunk of the one before.

use std::ops::Range;

use super::RunOptions;
use super::memory::{self, Memory};
use super::work::{self, WeightPass, Work};
use crate::edit::common_step;
use crate::error::Result;
use crate::plan::{Action, Plan, Recode, Slot, Step};
use crate::round::Demand;

/// Elements that a chunk aims at: three f32 buffers of it and the factors fit a second-level cache.
pub(super) const CHUNK_ELEMENTS: usize = 1 << 15;
/// Bytes that a task reads or writes at a time, about.
pub(super) const TASK_BYTES: u64 = 1 << 20;

/// What a task does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Pass {
    /// Copies bytes.
    Copy,
    /// Sums over the whole weight for an edit.
    EditSurvey,
    /// Block maxima for the output's scales.
    Survey,
    /// Decode, edit, encode, measure, write.
    Write,
}

/// A part of a pass that one worker does: it reads and writes the task at once, and computes chunk by chunk.
#[derive(Clone, Debug)]
pub(super) struct Task {
    pub(super) step: usize,
    pub(super) pass: Pass,
    /// Number within its pass.
    pub(super) number: usize,
    /// Rows, or bytes for a copy.
    pub(super) range: Range<u64>,
    /// Work, in nanoseconds of one thread.
    pub(super) work: u64,
}

#[derive(Clone, Debug)]
struct Stage {
    step: usize,
    pass: Pass,
    tasks: usize,
    first: u64,
    /// Rows or bytes per task, and in all.
    per_task: u64,
    total: u64,
    work: u64,
}

/// The order of all tasks.
#[derive(Debug)]
pub(super) struct Schedule {
    stages: Vec<Stage>,
    /// Stages of each step.
    of_step: Vec<Vec<usize>>,
    tasks: u64,
    pub(super) threads: usize,
    pub(super) chunk_elements: usize,
    pub(super) memory: Memory,
    /// The work of all of it.
    pub(super) work: Work,
    /// Bytes that the tasks read, all passes.
    pub(super) bytes_read: u64,
}

impl Schedule {
    /// Cuts a plan into tasks that fit the memory.
    pub(super) fn new(plan: &Plan, options: &RunOptions<'_>, demand: &Demand) -> Result<Self> {
        let memory = memory::fit(plan, options, demand)?;
        let mut schedule = Self {
            stages: Vec::new(),
            of_step: vec![Vec::new(); plan.steps.len()],
            tasks: 0,
            threads: memory.threads,
            chunk_elements: memory.chunk_elements,
            memory,
            work: Work::new(plan, demand, memory.threads),
            bytes_read: 0,
        };
        let mut waiting: Option<Stage> = None;
        let mut order: Vec<usize> = (0..plan.steps.len()).collect();
        order.sort_by_key(|&number| place(plan, &plan.steps[number]));
        for number in order {
            let step = &plan.steps[number];
            let mut passes = stages(number, step, &memory);
            let last = passes.pop();
            let surveyed = !passes.is_empty();
            for pass in passes {
                schedule.push(pass, plan);
            }
            if surveyed {
                if let Some(stage) = std::mem::replace(&mut waiting, last) {
                    schedule.push(stage, plan);
                }
            } else if let Some(stage) = last {
                schedule.push(stage, plan);
                if let Some(stage) = waiting.take() {
                    schedule.push(stage, plan);
                }
            }
        }
        if let Some(stage) = waiting {
            schedule.push(stage, plan);
        }
        Ok(schedule)
    }

    fn push(&mut self, mut stage: Stage, plan: &Plan) {
        stage.first = self.tasks;
        self.tasks += stage.tasks as u64;
        self.bytes_read += step_reads(&plan.steps[stage.step]);
        self.of_step[stage.step].push(self.stages.len());
        self.stages.push(stage);
    }

    /// The task of that number, in order.
    pub(super) fn task(&self, number: u64) -> Option<Task> {
        let after = self.stages.partition_point(|stage| stage.first <= number);
        let stage = &self.stages[after.checked_sub(1)?];
        let within = number - stage.first;
        if within >= stage.tasks as u64 {
            return None;
        }
        let start = within * stage.per_task;
        let end = (start + stage.per_task).min(stage.total);
        let share = |at: u64| (u128::from(stage.work) * u128::from(at) / u128::from(stage.total.max(1))) as u64;
        let work = if stage.total == 0 { stage.work } else { share(end) - share(start) };
        Some(Task { step: stage.step, pass: stage.pass, number: within as usize, range: start..end, work })
    }

    /// Number of tasks of a step's pass; 0 if it has none.
    pub(super) fn tasks_of(&self, step: usize, pass: Pass) -> usize {
        self.of_step[step]
            .iter()
            .map(|&at| &self.stages[at])
            .find(|stage| stage.pass == pass)
            .map_or(0, |stage| stage.tasks)
    }
}

/// Where most of a step lies in the output. In this order files are read and written from one end to the other, and what a store wants in parts of one size is whole
/// soon.
fn place(plan: &Plan, step: &Step) -> (usize, u64) {
    let tensor = |slot: &Slot| &plan.files[slot.file].tensors[slot.tensor];
    let most = step.slots.iter().max_by_key(|slot| tensor(slot).bytes);
    most.map_or((0, 0), |slot| (slot.file, tensor(slot).offset))
}

/// Rows of a chunk: whole row steps, as many as come to the wanted number of elements.
pub(super) fn rows_per_chunk(recode: &Recode, elements: usize) -> usize {
    let from = recode.from.weight.geometry();
    let step = common_step(from.row_step, recode.to.geometry().row_step);
    // Rows that an edit needs together.
    let edits = recode.edits.iter().map(|(_, edit)| edit.plan.row_step());
    // Of another order than the base's it is read matrix by matrix.
    let original = recode.original.iter().map(|claim| claim.weight.geometry().row_step);
    let step = edits.chain(original).fold(step, common_step).min(from.rows.max(1));
    // Rows that are rounded in the time of one come together; in chunks that memory has made smaller, fewer do.
    let together = (recode.streamed().rows_together() * elements / CHUNK_ELEMENTS).max(1);
    let wanted = (elements / from.cols.max(1)).max(1).next_multiple_of(together);
    // The low-rank product takes four rows at a time.
    let step = if step == 1 && wanted >= 4 { 4 } else { step };
    (wanted / step * step).max(step)
}

/// Rows of a task: whole chunks, as many as come to the wanted number of bytes.
pub(super) fn rows_per_task(recode: &Recode, elements: usize) -> usize {
    let chunk = rows_per_chunk(recode, elements);
    let rows = recode.from.weight.geometry().rows.max(1) as u64;
    let per_row = read_bytes(recode).max(written_bytes(recode)) / rows;
    let wanted = TASK_BYTES / per_row.max(1);
    (wanted as usize / chunk * chunk)
        .clamp(chunk, recode.from.weight.geometry().rows.next_multiple_of(chunk).max(chunk))
}

/// Bytes that a pass over a step reads.
pub(super) fn step_reads(step: &Step) -> u64 {
    match &step.action {
        Action::Copy { entry } => entry.bytes,
        Action::Constant(_) => 0,
        Action::Recode(recode) => {
            let tuned = recode.task_vectors().flat_map(|vector| &vector.claim.entries);
            read_bytes(recode) + tuned.map(|entry| entry.bytes).sum::<u64>()
        }
    }
}

/// Bytes that a step writes, without what depends on values.
pub(super) fn step_writes(step: &Step, plan: &Plan) -> u64 {
    step.slots.iter().map(|slot| plan.files[slot.file].tensors[slot.tensor].bytes).sum()
}

pub(super) fn read_bytes(recode: &Recode) -> u64 {
    recode.from.entries.iter().map(|entry| entry.bytes).sum()
}

pub(super) fn written_bytes(recode: &Recode) -> u64 {
    recode.to.parts().iter().map(|part| part.bytes).sum()
}

fn stages(number: usize, step: &Step, memory: &Memory) -> Vec<Stage> {
    let stage = |pass, tasks: u64, per_task, total, work| Stage {
        step: number,
        pass,
        tasks: tasks.max(1) as usize,
        first: 0,
        per_task,
        total,
        work,
    };
    let copy = |bytes: u64| {
        stage(Pass::Copy, bytes.div_ceil(TASK_BYTES), TASK_BYTES, bytes, work::copied(bytes, memory.threads))
    };
    match &step.action {
        Action::Copy { entry } => vec![copy(entry.bytes)],
        Action::Constant(constant) => vec![copy(constant.len())],
        Action::Recode(recode) => {
            let rows = recode.from.weight.geometry().rows as u64;
            let per_task = rows_per_task(recode, memory.chunk_elements) as u64;
            let tasks = rows.div_ceil(per_task);
            let work = |pass| work::streamed(recode, recode.streamed(), pass);
            let mut passes = Vec::new();
            if recode.edits.iter().any(|(_, edit)| edit.plan.needs_survey()) {
                passes.push(stage(Pass::EditSurvey, 1, rows.max(1), rows, work(WeightPass::EditSurvey)));
            }
            if recode.is_surveyed() {
                passes.push(stage(Pass::Survey, tasks, per_task, rows, work(WeightPass::Survey)));
            }
            passes.push(stage(Pass::Write, tasks, per_task, rows, work(WeightPass::Write)));
            passes
        }
    }
}
