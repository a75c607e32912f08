//! HunYuan with experts.

use serde_json::{Map, Value as Json, json};

use super::experts::MIXTURE;
use super::{Family, Keys, renamed};

pub(super) const HUNYUAN_MOE: Family = Family {
    architecture: "hunyuan-moe",
    model_type: "hunyuan_v1_moe",
    reads: &["expert_shared_count"],
    more,
    ..MIXTURE
};

fn more(keys: &Keys<'_>, config: &mut Map<String, Json>) {
    config.insert("num_experts".into(), json!(keys.count("expert_count")));
    config.insert("num_shared_expert".into(), json!(keys.count("expert_shared_count").unwrap_or(1)));
    renamed(config, "num_experts_per_tok", "moe_topk");
    // Both are as wide as this.
    renamed(config, "moe_intermediate_size", "intermediate_size");
    config.shift_remove("shared_expert_intermediate_size");
}
