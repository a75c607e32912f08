//! Granite with and without experts, Command R and Command A, whose keys have factors.

use serde_json::{Map, Value as Json, json};

use super::super::config::MOST_LAYERS;
use super::{Family, Keys, PLAIN, renamed};

pub(super) const GRANITE: Family = Family {
    architecture: "granite",
    model_type: "granite",
    reads: &[
        "attention.scale",
        "embedding_scale",
        "residual_scale",
        "logit_scale",
        // Of state-space layers, which Granite 4 without such layers has keys for.
        "ssm.conv_kernel",
        "ssm.group_count",
        "ssm.inner_size",
        "ssm.state_size",
        "ssm.time_step_rank",
    ],
    more: granite,
    ..PLAIN
};
/// Granite 4 without state-space layers and without experts.
pub(super) const GRANITE_HYBRID: Family = Family {
    model_type: "granitemoehybrid",
    only_with: Some("expert_shared_feed_forward_length"),
    more: granite_hybrid,
    ..GRANITE
};
pub(super) const GRANITE_MOE: Family =
    Family { architecture: "granitemoe", has_experts: true, model_type: "granitemoe", more: granite_moe, ..GRANITE };
pub(super) const GRANITE_MOE_SHARED: Family =
    Family { model_type: "granitemoeshared", only_with: Some("expert_shared_feed_forward_length"), ..GRANITE_MOE };
pub(super) const COHERE: Family =
    Family { architecture: "command-r", model_type: "cohere", reads: &["logit_scale"], more: cohere, ..PLAIN };
pub(super) const COHERE2: Family = Family { architecture: "cohere2", model_type: "cohere2", ..COHERE };

fn granite(keys: &Keys<'_>, config: &mut Map<String, Json>) {
    for (field, key) in [
        ("embedding_multiplier", "embedding_scale"),
        ("residual_multiplier", "residual_scale"),
        ("logits_scaling", "logit_scale"),
    ] {
        keys.number(key).map(|factor| config.insert(field.into(), factor));
    }
    // llama.cpp's own scale, where there is none.
    let scale = keys.float("attention.scale").filter(|scale| *scale != 0.0);
    let scale = scale.or_else(|| keys.head().map(|head| 1.0 / head.sqrt()));
    scale.map(|scale| config.insert("attention_multiplier".into(), json!(scale)));
}

/// With the figures of the state-space layers that it has none of, since its class holds them against each other.
fn granite_hybrid(keys: &Keys<'_>, config: &mut Map<String, Json>) {
    granite(keys, config);
    let layers = keys.count("block_count").unwrap_or(0).min(MOST_LAYERS);
    config.insert("layer_types".into(), (0..layers).map(|_| "attention").collect());
    // llama.cpp's switch for it.
    let has_rope = keys.flag("rope.scaling.finetuned").unwrap_or(true);
    config.insert("position_embedding_type".into(), json!(if has_rope { "rope" } else { "nope" }));
    config.insert("num_local_experts".into(), json!(0));
    config.insert("num_experts_per_tok".into(), json!(0));
    for (field, key) in [
        ("shared_intermediate_size", "expert_shared_feed_forward_length"),
        ("mamba_d_conv", "ssm.conv_kernel"),
        ("mamba_d_state", "ssm.state_size"),
        ("mamba_n_groups", "ssm.group_count"),
        ("mamba_n_heads", "ssm.time_step_rank"),
    ] {
        keys.count(key).map(|count| config.insert(field.into(), json!(count)));
    }
    let times = keys.count("ssm.inner_size").zip(keys.count("embedding_length"));
    times.and_then(|(all, one)| all.checked_div(one)).map(|times| config.insert("mamba_expand".into(), json!(times)));
}

fn granite_moe(keys: &Keys<'_>, config: &mut Map<String, Json>) {
    granite(keys, config);
    config.insert("num_local_experts".into(), json!(keys.count("expert_count")));
    renamed(config, "shared_expert_intermediate_size", "shared_intermediate_size");
}

fn cohere(keys: &Keys<'_>, config: &mut Map<String, Json>) {
    keys.number("logit_scale").map(|factor| config.insert("logit_scale".into(), factor));
    if keys.has("blk.0.attn_q_norm.weight") {
        config.insert("use_qk_norm".into(), json!(true));
    }
}
