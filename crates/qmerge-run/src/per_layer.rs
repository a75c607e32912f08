//! Embeddings of tokens for each layer, beside the residual stream's.

use qmerge::arch::spec::{self, Activation, PerLayerEmbeddings, Spec};
use qmerge::error::Result;

use crate::activation::activate;
use crate::layer::Visit;
use crate::linear::{Input, Linear, Manner, Watch};
use crate::norm::Normalize;
use crate::tensors::Tensors;

/// What all layers are given.
#[derive(Debug)]
pub(crate) struct PerLayer<'a> {
    table: Linear<'a>,
    /// From the embedding that the stream begins with.
    matrix: Linear<'a>,
    norm: Normalize,
    /// Features of a layer's part.
    width: usize,
    /// Tokens known to the table.
    vocab: u32,
}

impl<'a> PerLayer<'a> {
    /// The matrix and the norm that lie beside the embedding, and the table, which was found there.
    pub(crate) fn new(
        tensors: &Tensors<'a>,
        spec: &Spec,
        own: &PerLayerEmbeddings,
        table: Linear<'a>,
        beside: impl Fn(&str) -> String,
    ) -> Result<Self> {
        let [_, matrix, norm] = own.names.map(beside);
        let matrix = Linear::new(tensors, &matrix, table.inputs(), spec.hidden)?;
        let norm = Normalize::new(tensors, &norm, own.width, spec.norm, spec.eps)?;
        let vocab = u32::try_from(own.vocab).unwrap_or(u32::MAX);
        Ok(Self { table, matrix, norm, width: own.width, vocab })
    }

    /// (layers · width, tokens), from the tokens and their embeddings (hidden, tokens).
    pub(crate) fn of(&self, tokens: &[u32], embeddings: &[f32], manner: Manner) -> Result<Vec<f32>> {
        let hidden = self.matrix.inputs();
        let mut of_stream = self.matrix.forward(&Input::new(embeddings, hidden, manner))?;
        let root = 1.0 / (hidden as f32).sqrt();
        of_stream.iter_mut().for_each(|x| *x *= root);
        self.norm.apply(&mut of_stream, tokens.len());
        let scale = (self.width as f32).sqrt();
        // A token that the table does not know has its first row.
        let rows: Vec<u32> = tokens.iter().map(|&token| if token < self.vocab { token } else { 0 }).collect();
        for (x, of_token) in of_stream.iter_mut().zip(self.table.lookup(&rows)?) {
            *x = (*x + of_token * scale) * std::f32::consts::FRAC_1_SQRT_2;
        }
        Ok(of_stream)
    }

    /// A layer's rows of [`of`](Self::of).
    pub(crate) fn part(&self, layer: usize, tokens: usize) -> std::ops::Range<usize> {
        layer * self.width * tokens..(layer + 1) * self.width * tokens
    }

    /// Values per token.
    pub(crate) fn features(&self) -> usize {
        self.matrix.outputs()
    }

    pub(crate) fn linears(&self) -> [&Linear<'a>; 2] {
        [&self.table, &self.matrix]
    }

    /// Visits the matrix; the table's rows are read where they are needed.
    pub(crate) fn each(&mut self, visit: &mut Visit<'_>) -> Result<()> {
        visit(&mut self.matrix)
    }
}

/// What a layer makes of its part.
#[derive(Debug)]
pub(crate) struct Gate<'a> {
    gate: Linear<'a>,
    out: Linear<'a>,
    norm: Normalize,
    activation: Activation,
}

impl<'a> Gate<'a> {
    pub(crate) fn new(
        tensors: &Tensors<'a>,
        spec: &Spec,
        (embeddings, own): (&PerLayerEmbeddings, &spec::PerLayer),
        layer: &str,
    ) -> Result<Self> {
        let [gate, out, norm] = own.names.map(|name| format!("{layer}.{name}"));
        Ok(Self {
            gate: Linear::new(tensors, &gate, embeddings.width, spec.hidden)?,
            out: Linear::new(tensors, &out, spec.hidden, embeddings.width)?,
            norm: Normalize::new(tensors, &norm, spec.hidden, spec.norm, spec.eps)?,
            activation: own.activation,
        })
    }

    /// What the residual stream `x` (hidden, tokens) lets through of the layer's part, to be added to it.
    pub(crate) fn forward(
        &self,
        x: &[f32],
        part: &[f32],
        tokens: usize,
        manner: Manner,
        watch: &mut dyn Watch,
    ) -> Result<Vec<f32>> {
        let mut inner = {
            let input = Input::new(x, self.gate.inputs(), manner);
            Linear::show(std::slice::from_ref(&self.gate), &input, watch)?;
            self.gate.forward(&input)?
        };
        activate(self.activation, &mut inner);
        inner.iter_mut().zip(part).for_each(|(x, own)| *x *= own);
        let input = Input::new(&inner, self.out.inputs(), manner);
        Linear::show(std::slice::from_ref(&self.out), &input, watch)?;
        let mut y = self.out.forward(&input)?;
        self.norm.apply(&mut y, tokens);
        Ok(y)
    }

    pub(crate) fn together(&self) -> [Vec<&Linear<'a>>; 2] {
        [vec![&self.gate], vec![&self.out]]
    }

    pub(crate) fn each(&mut self, visit: &mut Visit<'_>) -> Result<()> {
        [&mut self.gate, &mut self.out].into_iter().try_for_each(visit)
    }

    /// Values per token that are in memory at once.
    pub(crate) fn activations(&self) -> usize {
        2 * self.gate.inputs() + 3 * self.gate.outputs()
    }
}
