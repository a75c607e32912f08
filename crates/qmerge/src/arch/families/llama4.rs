//! Llama 4: experts stacked as (experts, in, out), gate before up, whose shares are factors on their inputs, in every layer or every so many; layers that see
//! their own chunk of positions, and others without a rope.

use std::collections::HashSet;

use serde_json::Value;

use super::spec::{Growth, Norm, Over, QkNorm, Scores, Shared, Spec};
use super::{Arch, Experts, Fields, Result, Rope, generic, llama, mixtral, qwen_moe};

pub(super) const ARCH: Arch =
    Arch { model_types: &["llama4", "llama4_text"], experts: Some(EXPERTS), spec: Some(spec), ..generic::ARCH };

const EXPERTS: Experts = Experts {
    modules: &["feed_forward.experts"],
    router: "router",
    in_out: true,
    is_mistaken: true,
    split_when_quantized: true,
    ..generic::EXPERTS
};

/// Without weights, so without names.
const UNIT: QkNorm = QkNorm { names: [""; 2], over: Over::Head, norm: Some(Norm::RmsWithoutWeight), after_rope: true };

const DENSE: [&str; 3] = ["feed_forward.gate_proj", "feed_forward.up_proj", "feed_forward.down_proj"];
const SHARED: [&str; 3] = [
    "feed_forward.shared_expert.gate_proj",
    "feed_forward.shared_expert.up_proj",
    "feed_forward.shared_expert.down_proj",
];

fn spec(fields: &Fields<'_>) -> Result<Spec> {
    let head_dim = fields.positive_if("head_dim")?.unwrap_or(128);
    let mut rope = Rope::read(fields, head_dim, None, 500_000.0)?;
    rope.interleaved = true;
    let mut llama = llama::read_turned(fields, head_dim, rope, fields.count("intermediate_size_mlp")?)?;
    let layers = llama.attention.len();
    // 1 for a layer with a rope, in spite of the field's name.
    let listed = fields.by_layer("no_rope_layers", layers)?.filter(|list| !list.is_empty());
    let every = fields.positive_if("no_rope_layer_interval")?.unwrap_or(4);
    let has_rope = |layer: usize| match listed.and_then(|listed| listed.get(layer)) {
        Some(value) => value.as_u64().map_or(*value == Value::Bool(true), |n| n != 0),
        None => !(layer + 1).is_multiple_of(every),
    };
    let chunk = fields.positive_if("attention_chunk_size")?;
    let chunked = chunked(fields, layers)?;
    let normed = fields.flag("use_qk_norm", true)?;
    let growth = Growth {
        rate: fields.number("attn_scale", 0.1)? as f32,
        every: fields.positive_if("floor_scale")?.unwrap_or(8192),
        first: 1,
    };
    let growth = fields.flag("attn_temperature_tuning", true)?.then_some(growth);
    for (layer, attention) in llama.attention.iter_mut().enumerate() {
        let has_rope = has_rope(layer);
        attention.rope = has_rope.then_some(0);
        attention.qk_norm = (has_rope && normed).then_some(UNIT);
        attention.growth = growth.filter(|_| !has_rope);
        let is_chunked = chunked.as_ref().map_or(has_rope, |list| list.get(layer).copied().unwrap_or(false));
        attention.chunk = chunk.filter(|_| is_chunked);
    }
    let mut routed = mixtral::read(fields)?;
    (routed.layout, routed.router.name, routed.share_inputs) = (EXPERTS, "router", true);
    (routed.router.scores, routed.router.normalize) = (Scores::Sigmoid, None);
    routed.shared = Some(Shared { dense: qwen_moe::dense(fields, routed.width, SHARED)?, gate: None });
    llama.feed_forward = qwen_moe::dense(fields, llama.feed_forward.width, DENSE)?;
    let listed: Option<HashSet<u64>> =
        fields.list("moe_layers")?.map(|list| list.iter().filter_map(Value::as_u64).collect());
    let every = fields.positive_if("interleave_moe_layer_step")?.unwrap_or(1);
    Ok(llama.with_experts(routed, |layer| match &listed {
        Some(listed) => listed.contains(&(layer as u64)),
        None => (layer + 1).is_multiple_of(every),
    }))
}

/// True for each layer that `layer_types` calls chunked; `None` where the field is missing.
fn chunked(fields: &Fields<'_>, layers: usize) -> Result<Option<Vec<bool>>> {
    let kind = |value: &Value| match value.as_str() {
        Some("chunked_attention") => Ok(true),
        Some("full_attention") => Ok(false),
        _ => Err(fields.unsupported("layer_types", value)),
    };
    let types = fields.by_layer("layer_types", layers)?;
    types.map(|types| types.iter().map(kind).collect()).transpose()
}
