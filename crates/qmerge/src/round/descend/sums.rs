//! P = E H and S = Uᵀ E H of a block of columns, which take what other blocks moved.

use std::ops::Range;

use super::moves::Moves;
use crate::simd::matmul::{PANEL, add_panel};

/// P and S of a block.
pub(super) struct BlockSums<'p> {
    pub(super) columns: Range<usize>,
    pub(super) products: &'p mut [f32],
    pub(super) shared: &'p mut [f32],
    /// True if S is kept up.
    pub(super) is_shared: bool,
}

impl BlockSums<'_> {
    /// Adds `sums` of the rows that moved, of which those of `mask` are not all zero: panel by panel, (rows, [`PANEL`]).
    pub(super) fn take(&mut self, moves: &Moves, mask: &[bool], sums: &[f32]) {
        let (rows, width) = (&moves.rows, self.columns.len());
        let products = &mut self.products[rows.start * width..rows.end * width];
        for (panel, sums) in sums.chunks_exact(rows.len() * PANEL).enumerate() {
            let part = panel * PANEL..width.min((panel + 1) * PANEL);
            for (row, sums) in sums.chunks_exact(PANEL).enumerate().filter(|(row, _)| mask[*row]) {
                let products = &mut products[row * width..][part.clone()];
                products.iter_mut().zip(sums).for_each(|(product, sum)| *product += sum);
            }
        }
        if self.is_shared {
            add_panels(&moves.turned, sums, self.shared, width);
        }
    }
}

/// `out += left · panels`: `left` is (any, rows), `panels` one after the other are (rows, [`PANEL`]), `out` is (any, width).
pub(super) fn add_panels(left: &[f32], panels: &[f32], out: &mut [f32], width: usize) {
    let count = width.div_ceil(PANEL).max(1);
    for (number, panel) in panels.chunks_exact((panels.len() / count).max(1)).enumerate() {
        if width == PANEL {
            return add_panel(left, panel, out);
        }
        let part = number * PANEL..width.min((number + 1) * PANEL);
        let mut own = vec![0.0; out.len() / width * PANEL];
        for (own, out) in own.chunks_exact_mut(PANEL).zip(out.chunks_exact(width)) {
            own[..part.len()].copy_from_slice(&out[part.clone()]);
        }
        add_panel(left, panel, &mut own);
        for (own, out) in own.chunks_exact(PANEL).zip(out.chunks_exact_mut(width)) {
            out[part.clone()].copy_from_slice(&own[..part.len()]);
        }
    }
}
