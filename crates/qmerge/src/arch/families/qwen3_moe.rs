//! Qwen 3 MoE: Qwen 3 with routed experts in most layers.

use std::collections::HashSet;

use serde_json::Value;

use super::spec::{FeedForward, Routed, Spec};
use super::{Arch, Fields, Result, qwen_moe, qwen3};

pub(super) const ARCH: Arch = Arch { model_types: &["qwen3_moe"], spec: Some(spec), ..qwen_moe::ARCH };

fn spec(fields: &Fields<'_>) -> Result<Spec> {
    let qwen = qwen3::read(fields)?;
    let dense = fields.list("mlp_only_layers")?.unwrap_or_default();
    let dense: HashSet<u64> = dense.iter().filter_map(Value::as_u64).collect();
    let every = fields.positive_if("decoder_sparse_step")?.unwrap_or(1);
    let routed = Routed {
        // transformers 5 writes one name for all families.
        count: fields.positive_if("num_experts")?.map_or_else(|| fields.count("num_local_experts"), Ok)?,
        per_token: fields.count("num_experts_per_tok")?,
        width: fields.count("moe_intermediate_size")?,
        activation: qwen.feed_forward.activation,
        layout: qwen_moe::EXPERTS,
        router: "gate",
        normalize: fields.flag("norm_topk_prob", false)?,
    };
    let mut spec = Spec::from(qwen);
    for (i, layer) in spec.layers.iter_mut().enumerate() {
        if !dense.contains(&(i as u64)) && (i + 1) % every == 0 {
            layer.feed_forward = FeedForward::Routed(routed);
        }
    }
    Ok(spec)
}
