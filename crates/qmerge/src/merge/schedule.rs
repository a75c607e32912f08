//! In which order chunks are done, how large they are, and how much memory that takes.
//!
//! A step is one or more passes over its rows: sums for an edit that needs them (one task, rows in order), block maxima for scales that
//! depend on the whole weight, and the pass that writes. The pass that writes a surveyed weight is put behind the next weight's survey, so
//! that no worker waits for the last chunk of the one before.

use std::ops::Range;

use crate::error::{Error, Kind, Result};
use crate::plan::{Action, Plan, Recode, Step};

/// Elements that a chunk aims at: three f32 buffers of it and the factors fit a second-level cache.
const CHUNK_ELEMENTS: usize = 1 << 15;
/// Bytes that a task reads or writes at a time, about.
const TASK_BYTES: u64 = 1 << 20;
/// Bytes per element that a chunk takes in a worker's buffers: base, values, output in f32.
const BYTES_PER_ELEMENT: u64 = 3 * 4;
/// What the program takes besides: code, headers, tables, the allocator's reserve.
const FIXED_BYTES: u64 = 24 << 20;
/// Steps whose state can stand in memory at once: one writing, one surveyed, one beginning.
const STEPS_IN_FLIGHT: usize = 3;

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
    /// Share of the progress bar.
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

/// Predicted memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Memory {
    /// Largest sum that is expected, bytes.
    pub peak_bytes: u64,
    /// Worker threads.
    pub threads: usize,
    /// Elements per chunk.
    pub chunk_elements: usize,
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
    /// Total of all tasks' work, and by step.
    pub(super) work: u64,
    pub(super) step_work: Vec<u64>,
    /// Bytes that the tasks read, all passes.
    pub(super) bytes_read: u64,
}

