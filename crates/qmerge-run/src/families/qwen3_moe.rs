//! Qwen 3 MoE: Qwen 3 with routed experts in most layers.

use qmerge::error::Result;
use serde_json::Value;

use super::{Family, qwen3};
use crate::fields::Fields;
use crate::spec::{Experts, Spec};

pub(super) const FAMILY: Family = Family { model_types: &["qwen3_moe"], spec };

fn spec(fields: &Fields<'_>) -> Result<Spec> {
    let mut spec = qwen3::spec(fields)?;
    let dense: Vec<u64> = fields.list("mlp_only_layers").iter().filter_map(Value::as_u64).collect();
    let every = fields.count_if("decoder_sparse_step")?.filter(|&n| n > 0).unwrap_or(1);
    for (i, layer) in spec.layers.iter_mut().enumerate() {
        layer.experts = !dense.contains(&(i as u64)) && (i + 1) % every == 0;
    }
    spec.experts = Some(Experts {
        // transformers 5 writes one name for all families.
        count: fields.count_if("num_experts")?.map_or_else(|| fields.count("num_local_experts"), Ok)?,
        per_token: fields.count("num_experts_per_tok")?,
        intermediate: fields.count("moe_intermediate_size")?,
        normalize: fields.flag("norm_topk_prob", false),
        modules: &["mlp"],
        names: ["gate_proj", "up_proj", "down_proj"],
    });
    Ok(spec)
}
