//! What adapters do to rows of a weight.
//!
//! An edit is either a *delta*, which is added, or a *map*, which turns the rows so far into others (DoRA rescales
//! them, trained tokens replace some). Deltas of several adapters are summed in f32 before they meet the weight, so the
//! result is rounded once. Edits know rows and columns, and nothing of formats, files or rounding.

use std::ops::Range;

use crate::dtype::Dtype;
use crate::simd::floats::round_to;
use crate::simd::low_rank::{self, Panels, Sink};

/// A loaded edit of one weight.
#[derive(Debug)]
pub enum Edit {
    /// Adds to the weight.
    Add(Box<dyn Delta>),
    /// Replaces rows by a function of them.
    Map(Box<dyn Map>),
}

/// An additive edit.
pub trait Delta: std::fmt::Debug + Send + Sync {
    /// `delta (rows, cols) += D[rows]`, or `=` where `fresh`.
    fn add(&self, rows: Range<usize>, cols: usize, fresh: bool, delta: &mut [f32]);

    /// `values = base + D[rows]` in one go. False if it cannot; then nothing was written.
    fn add_onto(&self, _: &Range<usize>, _base: &[f32], _values: &mut [f32]) -> bool {
        false
    }

    /// The delta as one product `scale · left · right` that covers all `rows` rows of the weight; `None` where it is anything else. A product that is rounded to a
    /// type before it is added is given unrounded.
    fn as_product(&self, _rows: usize) -> Option<Product<'_>> {
        None
    }
}

/// `scale · left · right`.
#[derive(Debug)]
pub struct Product<'d> {
    /// (rows, rank).
    pub left: &'d [f32],
    right: &'d Panels,
    /// Inner dimension.
    pub rank: usize,
    /// Factor.
    pub scale: f32,
}

impl Product<'_> {
    /// Some rows of the right factor (rank, cols), in place of what `out` holds.
    pub fn right(&self, rows: Range<usize>, out: &mut Vec<f32>) {
        self.right.rows(rows, out);
    }
}

/// An edit that is not a sum.
pub trait Map: std::fmt::Debug + Send + Sync {
    /// Edits `values (rows, cols)` in place. `base` holds the same rows before any edit.
    fn apply(&self, rows: Range<usize>, cols: usize, base: &[f32], values: &mut [f32]);

    /// True if `apply` needs sums over the whole weight first.
    fn needs_survey(&self) -> bool {
        false
    }

    /// Adds these rows to the sums. Called for all rows in order, from one thread.
    fn survey(&self, _rows: Range<usize>, _cols: usize, _base: &[f32], _sums: &mut Vec<f32>) {}

    /// Takes the finished sums; called once, before any `apply`.
    fn settle(&mut self, _sums: Vec<f32>) {}
}

/// Applies edits in order to a chunk of rows: `base (rows, cols)` becomes `values`.
pub fn apply(edits: &[Edit], rows: &Range<usize>, cols: usize, base: &[f32], values: &mut [f32]) {
    if let [Edit::Add(edit)] = edits
        && edit.add_onto(rows, base, values)
    {
        return;
    }
    values.copy_from_slice(base);
    let mut delta = vec![0.0; base.len()];
    // True while `delta` holds a sum that `values` lacks.
    let mut pending = false;
    for edit in edits {
        match edit {
            Edit::Add(edit) => {
                edit.add(rows.clone(), cols, !pending, &mut delta);
                pending = true;
            }
            Edit::Map(edit) => {
                if std::mem::take(&mut pending) {
                    add_to(values, &delta);
                }
                edit.apply(rows.clone(), cols, base, values);
            }
        }
    }
    if pending {
        add_to(values, &delta);
    }
}

fn add_to(values: &mut [f32], delta: &[f32]) {
    for (value, delta) in values.iter_mut().zip(delta) {
        *value += delta;
    }
}

/// `scale · L·R` on one or more runs of rows; rows outside stay as they are.
#[derive(Debug)]
pub struct LowRank {
    /// Runs in ascending order, disjoint.
    pub blocks: Vec<Block>,
    /// Factor of every block.
    pub scale: f32,
    /// Rounds the product to this type before it is added, where the reference does.
    pub round: Option<Dtype>,
}

/// A run of rows with its own factors.
#[derive(Debug)]
pub struct Block {
    /// Rows of the weight that `left`'s rows belong to.
    pub(crate) rows: Range<usize>,
    /// Inner dimension.
    rank: usize,
    /// (rows, rank).
    left: Vec<f32>,
    /// (rank, cols), rearranged for the product.
    right: Panels,
}

impl Block {
    /// Factors of a run of rows: `left` (rows, rank), `right` (rank, cols).
    pub fn new(rows: Range<usize>, rank: usize, left: Vec<f32>, right: &[f32]) -> Self {
        let cols = right.len().checked_div(rank).unwrap_or(0);
        Self { rows, rank, left, right: Panels::new(right, rank, cols) }
    }
}

