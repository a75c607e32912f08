//! Mixtral: Mistral with eight experts of which two serve a token; one matrix per expert, named w1 (gate), w3 (up), w2 (down).

use super::spec::{Routed, Router, Spec};
use super::{Arch, Experts, Fields, Result, generic, mistral, qwen_moe};

pub(super) const ARCH: Arch =
    Arch { model_types: &["mixtral"], experts: Some(EXPERTS), spec: Some(spec), ..generic::ARCH };

pub(super) const EXPERTS: Experts =
    Experts { modules: &["mlp.experts", "block_sparse_moe.experts"], each: &["w1", "w3", "w2"], ..generic::EXPERTS };

fn spec(fields: &Fields<'_>) -> Result<Spec> {
    let mistral = mistral::read(fields)?;
    Ok(mistral.with_experts(read(fields)?, |_| true))
}

/// Experts under Mixtral's names, as wide as the configuration's feed-forward.
pub(super) fn read(fields: &Fields<'_>) -> Result<Routed> {
    let (count, width) = (fields.count("num_local_experts")?, fields.count("intermediate_size")?);
    let routed = qwen_moe::read(fields, count, width, qwen_moe::PER_TOKEN)?;
    Ok(Routed { router: Router { normalize: Some(0.0), ..routed.router }, layout: EXPERTS, ..routed })
}
