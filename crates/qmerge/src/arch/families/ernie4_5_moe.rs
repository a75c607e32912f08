//! ERNIE 4.5 MoE: Llama with a rope on neighbouring features, and experts chosen with a correction in some layers.

use super::spec::Spec;
use super::{Arch, Fields, Result, RopeDefaults, llama, qwen_moe};

pub(super) const ARCH: Arch = Arch { model_types: &["ernie4_5_moe"], spec: Some(spec), ..qwen_moe::ARCH };

fn spec(fields: &Fields<'_>) -> Result<Spec> {
    let mut ernie = llama::read_with(fields, RopeDefaults { theta: 500_000.0, ..RopeDefaults::default() })?;
    ernie.spec.ropes.iter_mut().for_each(|rope| rope.interleaved = true);
    let width = fields.count(qwen_moe::WIDTH)?;
    let mut routed = qwen_moe::read(fields, fields.count_of(&["moe_num_experts", "num_experts"])?, width, "moe_k")?;
    routed.router.correction = Some("moe_statics.e_score_correction_bias");
    routed.router.normalize = Some(fields.number("moe_norm_min", 1e-12)? as f32);
    routed.shared = qwen_moe::plain(fields, width, fields.count_if("moe_num_shared_experts")?.unwrap_or(2))?;
    let every = fields.positive_if("moe_layer_interval")?.unwrap_or(1);
    let first = fields.count_if("moe_layer_start_index")?.unwrap_or(1);
    // -1 is the last layer.
    let last = if fields.number("moe_layer_end_index", -1.0)? == -1.0 {
        None
    } else {
        fields.count_if("moe_layer_end_index")?
    };
    let has =
        |layer: usize| (layer + 1).is_multiple_of(every) && layer >= first && last.is_none_or(|last| layer <= last);
    Ok(ernie.with_experts(routed, has))
}
