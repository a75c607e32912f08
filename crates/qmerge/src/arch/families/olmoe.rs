//! OLMoE: Llama with experts, norms over all queries and keys together, and clipped projections where the configuration says so.

use super::spec::{Over, QkNorm, Spec};
use super::{Arch, Fields, Result, llama, qwen_moe};

pub(super) const ARCH: Arch = Arch { model_types: &["olmoe"], spec: Some(spec), ..qwen_moe::ARCH };

fn spec(fields: &Fields<'_>) -> Result<Spec> {
    let mut olmo = llama::read(fields)?;
    let clip = fields.above_zero_if("clip_qkv")?.map(|clip| clip as f32);
    for attention in &mut olmo.attention {
        (attention.qk_norm, attention.clip) =
            (Some(QkNorm { over: Over::Whole, ..QkNorm::per_head(llama::QK_NORM) }), clip);
    }
    let mut routed =
        qwen_moe::read(fields, fields.count_of(&qwen_moe::COUNT)?, olmo.feed_forward.width, qwen_moe::PER_TOKEN)?;
    routed.router.normalize = qwen_moe::normalize(fields, false)?;
    Ok(olmo.with_experts(routed, |_| true))
}
