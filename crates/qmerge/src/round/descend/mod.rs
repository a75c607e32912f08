//! Coordinate descent on a weight's grid: what the methods `descent` and `adapter` share.
//!
//! Minimises J(E) = ½ tr(G E H Eᵀ) with E = Wq − (W0 + D), H the moments of the inputs and G = I + mu·U Uᵀ, U a basis of the outputs that
//! the adapter reaches. mu = 0 is the mean square error of the layer's output; a larger mu keeps the adapter's own directions in full
//! strength, which is what a loss of the model depends on. The start is the base, E = −D, or in another format what that encodes. Each move takes one
//! value to another level, or one run to another scale, and is made only if it lowers J, so the start is the worst case.
//!
//! A pass goes over groups of rows, in a group over blocks of columns, and in a block over the rows. P = E H is kept by blocks, in which the gradient of row r is
//! P_r + mu·U_r S with S = Uᵀ E H. A move adds g·d·H_j to the gradient at once within its block, with g = 1 + mu·|U_r|², which takes no more of H than the square
//! on its diagonal; every other block takes the moves since its last turn when its turn comes, from a panel of H that stays in the second-level cache. So a pass
//! reads H once for each group, not a row of it for each move. The order is fixed, so the result depends on nothing but the input.

mod row;

use std::ops::Range;

use super::matrix::{Delta, Kept, Matrix, judged, multiply};
use super::moments::PANEL;
use crate::formats::Choices;
use crate::simd::vectors::{dot, few_rows, gather, outer};

/// Passes with one mu.
#[derive(Clone, Copy, Debug)]
pub(super) struct Stage {
    /// Weight of the adapter's own directions.
    pub(super) mu: f32,
    /// Most passes over all rows.
    pub(super) passes: usize,
}

/// A pass that moves fewer than this share of the values ends a stage.
const ENOUGH: f64 = 5e-6;
/// Longest run whose scale may be moved.
const LONGEST_RUN: usize = 256;
/// Groups that the rows are done in. All rows together would have the first columns make up for what the adapter lacks in all others, which costs noise (a fifth
/// more of it, on SmolLM2); each row by itself would read all of H for each row.
const GROUPS: usize = 8;
/// Fewest rows of a group.
const FEWEST_ROWS: usize = 64;

/// Rounds `matrix.values` and `matrix.grid.scales`.
pub(super) fn descend(matrix: &mut Matrix<'_>, stages: &[Stage]) -> Kept {
    let delta = Delta::new(matrix);
    let at_base = matrix.at_base();
    if !delta.norm.is_finite() || at_base && delta.norm <= 0.0 {
        return Kept::ALL;
    }
    let start = (matrix.grid.scales.clone(), (!at_base).then(|| matrix.values.clone()));
    let mut state = State::new(matrix, &delta, at_base);
    let before = state.energy;
    for stage in stages {
        state.begin(stage.mu);
        for _ in 0..stage.passes {
            if (state.pass() as f64) < ENOUGH * state.values.len() as f64 {
                break;
            }
        }
    }
    let after = state.finish();
    // Stages with another mu may have raised the last one's objective; then the start is better.
    let last = stages.last().map_or(0.0, |stage| stage.mu);
    if after.objective(last) > before.objective(last) {
        let (scales, values) = start;
        matrix.values.copy_from_slice(values.as_deref().unwrap_or(matrix.base));
        matrix.grid.scales = scales;
        return judged(matrix, &delta);
    }
    if delta.norm <= 0.0 {
        return Kept::ALL;
    }
    Kept { output: delta.kept(matrix), noise: after.noise / delta.norm }
}

/// The parts of 2 J.
#[derive(Clone, Copy, Debug)]
struct Energy {
    /// tr(E H Eᵀ).
    noise: f64,
    /// tr(Uᵀ E H Eᵀ U).
    along: f64,
}

impl Energy {
    fn objective(self, mu: f32) -> f64 {
        self.noise + f64::from(mu) * self.along
    }
}

struct State<'s, 'm> {
    matrix: &'s mut Matrix<'m>,
    delta: &'s Delta,
    mu: f32,
    /// At the start.
    energy: Energy,
    /// 2 J.
    objective: f64,
    /// Columns of a block; the last may have fewer.
    width: usize,
    /// Rows that go through all blocks together.
    group: usize,
    /// Length of runs whose scales may be moved.
    run: Option<usize>,
    /// Half of the least distance between two levels: a value that would move by less stays.
    half_gap: f32,
    /// Wq and P, block by block: (rows, columns of the block).
    values: Vec<f32>,
    products: Vec<f32>,
    /// Uᵀ E (directions, cols).
    along: Vec<f32>,
    /// By row, the moves that some blocks have not taken.
    pending: Vec<Moves>,
    /// 1 / H_jj.
    inverse: Vec<f32>,
    /// |U_r|².
    lengths: Vec<f32>,
    /// By run, the curvature of J along its scale where g = 1; NaN where it is not known.
    curvatures: Vec<f32>,
    buffers: Buffers,
}

