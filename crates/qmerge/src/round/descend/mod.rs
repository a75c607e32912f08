//! Coordinate descent on a weight's grid: what the methods `descent` and `adapter` share.
//!
//! Minimises J(E) = ½ tr(G E H Eᵀ) with E = Wq − (W0 + D), H the moments of the inputs and G = I + mu·U Uᵀ, U a basis of the outputs that
//! the adapter reaches. mu = 0 is the mean square error of the layer's output; a larger mu keeps the adapter's own directions in full
//! strength, which is what a loss of the model depends on. The start is the base, E = −D, or in another format what that encodes; on a fine grid the nearest levels to
//! the target (`start.rs`); where the adapter's output is asked for, what carrying errors from column to column comes to (`carried.rs`). Each move takes one value to another
//! level, or one run to another scale, and is made only if it lowers J. What ends above the start goes back to it, or to the base where errors were carried.
//!
//! Lowering J shrinks the adapter's output, since that saves error. A stage that asks for it in full goes to a target of more than the adapter (`asked.rs`), and what it
//! comes to is judged by the true one.
//!
//! A pass goes over groups of rows; within a group over blocks of columns; within a block over the group's rows. The gradient of row r is P_r + mu·U_r S, with
//! P = E H and S = Uᵀ E H. A move of value j by d changes it by g·d·H_j, g = 1 + mu·|U_r|². Within the block of j that is done at once, and needs only the square of H on
//! its diagonal. The other blocks are brought up to date when they are next visited: later ones still in this group, earlier ones in the next group or pass.
//! So a pass reads H once for each group, and not one row of it for each move. Whatever is added to P_r is added to S too, times U_r. The order is fixed, so the
//! result depends on nothing but the input.

mod asked;
mod buffers;
mod carried;
mod moves;
mod pass;
mod row;
mod start;
mod sums;
#[cfg(test)]
mod tests;

use std::ops::Range;

use super::matrix::{Delta, Judged, Matrix, OutputKept, judged, product};
use crate::formats::Choices;
use crate::linalg;
use crate::parallel::spread;
use crate::simd::matmul::{HEIGHT, PANEL};
use crate::simd::vectors::{axpys, dot};

use buffers::Buffers;
pub(super) use carried::TOGETHER;
use moves::{BlockMoves, Moves};
use start::{Begun, Start, Values};
use sums::add_panels;

