//! What an adapter does to a layer's matrix W (outputs, inputs), whatever stores it.

use std::fmt::Debug;
use std::ops::Range;
use std::sync::OnceLock;

use crate::dtype::Dtype;
use crate::linalg::transposed;
use crate::simd::low_rank::{self, Panels, Target};

/// A run of a matrix's outputs and inputs; its values are (outputs, inputs), row-major.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Tile {
    /// Rows of W.
    pub outputs: Range<usize>,
    /// Columns of W.
    pub inputs: Range<usize>,
}

impl Tile {
    /// Number of values.
    pub fn len(&self) -> usize {
        self.outputs.len() * self.inputs.len()
    }

    /// True if it has none.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

/// A loaded change: of one matrix, or of each of a stack in order.
#[derive(Debug)]
pub enum Change {
    /// A product of two factors is added.
    Product(Vec<Product>),
    /// Something else is added.
    Add(Vec<Box<dyn Delta>>),
    /// Values take the place of others.
    Map(Vec<Box<dyn Map>>),
}

impl Change {
    /// Adds to one matrix.
    pub fn add(delta: impl Delta + 'static) -> Self {
        Self::Add(vec![Box::new(delta)])
    }

    /// Maps one matrix.
    pub fn map(map: impl Map + 'static) -> Self {
        Self::Map(vec![Box::new(map)])
    }
}

/// A delta D (outputs, inputs) that is no product of factors.
pub trait Delta: Debug + Send + Sync {
    /// Writes D's values in `tile`.
    fn tile(&self, tile: &Tile, out: &mut [f32]);

    /// True if [`Delta::forward`] is cheaper than adding D to the weight.
    fn has_forward(&self) -> bool {
        false
    }

    /// `y (outputs, tokens) += D · x (inputs, tokens)`.
    fn forward(&self, _x: &[f32], _tokens: usize, _y: &mut [f32]) {}

    /// The rank of [`Delta::factors`]; none where D is not known to have a low one.
    fn rank(&self) -> Option<usize> {
        None
    }

    /// D as a product of two factors, to the rounding of sums, for who needs no more than its rows' span.
    fn factors(&self) -> Option<Product> {
        None
    }
}

/// A change that is not a sum.
pub trait Map: Debug + Send + Sync {
    /// Turns the values of `tile` into others. `base` holds the same before any adapter. The tile is as large as the plan's [`Reach`] says.
    fn apply(&self, tile: &Tile, base: &[f32], values: &mut [f32]);

    /// Adds a tile of the base to sums, for [`Reach::Sums`] where a tile has not all inputs. Tiles come in the order of their inputs, each with all outputs.
    fn survey(&self, _tile: &Tile, _base: &[f32], _sums: &mut Vec<f32>) {}

    /// Takes the finished sums; called once, before any `apply`.
    fn settle(&mut self, _sums: Vec<f32>) {}

    /// On which side of the layer it can act instead of changing W; none if it is no product with W.
    fn side(&self) -> Option<Side> {
        None
    }

    /// Turns activations (features, tokens) of that side: into R · x where W becomes W · R, into R · y where it becomes R · W.
    fn forward(&self, _activations: &mut [f32], _tokens: usize) {}
}

/// The side of a layer that a map acts on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Side {
    /// What the layer is given.
    Inputs,
    /// What it gives, before its bias.
    Outputs,
}

/// What of the base a change looks at to make one value.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reach {
    /// Nothing: it is added.
    Added,
    /// All values of a block of that many outputs and inputs ([`ALL`] of them), blocks being counted from the first. One of each is the value itself.
    Block {
        /// Outputs that go together.
        outputs: usize,
        /// Inputs that go together.
        inputs: usize,
    },
    /// All inputs of its output, or sums over them: where a tile has not all inputs, [`Map::survey`] is shown the whole base first.
    Sums,
}

/// All outputs, or all inputs.
pub const ALL: usize = usize::MAX;

/// `scale · left · right`.
#[derive(Debug)]
pub struct Product {
    /// (outputs, rank).
    pub left: Vec<f32>,
    /// (rank, inputs).
    pub right: Vec<f32>,
    /// Inner dimension.
    pub rank: usize,
    /// Factor.
    pub scale: f32,
    /// Rounds the product to this type before it is added, where the reference does.
    pub round: Option<Dtype>,
    panels: OnceLock<Panels>,
    turned: OnceLock<(Vec<f32>, Panels)>,
}

