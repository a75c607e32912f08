//! The directions of a layer's inputs that its adapter reads.

use std::ops::Range;

use crate::edit::{self, Edit};
use crate::linalg;
use crate::simd::feedback::Band;

/// An orthonormal basis of the rows of A, of all products that are added to a weight.
#[derive(Clone, Debug)]
pub struct Directions {
    pub(super) band: Band,
}

/// Most directions: with more, a weight is cheaper to round as a whole.
const MOST: usize = 256;
/// A row of A of which no more than this share lies outside the others' span adds no direction.
const NEW: f64 = 1e-4;

impl Directions {
    /// Of edits of a weight of so many outputs and inputs; `None` where one of them adds no product, or there are too many directions for a row to choose by.
    pub(crate) fn of(edits: &[Edit], rows: Range<usize>, cols: usize) -> Option<Self> {
        let rank = edit::rank(edits, &rows)?;
        if rank == 0 || rank > Self::most(cols) {
            return None;
        }
        let factors = edit::factors(edits, &rows, cols)?;
        let mut turned = vec![0.0; cols * rank];
        for (k, row) in factors.right.chunks_exact(cols).enumerate() {
            row.iter().enumerate().for_each(|(column, x)| turned[column * rank + k] = *x);
        }
        let (values, rank) = linalg::span(&turned, cols, rank, NEW);
        (rank > 0).then(|| Self { band: Band::new(values, rank) })
    }

    /// The most that a row of so many inputs is chosen by.
    pub(crate) fn most(cols: usize) -> usize {
        MOST.min(cols / 2)
    }

    /// Inputs of the layer.
    pub(crate) fn inputs(&self) -> usize {
        self.band.cols()
    }

    /// Where an input lies in the basis.
    pub(crate) fn of_input(&self, input: usize) -> &[f32] {
        self.band.of_input(input)
    }
}