/// Passes with one mu.
#[derive(Clone, Copy, Debug)]
pub(super) struct Stage {
    /// Weight of the adapter's own directions, where all of its output lies in them.
    pub(super) mu: f32,
    /// True if it begins by asking for what is lacking of the adapter's output.
    pub(super) asks: bool,
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
/// Rows whose errors are turned into U's directions together.
const TURNED_AT_ONCE: usize = 256;
/// Rows whose errors are multiplied with H together.
const AT_ONCE: usize = 1024;
/// Fewest rows of a group.
const FEWEST_ROWS: usize = 64;

/// What lowers the error alone.
pub(super) const PLAIN: &[Stage] = &[Stage { mu: 0.0, asks: false, passes: 8 }];
/// Where it begins with no more than this share of ‖D‖²_H for an error, as under other scales, there is nothing to ask for.
const SETTLED: f64 = 0.03;

/// Nanoseconds of one thread that a value takes in up to eight passes with a mu of 0.
pub(super) fn nanoseconds(inputs: usize) -> f64 {
    80.0 + 0.03 * inputs as f64
}

/// Rounds `matrix.values` and `matrix.grid.scales`.
pub(super) fn descend(matrix: &mut Matrix<'_>, stages: &[Stage]) -> Judged {
    let delta = Delta::new(matrix);
    let at_base = matrix.at_base();
    if !delta.norm.is_finite() || at_base && delta.norm <= 0.0 {
        return Judged::nothing(&delta);
    }
    let asks = stages.iter().any(|stage| stage.asks);
    let mut start = Start::of(matrix, &delta, at_base, asks);
    let mut state = State::new(matrix, &delta, matches!(start.values, Values::Base | Values::Carried(_)));
    let before = match start.values {
        Values::Carried(Begun::Base) => Energy::of_base(&delta, 1.0),
        Values::Carried(Begun::Rescaled(_, left)) => Energy::of_base(&delta, left),
        Values::Base | Values::Nearest | Values::Given(_) => state.energy,
    };
    // Where it asks, the start has looked already.
    let is_settled =
        matches!(start.values, Values::Given(_)) && at_base && (asks || before.noise < SETTLED * delta.norm);
    let stages = if is_settled { PLAIN } else { stages };
    let along = delta.worth_of_directions();
    for stage in stages {
        if stage.asks {
            state.ask();
        }
        state.weigh(stage.mu * along);
        for _ in 0..stage.passes {
            if (state.pass() as f64) < ENOUGH * state.values.len() as f64 {
                break;
            }
        }
        state.settle();
    }
    state.take_back();
    let after = state.finish();
    // Stages with another mu or another target may have raised the last one's objective; then the start is better, or the base.
    let is_better = after.worth(stages, along) <= before.worth(stages, along);
    if !is_better {
        start.go_back(matrix);
        return judged(matrix, &delta);
    }
    if delta.norm <= 0.0 {
        return Judged::nothing(&delta);
    }
    if matrix.rank.is_none() && start.hold(matrix) > 0 {
        return judged(matrix, &delta);
    }
    Judged { kept: OutputKept { output: delta.kept(matrix), noise: after.noise / delta.norm }, delta: delta.norm }
}

/// The parts of 2 J.
#[derive(Clone, Copy, Debug)]
struct Energy {
    /// tr(E H Eᵀ).
    noise: f64,
    /// tr(Uᵀ E H Eᵀ U).
    along: f64,
    /// The mean square of the adapter's output that does not come out.
    lost: f64,
}

impl Energy {
    /// E = −D, or a share of its square.
    fn of_base(delta: &Delta, share: f64) -> Self {
        Self { noise: share * delta.norm, along: share * (delta.norm - delta.rest), lost: share * delta.norm }
    }

    fn objective(self, mu: f32) -> f64 {
        self.noise + f64::from(mu) * self.along
    }

