//! Products of factors on runs of stored rows: what LoRA and its kin become.

use std::ops::Range;

use super::add_to;
use super::change::Product;
use super::place::{Spot, overlap};
use crate::dtype::Dtype;
use crate::linalg::transposed;
use crate::simd::floats::round_to;
use crate::simd::low_rank::{self, Panels, Target};

/// A product of stored rows: `scale · left · right`.
#[derive(Debug)]
pub struct Applied<'d> {
    /// (rows, rank).
    pub left: &'d [f32],
    right: &'d Panels,
    /// Inner dimension.
    pub rank: usize,
    /// Factor.
    pub scale: f32,
}

impl Applied<'_> {
    /// Some rows of the right factor (rank, cols), in place of what `out` holds.
    pub fn right(&self, rows: Range<usize>, out: &mut Vec<f32>) {
        self.right.rows(rows, out);
    }
}

/// `scale · L·R` on one or more runs of rows; rows outside stay as they are.
#[derive(Debug)]
pub(super) struct LowRank {
    /// Runs in ascending order, disjoint.
    pub(super) blocks: Vec<Block>,
    /// Factor of every block.
    pub(super) scale: f32,
    /// Rounds the product to this type before it is added, where the reference does.
    round: Option<Dtype>,
}

/// A run of rows with its own factors.
#[derive(Debug)]
pub(super) struct Block {
    /// Rows of the weight that `left`'s rows belong to.
    pub(super) rows: Range<usize>,
    /// Inner dimension.
    pub(super) rank: usize,
    /// (rows, rank).
    pub(super) left: Vec<f32>,
    /// (rank, cols), rearranged for the product.
    pub(super) right: Panels,
}

impl Block {
    /// Outputs of the stored matrix that are not the product's get factors of zero.
    fn at(spot: &Spot, product: Product) -> Self {
        let (rank, inputs) = (product.rank, product.inputs());
        let Product { left, right, .. } = product;
        let all = spot.take == spot.put && spot.take.len == spot.width && spot.width * rank == left.len();
        let left = if all {
            left
        } else {
            let mut wide = vec![0.0; spot.width * rank];
            for (from, to) in spot.take.iter().zip(spot.put.iter()) {
                wide[to * rank..(to + 1) * rank].copy_from_slice(&left[from * rank..(from + 1) * rank]);
            }
            wide
        };
        let rows = spot.rows.clone();
        if spot.transposed {
            return Self::new(rows, rank, transposed(&right, inputs), &transposed(&left, rank));
        }
        Self::new(rows, rank, left, &right)
    }

    /// Factors of a run of rows: `left` (rows, rank), `right` (rank, cols).
    fn new(rows: Range<usize>, rank: usize, left: Vec<f32>, right: &[f32]) -> Self {
        let cols = right.len().checked_div(rank).unwrap_or(0);
        Self { rows, rank, left, right: Panels::new(right, rank, cols) }
    }
}

impl LowRank {
    /// Puts products where their matrices lie.
    pub(super) fn new(products: Vec<Product>, spots: impl Iterator<Item = Spot>) -> Self {
        let (scale, round) = products.first().map_or((1.0, None), |product| (product.scale, product.round));
        Self { blocks: spots.zip(products).map(|(spot, product)| Block::at(&spot, product)).collect(), scale, round }
    }

    /// The run of `rows` that a block covers, with its factor's rows.
    fn run<'b>(block: &'b Block, rows: &Range<usize>) -> (Range<usize>, &'b [f32]) {
        let run = overlap(&block.rows, rows);
        let left = run.start.saturating_sub(block.rows.start)..run.end.saturating_sub(block.rows.start);
        let left = if run.is_empty() { &[] } else { &block.left[left.start * block.rank..left.end * block.rank] };
        (run, left)
    }
}

impl LowRank {
    /// `delta (rows, cols) += D[rows]`, or `=` where `fresh`.
    pub(super) fn add(&self, rows: &Range<usize>, cols: usize, fresh: bool, delta: &mut [f32]) {
        let covered = self.blocks.iter().map(|block| overlap(&block.rows, rows).len()).sum::<usize>();
        if fresh && covered < rows.len() {
            delta.fill(0.0);
        }
        for block in &self.blocks {
            let (run, left) = Self::run(block, rows);
            if run.is_empty() {
                continue;
            }
            let out = &mut delta[(run.start - rows.start) * cols..(run.end - rows.start) * cols];
            let product = |sink| low_rank::low_rank(left, &block.right, self.scale, sink);
            match self.round {
                Some(dtype) => {
                    let mut rounded = vec![0.0; out.len()];
                    product(Target::Set(&mut rounded));
                    round_to(dtype, &mut rounded);
                    if fresh { out.copy_from_slice(&rounded) } else { add_to(out, &rounded) }
                }
                None if fresh => product(Target::Set(out)),
                None => product(Target::Add(out)),
            }
        }
    }

    /// `values = base + D[rows]` in one go. False if it cannot; then nothing was written.
    pub(super) fn add_onto(&self, rows: &Range<usize>, base: &[f32], values: &mut [f32]) -> bool {
        let [block] = &self.blocks[..] else { return false };
        let (run, left) = Self::run(block, rows);
        if self.round.is_some() || run != *rows {
            return false;
        }
        low_rank::low_rank(left, &block.right, self.scale, Target::Onto { base, values });
        true
    }

    /// The product that it is over all of a weight's rows.
    pub(super) fn over(&self, rows: usize) -> Option<Applied<'_>> {
        let [block] = &self.blocks[..] else { return None };
        (block.rows == (0..rows)).then(|| Applied {
            left: &block.left,
            right: &block.right,
            rank: block.rank,
            scale: self.scale,
        })
    }
}
