//! OLMo 2: norms after each block instead of before, and over all queries and keys together.

use super::spec::{Norms, Over, QkNorm, Spec};
use super::{Arch, Fields, Result, generic, llama};

pub(super) const ARCH: Arch = Arch { model_types: &["olmo2"], spec: Some(spec), ..generic::ARCH };

pub(super) const NORMS: Norms = Norms {
    mixer_in: None,
    mixer_out: Some("post_attention_layernorm"),
    feed_forward_in: None,
    feed_forward_out: Some("post_feedforward_layernorm"),
};

/// Over all heads together.
pub(super) const QK_NORM: QkNorm = QkNorm { over: Over::Whole, ..QkNorm::per_head(llama::QK_NORM) };

fn spec(fields: &Fields<'_>) -> Result<Spec> {
    let mut olmo = llama::read(fields)?;
    olmo.norms = NORMS;
    olmo.norm_queries_and_keys(QK_NORM);
    Ok(olmo.into())
}