impl LowRank {
    /// The run of `rows` that a block covers, with its factor's rows.
    fn run<'b>(block: &'b Block, rows: &Range<usize>) -> (Range<usize>, &'b [f32]) {
        let run = overlap(&block.rows, rows);
        let left = run.start.saturating_sub(block.rows.start)..run.end.saturating_sub(block.rows.start);
        let left = if run.is_empty() { &[] } else { &block.left[left.start * block.rank..left.end * block.rank] };
        (run, left)
    }
}

impl Delta for LowRank {
    fn add(&self, rows: Range<usize>, cols: usize, fresh: bool, delta: &mut [f32]) {
        let covered = self.blocks.iter().map(|block| overlap(&block.rows, &rows).len()).sum::<usize>();
        if fresh && covered < rows.len() {
            delta.fill(0.0);
        }
        for block in &self.blocks {
            let (run, left) = Self::run(block, &rows);
            if run.is_empty() {
                continue;
            }
            let out = &mut delta[(run.start - rows.start) * cols..(run.end - rows.start) * cols];
            let product = |sink| low_rank::low_rank(left, &block.right, self.scale, sink);
            match self.round {
                Some(dtype) => {
                    let mut rounded = vec![0.0; out.len()];
                    product(Sink::Set(&mut rounded));
                    round_to(dtype, &mut rounded);
                    if fresh { out.copy_from_slice(&rounded) } else { add_to(out, &rounded) }
                }
                None if fresh => product(Sink::Set(out)),
                None => product(Sink::Add(out)),
            }
        }
    }

    fn add_onto(&self, rows: &Range<usize>, base: &[f32], values: &mut [f32]) -> bool {
        let [block] = &self.blocks[..] else { return false };
        let (run, left) = Self::run(block, rows);
        if self.round.is_some() || run != *rows {
            return false;
        }
        low_rank::low_rank(left, &block.right, self.scale, Sink::Onto { base, values });
        true
    }

    fn as_product(&self, rows: usize) -> Option<Product<'_>> {
        let [block] = &self.blocks[..] else { return None };
        (block.rows == (0..rows)).then(|| Product {
            left: &block.left,
            right: &block.right,
            rank: block.rank,
            scale: self.scale,
        })
    }
}

fn overlap(a: &Range<usize>, b: &Range<usize>) -> Range<usize> {
    let start = a.start.max(b.start);
    start..a.end.min(b.end).max(start)
}

/// `scale · v`, for biases: the weight is a column.
#[derive(Debug)]
pub struct Vector {
    /// One value per element.
    pub values: Vec<f32>,
    /// Factor.
    pub scale: f32,
}

impl Delta for Vector {
    fn add(&self, rows: Range<usize>, cols: usize, fresh: bool, delta: &mut [f32]) {
        for (delta, x) in delta.iter_mut().zip(&self.values[rows.start * cols..rows.end * cols]) {
            *delta = if fresh { x * self.scale } else { *delta + x * self.scale };
        }
    }
}

/// Rows that take given values instead of their own.
#[derive(Debug)]
pub struct ReplaceRows {
    /// Row numbers, in the order of `values`.
    pub indices: Vec<usize>,
    /// (indices, cols).
    pub values: Vec<f32>,
}

impl Map for ReplaceRows {
    fn apply(&self, rows: Range<usize>, cols: usize, _: &[f32], values: &mut [f32]) {
        for (i, row) in self.indices.iter().enumerate() {
            if rows.contains(row) {
                let at = (row - rows.start) * cols;
                values[at..at + cols].copy_from_slice(&self.values[i * cols..(i + 1) * cols]);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn block(rows: Range<usize>, cols: usize) -> Block {
        Block::new(rows.clone(), 2, (0..rows.len() * 2).map(|i| i as f32 * 0.1).collect(), &vec![0.5; 2 * cols])
    }

    #[test]
    fn any_cut_into_rows_gives_the_same_delta() {
        let (rows, cols) = (10, 7);
        let edits = [
            Edit::Add(Box::new(LowRank {
                blocks: vec![block(1..4, cols), block(6..10, cols)],
                scale: 0.7,
                round: None,
            })),
            Edit::Add(Box::new(LowRank { blocks: vec![block(0..10, cols)], scale: -0.3, round: Some(Dtype::BF16) })),
            Edit::Map(Box::new(ReplaceRows { indices: vec![8, 2], values: vec![9.0; 2 * cols] })),
        ];
        let base: Vec<f32> = (0..rows * cols).map(|i| i as f32 * 0.01).collect();
        let mut whole = vec![0.0; base.len()];
        apply(&edits, &(0..rows), cols, &base, &mut whole);
        for step in 1..rows {
            let mut cut = vec![0.0; base.len()];
            for start in (0..rows).step_by(step) {
                let run = start..(start + step).min(rows);
                let at = run.start * cols..run.end * cols;
                apply(&edits, &run, cols, &base[at.clone()], &mut cut[at]);
            }
            assert_eq!(cut, whole);
        }
        assert_eq!(whole[8 * cols], 9.0);
    }
}
