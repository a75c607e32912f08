//! Mixtral and Qwen's mixtures: how many experts there are has a name of its own in each, and how shares are made is known without a key.

use serde_json::{Map, Value as Json, json};

use super::{Family, Keys, PLAIN};

const MIXTURE: Family = Family { has_experts: true, ..PLAIN };

pub(super) const MIXTRAL: Family = Family { architecture: "llama", model_type: "mixtral", more: mixtral, ..MIXTURE };
pub(super) const QWEN2_MOE: Family =
    Family { architecture: "qwen2moe", model_type: "qwen2_moe", more: qwen2_moe, ..MIXTURE };
pub(super) const QWEN3_MOE: Family =
    Family { architecture: "qwen3moe", model_type: "qwen3_moe", more: qwen3_moe, ..MIXTURE };

fn mixtral(keys: &Keys<'_>, config: &mut Map<String, Json>) {
    config.insert("num_local_experts".into(), json!(keys.count("expert_count")));
}

fn qwen2_moe(keys: &Keys<'_>, config: &mut Map<String, Json>) {
    config.insert("num_experts".into(), json!(keys.count("expert_count")));
    config.insert("norm_topk_prob".into(), json!(false));
}

fn qwen3_moe(keys: &Keys<'_>, config: &mut Map<String, Json>) {
    config.insert("num_experts".into(), json!(keys.count("expert_count")));
    config.insert("norm_topk_prob".into(), json!(true));
}
