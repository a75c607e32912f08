//! P = E H and S = Uᵀ E H of a block of columns, which take what other blocks moved.

use std::ops::Range;

use super::Delta;
use crate::simd::matmul::PANEL;
use crate::simd::vectors::outer;

/// P and S of a block.
pub(super) struct BlockSums<'p> {
    pub(super) columns: Range<usize>,
    pub(super) products: &'p mut [f32],
    pub(super) shared: &'p mut [f32],
    pub(super) delta: &'p Delta,
    /// True if S is kept up.
    pub(super) is_shared: bool,
}

impl BlockSums<'_> {
    /// Adds `sums` of some rows, of which those of `mask` are not all zero: panel by panel, (rows, [`PANEL`]).
    pub(super) fn take(&mut self, rows: &Range<usize>, mask: &[bool], sums: &[f32]) {
        let width = self.columns.len();
        let products = &mut self.products[rows.start * width..rows.end * width];
        for (panel, sums) in sums.chunks_exact(rows.len() * PANEL).enumerate() {
            let part = panel * PANEL..width.min((panel + 1) * PANEL);
            for (row, sums) in sums.chunks_exact(PANEL).enumerate().filter(|(row, _)| mask[*row]) {
                let sums = &sums[..part.len()];
                let products = &mut products[row * width..][part.clone()];
                products.iter_mut().zip(sums).for_each(|(product, sum)| *product += sum);
                if self.is_shared {
                    outer(self.delta.own(rows.start + row), sums, self.shared, part.clone());
                }
            }
        }
    }
}
