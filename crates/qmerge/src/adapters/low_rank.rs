//! The factors A and B of a LoRA, and where their product lies in the stored weight.
//!
//! PEFT computes `scaling · B·A` with A (rank, in) and B (out, rank). Depending on the layer, the stored weight is that matrix,
//! its transpose, a stack of such matrices, or a part of a stack.

use super::{EditPlan, read_floats};
use crate::dtype::Dtype;
use crate::edit::{Block, Edit, LowRank};
use crate::error::{Result, mismatch};
use crate::open::Checkpoint;

/// Where `B·A` lies in the stored weight.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Layout {
    /// The weight is (out, in) = B·A. A convolution's A is flattened behind its first dimension.
    OutIn,
    /// The weight is (in, out) = (B·A)ᵀ: GPT-2's Conv1D, and embeddings with in = vocabulary.
    InOut,
    /// The weight stacks `experts` matrices along its first dimension, and the adapter holds factors for all: A is
    /// (experts·rank, in) with the expert slowest, B is (out, rank·experts) with the expert fastest.
    Stack {
        /// Number of matrices.
        experts: usize,
        /// True if each is (in, out).
        in_out: bool,
    },
    /// The weight is one expert's (out, in), and the adapter holds stacked factors for all. Rows are a part of the
    /// adapter's outputs (gate or up of a fused gate_up).
    OneOfStack {
        /// Which.
        expert: usize,
        /// Of how many.
        experts: usize,
        /// The outputs that are this weight's rows.
        outputs: Stride,
    },
    /// The weight stacks `experts` matrices and the adapter holds factors of one, for a part of its outputs.
    IntoStack {
        /// Which.
        expert: usize,
        /// Outputs of one stacked matrix.
        width: usize,
        /// Where this adapter's outputs lie among them.
        outputs: Stride,
        /// True if each matrix is (in, out).
        in_out: bool,
    },
}

/// Equally spaced indices.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Stride {
    pub(super) start: usize,
    pub(super) step: usize,
    pub(super) len: usize,
}

impl Stride {
    fn iter(self) -> impl Iterator<Item = usize> {
        (0..self.len).map(move |i| self.start + i * self.step)
    }
}

/// One factor stored as the diagonal blocks of a larger matrix (BD-LoRA).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Diagonal {
    A(usize),
    B(usize),
}

/// A planned low-rank edit.
#[derive(Clone, Debug)]
pub(super) struct LowRankPlan {
    pub(super) a: String,
    pub(super) b: String,
    /// Rank, inputs and outputs of one product.
    pub(super) rank: usize,
    pub(super) inputs: usize,
    pub(super) outputs: usize,
    pub(super) layout: Layout,
    pub(super) scale: f64,
    /// Rounds the delta before it is added, as PEFT does for embeddings and bare parameters.
    pub(super) round: Option<Dtype>,
    pub(super) diagonal: Option<Diagonal>,
}

impl LowRankPlan {
    pub(super) fn load_factors(&self, tensors: &Checkpoint) -> Result<LowRank> {
        let mut a = read_floats(tensors, &self.a)?;
        let mut b = read_floats(tensors, &self.b)?;
        match self.diagonal {
            Some(Diagonal::A(blocks)) => a = expand_diagonal(&a, self.rank, blocks),
            Some(Diagonal::B(blocks)) => b = expand_diagonal(&b, self.outputs, blocks),
            None => {}
        }
        let blocks = match self.layout {
            Layout::OutIn => vec![Block::new(0..self.outputs, self.rank, b, &a)],
            Layout::InOut => vec![self.transposed(0, &a, &b)],
            Layout::Stack { experts, in_out } => (0..experts)
                .map(|e| {
                    let (a, b) = self.expert(&a, &b, e, experts, Stride { start: 0, step: 1, len: self.outputs });
                    if in_out {
                        self.transposed(e * self.inputs, &a, &b)
                    } else {
                        self.straight(e * self.outputs, a, b)
                    }
                })
                .collect(),
            Layout::OneOfStack { expert, experts, outputs } => {
                let (a, b) = self.expert(&a, &b, expert, experts, outputs);
                vec![Block::new(0..outputs.len, self.rank, b, &a)]
            }
            Layout::IntoStack { expert, width, outputs, in_out } => {
                // Outputs that are not this adapter's get factors of zero.
                let mut wide = vec![0.0; width * self.rank];
                for (row, at) in b.chunks_exact(self.rank.max(1)).zip(outputs.iter()) {
                    if let Some(wide) = wide.chunks_exact_mut(self.rank.max(1)).nth(at) {
                        wide.copy_from_slice(row);
                    }
                }
                let whole = Self { outputs: width, ..self.clone() };
                vec![if in_out {
                    whole.transposed(expert * self.inputs, &a, &wide)
                } else {
                    whole.straight(expert * width, a, wide)
                }]
            }
        };
        Ok(LowRank { blocks, scale: self.scale as f32, round: self.round })
    }

