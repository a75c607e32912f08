//! Arcee: Llama with squared ReLUs and no gate.

use super::spec::{Activation, Matrices, Spec};
use super::{Arch, Fields, Result, generic, llama};

pub(super) const ARCH: Arch = Arch { model_types: &["arcee"], spec: Some(spec), ..generic::ARCH };

fn spec(fields: &Fields<'_>) -> Result<Spec> {
    let mut arcee = llama::read(fields)?;
    arcee.spec.eps = fields.eps("rms_norm_eps", 1e-5)?;
    arcee.feed_forward.activation = Activation::read_or(fields, "hidden_act", Activation::ReluSquared)?;
    arcee.feed_forward.matrices = Matrices::Plain { names: ["mlp.up_proj", "mlp.down_proj"] };
    Ok(arcee.into())
}
