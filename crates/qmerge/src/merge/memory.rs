//! How much memory a merge takes, and how threads and chunks are chosen to fit a bound.
//!
//! A merge has phases, and only one of them at a time: a calibration gets ready, weights are rounded as a whole while it hands out the moments of the next, all
//! others go by in chunks, and what rounding left is cut. The prediction is the largest of them and what stands beside all. It counts bytes that are in use; an
//! allocator keeps a share of what was freed. Where a bound leaves no room for both, a layer's weights are rounded while the calibration waits.

use super::RunOptions;
use super::residual::is_cut;
use super::schedule::{CHUNK_ELEMENTS, TASK_BYTES, read_bytes, rows_per_chunk, rows_per_task, written_bytes};
use crate::error::{Error, Kind, Result};
use crate::formats;
use crate::plan::{Action, Plan, Recode};
use crate::round::{Demand, Detail, LEAST_PROBES, Whole, metric_bytes, weight_of};

/// Bytes per element that a chunk takes in a worker's buffers: base, values, output in f32.
const BYTES_PER_ELEMENT: u64 = 3 * 4;
/// Bytes per element of a weight that is rounded as a whole from the base's codes: base, target, their products with the moments, and the values twice, as they
/// are given and in the order of their use, in f32, or in place of the last the error of a start and its products; and the moves of a group of rows.
const FROM_BASE: u64 = 6 * 4 + 2;
/// The same from what another format makes of the target: the start is kept too, and its error at first.
const AFRESH: u64 = 7 * 4 + 2;
/// The same of what no few directions hold: its delta's products with the moments, and the start under other scales.
const DENSE: u64 = 2 * 4;
/// The same of a written weight whose residual is cut: base, target, output, their difference.
const READ_AGAIN: u64 = 4 * 4;
/// The same while a matrix whose rows are inputs is turned, or brought into another order.
const TURNED: u64 = 4;
/// What the program takes besides: code, headers, tables, the allocator's reserve.
pub const PROGRAM_BYTES: u64 = 20 << 20;
/// Counting the magnitudes of a task vector.
const COUNTS: u64 = 1 << 20;
/// What moments of further layers may take so that all threads have weights to round.
const FURTHER: u64 = 256 << 20;
/// Steps whose state can stand in memory at once: one writing, one surveyed, one beginning.
const STEPS_IN_FLIGHT: usize = 3;

/// Predicted memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Memory {
    /// Largest sum that is expected, bytes.
    pub peak_bytes: u64,
    /// Worker threads.
    pub threads: usize,
    /// Elements per chunk.
    pub chunk_elements: usize,
    /// Layers that may still be rounded while the calibration goes on to the next; 0 if it waits for each.
    pub(super) ahead: usize,
    /// Bytes that moments and the weights under work may take together; `None` for no bound.
    pub(super) whole: Option<u64>,
}

/// A layer that is rounded as a whole.
struct Layer {
    /// Bytes of its moments.
    moments: u64,
    /// Bytes of its weights under work.
    weights: Vec<u64>,
}

/// Most bytes of so many neighbouring layers, with so many weights at a time.
fn rounded(layers: &[Layer], open: usize, together: usize) -> u64 {
    let bytes = |layers: &[Layer]| {
        let mut weights: Vec<u64> = layers.iter().flat_map(|layer| &layer.weights).copied().collect();
        weights.sort_unstable_by(|a, b| b.cmp(a));
        layers.iter().map(|layer| layer.moments).sum::<u64>() + weights.iter().take(together).sum::<u64>()
    };
    layers.windows(open.clamp(1, layers.len().max(1))).map(bytes).max().unwrap_or(0)
}

/// Layers that are worth being left to round while the next one's moments are gathered: one, or more of a small model on many threads. One
/// thread does either.
fn ahead(layers: &[Layer], threads: usize) -> usize {
    if threads < 2 {
        return 0;
    }
    let weights = layers.iter().map(|layer| layer.weights.len()).max().unwrap_or(0);
    let moments = layers.iter().map(|layer| layer.moments).max().unwrap_or(0);
    let wanted = (2 * threads).div_ceil(weights.max(1)).saturating_sub(1);
    wanted.min((FURTHER / moments.max(1)) as usize).max(1)
}

