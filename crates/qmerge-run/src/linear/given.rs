//! What layers are given, how exact they are multiplied with it, and who sees it.

use std::ops::ControlFlow;

use qmerge::error::Result;
use qmerge::simd::matmul::Columns;

/// How activations and weights are multiplied. Sums are f32 either way.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Precision {
    /// As they are.
    #[default]
    Full,
    /// Rounded to bf16, as models mostly run: for what is averaged over many tokens, or drawn at random.
    Bf16,
}

/// How a pass goes through a model.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Manner {
    /// How exact.
    pub precision: Precision,
    /// How strong the edits of layers' linear layers are: 1 as they are, 0 not at all. Whole weights, norms, embeddings and the head stay as an adapter has them.
    pub strength: f32,
}

impl Default for Manner {
    fn default() -> Self {
        Precision::Full.into()
    }
}

impl From<Precision> for Manner {
    fn from(precision: Precision) -> Self {
        Self { precision, strength: 1.0 }
    }
}

/// What several layers are multiplied with: (features, tokens).
#[derive(Debug)]
pub struct Input<'x> {
    pub(super) values: &'x [f32],
    pub(super) columns: Columns,
    pub(super) manner: Manner,
}

impl<'x> Input<'x> {
    /// Packs the activations once for all layers that take them.
    pub fn new(values: &'x [f32], features: usize, manner: impl Into<Manner>) -> Self {
        let (tokens, manner) = (values.len() / features.max(1), manner.into());
        Self { values, columns: manner.precision.pack(values, features, tokens), manner }
    }

    /// Other activations, in the manner of these.
    pub(crate) fn like<'y>(&self, values: &'y [f32], features: usize) -> Input<'y> {
        Input::new(values, features, self.manner)
    }

    /// The activations (features, tokens).
    pub fn values(&self) -> &'x [f32] {
        self.values
    }

    /// Number of columns.
    pub fn tokens(&self) -> usize {
        self.columns.tokens()
    }
}

impl Precision {
    /// Packs `x` (inputs, tokens) so that products are as exact as this says.
    pub(crate) fn pack(self, x: &[f32], inputs: usize, tokens: usize) -> Columns {
        match self {
            Self::Full => Columns::new(x, inputs, tokens),
            Self::Bf16 => Columns::rounded(x, inputs, tokens),
        }
    }
}

/// Sees what each linear layer is given.
pub trait Watch: Send {
    /// The module paths of linear layers that are given these activations, which may be none, or these with longer and shorter columns where it
    /// [`weighs`](Self::weighs). An error stops the pass.
    fn input(&mut self, paths: &[&str], input: &Input<'_>) -> Result<()>;

    /// True if what an attention's queries, keys and values are made of is to be shown by the attention that is paid to each token: as long as makes the mean of squares a weighted one.
    fn weighs(&self) -> bool {
        false
    }

    /// How exact it has to be, and with adapters how strong.
    fn manner(&self) -> Manner {
        Manner::default()
    }

    /// Fewest tokens that an expert's layers are to be shown: one that serves fewer is shown those that come next for it too. 0 where it does not matter.
    fn least(&self) -> usize {
        0
    }

    /// How many tokens each expert of a layer serves.
    fn served(&mut self, _: &[usize]) {}

    /// All linear layers of a decoder layer have been seen. Breaks where the next need not be.
    fn layer(&mut self) -> Result<ControlFlow<()>> {
        Ok(ControlFlow::Continue(()))
    }
}

/// Nobody watches.
#[derive(Clone, Copy, Debug)]
pub struct Unwatched;

impl Watch for Unwatched {
    fn input(&mut self, _: &[&str], _: &Input<'_>) -> Result<()> {
        Ok(())
    }
}
