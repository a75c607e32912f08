//! Qwen 3 MoE, and the language model of Qwen 3 VL's mixtures: Qwen 3 with routed experts in most layers.

use super::spec::Spec;
use super::{Arch, Experts, Fields, Result, qwen_moe, qwen3};

pub(super) const ARCH: Arch = Arch { model_types: &["qwen3_moe"], spec: Some(spec), ..qwen_moe::ARCH };

/// Its experts are published stacked as (experts, in, out).
pub(super) const SEES: Arch = Arch {
    model_types: &["qwen3_vl_moe", "qwen3_vl_moe_text"],
    experts: Some(Experts { in_out: true, is_transposed: true, ..qwen_moe::EXPERTS }),
    as_in_memory: Some(&SAVED),
    ..SAVED
};

/// As transformers saves them.
const SAVED: Arch = Arch { model_types: &[], spec: Some(spec_of_sees), ..qwen_moe::ARCH };

fn spec(fields: &Fields<'_>) -> Result<Spec> {
    read(fields, qwen_moe::normalize(fields, false)?)
}

/// Shares sum to one whatever is said.
fn spec_of_sees(fields: &Fields<'_>) -> Result<Spec> {
    read(fields, Some(0.0))
}

fn read(fields: &Fields<'_>, normalize: Option<f32>) -> Result<Spec> {
    let mut routed = qwen_moe::qwen(fields)?;
    routed.router.normalize = normalize;
    Ok(qwen3::read(fields)?.with_experts(routed, qwen_moe::layers(fields)?))
}
