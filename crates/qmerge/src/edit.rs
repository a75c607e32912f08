//! What adapters do to rows of a weight.
//!
//! An edit is either a *delta*, which is added, or a *map*, which turns the rows so far into others (DoRA rescales
//! them, trained tokens replace some). Deltas of several adapters are summed in f32 before they meet the weight, so the
//! result is rounded once. Edits know rows and columns, and nothing of formats, files or rounding.

use std::ops::Range;

use crate::simd::floats::round_to;
use crate::simd::low_rank;
use crate::dtype::Dtype;

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

/// Applies edits in order to a chunk of rows.
///
/// In: `base (rows, cols)`. Out: `values`, the edited rows, and `delta = values − base` as it was meant (exact where all
/// edits are deltas).
pub fn apply(edits: &[Edit], rows: &Range<usize>, cols: usize, base: &[f32], values: &mut [f32], delta: &mut [f32]) {
    values.copy_from_slice(base);
    // True while `delta` holds a sum that `values` lacks.
    let mut pending = false;
    let mut mapped = false;
    for edit in edits {
        match edit {
            Edit::Add(edit) => {
                edit.add(rows.clone(), cols, !pending, delta);
                pending = true;
            }
            Edit::Map(edit) => {
                if std::mem::take(&mut pending) {
                    add_to(values, delta);
                }
                edit.apply(rows.clone(), cols, base, values);
                mapped = true;
            }
        }
    }
    if pending {
        add_to(values, delta);
    }
    if mapped || edits.is_empty() {
        for ((delta, value), base) in delta.iter_mut().zip(values.iter()).zip(base) {
            *delta = value - base;
        }
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
    pub rows: Range<usize>,
    /// Inner dimension.
    pub rank: usize,
    /// (rows, rank).
    pub left: Vec<f32>,
    /// (rank, cols).
    pub right: Vec<f32>,
}

impl Delta for LowRank {
    fn add(&self, rows: Range<usize>, cols: usize, fresh: bool, delta: &mut [f32]) {
        let covered = self.blocks.iter().map(|block| overlap(&block.rows, &rows).len()).sum::<usize>();
        if fresh && covered < rows.len() {
            delta.fill(0.0);
        }
        for block in &self.blocks {
            let run = overlap(&block.rows, &rows);
            if run.is_empty() {
                continue;
            }
            let left = &block.left[(run.start - block.rows.start) * block.rank..(run.end - block.rows.start) * block.rank];
            let out = &mut delta[(run.start - rows.start) * cols..(run.end - rows.start) * cols];
            match self.round {
                Some(dtype) => {
                    let mut product = vec![0.0; out.len()];
                    low_rank::low_rank(left, &block.right, block.rank, cols, self.scale, false, &mut product);
                    round_to(dtype, &mut product);
                    if fresh { out.copy_from_slice(&product) } else { add_to(out, &product) }
                }
                None => low_rank::low_rank(left, &block.right, block.rank, cols, self.scale, !fresh, out),
            }
        }
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
        Block { rank: 2, left: (0..rows.len() * 2).map(|i| i as f32 * 0.1).collect(), right: vec![0.5; 2 * cols], rows }
    }

    #[test]
    fn any_cut_into_rows_gives_the_same_delta() {
        let (rows, cols) = (10, 7);
        let edits = [
            Edit::Add(Box::new(LowRank { blocks: vec![block(1..4, cols), block(6..10, cols)], scale: 0.7, round: None })),
            Edit::Add(Box::new(LowRank { blocks: vec![block(0..10, cols)], scale: -0.3, round: Some(Dtype::BF16) })),
            Edit::Map(Box::new(ReplaceRows { indices: vec![8, 2], values: vec![9.0; 2 * cols] })),
        ];
        let base: Vec<f32> = (0..rows * cols).map(|i| i as f32 * 0.01).collect();
        let mut whole = (vec![0.0; base.len()], vec![5.0; base.len()]);
        apply(&edits, &(0..rows), cols, &base, &mut whole.0, &mut whole.1);
        for step in 1..rows {
            let mut cut = (vec![0.0; base.len()], vec![5.0; base.len()]);
            for start in (0..rows).step_by(step) {
                let run = start..(start + step).min(rows);
                let at = run.start * cols..run.end * cols;
                apply(&edits, &run, cols, &base[at.clone()], &mut cut.0[at.clone()], &mut cut.1[at]);
            }
            assert_eq!(cut, whole);
        }
        assert_eq!(whole.0[8 * cols], 9.0);
        assert_eq!(whole.1[8 * cols], 9.0 - base[8 * cols]);
    }
}
