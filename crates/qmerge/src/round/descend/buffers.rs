//! What the rows of a block share, and what each of them takes.

use std::ops::Range;

use crate::round::Metric;

/// What a block takes.
#[derive(Default)]
pub(super) struct Buffers {
    /// H of the block's own columns.
    pub(super) square: Vec<f32>,
    /// H of each run's own columns, one after the other.
    pub(super) runs: Vec<f32>,
    /// By run of a row, the curvature of J along its offset where g = 1.
    pub(super) flat: Vec<f32>,
    /// Gradient of a row, and what it was before the row's moves; its values then.
    pub(super) pull: Vec<f32>,
    pub(super) before: Vec<f32>,
    pub(super) steps: Vec<f32>,
    /// mu·U_r.
    pub(super) factors: Vec<f32>,
    /// Middles between a value and its neighbours.
    pub(super) low: Vec<f32>,
    pub(super) high: Vec<f32>,
    /// Of a run: by how much its values change with its scale or with a move of it, and H times that.
    pub(super) direction: Vec<f32>,
    pub(super) product: Vec<f32>,
}

impl Buffers {
    /// What the rows of a block share.
    pub(super) fn prepare(&mut self, block: &Range<usize>, metric: &Metric, run: Option<usize>) {
        let width = block.len();
        metric.square(block.clone(), &mut self.square);
        self.runs.clear();
        if let Some(run) = run {
            for (i, row) in self.square.chunks_exact(width).enumerate() {
                self.runs.extend_from_slice(&row[i / run * run..][..run]);
            }
            self.flat.clear();
            self.flat.extend(self.runs.chunks_exact(run * run).map(|square| square.iter().sum::<f32>()));
        }
        let rows = [&mut self.pull, &mut self.before, &mut self.steps, &mut self.low, &mut self.high];
        rows.into_iter().for_each(|row| row.resize(width, 0.0));
        let run = run.unwrap_or(0);
        [&mut self.direction, &mut self.product].into_iter().for_each(|row| row.resize(run, 0.0));
    }
}
