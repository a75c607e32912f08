//! Embeddings of tokens for each layer, as data.

use super::Activation;

/// What each layer is given of a token beside the residual stream: a part of the token's row in a table of its own, and of the row that a matrix makes of its
/// embedding, normalized (Gemma 4's small models).
#[derive(Clone, Copy, Debug)]
pub struct PerLayerEmbeddings {
    /// Features of a layer's part.
    pub width: usize,
    /// Tokens known to the table.
    pub vocab: usize,
    /// Names of the table, the matrix and the norm, beside the embedding.
    pub names: [&'static str; 3],
}

/// `x += norm(out(act(gate x) · e))`, with e the layer's part.
#[derive(Clone, Copy, Debug)]
pub struct PerLayer {
    /// Gate, out and norm: names below the layer.
    pub names: [&'static str; 3],
    /// Behind the gate.
    pub activation: Activation,
}
