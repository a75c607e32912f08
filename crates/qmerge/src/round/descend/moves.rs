//! What a group of rows has moved in a pass, and what other columns take of it.

use std::ops::Range;

use crate::parallel::{sharing, spread};
use crate::simd::matmul::{Columns, PANEL, add_panel};
use crate::simd::vectors::{gather, prefetch};

/// Moves of a group's values in one pass.
#[derive(Debug, Default)]
pub(super) struct Moves {
    pub(super) rows: Range<usize>,
    /// Columns of a block.
    width: usize,
    /// Of each block that has been done.
    blocks: Vec<BlockMoves>,
}

/// Moves in one block.
#[derive(Debug, Default)]
pub(super) struct BlockMoves {
    /// Each a column and by how much a value of it has changed: row by row, in a row by column.
    steps: Vec<(u32, f32)>,
    /// Rows that moved, and where their steps end.
    moved: Vec<(u32, u32)>,
}

/// Fewest steps times panels that are worth sharing: some 30 µs.
const WORTH: usize = 1 << 13;
/// Fewest rows that are worth reading a panel for.
const FEWEST_ROWS: usize = 64;

/// Rows of a block that are multiplied together.
#[derive(Debug, Default)]
struct Together {
    rows: Vec<usize>,
    left: Vec<f32>,
    out: Vec<f32>,
}

impl Moves {
    pub(super) fn of(rows: Range<usize>, width: usize) -> Self {
        Self { rows, width, blocks: Vec::new() }
    }

    /// Adds those of the next block.
    pub(super) fn push(&mut self, block: BlockMoves) {
        self.blocks.push(block);
    }

    /// Blocks that have been done, of these.
    pub(super) fn done(&self, blocks: Range<usize>) -> Range<usize> {
        blocks.start.min(self.blocks.len())..blocks.end.min(self.blocks.len())
    }

    /// Rows, from the group's first, that moved in some blocks; some come twice.
    fn moved(&self, blocks: &Range<usize>) -> impl Iterator<Item = usize> {
        self.blocks[blocks.clone()]
            .iter()
            .flat_map(|block| &block.moved)
            .map(|&(row, _)| row as usize - self.rows.start)
    }

    /// The rows of the group that moved in some blocks, or nothing if none did.
    pub(super) fn mask(&self, blocks: &Range<usize>) -> Option<Vec<bool>> {
        let mut mask = vec![false; self.rows.len()];
        self.moved(blocks).for_each(|row| mask[row] = true);
        mask.contains(&true).then_some(mask)
    }

    /// True if it is worth sharing what so many panels take of some blocks.
    pub(super) fn is_worth_sharing(&self, blocks: &Range<usize>, panels: usize) -> bool {
        panels * self.blocks[blocks.clone()].iter().map(|block| block.steps.len()).sum::<usize>() >= WORTH
    }

    /// Adds what the columns of a block take of the moves in some blocks to `sums`, panel by panel: (rows of the group, [`PANEL`]).
    pub(super) fn add(&self, blocks: &Range<usize>, block: &Range<usize>, columns: &Columns, sums: &mut [f32]) {
        let panels = block.clone().step_by(PANEL).map(|first| columns.panel(first / PANEL));
        let count = self.rows.len();
        // Some of the panel after the other, which stays in the first-level cache for all rows.
        let add = |(rows, panel, sums): (Range<usize>, &[f32], &mut [f32])| {
            let mut together = Together::default();
            blocks.clone().for_each(|number| self.add_products(number, panel, &rows, sums, &mut together));
        };
        let some = if self.is_worth_sharing(blocks, panels.len()) {
            count.div_ceil(sharing()).next_multiple_of(FEWEST_ROWS)
        } else {
            count
        };
        let parts = panels.zip(sums.chunks_exact_mut(count * PANEL)).flat_map(|(panel, sums)| {
            let rows = (0..count).step_by(some).map(move |first| first..(first + some).min(count));
            rows.zip(sums.chunks_mut(some * PANEL)).map(move |(rows, sums)| (rows, panel, sums))
        });
        if some < count { spread(parts, add) } else { parts.for_each(add) }
    }

    /// Adds the moves of some rows of the group in a block times `panel`, (inputs, [`PANEL`]), to `sums`, (rows, [`PANEL`]).
    ///
    /// Where a scale moves, all values under it do: such rows are multiplied together, so that each reads a share of the panel's part only. An element is
    /// one chain over the columns either way, and a step of zero adds nothing to it, so this does not change a bit.
    fn add_products(
        &self,
        number: usize,
        panel: &[f32],
        some: &Range<usize>,
        sums: &mut [f32],
        together: &mut Together,
    ) {
        let first = number * self.width;
        let width = self.width.min(panel.len() / PANEL - first);
        let Together { rows, left, out } = together;
        let (own, next) = panel[first * PANEL..].split_at(width * PANEL);
        prefetch(&next[..next.len().min(own.len())]);
        rows.clear();
        left.clear();
        out.clear();
        let block = &self.blocks[number];
        let at = |row: u32| row as usize - self.rows.start;
        let range = block.moved.partition_point(|&(row, _)| at(row) < some.start)
            ..block.moved.partition_point(|&(row, _)| at(row) < some.end);
        let mut start = range.start.checked_sub(1).map_or(0, |before| block.moved[before].1 as usize);
        for &(row, end) in &block.moved[range] {
            let steps = &block.steps[start..end as usize];
            start = end as usize;
            let at = (at(row) - some.start) * PANEL;
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

impl BlockMoves {
    /// Adds the moves of a row, the next of those that move in this block.
    pub(super) fn push(&mut self, row: usize, steps: impl Iterator<Item = (usize, f32)>) {
        self.steps.extend(steps.map(|(column, step)| (column as u32, step)));
        self.moved.push((row as u32, self.steps.len() as u32));
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
        let columns = Columns::new(&panel, inputs, PANEL);
        let mut moves = Moves::of(rows.clone(), width);
        let mut want = vec![0.0; rows.len() * PANEL];
        for block in [0..64, 64..128, 128..inputs] {
            let mut own = BlockMoves::default();
            for (number, row) in rows.clone().enumerate().skip(1) {
                let steps = block.clone().step_by(number).map(|column| (column, (column % 5) as f32 - 1.5));
                for (column, step) in steps.clone() {
                    let panel = &panel[column * PANEL..][..PANEL];
                    want[number * PANEL..][..PANEL].iter_mut().zip(panel).for_each(|(sum, h)| *sum += step * h);
                }
                own.push(row, steps);
            }
            moves.push(own);
        }
        let blocks = moves.done(0..usize::MAX);
        assert_eq!(blocks, 0..3);
        // All rows, and some after the others.
        for some in [7, 3, 1] {
            let mut sums = vec![0.0; want.len()];
            for (number, sums) in sums.chunks_mut(some * PANEL).enumerate() {
                let part = number * some..(number * some + some).min(rows.len());
                let mut together = Together::default();
                blocks.clone().for_each(|block| moves.add_products(block, &panel, &part, sums, &mut together));
            }
            assert_eq!(sums, want, "{some}");
        }
        let mut sums = vec![0.0; want.len()];
        moves.add(&blocks, &(0..PANEL), &columns, &mut sums);
        assert_eq!(sums, want);
        assert_eq!(moves.moved(&(1..2)).collect::<Vec<_>>(), [1, 2, 3, 4, 5, 6]);
        assert_eq!(moves.done(3..usize::MAX), 3..3);
    }
}
