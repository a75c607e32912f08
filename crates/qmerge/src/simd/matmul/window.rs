//! A window on a result: the sums that a tile goes on from.

use super::{HEIGHT, PANEL};

/// [`HEIGHT`] rows of some columns, a stride from each other: of the result itself where a tile is whole, else of a copy.
pub(super) struct Window<'a> {
    values: &'a mut [f32],
    stride: usize,
}

impl Window<'_> {
    /// Has `then` go on from the tile of `out` (rows, `tokens`) that begins at element `at` and is (height, width), with so many columns, at most a panel's. What
    /// it makes of others is thrown away.
    #[inline(always)]
    pub(super) fn of(
        out: &mut [f32],
        tokens: usize,
        at: usize,
        (height, width): (usize, usize),
        columns: usize,
        then: impl FnOnce(Window<'_>),
    ) {
        if height == HEIGHT && width == columns {
            let values = &mut out[at..at + (HEIGHT - 1) * tokens + columns];
            return then(Window { values, stride: tokens });
        }
        let mut values = [0.0_f32; HEIGHT * PANEL];
        for (sums, out) in values.chunks_exact_mut(PANEL).zip(out[at..].chunks(tokens)).take(height) {
            sums[..width].copy_from_slice(&out[..width]);
        }
        then(Window { values: &mut values, stride: PANEL });
        for (sums, out) in values.chunks_exact(PANEL).zip(out[at..].chunks_mut(tokens)).take(height) {
            out[..width].copy_from_slice(&sums[..width]);
        }
    }

    /// Some columns of a row.
    #[inline(always)]
    pub(super) fn row<const N: usize>(&mut self, row: usize, from: usize) -> &mut [f32; N] {
        self.values[row * self.stride + from..].first_chunk_mut().expect("as many columns")
    }

    /// Where columns from one on begin, and from there to the next row: in each of the [`HEIGHT`] rows so many may be read and written.
    #[inline(always)]
    pub(super) fn place(&mut self, from: usize, columns: usize) -> (*mut f32, usize) {
        assert!((HEIGHT - 1) * self.stride + from + columns <= self.values.len());
        (self.values[from..].as_mut_ptr(), self.stride)
    }
}
