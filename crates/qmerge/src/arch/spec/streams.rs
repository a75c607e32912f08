//! Several residual streams, as data.

/// Residual streams beside each other (AltUp, Gemma 3n). The others are made of the first by a matrix each, at its strength, and in the end made into one with it
/// likewise.
#[derive(Clone, Copy, Debug)]
pub struct Streams {
    /// How many.
    pub count: usize,
    /// The one that the layers' blocks work on.
    pub active: usize,
    /// Names of the matrices that make the others, and of those that go back, beside the embedding; `.0`, `.1` and so on behind them.
    pub names: [&'static str; 2],
}

/// How a layer's blocks on one stream change all of them: what they will be is predicted from all, and corrected by what the blocks made of the active one.
#[derive(Clone, Copy, Debug)]
pub struct Altered {
    /// The norm and the matrix of the router: names below the layer.
    pub router: [&'static str; 2],
    /// Matrices of predictions and of corrections.
    pub coefficients: [&'static str; 2],
    /// Factors on what the layer's own embedding is let through by.
    pub scale: Option<&'static str>,
}

/// `y + norm(right(left y))` of what the mixer is given is added beside the mixer's result, and the sum divided by √2 (Laurel, Gemma 3n).
#[derive(Clone, Copy, Debug)]
pub struct Laurel {
    /// Features between the matrices.
    pub rank: usize,
    /// Left, right and norm: names below the layer.
    pub names: [&'static str; 3],
}