/// Chooses threads and chunk size for a bound on memory.
pub(super) fn fit(plan: &Plan, options: &RunOptions<'_>, demand: &Demand) -> Result<Memory> {
    let (threads, max_memory) = (options.threads().max(1), options.max_memory);
    let mut memory = Memory { peak_bytes: 0, threads, chunk_elements: CHUNK_ELEMENTS, ahead: 0, whole: None };
    let layers = layers(plan, demand);
    let beside = beside(plan, demand) + options.beside;
    let limit = max_memory.unwrap_or(u64::MAX);
    loop {
        let chunks = chunks(plan, &memory).max(residual(plan, memory.threads)).max(turned(plan, 1));
        let least = beside + chunks.max(demand.working).max(rounded(&layers, 1, 1));
        if least <= limit {
            let others = chunks.max(demand.working).max(turned(plan, memory.threads));
            let open = |ahead| beside + others.max(demand.passing + rounded(&layers, ahead + 1, memory.threads));
            memory.ahead = (1..=ahead(&layers, memory.threads)).rev().find(|ahead| open(*ahead) <= limit).unwrap_or(0);
            memory.peak_bytes = match memory.ahead {
                // Weights wait for each other where not all threads' fit.
                0 => (beside + others.max(rounded(&layers, 1, memory.threads))).min(limit),
                ahead => open(ahead),
            };
            memory.whole = max_memory.map(|limit| limit - beside);
            return Ok(memory);
        }
        if beside + chunks > limit && memory.chunk_elements > 1 << 12 {
            memory.chunk_elements /= 2;
        } else if beside + chunks > limit && memory.threads > 1 {
            memory.threads -= 1;
        } else {
            return Err(Error::new(
                Kind::Usage,
                format!(
                    "--max-memory {:.0}M is not enough: this merge takes at least {:.0}M",
                    limit as f64 / f64::from(1 << 20),
                    (least as f64 / f64::from(1 << 20)).ceil()
                ),
            )
            .with_hint(match plan.recodes().find(|recode| recode.rounding.whole().is_some()) {
                None => "give that much",
                Some(recode) if recode.keeps_scales => {
                    "give that much, or take --rounding stochastic, which takes less"
                }
                Some(_) => "give that much, or take --rounding nearest, which takes less",
            }));
        }
    }
}

/// Bytes that are written with the last row and belong to none.
fn behind_last(recode: &Recode) -> u64 {
    let rows = recode.to.geometry().rows;
    let of_row = |row: usize| -> u64 {
        let ranges = (0..recode.to.parts().len()).filter_map(|part| recode.to.part_rows(part, &(row..row + 1)));
        ranges.map(|range| range.end - range.start).sum()
    };
    if rows > 1 { of_row(rows - 1).saturating_sub(of_row(0)) } else { 0 }
}

/// What stands in memory all the while.
fn beside(plan: &Plan, demand: &Demand) -> u64 {
    let headers: u64 = plan.files.iter().map(|file| 8 * file.data_start).sum();
    PROGRAM_BYTES + headers + demand.held
}

/// Weights that go by in chunks.
fn chunks(plan: &Plan, memory: &Memory) -> u64 {
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
        let original = recode.original.as_ref().map_or(0, |claim| 8 + claim.weight.moved_bytes());
        let vectors = task_vectors(recode, chunk);
        let each = BYTES_PER_ELEMENT + original + recode.from.weight.moved_bytes() + recode.to.moved_bytes();
        worker = worker.max(chunk * each + vectors + task_bytes + 2 * behind_last(recode));
        // Parts that are not cut by rows, and the maxima that a survey holds.
        let whole: u64 = (0..recode.to.parts().len())
            .filter(|&part| recode.to.part_rows(part, &(0..0)).is_none())
            .map(|part| recode.to.parts()[part].bytes)
            .sum();
        let held = if recode.is_surveyed() { 6 * geometry.elements() as u64 / 64 } else { 0 };
        // A basis of what the adapter reads, and what it is found with: no more than the factors take twice.
        let directions = if recode.streamed().goes_by_directions() { 2 * edits(recode) } else { 0 };
        let counts = if recode.surveys_task_vectors() { COUNTS } else { 0 };
        state.push(edits(recode) + directions + whole + held + counts);
    }
    state.sort_unstable_by(|a, b| b.cmp(a));
    let in_flight: u64 = state.iter().take(STEPS_IN_FLIGHT).sum();
    waiting + memory.threads as u64 * worker + in_flight
}

/// Rows of tuned models for a chunk: of each its values and the bytes that they are decoded from, and the sum.
fn task_vectors(recode: &Recode, chunk: u64) -> u64 {
    let number = recode.task_vectors().count() as u64;
    if number == 0 { 0 } else { chunk * (8 * number + 4) }
}

fn edits(recode: &Recode) -> u64 {
    recode.edits.iter().map(|(_, edit)| edit.plan.memory()).sum()
}

