//! Mixtral, MiniMax M2, OLMoE and Qwen's mixtures: how many experts there are has a name of its own in each, and how shares are made is known without a key.

use serde_json::{Map, Value as Json, json};

use super::{Family, Keys, PLAIN};

pub(super) const MIXTURE: Family = Family { has_experts: true, ..PLAIN };

pub(super) const MIXTRAL: Family = Family { architecture: "llama", model_type: "mixtral", more: mixtral, ..MIXTURE };
pub(super) const QWEN2_MOE: Family =
    Family { architecture: "qwen2moe", model_type: "qwen2_moe", more: qwen2_moe, ..MIXTURE };
pub(super) const QWEN3_MOE: Family =
    Family { architecture: "qwen3moe", model_type: "qwen3_moe", more: qwen3_moe, ..MIXTURE };
/// The language model of Qwen 3 VL.
pub(super) const QWEN3_VL_MOE: Family = Family { architecture: "qwen3vlmoe", reads: super::OF_QWEN3_VL, ..QWEN3_MOE };

pub(super) const OLMOE: Family = Family { architecture: "olmoe", model_type: "olmoe", more: qwen2_moe, ..MIXTURE };
/// Scores by a sigmoid.
pub(super) const MINIMAX_M2: Family = Family {
    architecture: "minimax-m2",
    model_type: "minimax_m2",
    only_where: Some(("expert_gating_func", 2)),
    reads: &["expert_gating_func"],
    more: minimax_m2,
    ..MIXTURE
};

fn mixtral(keys: &Keys<'_>, config: &mut Map<String, Json>) {
    config.insert("num_local_experts".into(), json!(keys.count("expert_count")));
}

/// All layers have experts, whose width is the feed-forward's.
fn minimax_m2(keys: &Keys<'_>, config: &mut Map<String, Json>) {
    mixtral(keys, config);
    config.shift_remove("moe_intermediate_size");
}

fn qwen2_moe(keys: &Keys<'_>, config: &mut Map<String, Json>) {
    config.insert("num_experts".into(), json!(keys.count("expert_count")));
    config.insert("norm_topk_prob".into(), json!(false));
}

fn qwen3_moe(keys: &Keys<'_>, config: &mut Map<String, Json>) {
    config.insert("num_experts".into(), json!(keys.count("expert_count")));
    config.insert("norm_topk_prob".into(), json!(true));
}

/// How many experts there are and serve all tokens, from which layer on, in which groups, and how their shares are made, where keys say all of it.
pub(super) fn routed(keys: &Keys<'_>, config: &mut Map<String, Json>) {
    let counts = [
        ("n_routed_experts", "expert_count"),
        ("n_shared_experts", "expert_shared_count"),
        ("first_k_dense_replace", "leading_dense_block_count"),
        ("n_group", "expert_group_count"),
        ("topk_group", "expert_group_used_count"),
    ];
    for (field, key) in counts {
        if let Some(count) = keys.count(key) {
            config.insert(field.into(), json!(count));
        }
    }
    config.insert("routed_scaling_factor".into(), json!(keys.float("expert_weights_scale").unwrap_or(1.0)));
    config.insert("norm_topk_prob".into(), json!(keys.flag("expert_weights_norm").unwrap_or(false)));
}

/// Keys that it reads.
pub(super) const ROUTED: &[&str] = &[
    "expert_shared_count",
    "leading_dense_block_count",
    "expert_group_count",
    "expert_group_used_count",
    "expert_weights_scale",
    "expert_weights_norm",
    "expert_gating_func",
    super::FURTHER,
    // Of GLM 4.5V: tokens of text have one position each.
    super::SECTIONS,
];