impl Product {
    /// The product of two factors, neither of them empty.
    pub fn new(rank: usize, left: Vec<f32>, right: Vec<f32>, scale: f32, round: Option<Dtype>) -> Self {
        Self { left, right, rank, scale, round, panels: OnceLock::new(), turned: OnceLock::new() }
    }

    /// Number of outputs.
    pub fn outputs(&self) -> usize {
        self.left.len() / self.rank.max(1)
    }

    /// Number of inputs.
    pub fn inputs(&self) -> usize {
        self.right.len() / self.rank.max(1)
    }

    /// Writes the product's values in `tile`, unrounded. Tiles of all inputs or all outputs cost least.
    pub fn tile(&self, tile: &Tile, out: &mut [f32]) {
        let (rank, outputs, inputs) = (self.rank, self.outputs(), self.inputs());
        let left = &self.left[tile.outputs.start * rank..tile.outputs.end * rank];
        if tile.inputs == (0..inputs) {
            let panels = self.panels.get_or_init(|| Panels::new(&self.right, rank, inputs));
            low_rank::low_rank(left, panels, self.scale, Target::Set(out));
        } else if tile.outputs == (0..outputs) {
            let (right, panels) = self.turned.get_or_init(|| {
                (transposed(&self.right, inputs), Panels::new(&transposed(&self.left, rank), rank, outputs))
            });
            let mut turned = vec![0.0; tile.len()];
            let own = &right[tile.inputs.start * rank..tile.inputs.end * rank];
            low_rank::low_rank(own, panels, self.scale, Target::Set(&mut turned));
            out.copy_from_slice(&transposed(&turned, outputs));
        } else {
            let own: Vec<f32> =
                self.right.chunks_exact(inputs).flat_map(|row| row[tile.inputs.clone()].iter().copied()).collect();
            low_rank::low_rank(left, &Panels::new(&own, rank, tile.inputs.len()), self.scale, Target::Set(out));
        }
    }
}

/// `scale · v`, for biases: the weight is a column.
#[derive(Debug)]
pub struct Vector {
    /// One value per output.
    pub values: Vec<f32>,
    /// Factor.
    pub scale: f32,
}

impl Delta for Vector {
    fn tile(&self, tile: &Tile, out: &mut [f32]) {
        for (out, x) in out.iter_mut().zip(&self.values[tile.outputs.clone()]) {
            *out = x * self.scale;
        }
    }
}

/// Rows that take given values instead of their own.
#[derive(Debug)]
pub struct ReplaceRows {
    /// Row numbers, in the order of `values`.
    pub indices: Vec<usize>,
    /// (indices, cols).
    pub values: Vec<f32>,
}

impl Map for ReplaceRows {
    fn apply(&self, tile: &Tile, _: &[f32], values: &mut [f32]) {
        let cols = self.values.len() / self.indices.len().max(1);
        for (row, own) in self.indices.iter().zip(self.values.chunks_exact(cols.max(1))) {
            if tile.outputs.contains(row) {
                let at = (row - tile.outputs.start) * tile.inputs.len();
                values[at..at + tile.inputs.len()].copy_from_slice(&own[tile.inputs.clone()]);
            }
        }
    }
}

/// Outputs or inputs that are multiplied, each by a factor of its own.
#[derive(Debug)]
pub struct FeatureScales {
    /// One per output or input.
    pub factors: Vec<f32>,
    /// Which of the two.
    pub side: Side,
}

impl Map for FeatureScales {
    fn apply(&self, tile: &Tile, _: &[f32], values: &mut [f32]) {
        let rows = values.chunks_exact_mut(tile.inputs.len().max(1));
        match self.side {
            Side::Outputs => {
                for (row, factor) in rows.zip(&self.factors[tile.outputs.clone()]) {
                    row.iter_mut().for_each(|value| *value *= factor);
                }
            }
            Side::Inputs => {
                for row in rows {
                    row.iter_mut().zip(&self.factors[tile.inputs.clone()]).for_each(|(value, factor)| *value *= factor);
                }
            }
        }
    }

    fn side(&self) -> Option<Side> {
        Some(self.side)
    }

    fn forward(&self, activations: &mut [f32], tokens: usize) {
        for (row, factor) in activations.chunks_exact_mut(tokens.max(1)).zip(&self.factors) {
            row.iter_mut().for_each(|x| *x *= factor);
        }
    }
}
