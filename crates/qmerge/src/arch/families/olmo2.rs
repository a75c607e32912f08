//! OLMo 2: norms after each block instead of before, and over all queries and keys together.

use super::spec::{Norms, QkNorm, Spec};
use super::{Arch, Fields, Result, generic, llama};

pub(super) const ARCH: Arch = Arch { model_types: &["olmo2"], spec: Some(spec), ..generic::ARCH };

const NORMS: Norms = Norms {
    mixer_in: None,
    mixer_out: Some("post_attention_layernorm"),
    feed_forward_in: None,
    feed_forward_out: Some("post_feedforward_layernorm"),
};

fn spec(fields: &Fields<'_>) -> Result<Spec> {
    let mut olmo = llama::read(fields)?;
    olmo.norms = NORMS;
    olmo.attention.iter_mut().for_each(|attention| attention.qk_norm = Some(QkNorm::Whole(llama::QK_NORM)));
    Ok(olmo.into())
}
