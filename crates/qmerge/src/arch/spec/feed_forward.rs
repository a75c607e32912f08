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
    /// What gates are above their mean by so many standard deviations is all that is let through, before the activation (Gemma 3n).
    pub above: Option<f32>,
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
    /// Which of them serve a position.
    pub router: Router,
    /// Features between the matrices of one.
    pub width: usize,
    /// Between the matrices.
    pub activation: Activation,
    /// Gate and up become one in another way than `act(gate) · up`.
    pub clamp: Option<Clamp>,
    /// How they are stored.
    pub layout: Experts,
    /// An expert's share is a factor on what it is given, not on what it gives.
    pub share_inputs: bool,
    /// One that serves all positions beside them.
    pub shared: Option<Shared>,
    /// Norms and factors of experts that are given the residual stream itself.
    pub beside: Option<Beside>,
}

/// Experts and what serves all positions stand beside each other, each with norms of its own, on a residual stream that nothing else has normalized (Gemma 4).
#[derive(Clone, Copy, Debug)]
pub struct Beside {
    /// Norms before and after what serves all: names below the layer.
    pub shared: [&'static str; 2],
    /// The same of the experts.
    pub experts: [&'static str; 2],
    /// Name of factors on the features that the router sees, below the layer: `x / rms(x) · factor / √features`.
    pub seen: &'static str,
    /// Name of factors on the experts' shares.
    pub shares: &'static str,
}

/// An expert that serves all positions.
#[derive(Clone, Copy, Debug)]
pub struct Shared {
    /// What it is.
    pub dense: Dense,
    /// Name of a matrix of one output, below the layer; its sigmoid is a factor on what the expert gives.
    pub gate: Option<&'static str>,
}

/// `(up + 1) · gate · sigmoid(alpha · gate)`, with both kept within a limit first: `gate` from above, `up` on both sides.
#[derive(Clone, Copy, Debug)]
pub struct Clamp {
    /// Factor in the sigmoid.
    pub alpha: f32,
    /// Largest value.
    pub limit: f32,
}

/// Chooses experts for each position, and their shares.
#[derive(Clone, Copy, Debug)]
pub struct Router {
    /// How many experts.
    pub count: usize,
    /// How many serve a position.
    pub per_token: usize,
    /// Name of its matrix, beside the module that holds the experts; a bias is used where it is stored.
    pub name: &'static str,
    /// What the matrix's outputs become.
    pub scores: Scores,
    /// Name of what is added to scores where experts are chosen, and left out of their shares; likewise beside.
    pub correction: Option<&'static str>,
    /// Experts are chosen from some groups of them only.
    pub groups: Option<Groups>,
    /// Shares are divided by their sum, or by this where the sum is less.
    pub normalize: Option<f32>,
    /// Factor on shares.
    pub scale: f32,
}

/// What a router's outputs become.
#[derive(Clone, Copy, Debug)]
pub enum Scores {
    /// Probabilities of all experts.
    Softmax,
    /// Each by itself.
    Sigmoid,
    /// Experts are drawn one by one, without going back: the most likely, whose share is its probability among those not yet drawn that come within a
    /// relative distance of it (PhiMoE).
    OneByOne {
        /// Twice the jitter that the model was trained with.
        within: f32,
    },
}

/// Groups of experts, as many in each.
#[derive(Clone, Copy, Debug)]
pub struct Groups {
    /// How many.
    pub count: usize,
    /// How many are left to choose from: those with the largest sum of their best scores.
    pub kept: usize,
    /// How many best scores are summed.
    pub best: usize,
}

/// What families call the number of experts that serve a token.
const PER_TOKEN: [&str; 4] = ["num_experts_per_tok", "top_k_experts", "moe_k", "moe_topk"];

impl Router {
    pub(super) fn check(&self, fields: &Fields<'_>) -> Result<()> {
        let Self { count, per_token, .. } = self;
        if per_token > count {
            let key = PER_TOKEN.iter().find(|key| fields.get(key).is_some()).unwrap_or(&PER_TOKEN[0]);
            return Err(fields.misfit(format!("`{key}` is {per_token}, but there are {count} experts")));
        }
        let Some(Groups { count: groups, kept, best }) = self.groups else { return Ok(()) };
        let each = count / groups;
        if !count.is_multiple_of(groups) || kept > groups || best > each || kept * each < *per_token {
            return Err(fields.misfit(format!(
                "{count} experts in {groups} groups (`n_group`), of which {kept} serve (`topk_group`), cannot give a token {per_token}"
            )));
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
    pub(crate) fn read_or(fields: &Fields<'_>, key: &str, default: Self) -> Result<Self> {
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