    /// What stages are judged by in the end: where they ask for it, by the adapter's output too.
    fn worth(self, stages: &[Stage], along: f32) -> f64 {
        let asked = stages.iter().any(|stage| stage.asks);
        self.objective(stages.last().map_or(0.0, |stage| stage.mu * along))
            + if asked { asked::WEIGHT * self.lost } else { 0.0 }
    }
}

/// What of D lies in none of its directions.
#[derive(Clone, Copy, Debug, Default)]
struct Rest {
    lacking: f64,
    asked: f64,
}

struct State<'s, 'm> {
    matrix: &'s mut Matrix<'m>,
    delta: &'s Delta,
    mu: f32,
    /// `noise` at the start, `along` when moves were last settled.
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
    /// S, block by block: (directions, columns of the block). Kept up while mu is not 0.
    shared: Vec<f32>,
    /// What the last group has moved, and what this one moves in the block that it is at.
    moves: Moves,
    own: BlockMoves,
    /// 1 / H_jj.
    inverse: Vec<f32>,
    /// |U_r|².
    lengths: Vec<f32>,
    /// By direction, (Uᵀ E)_k H (Uᵀ D)_k: minus what is lacking of the adapter's output there. Of a settled state.
    lacking: Vec<f64>,
    /// By direction, how much more than the adapter is asked for; and minus that much of Uᵀ D, block by block as S, or nothing.
    asked: Vec<f64>,
    beyond: Vec<f32>,
    /// The same of what lies in no direction.
    rest: Rest,
    /// By run, the curvature of J along its scale where g = 1; NaN where it is not known.
    curvatures: Vec<f32>,
    buffers: Buffers,
}

impl<'s, 'm> State<'s, 'm> {
    /// `is_near_base` if it is worth computing P from what differs from the base's values: few do, or none, after errors were carried on a coarse grid.
    fn new(matrix: &'s mut Matrix<'m>, delta: &'s Delta, is_near_base: bool) -> Self {
        let (rows, n) = (matrix.rows, matrix.cols);
        let run = Some(matrix.grid.run).filter(|&run| {
            let fits = PANEL.is_multiple_of(run) || run.is_multiple_of(PANEL);
            let fixed = matrix.grid.choices == Choices::Fixed && matrix.grid.offset_choices == Choices::Fixed;
            !fixed && (2..=LONGEST_RUN).contains(&run) && fits && n.is_multiple_of(run)
        });
        let width = run.map_or(PANEL, |run| run.max(PANEL));
        let mut state = Self {
            mu: 0.0,
            energy: Energy { noise: 0.0, along: 0.0, lost: 0.0 },
            objective: 0.0,
            width,
            group: rows.min(n).div_ceil(GROUPS).max(FEWEST_ROWS),
            run,
            half_gap: matrix.grid.half_gap(),
            values: Vec::new(),
            products: vec![0.0; rows * n],
            shared: vec![0.0; delta.directions * n],
            moves: Moves::default(),
            own: BlockMoves::default(),
            inverse: matrix.metric.diagonal.iter().map(|h| 1.0 / h).collect(),
            lengths: (0..rows).map(|r| delta.own(r)).map(|own| dot(own, own)).collect(),
            lacking: Vec::new(),
            asked: vec![0.0; delta.directions],
            beyond: Vec::new(),
            rest: Rest::default(),
            curvatures: vec![f32::NAN; if run.is_some() { matrix.grid.scales.len() } else { 0 }],
            buffers: Buffers::default(),
            matrix,
            delta,
        };
        if is_near_base {
            // E = −D, which is of low rank, and what has been moved.
            let mut row = vec![0.0; n];
            for r in 0..rows {
                row.fill(0.0);
                delta.add_row(r, -1.0, &mut row);
                state.set_products(r, &row);
            }
        } else {
            for start in (0..rows).step_by(AT_ONCE) {
                let some = start * n..(start + AT_ONCE).min(rows) * n;
                let products = state.matrix.error_products(&state.matrix.error_of(some));
                products.chunks_exact(n).enumerate().for_each(|(number, row)| state.set_products(start + number, row));
            }
        }
        // Values in the order of their use.
        let values = std::mem::take(&mut state.matrix.values);
        state.values.reserve_exact(values.len());
        for block in state.blocks() {
            let rows = values.chunks_exact(n);
            rows.for_each(|row| state.values.extend_from_slice(&row[block.clone()]));
        }
        drop(values);
        if is_near_base {
            state.move_from_base();
        }
        state.energy.noise = state.noise();
        state.objective = state.energy.noise;
        state.renew();
        state
    }

