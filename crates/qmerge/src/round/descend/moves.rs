//! What a group of rows has moved in a pass, and what other columns take of it.

use std::ops::Range;

use crate::parallel::{sharing, spread};
use crate::simd::matmul::{Columns, PANEL, add_panel};
use crate::simd::vectors::{gather, prefetch};

/// Moves of a group's values in one pass.
#[derive(Debug, Default)]
pub(super) struct Moves {
    pub(super) rows: Range<usize>,
    /// These rows of U: (directions, rows).
    pub(super) turned: Vec<f32>,
    /// Columns of a block.
    width: usize,
    /// Of each block that has been done.
    blocks: Vec<BlockMoves>,
}

/// Moves in one block, by row in the order of rows.
#[derive(Debug, Default)]
pub(super) struct BlockMoves {
    /// Of rows in which few values moved: each a column and by how much a value of it has changed, row by row, in a row by column.
    steps: Vec<(u32, f32)>,
    /// These rows, and where their steps end.
    few: Vec<(u32, u32)>,
    /// Of the others: (rows, columns of the block), zeros where a value stayed.
    changes: Vec<f32>,
    many: Vec<u32>,
}

/// Fewest steps times panels that are worth sharing: some 30 µs.
const WORTH: usize = 1 << 13;
/// Fewest rows that are worth reading a panel for.
const FEWEST_ROWS: usize = 64;

impl Moves {
    pub(super) fn of(rows: Range<usize>, width: usize, turned: Vec<f32>) -> Self {
        Self { rows, turned, width, blocks: Vec::new() }
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
            .flat_map(|block| block.few.iter().map(|&(row, _)| row).chain(block.many.iter().copied()))
            .map(|row| row as usize - self.rows.start)
    }

    /// The rows of the group that moved in some blocks, or nothing if none did.
    pub(super) fn mask(&self, blocks: &Range<usize>) -> Option<Vec<bool>> {
        let mut mask = vec![false; self.rows.len()];
        self.moved(blocks).for_each(|row| mask[row] = true);
        mask.contains(&true).then_some(mask)
    }

    /// True if it is worth sharing what so many panels take of some blocks.
    pub(super) fn is_worth_sharing(&self, blocks: &Range<usize>, panels: usize) -> bool {
        let moves = self.blocks[blocks.clone()].iter().map(|block| block.steps.len() + block.changes.len());
        panels * moves.sum::<usize>() >= WORTH
    }

    /// Adds what the columns of a block take of the moves in some blocks to `sums`, panel by panel: (rows of the group, [`PANEL`]).
    pub(super) fn add(&self, blocks: &Range<usize>, block: &Range<usize>, columns: &Columns, sums: &mut [f32]) {
        let panels = block.clone().step_by(PANEL).map(|first| columns.panel(first / PANEL));
        let count = self.rows.len();
        // Some of the panel after the other, which stays in the first-level cache for all rows. (A row's steps in eight blocks together came from the second, and took a merge at 4096
        // inputs a sixth longer.)
        let add = |(rows, panel, sums): (Range<usize>, &[f32], &mut [f32])| {
            let mut together = Vec::new();
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
        together: &mut Vec<f32>,
    ) {
        let first = number * self.width;
        let width = self.width.min(panel.len() / PANEL - first);
        let (own, next) = panel[first * PANEL..].split_at(width * PANEL);
        prefetch(&next[..next.len().min(own.len())]);
        let BlockMoves { steps, few, changes, many } = &self.blocks[number];
        let at = |row: u32| row as usize - self.rows.start;
        let place = |row: u32| (at(row) - some.start) * PANEL..(at(row) - some.start + 1) * PANEL;
        let range =
            few.partition_point(|&(row, _)| at(row) < some.start)..few.partition_point(|&(row, _)| at(row) < some.end);
        let mut start = range.start.checked_sub(1).map_or(0, |before| few[before].1 as usize);
        for &(row, end) in &few[range] {
            let sums = &mut sums[place(row)];
            gather(&steps[start..end as usize], panel, sums.try_into().expect("a panel's width"));
            start = end as usize;
        }
        let range = many.partition_point(|&row| at(row) < some.start)..many.partition_point(|&row| at(row) < some.end);
        let rows = &many[range.clone()];
        together.clear();
        rows.iter().for_each(|&row| together.extend_from_slice(&sums[place(row)]));
        add_panel(&changes[range.start * width..range.end * width], own, together);
        for (&row, together) in rows.iter().zip(together.chunks_exact(PANEL)) {
            sums[place(row)].copy_from_slice(together);
        }
    }
}

impl BlockMoves {
    /// Adds the moves of a row, the next of those that move in this block: by how much each value has changed from column `first` on.
    pub(super) fn push(&mut self, row: usize, first: usize, changes: &[f32]) {
        let moved = changes.iter().filter(|&&change| change != 0.0).count();
        if 2 * moved < changes.len() {
            let steps = changes.iter().enumerate().filter(|(_, change)| **change != 0.0);
            self.steps.extend(steps.map(|(column, &change)| ((first + column) as u32, change)));
            self.few.push((row as u32, self.steps.len() as u32));
        } else {
            self.changes.extend_from_slice(changes);
            self.many.push(row as u32);
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
        let columns = Columns::new(&panel, inputs, PANEL);
        let mut moves = Moves::of(rows.clone(), width, Vec::new());
        let mut want = vec![0.0; rows.len() * PANEL];
        for block in [0..64, 64..128, 128..inputs] {
            let mut own = BlockMoves::default();
            for (number, row) in rows.clone().enumerate().skip(1) {
                let mut changes = vec![0.0; block.len()];
                for column in block.clone().step_by(number) {
                    let step = (column % 5) as f32 - 1.5;
                    changes[column - block.start] = step;
                    let panel = &panel[column * PANEL..][..PANEL];
                    want[number * PANEL..][..PANEL].iter_mut().zip(panel).for_each(|(sum, h)| *sum += step * h);
                }
                own.push(row, block.start, &changes);
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
                let mut together = Vec::new();
                blocks.clone().for_each(|block| moves.add_products(block, &panel, &part, sums, &mut together));
            }
            assert_eq!(sums, want, "{some}");
        }
        let mut sums = vec![0.0; want.len()];
        moves.add(&blocks, &(0..PANEL), &columns, &mut sums);
        assert_eq!(sums, want);
        let mut moved: Vec<usize> = moves.moved(&(1..2)).collect();
        moved.sort_unstable();
        assert_eq!(moved, [1, 2, 3, 4, 5, 6]);
        assert_eq!(moves.done(3..usize::MAX), 3..3);
    }
}
