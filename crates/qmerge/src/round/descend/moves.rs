//! What a group of rows has moved in a pass, and what other columns take of it.

use std::ops::Range;

use crate::simd::matmul::{PANEL, add_panel};
use crate::simd::vectors::{gather, prefetch};

/// Moves of a group's values in one pass.
#[derive(Debug, Default)]
pub(super) struct Moves {
    pub(super) rows: Range<usize>,
    /// Columns of a block.
    width: usize,
    /// Each a column and by how much a value of it has changed: block by block, in a block row by row, in a row by column.
    steps: Vec<(u32, f32)>,
    /// Rows that moved in a block, from the group's first, and where their steps end.
    moved: Vec<(u32, u32)>,
    /// By block, where its rows end.
    ends: Vec<u32>,
}

/// Rows of a block that are multiplied together.
#[derive(Debug, Default)]
pub(super) struct Together {
    rows: Vec<usize>,
    left: Vec<f32>,
    out: Vec<f32>,
}

impl Moves {
    pub(super) fn of(rows: Range<usize>, width: usize) -> Self {
        Self { rows, width, ..Self::default() }
    }

    /// Adds the moves of a row, the next of those that move in this block.
    pub(super) fn push(&mut self, row: usize, steps: impl Iterator<Item = (usize, f32)>) {
        self.steps.extend(steps.map(|(column, step)| (column as u32, step)));
        self.moved.push(((row - self.rows.start) as u32, self.steps.len() as u32));
    }

    /// Ends a block.
    pub(super) fn end(&mut self) {
        self.ends.push(self.moved.len() as u32);
    }

    fn start(ends: &[u32], number: usize) -> usize {
        number.checked_sub(1).map_or(0, |before| ends[before] as usize)
    }

    /// Blocks that have been done, of these.
    pub(super) fn done(&self, blocks: Range<usize>) -> Range<usize> {
        blocks.start.min(self.ends.len())..blocks.end.min(self.ends.len())
    }

    /// Rows, from the group's first, that moved in some blocks; some come twice.
    pub(super) fn moved(&self, blocks: &Range<usize>) -> impl Iterator<Item = usize> {
        let range = Self::start(&self.ends, blocks.start)..Self::start(&self.ends, blocks.end);
        self.moved[range].iter().map(|&(row, _)| row as usize)
    }

    /// Adds the moves in a block times `panel`, (inputs, [`PANEL`]), to `sums`, (rows of the group, [`PANEL`]).
    ///
    /// Where a scale moves, all values under it do: such rows are multiplied together, so that each reads a share of the panel's part only. An element is
    /// one chain over the columns either way, and a step of zero adds nothing to it, so this does not change a bit.
    pub(super) fn add_products(&self, number: usize, panel: &[f32], sums: &mut [f32], together: &mut Together) {
        let first = number * self.width;
        let width = self.width.min(panel.len() / PANEL - first);
        let Together { rows, left, out } = together;
        // What comes next.
        let end = (first + width) * PANEL;
        prefetch(&panel[end..panel.len().min(end + width * PANEL)]);
        rows.clear();
        left.clear();
        out.clear();
        let range = Self::start(&self.ends, number)..Self::start(&self.ends, number + 1);
        let mut start = range.start.checked_sub(1).map_or(0, |before| self.moved[before].1 as usize);
        for &(row, end) in &self.moved[range] {
            let steps = &self.steps[start..end as usize];
            start = end as usize;
            let at = row as usize * PANEL;
            let sums = &mut sums[at..at + PANEL];
            if 2 * steps.len() < width {
                gather(steps, panel, sums.try_into().expect("a panel's width"));
                continue;
            }
            let zeros = left.len();
            left.resize(zeros + width, 0.0);
            steps.iter().for_each(|&(column, step)| left[zeros + column as usize - first] = step);
            out.extend_from_slice(sums);
            rows.push(at);
        }
        add_panel(left, &panel[first * PANEL..(first + width) * PANEL], out);
        for (at, out) in rows.iter().zip(out.chunks_exact(PANEL)) {
            sums[*at..at + PANEL].copy_from_slice(out);
        }
    }
}
