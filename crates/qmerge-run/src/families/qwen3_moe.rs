//! Qwen 3 MoE: Qwen 3 with routed experts in most layers.

use std::collections::HashSet;

use qmerge::error::Result;
use serde_json::Value;

use super::{Family, qwen3};
use crate::fields::Fields;
use crate::spec::{Experts, Spec};

pub(super) const FAMILY: Family = Family { model_types: &["qwen3_moe"], spec };

fn spec(fields: &Fields<'_>) -> Result<Spec> {
    let mut spec = qwen3::spec(fields)?;
    let dense = fields.list("mlp_only_layers")?.unwrap_or_default();
    let dense: HashSet<u64> = dense.iter().filter_map(Value::as_u64).collect();
    let every = fields.positive_if("decoder_sparse_step")?.unwrap_or(1);
    for (i, layer) in spec.layers.iter_mut().enumerate() {
        layer.experts = !dense.contains(&(i as u64)) && (i + 1) % every == 0;
    }
    spec.experts = Some(Experts {
        // transformers 5 writes one name for all families.
        count: fields.positive_if("num_experts")?.map_or_else(|| fields.count("num_local_experts"), Ok)?,
        per_token: fields.count("num_experts_per_tok")?,
        intermediate: fields.count("moe_intermediate_size")?,
        normalize: fields.flag("norm_topk_prob", false)?,
        modules: &["mlp"],
        names: ["gate_proj", "up_proj", "down_proj"],
    });
    Ok(spec)
}
