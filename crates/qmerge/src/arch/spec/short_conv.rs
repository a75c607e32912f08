//! A short convolution, as data.

/// `out(c · conv(b · x))`, of which b, c and x are projections, and each feature is convolved by itself over the last few positions (LFM 2).
#[derive(Clone, Copy, Debug)]
pub struct ShortConv {
    /// Positions that the convolution sees, the last included.
    pub taps: usize,
    /// Projections b, c and x in one, the convolution, the output: names below a layer.
    pub names: [&'static str; 3],
}
