//! Qwen 3, and the language model of Qwen 3 VL: Qwen 2 with norms over each head's queries and keys.

use super::decoder::Decoder;
use super::llama::QK_NORM;
use super::spec::{QkNorm, Spec};
use super::{Arch, Fields, Result, generic, qwen2};

pub(super) const ARCH: Arch =
    Arch { model_types: &["qwen3", "qwen3_vl", "qwen3_vl_text"], spec: Some(spec), ..generic::ARCH };

fn spec(fields: &Fields<'_>) -> Result<Spec> {
    read(fields).map(Spec::from)
}

pub(super) fn read(fields: &Fields<'_>) -> Result<Decoder> {
    let mut qwen = qwen2::read(fields)?;
    qwen.norm_queries_and_keys(QkNorm::per_head(QK_NORM));
    Ok(qwen)
}
