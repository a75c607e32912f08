//! The factors of all matrices of a stack, and the matrices that they stand for.

use crate::adapters::Stack;
use crate::edit::Spot;
use crate::error::Result;
use crate::formats::Reader;
use crate::linalg::{Factors, transposed};
use crate::open::Checkpoint;

/// The factors of all matrices of a module, as PEFT stacks them: A with the matrix slowest, B with the matrix fastest.
pub(super) struct Stacked {
    pub(super) factors: Factors,
    pub(super) experts: usize,
}

impl Stacked {
    pub(super) fn new((outputs, inputs): (usize, usize), rank: usize, experts: usize) -> Self {
        let all = rank * experts;
        Self { factors: Factors { rank, left: vec![0.0; outputs * all], right: vec![0.0; all * inputs] }, experts }
    }

    /// Of one matrix.
    pub(super) fn one(factors: Factors) -> Self {
        Self { factors, experts: 1 }
    }

    /// Puts one matrix's factors in, which may have a lower rank.
    pub(super) fn put(&mut self, expert: usize, own: &Factors) {
        let Self { factors: Factors { rank, left, right }, experts } = self;
        if own.rank == 0 {
            return;
        }
        for (at, x) in own.left.iter().enumerate() {
            left[at / own.rank * *rank * *experts + at % own.rank * *experts + expert] = *x;
        }
        let cols = own.right.len() / own.rank;
        right[expert * *rank * cols..][..own.right.len()].copy_from_slice(&own.right);
    }

    /// All matrices of a stack at the largest of their ranks, turned as PEFT takes them. Of one that does not differ there are no factors.
    pub(super) fn of(stack: &Stack<'_>, own: Vec<Option<Factors>>) -> Self {
        let (outputs, inputs) = stack.shape;
        let rank = own.iter().flatten().map(|factors| factors.rank).max().unwrap_or(1);
        let shape = if stack.is_mistaken { (inputs, outputs) } else { (outputs, inputs) };
        let mut all = Self::new(shape, rank, own.len());
        for (expert, factors) in own.into_iter().enumerate() {
            let Some(Factors { rank, left, right }) = factors else { continue };
            let factors = match stack.is_mistaken {
                true => Factors { rank, left: transposed(&right, inputs), right: transposed(&left, rank) },
                false => Factors { rank, left, right },
            };
            all.put(expert, &factors);
        }
        all
    }
}

/// One matrix of a stack (outputs, inputs), of the weights that hold its parts.
pub(super) fn matrix(checkpoint: &Checkpoint, stack: &Stack<'_>, expert: usize) -> Result<Vec<f32>> {
    let (outputs, inputs) = stack.shape;
    let mut values = vec![0.0; outputs * inputs];
    for piece in &stack.experts[expert] {
        let reader = Reader::new(checkpoint, piece.claim)?;
        let mut own = Vec::new();
        reader.rows(&piece.spot.rows, &mut own)?;
        put_rows(&piece.spot, own, inputs, &mut values);
    }
    Ok(values)
}

/// Puts the stored rows of a spot where the matrix (outputs, inputs) has them.
pub(super) fn put_rows(spot: &Spot, stored: Vec<f32>, inputs: usize, values: &mut [f32]) {
    let stored = if spot.transposed { transposed(&stored, spot.width) } else { stored };
    for (from, to) in spot.put.iter().zip(spot.take.iter()) {
        values[to * inputs..][..inputs].copy_from_slice(&stored[from * inputs..][..inputs]);
    }
}
