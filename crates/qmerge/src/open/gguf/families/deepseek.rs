//! DeepSeek 2 and 3: the widths of latent attention, which files from before keys and values were apart say otherwise.

use serde_json::{Map, Value as Json, json};

use super::experts::{MIXTURE, routed};
use super::{Family, Keys, without_further};

pub(super) const DEEPSEEK2: Family =
    Family { architecture: "deepseek2", model_type: "deepseek_v2", reads: READS, more: second, ..MIXTURE };

/// Scores by a sigmoid.
pub(super) const DEEPSEEK3: Family =
    Family { model_type: "deepseek_v3", only_where: Some(("expert_gating_func", 2)), more: third, ..DEEPSEEK2 };

const READS: &[&str] = &[
    "attention.key_length_mla",
    "attention.kv_lora_rank",
    "attention.q_lora_rank",
    "attention.value_length",
    "attention.value_length_mla",
    "expert_gating_func",
    "expert_group_count",
    "expert_group_used_count",
    "expert_shared_count",
    "expert_weights_norm",
    "expert_weights_scale",
    "leading_dense_block_count",
    "rope.scaling.yarn_log_multiplier",
    super::FURTHER,
];

fn second(keys: &Keys<'_>, config: &mut Map<String, Json>) {
    // GLM 4.7 Flash is known by its size, if no key says what scores are made by.
    let layers = keys.count("block_count");
    let is_glm = keys.get("expert_gating_func").is_none() && [Some(47), Some(48)].contains(&layers);
    if is_glm && config.get("vocab_size").and_then(Json::as_u64) == Some(154_880) {
        config.insert("model_type".into(), json!(DEEPSEEK3.model_type));
        return third(keys, config);
    }
    latent(keys, config);
    let is_grouped = keys.count("expert_group_count").is_some_and(|groups| groups > 1);
    config.insert("scoring_func".into(), json!("softmax"));
    config.insert("topk_method".into(), json!(if is_grouped { "group_limited_greedy" } else { "greedy" }));
}

fn third(keys: &Keys<'_>, config: &mut Map<String, Json>) {
    latent(keys, config);
    config.insert("scoring_func".into(), json!("sigmoid"));
    config.insert("topk_method".into(), json!("noaux_tc"));
    // Files from before there were keys for groups. DeepSeek 3 itself, which has them by default, has 256 experts.
    if keys.count("expert_count") != Some(256) {
        for field in ["n_group", "topk_group"] {
            config.entry(field).or_insert(json!(1));
        }
    }
    config.insert("rope_interleave".into(), json!(true));
}

fn latent(keys: &Keys<'_>, config: &mut Map<String, Json>) {
    without_further(keys, config);
    routed(keys, config);
    for field in ["head_dim", "partial_rotary_factor"] {
        config.shift_remove(field);
    }
    let either =
        |key: &str| keys.count(&format!("attention.{key}_mla")).or_else(|| keys.count(&format!("attention.{key}")));
    let turned = keys.count("rope.dimension_count");
    let widths = [
        ("kv_lora_rank", keys.count("attention.kv_lora_rank")),
        ("q_lora_rank", keys.count("attention.q_lora_rank")),
        ("qk_rope_head_dim", turned),
        ("qk_nope_head_dim", either("key_length").zip(turned).and_then(|(all, turned)| all.checked_sub(turned))),
        ("v_head_dim", either("value_length")),
        ("num_key_value_heads", keys.count("attention.head_count")),
    ];
    for (field, width) in widths {
        config.insert(field.into(), json!(width));
    }
    // The file's is a tenth, and one for both of the model's.
    if let (Some(Json::Object(scaling)), Some(by)) =
        (config.get_mut("rope_scaling"), keys.float("rope.scaling.yarn_log_multiplier"))
    {
        let scale = (by * 10.0 * 1e6).round() / 1e6;
        scaling.insert("mscale".into(), json!(scale));
        scaling.insert("mscale_all_dim".into(), json!(scale));
    }
}
