//! Qwen 2 MoE: Qwen 2 with routed experts in most layers, and one that serves all tokens behind a gate.

use super::spec::Spec;
use super::{Arch, Fields, Result, llama, qwen_moe};

pub(super) const ARCH: Arch = Arch { model_types: &["qwen2_moe"], spec: Some(spec), ..qwen_moe::ARCH };

fn spec(fields: &Fields<'_>) -> Result<Spec> {
    let mut qwen = llama::read(fields)?;
    if fields.flag("use_sliding_window", false)? {
        let (window, layers) = (fields.positive_if("sliding_window")?.unwrap_or(4096), qwen.attention.len());
        // Other layers than in Qwen 2: every second one, and the lower.
        let first = fields.count_if("max_window_layers")?.unwrap_or(28);
        let sliding = fields.sliding(layers)?.unwrap_or_else(|| (0..layers).map(|i| i % 2 == 0 && i < first).collect());
        qwen.slide(Some(window), sliding);
    }
    let mut routed = qwen_moe::qwen(fields)?;
    routed.router.normalize = qwen_moe::normalize(fields, false)?;
    routed.shared = Some(qwen_moe::gated(fields)?);
    Ok(qwen.with_experts(routed, qwen_moe::layers(fields)?))
}