/// Moves of a row's values, in the order in which they were made: those since each block was visited, so that the oldest are the next block's own.
#[derive(Clone, Default)]
struct Moves {
    all: Vec<(u32, f32)>,
    /// Those before this one are done with.
    first: usize,
}

impl Moves {
    /// Forgets the oldest, which lie in a block that all others have seen since.
    fn forget(&mut self, block: &Range<usize>) {
        while self.all.get(self.first).is_some_and(|&(column, _)| block.contains(&(column as usize))) {
            self.first += 1;
        }
        if 2 * self.first > self.all.len() {
            self.all.drain(..self.first);
            self.first = 0;
        }
    }
}

/// What a block takes.
#[derive(Default)]
struct Buffers {
    /// H of the block's own columns.
    square: Vec<f32>,
    /// H of each run's own columns, one after the other.
    runs: Vec<f32>,
    /// S (directions, columns), and what is added to Uᵀ E.
    shared: Vec<f32>,
    change: Vec<f32>,
    /// Gradient of a row, and what it was before the row's moves; its values then.
    pull: Vec<f32>,
    before: Vec<f32>,
    steps: Vec<f32>,
    /// mu·U_r.
    factors: Vec<f32>,
    /// Middles between a value and its neighbours.
    low: Vec<f32>,
    high: Vec<f32>,
    /// Of a run: by how much its values change with its scale or with a move of it, and H times that.
    direction: Vec<f32>,
    product: Vec<f32>,
}

impl<'s, 'm> State<'s, 'm> {
    fn new(matrix: &'s mut Matrix<'m>, delta: &'s Delta, at_base: bool) -> Self {
        let (rows, n) = (matrix.rows, matrix.cols);
        let run = Some(matrix.grid.run).filter(|&run| {
            let fits = PANEL.is_multiple_of(run) || run.is_multiple_of(PANEL);
            matrix.grid.choices != Choices::Fixed && (2..=LONGEST_RUN).contains(&run) && fits && n.is_multiple_of(run)
        });
        let width = run.map_or(PANEL, |run| run.max(PANEL));
        let mut state = Self {
            mu: 0.0,
            energy: Energy { noise: 0.0, along: 0.0 },
            objective: 0.0,
            width,
            group: rows.min(n).div_ceil(GROUPS).max(FEWEST_ROWS),
            run,
            half_gap: matrix.grid.half_gap(),
            values: Vec::new(),
            products: vec![0.0; rows * n],
            along: delta.coefficients.iter().map(|x| -x).collect(),
            pending: vec![Moves::default(); rows],
            inverse: matrix.metric.diagonal.iter().map(|h| 1.0 / h).collect(),
            lengths: (0..rows).map(|r| delta.own(r)).map(|own| dot(own, own)).collect(),
            curvatures: vec![f32::NAN; if run.is_some() { matrix.grid.scales.len() } else { 0 }],
            buffers: Buffers::default(),
            matrix,
            delta,
        };
        if at_base {
            // E = −D, which is of low rank.
            let mut row = vec![0.0; n];
            for r in 0..rows {
                row.fill(0.0);
                delta.add_row(r, -1.0, &mut row);
                state.set_products(r, &row);
            }
            state.energy.noise = delta.norm;
        } else {
            state.along.fill(0.0);
            let error = state.matrix.error();
            let products = state.matrix.error_products(&error);
            for (r, (error, row)) in error.chunks_exact(n).zip(products.chunks_exact(n)).enumerate() {
                state.energy.noise += f64::from(dot(error, row));
                outer(delta.own(r), error, &mut state.along);
                state.set_products(r, row);
            }
        }
        state.energy.along = state.along_energy();
        state.objective = state.energy.noise;
        // Values in the order of their use.
        let values = std::mem::take(&mut state.matrix.values);
        state.values.reserve_exact(values.len());
        for block in state.blocks() {
            let rows = values.chunks_exact(n);
            rows.for_each(|row| state.values.extend_from_slice(&row[block.clone()]));
        }
        state
    }

    fn set_products(&mut self, r: usize, row: &[f32]) {
        for block in self.blocks() {
            let at = self.place(r, &block);
            self.products[at].copy_from_slice(&row[block]);
        }
    }

    fn blocks(&self) -> impl Iterator<Item = Range<usize>> + use<> {
        let (n, width) = (self.matrix.cols, self.width);
        (0..n).step_by(width).map(move |start| start..(start + width).min(n))
    }

