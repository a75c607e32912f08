//! Qwen 3 MoE: Qwen 3 with routed experts in most layers.

use super::spec::Spec;
use super::{Arch, Fields, Result, qwen_moe, qwen3};

pub(super) const ARCH: Arch = Arch { model_types: &["qwen3_moe"], spec: Some(spec), ..qwen_moe::ARCH };

fn spec(fields: &Fields<'_>) -> Result<Spec> {
    let mut routed = qwen_moe::qwen(fields)?;
    routed.router.normalize = qwen_moe::normalize(fields, false)?;
    Ok(qwen3::read(fields)?.with_experts(routed, qwen_moe::layers(fields)?))
}