    fn straight(&self, first: usize, a: Vec<f32>, b: Vec<f32>) -> Block {
        Block::new(first..first + self.outputs, self.rank, b, &a)
    }

    fn transposed(&self, first: usize, a: &[f32], b: &[f32]) -> Block {
        let (left, right) = (transpose(a, self.rank, self.inputs), transpose(b, self.outputs, self.rank));
        Block::new(first..first + self.inputs, self.rank, left, &right)
    }

    /// One expert's factors out of the stacked ones, B restricted to some outputs.
    fn expert(&self, a: &[f32], b: &[f32], expert: usize, experts: usize, outputs: Stride) -> (Vec<f32>, Vec<f32>) {
        let (size, stacked) = ((self.rank * self.inputs).max(1), (self.rank * experts).max(1));
        let rows = outputs.iter().filter_map(|output| b.chunks_exact(stacked).nth(output));
        let left = rows.flat_map(|row| row.iter().skip(expert).step_by(experts.max(1)).take(self.rank).copied());
        (a.chunks_exact(size).nth(expert).map(<[f32]>::to_vec).unwrap_or_default(), left.collect())
    }

    /// Elements of both factors as stored.
    fn stored(&self) -> u64 {
        let experts = match self.layout {
            Layout::Stack { experts, .. } | Layout::OneOfStack { experts, .. } => experts,
            _ => 1,
        };
        (self.rank as u64) * (self.inputs as u64 + self.outputs as u64) * experts as u64
    }
}

impl EditPlan for LowRankPlan {
    fn load(&self, tensors: &Checkpoint) -> Result<Edit> {
        Ok(Edit::Add(Box::new(self.load_factors(tensors)?)))
    }

    fn memory(&self) -> u64 {
        // While the factors are rearranged, both forms stand.
        8 * self.stored()
    }

    fn scale(&self) -> Option<f64> {
        Some(self.scale)
    }

    fn shape(&self) -> Option<(usize, usize)> {
        Some(match self.layout {
            Layout::OutIn => (self.outputs, self.inputs),
            Layout::InOut => (self.inputs, self.outputs),
            Layout::Stack { experts, in_out: false } => (experts * self.outputs, self.inputs),
            Layout::Stack { experts, in_out: true } => (experts * self.inputs, self.outputs),
            Layout::OneOfStack { outputs, .. } => (outputs.len, self.inputs),
            // Checked where the stack is known.
            Layout::IntoStack { .. } => return None,
        })
    }

    fn part(&self) -> Option<(usize, usize)> {
        match self.layout {
            Layout::IntoStack { expert, outputs, .. } => Some((expert, outputs.start)),
            _ => None,
        }
    }
}

/// (rows, cols) to (cols, rows).
pub(super) fn transpose(x: &[f32], rows: usize, cols: usize) -> Vec<f32> {
    let column = |j| x.chunks_exact(cols.max(1)).take(rows).filter_map(move |row: &[f32]| row.get(j).copied());
    (0..cols).flat_map(column).collect()
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

/// The two dimensions of a factor, with everything behind the first taken together.
pub(super) fn matrix_shape(tensors: &Checkpoint, name: &str) -> Result<(usize, usize)> {
    let entry = tensors.get(name).ok_or_else(|| mismatch("missing").in_tensor(name))?;
    match entry.shape[..] {
        [rows, ref rest @ ..] if !rest.is_empty() => Ok((rows, rest.iter().product())),
        _ => Err(mismatch(format!("shape {:?}, expected a matrix", entry.shape)).in_tensor(name)),
    }
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

    #[test]
    fn transposing_twice_gives_back() {
        let x: Vec<f32> = (0..6).map(|i| i as f32).collect();
        assert_eq!(transpose(&x, 2, 3), [0., 3., 1., 4., 2., 5.]);
        assert_eq!(transpose(&transpose(&x, 2, 3), 3, 2), x);
    }
}