    /// Where a row of a block lies.
    fn place(&self, r: usize, block: &Range<usize>) -> Range<usize> {
        let start = self.matrix.rows * block.start + r * block.len();
        start..start + block.len()
    }

    /// tr(Uᵀ E H Eᵀ U).
    fn along_energy(&self) -> f64 {
        let mut shared = vec![0.0; self.along.len()];
        multiply(&self.along, self.matrix.metric, &mut shared);
        let n = self.matrix.cols;
        self.along.chunks_exact(n).zip(shared.chunks_exact(n)).map(|(a, s)| f64::from(dot(a, s))).sum()
    }

    /// Begins a stage.
    fn begin(&mut self, mu: f32) {
        let along = self.along_energy();
        let noise = self.objective - f64::from(self.mu) * along;
        self.mu = mu;
        self.objective = Energy { noise, along }.objective(mu);
    }

    /// One pass over all values. Returns the number of moves.
    fn pass(&mut self) -> usize {
        let mut moved = 0;
        for start in (0..self.matrix.rows).step_by(self.group) {
            let rows = start..(start + self.group).min(self.matrix.rows);
            for block in self.blocks() {
                self.catch_up(&block, &rows);
                self.prepare(&block);
                moved += rows.clone().map(|r| self.row(r, &block)).sum::<usize>();
                let (n, width) = (self.matrix.cols, block.len());
                for (along, change) in self.along.chunks_exact_mut(n).zip(self.buffers.change.chunks_exact(width)) {
                    along[block.clone()].iter_mut().zip(change).for_each(|(along, change)| *along += change);
                }
            }
        }
        moved
    }

    /// Gives the values back and returns what is left of 2 J, summed up anew.
    fn finish(mut self) -> Energy {
        let (rows, n) = (self.matrix.rows, self.matrix.cols);
        let mut values = vec![0.0; rows * n];
        let mut noise = 0.0;
        let mut error = vec![0.0; self.width];
        for block in self.blocks() {
            self.catch_up(&block, &(0..rows));
            let error = &mut error[..block.len()];
            for r in 0..rows {
                let (place, at) = (self.place(r, &block), r * n + block.start..r * n + block.end);
                let own = &self.values[place.clone()];
                values[at.clone()].copy_from_slice(own);
                let pairs = own.iter().zip(&self.matrix.target[at]);
                error.iter_mut().zip(pairs).for_each(|(error, (value, target))| *error = value - target);
                noise += f64::from(dot(error, &self.products[place]));
            }
        }
        self.matrix.values = values;
        Energy { noise, along: self.along_energy() }
    }

    /// Brings P of some rows in a block up to date.
    fn catch_up(&mut self, block: &Range<usize>, rows: &Range<usize>) {
        let pending = &mut self.pending[rows.clone()];
        pending.iter_mut().for_each(|moves| moves.forget(block));
        let start = self.matrix.rows * block.start;
        let products = &mut self.products[start + rows.start * block.len()..start + rows.end * block.len()];
        for (columns, panel) in self.matrix.metric.panels(block.clone()) {
            let part = columns.start - block.start..columns.end - block.start;
            for (moves, products) in pending.iter().zip(products.chunks_exact_mut(block.len())) {
                gather(&moves.all[moves.first..], panel, &mut products[part.clone()]);
            }
        }
    }

    /// What the rows of a block share.
    fn prepare(&mut self, block: &Range<usize>) {
        let (width, metric) = (block.len(), self.matrix.metric);
        let buffers = &mut self.buffers;
        for shared in [&mut buffers.shared, &mut buffers.change] {
            shared.clear();
            shared.resize(self.delta.directions * width, 0.0);
        }
        if self.mu != 0.0 {
            for (columns, panel) in metric.panels(block.clone()) {
                let part = columns.start - block.start..columns.end - block.start;
                few_rows(&self.along, panel, &mut buffers.shared, part);
            }
        }
        metric.copy(block.clone(), block.clone(), &mut buffers.square);
        buffers.runs.clear();
        if let Some(run) = self.run {
            for (i, row) in buffers.square.chunks_exact(width).enumerate() {
                buffers.runs.extend_from_slice(&row[i / run * run..][..run]);
            }
        }
        let rows = [&mut buffers.pull, &mut buffers.before, &mut buffers.steps, &mut buffers.low, &mut buffers.high];
        rows.into_iter().for_each(|row| row.resize(width, 0.0));
        let run = self.run.unwrap_or(0);
        [&mut buffers.direction, &mut buffers.product].into_iter().for_each(|row| row.resize(run, 0.0));
    }
}
