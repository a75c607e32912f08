//! The factors A and B: `scaling · B·A` with A (rank, in) and B (out, rank).
//!
//! Of a stack of experts A is (experts·rank, in) with the expert slowest, B is (out, rank·experts) with the expert fastest.

use super::config::Diagonal;
use crate::adapters::{ChangePlan, Loader};
use crate::arch::gguf::{RowOrder, To};
use crate::dtype::Dtype;
use crate::edit::{Change, Product};
use crate::error::Result;

/// A planned low-rank change.
#[derive(Clone, Debug)]
pub(super) struct LowRankPlan {
    pub(super) a: String,
    pub(super) b: String,
    /// The kernel between them.
    pub(super) mid: Option<String>,
    /// Rank, inputs and outputs of one product.
    pub(super) rank: usize,
    pub(super) inputs: usize,
    pub(super) outputs: usize,
    /// Products that the factors hold.
    pub(super) matrices: usize,
    pub(super) scale: f64,
    /// Rounds the delta before it is added, as PEFT does for embeddings and bare parameters.
    pub(super) round: Option<Dtype>,
    pub(super) diagonal: Option<Diagonal>,
    /// Between the orders of B's rows, which are a GGUF file's, and of the model's, where they differ.
    pub(super) order: Option<RowOrder>,
}

impl LowRankPlan {
    /// The products that a source wants.
    pub(super) fn products(&self, loader: &Loader<'_>) -> Result<Vec<Product>> {
        let mut a = loader.floats(&self.a)?;
        let mut b = loader.floats(&self.b)?;
        if let Some(mid) = &self.mid {
            a = through_kernel(&loader.floats(mid)?, &a, self.rank);
        }
        match self.diagonal {
            Some(Diagonal::A(blocks)) => a = expand_diagonal(&a, self.rank, blocks),
            Some(Diagonal::B(blocks)) => b = expand_diagonal(&b, self.outputs, blocks),
            None => {}
        }
        if let Some(order) = self.order {
            b = order.permuted(&b, self.rank, To::Model);
        }
        let product = |left, right| Product::new(self.rank, left, right, self.scale as f32, self.round);
        if self.matrices == 1 {
            return Ok(vec![product(b, a)]);
        }
        let one = |expert| {
            let (left, right) = self.one(&a, &b, expert);
            product(left, right)
        };
        Ok(loader.matrices().map(one).collect())
    }

    /// B and A of one matrix out of the stacked ones.
    fn one(&self, a: &[f32], b: &[f32], expert: usize) -> (Vec<f32>, Vec<f32>) {
        let (size, stacked) = ((self.rank * self.inputs).max(1), (self.rank * self.matrices).max(1));
        let rows = b.chunks_exact(stacked);
        let left = rows.flat_map(|row| row.iter().skip(expert).step_by(self.matrices.max(1)).take(self.rank).copied());
        (left.collect(), a.chunks_exact(size).nth(expert).map(<[f32]>::to_vec).unwrap_or_default())
    }
}

impl ChangePlan for LowRankPlan {
    fn load(&self, loader: &Loader<'_>) -> Result<Change> {
        self.products(loader).map(Change::Product)
    }

    fn matrices(&self) -> usize {
        self.matrices
    }

    fn memory(&self) -> u64 {
        // While the factors are rearranged, both forms stand.
        8 * (self.rank as u64) * (self.inputs as u64 + self.outputs as u64) * self.matrices as u64
    }

    fn scale(&self) -> Option<f64> {
        Some(self.scale)
    }

    fn rank(&self) -> Option<usize> {
        Some(self.rank)
    }
}

/// What the kernel (rank, rank, elements) makes of A (rank, channels): (rank, channels · elements), with an element of the kernel fastest.
pub(in crate::adapters) fn through_kernel(mid: &[f32], a: &[f32], rank: usize) -> Vec<f32> {
    let (elements, channels) = (mid.len() / (rank * rank).max(1), a.len() / rank.max(1));
    let (elements, channels) = (elements.max(1), channels.max(1));
    let mut out = vec![0.0; rank * channels * elements];
    for (out, mid) in out.chunks_exact_mut(channels * elements).zip(mid.chunks_exact(rank.max(1) * elements)) {
        for (kernel, a) in mid.chunks_exact(elements).zip(a.chunks_exact(channels)) {
            for (out, x) in out.chunks_exact_mut(elements).zip(a) {
                out.iter_mut().zip(kernel).for_each(|(out, weight)| *out += weight * x);
            }
        }
    }
    out
}

/// Rows cut into `blocks` equal groups, each on its own columns.
fn expand_diagonal(packed: &[f32], rows: usize, blocks: usize) -> Vec<f32> {
    let narrow = packed.len() / rows.max(1);
    let wide = narrow * blocks;
    let mut out = vec![0.0; rows * wide];
    let group = (rows / blocks).max(1);
    for (i, row) in packed.chunks_exact(narrow.max(1)).enumerate() {
        let at = i * wide + (i / group) * narrow;
        if let Some(out) = out.get_mut(at..at + narrow) {
            out.copy_from_slice(row);
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn block_diagonal_factors_are_spread() {
        let packed = [1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 7.0, 8.0];
        let wide = expand_diagonal(&packed, 4, 2);
        assert_eq!(wide, [1., 2., 0., 0., 3., 4., 0., 0., 0., 0., 5., 6., 0., 0., 7., 8.]);
    }
}
