//! Feed-forwards, as data.

use super::Fields;
use crate::arch::Experts;
use crate::error::Result;

/// `down(act(gate x) · up x)`, or without a gate `down(act(up x))`.
#[derive(Clone, Copy, Debug)]
pub struct Dense {
    /// Features between the matrices.
    pub width: usize,
    /// Between the matrices.
    pub activation: Activation,
    /// Its matrices.
    pub matrices: Matrices,
}

/// How a feed-forward is stored: names below a layer.
#[derive(Clone, Copy, Debug)]
pub enum Matrices {
    /// With a gate.
    Gated {
        /// Gate, up, down.
        names: [&'static str; 3],
    },
    /// The same with gate and up in one matrix.
    FusedGated {
        /// Both, down.
        names: [&'static str; 2],
    },
    /// Without a gate.
    Plain {
        /// Up, down.
        names: [&'static str; 2],
    },
}

/// Experts, each a gated feed-forward, of which a few serve each position.
#[derive(Clone, Copy, Debug)]
pub struct Routed {
    /// How many experts.
    pub count: usize,
    /// How many serve a position.
    pub per_token: usize,
    /// Features between the matrices of one.
    pub width: usize,
    /// Between the matrices.
    pub activation: Activation,
    /// How they are stored.
    pub layout: Experts,
    /// Name of the matrix that chooses, beside the module that holds the experts.
    pub router: &'static str,
    /// The chosen experts' probabilities are scaled to sum to one.
    pub normalize: bool,
}

impl Routed {
    pub(super) fn check(&self, fields: &Fields<'_>) -> Result<()> {
        let Self { count, per_token, .. } = self;
        if per_token > count {
            return Err(fields.misfit(format!("`num_experts_per_tok` is {per_token}, but there are {count} experts")));
        }
        Ok(())
    }
}

/// A non-linearity.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Activation {
    /// `x · sigmoid(x)`.
    Silu,
    /// `x · Φ(x)`, with the error function.
    Gelu,
    /// The same with the tanh approximation.
    GeluTanh,
    /// `max(x, 0)`.
    Relu,
    /// `max(x, 0)²`.
    ReluSquared,
}

impl Activation {
    /// Reads its name in transformers; SiLU where there is none.
    pub fn read(fields: &Fields<'_>, key: &str) -> Result<Self> {
        Self::read_or(fields, key, Self::Silu)
    }

    /// The same, where a family has another by default.
    pub fn read_or(fields: &Fields<'_>, key: &str, default: Self) -> Result<Self> {
        let Some(value) = fields.get(key) else { return Ok(default) };
        match value.as_str() {
            Some("silu" | "swish") => Ok(Self::Silu),
            Some("gelu") => Ok(Self::Gelu),
            Some("gelu_pytorch_tanh" | "gelu_new" | "gelu_fast") => Ok(Self::GeluTanh),
            Some("relu") => Ok(Self::Relu),
            Some("relu2") => Ok(Self::ReluSquared),
            _ => Err(fields.unsupported(key, value)),
        }
    }
}