    /// Has P take what the values differ from the base's by.
    fn move_from_base(&mut self) {
        let n = self.matrix.cols;
        for start in (0..self.matrix.rows).step_by(AT_ONCE) {
            let rows = start..(start + AT_ONCE).min(self.matrix.rows);
            let mut moves = Moves::of(rows.clone(), self.width, Vec::new());
            for block in self.blocks() {
                let mut own = BlockMoves::default();
                for r in rows.clone() {
                    let pairs = self.values[self.place(r, &block)].iter().zip(&self.matrix.base[r * n + block.start..]);
                    let changes: Vec<f32> = pairs.map(|(value, base)| value - base).collect();
                    if changes.iter().any(|change| *change != 0.0) {
                        own.push(r, block.start, &changes);
                    }
                }
                moves.push(own);
            }
            self.take(&moves, |_| 0..usize::MAX);
        }
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

    /// Computes S and tr(Uᵀ E H Eᵀ U) anew.
    fn renew(&mut self) {
        let (rows, n, directions) = (self.matrix.rows, self.matrix.cols, self.delta.directions);
        let some = (0..rows).step_by(TURNED_AT_ONCE).map(|start| start..(start + TURNED_AT_ONCE).min(rows));
        let turned: Vec<_> = some.map(|rows| (rows.clone(), self.turned(rows))).collect();
        let mut parts: Vec<_> = self.blocks().map(|block| (block, Vec::new())).collect();
        spread(&mut parts, |(block, along)| {
            along.resize(directions * block.len(), 0.0);
            let (mut error, mut panels) = (vec![0.0; block.len()], Vec::new());
            for (rows, turned) in &turned {
                panels.clear();
                panels.resize(rows.len() * block.len().next_multiple_of(PANEL), 0.0);
                for (number, r) in rows.clone().enumerate() {
                    self.error(r, block, &mut error);
                    let own = panels.chunks_exact_mut(PANEL).skip(number).step_by(rows.len());
                    own.zip(error.chunks(PANEL)).for_each(|(own, error)| own[..error.len()].copy_from_slice(error));
                }
                add_panels(turned, &panels, along, block.len());
            }
        });
        let mut along = vec![0.0; directions * n];
        for (block, own) in &parts {
            let rows = along.chunks_exact_mut(n).zip(own.chunks_exact(block.len()));
            rows.for_each(|(row, own)| row[block.clone()].copy_from_slice(own));
        }
        let shared = product(&along, &self.matrix.metric.columns, HEIGHT);
        let pairs = along.chunks_exact(n).zip(self.delta.moments.chunks_exact(n));
        self.lacking = pairs.map(|(error, moments)| linalg::dot(error, moments)).collect();
        self.rest.lacking = self.lacking_rest();
        self.energy.lost = self.lost();
        self.energy.along = along.chunks_exact(n).zip(shared.chunks_exact(n)).map(|(a, s)| f64::from(dot(a, s))).sum();
        for block in self.blocks() {
            let own = self.shared[directions * block.start..directions * block.end].chunks_exact_mut(block.len());
            own.zip(shared.chunks_exact(n)).for_each(|(own, row)| own.copy_from_slice(&row[block.clone()]));
        }
    }

    /// Some rows of U: (directions, rows).
    fn turned(&self, rows: Range<usize>) -> Vec<f32> {
        let all = (0..self.delta.directions).flat_map(|k| rows.clone().map(move |r| (k, r)));
        all.map(|(k, r)| self.delta.own(r)[k]).collect()
    }

    /// E of a row in a block.
    fn error(&self, r: usize, block: &Range<usize>, error: &mut [f32]) {
        let at = r * self.matrix.cols + block.start;
        let pairs = self.values[self.place(r, block)].iter().zip(&self.matrix.target[at..at + block.len()]);
        error.iter_mut().zip(pairs).for_each(|(error, (value, target))| *error = value - target);
        if !self.beyond.is_empty() {
            let directions = self.delta.directions;
            axpys(self.delta.own(r), &self.beyond[directions * block.start..directions * block.end], error);
            if self.rest.asked != 0.0 {
                let pairs = self.matrix.target[at..].iter().zip(&self.matrix.base[at..]);
                let asked = self.rest.asked as f32;
                error.iter_mut().zip(pairs).for_each(|(error, (target, base))| *error -= asked * (target - base));
            }
        }
    }

    /// Changes mu, of a settled state.
    fn weigh(&mut self, mu: f32) {
        let noise = self.objective - f64::from(self.mu) * self.energy.along;
        self.mu = mu;
        self.objective = Energy { noise, ..self.energy }.objective(mu);
    }

    /// tr(E H Eᵀ), summed up anew.
    fn noise(&self) -> f64 {
        let mut noise = 0.0;
        let mut error = vec![0.0; self.width];
        for block in self.blocks() {
            let error = &mut error[..block.len()];
            for r in 0..self.matrix.rows {
                self.error(r, &block, error);
                noise += f64::from(dot(error, &self.products[self.place(r, &block)]));
            }
        }
        noise
    }

    /// Gives the values back and returns what is left of 2 J, summed up anew.
    fn finish(self) -> Energy {
        let n = self.matrix.cols;
        let noise = self.noise();
        let mut values = vec![0.0; self.values.len()];
        for block in self.blocks() {
            for (r, row) in values.chunks_exact_mut(n).enumerate() {
                row[block.clone()].copy_from_slice(&self.values[self.place(r, &block)]);
            }
        }
        self.matrix.values = values;
        Energy { noise, ..self.energy }
    }
}
