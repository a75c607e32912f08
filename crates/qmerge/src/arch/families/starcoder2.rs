//! StarCoder 2: Mistral with layer norms, biases, and a feed-forward without a gate.

use super::spec::{Activation, Matrices, Norm, Spec};
use super::{Arch, Fields, Result, generic, mistral};

pub(super) const ARCH: Arch = Arch { model_types: &["starcoder2"], spec: Some(spec), ..generic::ARCH };

fn spec(fields: &Fields<'_>) -> Result<Spec> {
    let mut starcoder = mistral::read(fields)?;
    starcoder.spec.norm = Norm::Layer;
    starcoder.spec.eps = fields.eps("norm_epsilon", 1e-5)?;
    starcoder.feed_forward.activation = Activation::read_or(fields, "hidden_act", Activation::GeluTanh)?;
    starcoder.feed_forward.matrices = Matrices::Plain { names: ["mlp.c_fc", "mlp.c_proj"] };
    Ok(starcoder.into())
}
