//! Nemotron: layer norms that add one to their weight, squared ReLUs without a gate, a rope over half of each head.

use super::spec::{Activation, Matrices, Norm, Spec};
use super::{Arch, Fields, Result, RopeDefaults, generic, llama};

pub(super) const ARCH: Arch = Arch { model_types: &["nemotron"], spec: Some(spec), ..generic::ARCH };

fn spec(fields: &Fields<'_>) -> Result<Spec> {
    let mut nemotron = llama::read_with(fields, RopeDefaults { share: 0.5, ..RopeDefaults::default() })?;
    nemotron.spec.norm = Norm::LayerPlusOne;
    nemotron.spec.eps = fields.eps("norm_eps", 1e-5)?;
    nemotron.feed_forward.activation = Activation::read_or(fields, "hidden_act", Activation::ReluSquared)?;
    nemotron.feed_forward.matrices = Matrices::Plain { names: ["mlp.up_proj", "mlp.down_proj"] };
    Ok(nemotron.into())
}