/// The layers that are rounded as a whole.
fn layers(plan: &Plan, demand: &Demand) -> Vec<Layer> {
    let whole = |recode: &Recode| {
        Some((weight_bytes(recode, plan.residual_rank), recode.rounding.whole()?, recode.begins_at_base()))
    };
    let bytes: std::collections::HashMap<&str, (u64, &dyn Whole, bool)> = plan
        .steps
        .iter()
        .filter_map(|step| match &step.action {
            Action::Recode(recode) => Some((step.name.as_str(), whole(recode)?)),
            Action::Copy { .. } | Action::Constant(_) => None,
        })
        .collect();
    let layer = |inputs: &Vec<crate::round::LayerInputs>| {
        let own = |inputs: &crate::round::LayerInputs| -> Vec<(u64, &dyn Whole, bool)> {
            inputs.weights.iter().filter_map(|name| bytes.get(weight_of(name).0).copied()).collect()
        };
        let mut layer = Layer { moments: 0, weights: Vec::new() };
        for inputs in inputs {
            let own = own(inputs);
            if let Some((_, method, _)) = own.first() {
                let from_base = own.iter().any(|(.., from_base)| *from_base);
                layer.moments += moments_bytes(*method, inputs.features, from_base, demand.detail);
                layer.weights.extend(own.iter().map(|(bytes, ..)| bytes));
            }
        }
        layer
    };
    demand.layers.iter().map(layer).filter(|layer| !layer.weights.is_empty()).collect()
}

/// What the moments of some inputs take, with what the method makes of them.
pub(super) fn moments_bytes(method: &dyn Whole, features: usize, from_base: bool, detail: Detail) -> u64 {
    metric_bytes(features) + method.preparing(features, from_base, detail).bytes
}

/// What a weight takes while it is rounded as a whole.
pub(super) fn weight_bytes(recode: &Recode, residual_rank: Option<usize>) -> u64 {
    let (rows, cols) = (recode.outputs() as u64, recode.inputs() as u64);
    let is_turned = recode.transposed || recode.is_stored_transposed();
    let each = if recode.begins_at_base() { FROM_BASE } else { AFRESH }
        + if is_turned { TURNED } else { 0 }
        + if recode.has_known_rank() { 0 } else { DENSE }
        + recode.from.weight.moved_bytes().max(recode.to.moved_bytes())
        + formats::by_id(recode.to.format()).map_or(0, |format| format.listed_bytes());
    // A format that stores inputs as rows may have them in an order of its own, in which the moments are needed too.
    let moments = |method| moments_bytes(method, recode.inputs(), recode.begins_at_base(), Detail::Full);
    let ordered = if recode.to.is_transposed() { recode.rounding.whole().map_or(0, moments) } else { 0 };
    let matrices = recode.stack.unwrap_or(1).max(1) as u64;
    let stored = (read_bytes(recode) + 2 * written_bytes(recode)) / matrices;
    // Edits take what their factors do; those of a stack are there once for all of its matrices, whichever is at work.
    let rank = edits(recode) / matrices / (4 * (rows + cols)).max(1);
    let directions = 4 * rank.max(LEAST_PROBES as u64).min(rows).min(cols) * (2 * rows + 4 * cols);
    let cut = residual_rank.filter(|_| is_cut(recode)).map_or(0, |rank| sketch(rows + cols, rank));
    let chunk = (CHUNK_ELEMENTS as u64).max(recode.from.weight.geometry().cols as u64);
    let vectors = task_vectors(recode, chunk) + if recode.surveys_task_vectors() { COUNTS } else { 0 };
    rows * cols * each + vectors + ordered + stored + directions + cut + edits(recode)
}

/// What a weight whose rows become columns takes: base, target, both turned over, and what they are encoded and decoded to.
pub(super) fn turned_bytes(recode: &Recode) -> u64 {
    7 * 4 * (recode.to.geometry().elements() / recode.stacked()) as u64 + edits(recode)
}

/// The largest of those, so many at a time.
fn turned(plan: &Plan, together: usize) -> u64 {
    let mut bytes: Vec<u64> = plan.recodes().filter(|recode| recode.turned).map(turned_bytes).collect();
    bytes.sort_unstable_by(|a, b| b.cmp(a));
    bytes.iter().take(together).sum()
}

/// Factors of a sketch, in f64 and f32.
fn sketch(ends: u64, rank: usize) -> u64 {
    (rank as u64 + 8) * ends * 16
}

/// Cutting what rounding left: all factors stand in memory until they are written, twice.
fn residual(plan: &Plan, threads: usize) -> u64 {
    let Some(rank) = plan.residual_rank else { return 0 };
    let mut factors = 0;
    let mut jobs: Vec<u64> = Vec::new();
    for step in &plan.steps {
        if let Action::Recode(recode) = &step.action
            && is_cut(recode)
        {
            let geometry = recode.to.geometry();
            let ends = (geometry.rows + geometry.cols) as u64;
            factors += 8 * rank as u64 * ends;
            jobs.push(READ_AGAIN * geometry.elements() as u64 + sketch(ends, rank) + edits(recode));
        }
    }
    jobs.sort_unstable_by(|a, b| b.cmp(a));
    factors + jobs.iter().take(threads).sum::<u64>()
}
