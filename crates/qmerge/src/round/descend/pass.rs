//! A pass over all values, and what it leaves to be settled.

use std::ops::Range;

use super::State;
use super::moves::Moves;
use super::sums::BlockSums;
use crate::parallel::{both, spread};
use crate::simd::matmul::PANEL;

impl State<'_, '_> {
    /// One pass over all values. Returns the number of moves.
    pub(super) fn pass(&mut self) -> usize {
        let metric = self.matrix.metric;
        let blocks: Vec<Range<usize>> = self.blocks().collect();
        let (mut moved, mut sums, mut later) = (0, Vec::new(), Vec::new());
        for start in (0..self.matrix.rows).step_by(self.group) {
            let rows = start..(start + self.group).min(self.matrix.rows);
            // The group before moved later blocks after a block's turn, this one moves earlier blocks.
            self.take_later();
            let mut moves = Moves::of(rows.clone(), self.width, self.turned(rows.clone()));
            later.clear();
            for (number, block) in blocks.iter().enumerate() {
                // What the block before has moved is the last that this one takes; all others' moves were added up beside that block's rows.
                std::mem::swap(&mut sums, &mut later);
                sums.resize(rows.len() * block.len().next_multiple_of(PANEL), 0.0);
                moves.add(&(number.saturating_sub(1)..number), block, &metric.columns, &mut sums);
                if let Some(mask) = moves.mask(&(0..number)) {
                    self.sums_of(number).take(&moves, &mask, &sums);
                }
                self.buffers.prepare(block, self.matrix.metric, self.run);
                let mut choose = || rows.clone().map(|r| self.row(r, block)).sum::<usize>();
                let mut add = || {
                    later.clear();
                    let Some(next) = blocks.get(number + 1) else { return };
                    later.resize(rows.len() * next.len().next_multiple_of(PANEL), 0.0);
                    moves.add(&(0..number), next, &metric.columns, &mut later);
                };
                if moves.is_worth_sharing(&(0..number), 1) {
                    moved += both(choose, add).0;
                } else {
                    moved += choose();
                    add();
                }
                moves.push(std::mem::take(&mut self.own));
            }
            self.moves = moves;
        }
        moved
    }

    /// Has all blocks take all moves.
    pub(super) fn settle(&mut self) {
        self.take_later();
        self.renew();
    }

    /// Has each block take what the last group has moved in the blocks behind it.
    fn take_later(&mut self) {
        let moves = std::mem::take(&mut self.moves);
        self.take(&moves, |number| number + 1..usize::MAX);
    }

    /// Has each block take what some rows have moved in those that are named by its number.
    pub(super) fn take(&mut self, moves: &Moves, of: impl Fn(usize) -> Range<usize> + Sync) {
        let metric = self.matrix.metric;
        let take = |(number, mut block): (usize, BlockSums<'_>)| {
            let blocks = moves.done(of(number));
            let Some(mask) = moves.mask(&blocks) else { return };
            let mut sums = vec![0.0; moves.rows.len() * block.columns.len().next_multiple_of(PANEL)];
            moves.add(&blocks, &block.columns, &metric.columns, &mut sums);
            block.take(moves, &mask, &sums);
        };
        let all = self.sums().into_iter().enumerate();
        if moves.is_worth_sharing(&moves.done(0..usize::MAX), 1) { spread(all, take) } else { all.for_each(take) }
    }

    /// P and S of all blocks.
    pub(super) fn sums(&mut self) -> Vec<BlockSums<'_>> {
        let (rows, directions) = (self.matrix.rows, self.delta.directions);
        let (is_shared, blocks) = (self.mu != 0.0, self.blocks());
        let (mut products, mut shared) = (&mut self.products[..], &mut self.shared[..]);
        let one = |columns: Range<usize>| {
            let own = products.split_off_mut(..rows * columns.len()).unwrap_or_default();
            let along = shared.split_off_mut(..directions * columns.len()).unwrap_or_default();
            BlockSums { columns, products: own, shared: along, is_shared }
        };
        blocks.map(one).collect()
    }

    /// The same of one.
    fn sums_of(&mut self, number: usize) -> BlockSums<'_> {
        let columns = number * self.width..((number + 1) * self.width).min(self.matrix.cols);
        let (rows, directions) = (self.matrix.rows, self.delta.directions);
        BlockSums {
            products: &mut self.products[rows * columns.start..rows * columns.end],
            shared: &mut self.shared[directions * columns.start..directions * columns.end],
            is_shared: self.mu != 0.0,
            columns,
        }
    }
}
