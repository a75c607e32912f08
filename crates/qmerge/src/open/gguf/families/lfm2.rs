//! LFM 2: layers with a convolution have no keys.

use serde_json::{Map, Value as Json, json};

use super::experts::MIXTURE;
use super::{Family, Keys, PLAIN, renamed};
use crate::open::gguf::Value;

pub(super) const LFM2: Family =
    Family { architecture: "lfm2", model_type: "lfm2", reads: &["shortconv.l_cache"], more: lfm2, ..PLAIN };

pub(super) const LFM2_MOE: Family = Family {
    architecture: "lfm2moe",
    model_type: "lfm2_moe",
    only_where: Some(("expert_gating_func", 2)),
    reads: &["shortconv.l_cache", "leading_dense_block_count", "expert_gating_func"],
    more: mixture,
    ..MIXTURE
};

/// How shares are made is known without a key.
fn mixture(keys: &Keys<'_>, config: &mut Map<String, Json>) {
    lfm2(keys, config);
    config.shift_remove("block_auto_adjust_ff_dim");
    for (field, key) in [("num_experts", "expert_count"), ("num_dense_layers", "leading_dense_block_count")] {
        config.insert(field.into(), json!(keys.count(key)));
    }
    config.insert("norm_topk_prob".into(), json!(true));
    config.insert("use_expert_bias".into(), json!(true));
    config.insert("routed_scaling_factor".into(), json!(1.0));
}

fn lfm2(keys: &Keys<'_>, config: &mut Map<String, Json>) {
    renamed(config, "rms_norm_eps", "norm_eps");
    keys.number("shortconv.l_cache").map(|taps| config.insert("conv_L_cache".into(), taps));
    // It is the width that they are, not what it was made of.
    config.insert("block_auto_adjust_ff_dim".into(), json!(false));
    let Some(kv_heads) = keys.list("attention.head_count_kv") else { return };
    let count = |value: &Value<'_>| match value {
        Value::Integer(count) => i64::try_from(*count).unwrap_or(0),
        _ => 0,
    };
    let kind = |value: &Value<'_>| if count(value) == 0 { "conv" } else { "full_attention" };
    config.insert("layer_types".into(), kv_heads.iter().map(kind).collect());
    config.insert("num_key_value_heads".into(), json!(kv_heads.iter().map(count).max()));
}
