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

    /// Where the rows of some blocks lie.
    fn range(&self, blocks: &Range<usize>) -> Range<usize> {
        let start = |number: usize| number.checked_sub(1).map_or(0, |before| self.ends[before] as usize);
        start(blocks.start)..start(blocks.end)
    }

    /// Blocks that have been done, of these.
    pub(super) fn done(&self, blocks: Range<usize>) -> Range<usize> {
        blocks.start.min(self.ends.len())..blocks.end.min(self.ends.len())
    }

    /// Rows, from the group's first, that moved in some blocks; some come twice.
    pub(super) fn moved(&self, blocks: &Range<usize>) -> impl Iterator<Item = usize> {
        self.moved[self.range(blocks)].iter().map(|&(row, _)| row as usize)
    }

    /// Adds the moves in a block times `panel`, (inputs, [`PANEL`]), to `sums`, (rows of the group, [`PANEL`]).
    ///
    /// Where a scale moves, all values under it do: such rows are multiplied together, so that each reads a share of the panel's part only. An element is
    /// one chain over the columns either way, and a step of zero adds nothing to it, so this does not change a bit.
    pub(super) fn add_products(&self, number: usize, panel: &[f32], sums: &mut [f32], together: &mut Together) {
        let first = number * self.width;
        let width = self.width.min(panel.len() / PANEL - first);
        let Together { rows, left, out } = together;
        let (own, next) = panel[first * PANEL..].split_at(width * PANEL);
        prefetch(&next[..next.len().min(own.len())]);
        rows.clear();
        left.clear();
        out.clear();
        let range = self.range(&(number..number + 1));
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
        add_panel(left, own, out);
        for (at, out) in rows.iter().zip(out.chunks_exact(PANEL)) {
            sums[*at..at + PANEL].copy_from_slice(out);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Rows with no step to all of a block, and a last block that is narrower.
    #[test]
    fn every_step_is_taken_once() {
        let (inputs, width, rows) = (150, 64, 5..12);
        // Sums of these are exact.
        let panel: Vec<f32> = (0..inputs * PANEL).map(|i| ((i * 7919) % 101) as f32 - 50.0).collect();
        let mut moves = Moves::of(rows.clone(), width);
        let mut want = vec![0.0; rows.len() * PANEL];
        for block in [0..64, 64..128, 128..inputs] {
            for (number, row) in rows.clone().enumerate().skip(1) {
                let steps = block.clone().step_by(number).map(|column| (column, (column % 5) as f32 - 1.5));
                for (column, step) in steps.clone() {
                    let panel = &panel[column * PANEL..][..PANEL];
                    want[number * PANEL..][..PANEL].iter_mut().zip(panel).for_each(|(sum, h)| *sum += step * h);
                }
                moves.push(row, steps);
            }
            moves.end();
        }
        let (mut sums, mut together) = (vec![0.0; want.len()], Together::default());
        let blocks = moves.done(0..usize::MAX);
        assert_eq!(blocks, 0..3);
        for number in blocks {
            moves.add_products(number, &panel, &mut sums, &mut together);
        }
        assert_eq!(sums, want);
        assert_eq!(moves.moved(&(1..2)).collect::<Vec<_>>(), [1, 2, 3, 4, 5, 6]);
        assert_eq!(moves.done(3..usize::MAX), 3..3);
    }
}