impl Schedule {
    /// Cuts a plan into tasks that fit the memory.
    pub(super) fn new(plan: &Plan, threads: usize, max_memory: Option<u64>) -> Result<Self> {
        let memory = fit(plan, threads.max(1), max_memory)?;
        let mut schedule = Self {
            stages: Vec::new(),
            of_step: vec![Vec::new(); plan.steps.len()],
            tasks: 0,
            threads: memory.threads,
            chunk_elements: memory.chunk_elements,
            memory,
            work: 0,
            step_work: vec![0; plan.steps.len()],
            bytes_read: 0,
        };
        let mut waiting: Option<Stage> = None;
        for (number, step) in plan.steps.iter().enumerate() {
            let mut passes = stages(number, step, memory.chunk_elements);
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
        self.work += stage.work;
        self.step_work[stage.step] += stage.work;
        self.bytes_read += match &plan.steps[stage.step].action {
            Action::Copy { entry } => entry.bytes,
            Action::Recode(recode) => read_bytes(recode),
        };
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

/// Rows of a chunk: whole row steps, as many as come to the wanted number of elements.
pub(super) fn rows_per_chunk(recode: &Recode, elements: usize) -> usize {
    let from = recode.from.weight.geometry();
    let step = from.common_step(&recode.to.geometry());
    let wanted = elements / from.cols.max(1);
    // The low-rank product takes four rows at a time.
    let step = if step == 1 && wanted >= 4 { 4 } else { step };
    (wanted / step * step).max(step)
}

/// Rows of a task: whole chunks, as many as come to the wanted number of bytes.
fn rows_per_task(recode: &Recode, elements: usize) -> usize {
    let chunk = rows_per_chunk(recode, elements);
    let rows = recode.from.weight.geometry().rows.max(1) as u64;
    let per_row = read_bytes(recode).max(written_bytes(recode)) / rows;
    let wanted = TASK_BYTES / per_row.max(1);
    (wanted as usize / chunk * chunk)
        .clamp(chunk, recode.from.weight.geometry().rows.next_multiple_of(chunk).max(chunk))
}

fn read_bytes(recode: &Recode) -> u64 {
    recode.from.entries.iter().map(|entry| entry.bytes).sum()
}

fn written_bytes(recode: &Recode) -> u64 {
    recode.to.parts().iter().map(|part| part.bytes).sum()
}

fn stages(number: usize, step: &Step, elements: usize) -> Vec<Stage> {
    let stage = |pass, tasks: u64, per_task, total, work| Stage {
        step: number,
        pass,
        tasks: tasks.max(1) as usize,
        first: 0,
        per_task,
        total,
        work,
    };
    match &step.action {
        Action::Copy { entry } => {
            vec![stage(Pass::Copy, entry.bytes.div_ceil(TASK_BYTES), TASK_BYTES, entry.bytes, 2 * entry.bytes)]
        }
        Action::Recode(recode) => {
            let rows = recode.from.weight.geometry().rows as u64;
            let per_task = rows_per_task(recode, elements) as u64;
            let tasks = rows.div_ceil(per_task);
            let (read, written) = (read_bytes(recode), written_bytes(recode));
            let mut passes = Vec::new();
            if recode.edits.iter().any(|(_, edit)| edit.plan.needs_survey()) {
                passes.push(stage(Pass::EditSurvey, 1, rows.max(1), rows, read));
            }
            if !recode.keep && recode.to.needs_survey() {
                passes.push(stage(Pass::Survey, tasks, per_task, rows, read));
            }
            passes.push(stage(Pass::Write, tasks, per_task, rows, read + written));
            passes
        }
    }
}

/// Chooses threads and chunk size for a bound on memory.
fn fit(plan: &Plan, threads: usize, max_memory: Option<u64>) -> Result<Memory> {
    let mut memory = Memory { peak_bytes: 0, threads, chunk_elements: CHUNK_ELEMENTS };
    loop {
        memory.peak_bytes = predict(plan, &memory);
        let Some(limit) = max_memory.filter(|&limit| memory.peak_bytes > limit) else { return Ok(memory) };
        if memory.chunk_elements > 1 << 12 {
            memory.chunk_elements /= 2;
        } else if memory.threads > 1 {
            memory.threads -= 1;
        } else {
            return Err(Error::new(
                Kind::Usage,
                format!(
                    "--max-memory {:.0} MiB is not enough: this merge takes at least {:.0} MiB",
                    limit as f64 / f64::from(1 << 20),
                    memory.peak_bytes as f64 / f64::from(1 << 20)
                ),
            ));
        }
    }
}

fn predict(plan: &Plan, memory: &Memory) -> u64 {
    let mut state: Vec<u64> = Vec::new();
    let waiting = (crate::write::MOST_WAITING + memory.threads) as u64 * TASK_BYTES;
    let mut worker = 2 * TASK_BYTES;
    for step in &plan.steps {
        let Action::Recode(recode) = &step.action else { continue };
        let geometry = recode.from.weight.geometry();
        let chunk = (rows_per_chunk(recode, memory.chunk_elements) * geometry.cols) as u64;
        let task = rows_per_task(recode, memory.chunk_elements) as u64;
        let task_bytes = (read_bytes(recode) + written_bytes(recode)) / geometry.rows.max(1) as u64 * task;
        // The original's values, and the bytes that they are decoded from.
        let original = if recode.original.is_some() { 8 } else { 0 };
        worker = worker.max(chunk * (BYTES_PER_ELEMENT + original) + task_bytes);
        let edits: u64 = recode.edits.iter().map(|(_, edit)| edit.plan.memory()).sum();
        // Parts that are not cut by rows, and the maxima that a survey holds.
        let whole: u64 = (0..recode.to.parts().len())
            .filter(|&part| recode.to.part_rows(part, &(0..0)).is_none())
            .map(|part| recode.to.parts()[part].bytes)
            .sum();
        let held = if recode.to.needs_survey() { 6 * geometry.elements() as u64 / 64 } else { 0 };
        state.push(edits + whole + held);
    }
    state.sort_unstable_by(|a, b| b.cmp(a));
    let in_flight: u64 = state.iter().take(STEPS_IN_FLIGHT).sum();
    let headers: u64 = plan.files.iter().map(|file| 8 * file.data_start).sum();
    // A weight that is turned is held whole: base, target, both turned over, and what they are encoded and decoded to.
    let turned =
        plan.recodes().filter(|recode| recode.turned).map(|recode| 7 * 4 * recode.to.geometry().elements() as u64);
    let turned = memory.threads as u64 * turned.max().unwrap_or(0);
    FIXED_BYTES + headers + waiting + (memory.threads as u64 * worker + in_flight).max(turned)
}
