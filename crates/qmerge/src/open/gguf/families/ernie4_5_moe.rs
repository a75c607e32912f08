//! ERNIE 4.5 with experts: in which layers they are, and how many serve all tokens.

use serde_json::{Map, Value as Json, json};

use super::experts::MIXTURE;
use super::{Family, Keys};

pub(super) const ERNIE4_5_MOE: Family = Family {
    architecture: "ernie4_5-moe",
    model_type: "ernie4_5_moe",
    reads: &["expert_shared_count", "interleave_moe_layer_step", "leading_dense_block_count"],
    more,
    ..MIXTURE
};

fn more(keys: &Keys<'_>, config: &mut Map<String, Json>) {
    let counts = [
        ("moe_num_experts", keys.count("expert_count")),
        ("moe_k", keys.count("expert_used_count")),
        ("moe_num_shared_experts", Some(keys.count("expert_shared_count").unwrap_or(0))),
        ("moe_layer_start_index", Some(keys.count("leading_dense_block_count").unwrap_or(0))),
        ("moe_layer_interval", keys.count("interleave_moe_layer_step")),
    ];
    for (field, count) in counts.into_iter().filter(|(_, count)| count.is_some()) {
        config.insert(field.into(), json!(count));
    }
    for field in ["num_experts_per_tok", "shared_expert_intermediate_size"] {
        config.shift_remove(field);
    }
    config.insert("moe_layer_end_index".into(), json!(-1));
    config.insert("use_bias".into(), json!(keys.has("blk.0.attn_q.bias")));
}
