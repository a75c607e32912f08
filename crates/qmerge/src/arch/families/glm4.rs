//! GLM 4: GLM with norms behind each block too.

use super::spec::{Norms, Spec};
use super::{Arch, Fields, Result, generic, glm};

pub(super) const ARCH: Arch = Arch { model_types: &["glm4"], spec: Some(spec), ..generic::ARCH };

const NORMS: Norms = Norms {
    mixer_in: Some("input_layernorm"),
    mixer_out: Some("post_self_attn_layernorm"),
    feed_forward_in: Some("post_attention_layernorm"),
    feed_forward_out: Some("post_mlp_layernorm"),
};

fn spec(fields: &Fields<'_>) -> Result<Spec> {
    let mut glm = glm::read(fields)?;
    glm.norms = NORMS;
    Ok(glm.into())
}
