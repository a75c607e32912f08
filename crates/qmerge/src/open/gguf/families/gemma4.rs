//! Gemma 4: which layers have a window, whose keys and values the last ones see, and how wide heads and feed-forwards are in each.

use serde_json::{Map, Value as Json, json};

use super::window::{PATTERN, layer_types, ropes_apart};
use super::{Family, Keys, PLAIN};
use crate::open::gguf::{LAYERS_TABLE, Value};

pub(super) const GEMMA4: Family =
    Family { architecture: "gemma4", model_type: "gemma4_text", reads: READS, more, ..PLAIN };
pub(super) const GEMMA4_MOE: Family = Family { more: mixture, has_experts: true, ..GEMMA4 };

const READS: &[&str] = &[
    PATTERN,
    "attention.key_length_swa",
    "attention.value_length_swa",
    "attention.shared_kv_layers",
    "embedding_length_per_layer_input",
    "rope.dimension_count_swa",
];

fn mixture(keys: &Keys<'_>, config: &mut Map<String, Json>) {
    more(keys, config);
    config.insert("enable_moe_block".into(), json!(true));
    config.insert("num_experts".into(), json!(keys.count("expert_count")));
    super::renamed(config, "num_experts_per_tok", "top_k_experts");
}

fn more(keys: &Keys<'_>, config: &mut Map<String, Json>) {
    config.insert("enable_moe_block".into(), json!(false));
    ropes(keys, config);
    let sliding: Vec<bool> =
        keys.list(PATTERN).unwrap_or_default().iter().map(|own| *own == Value::Bool(true)).collect();
    layer_types(keys).map(|types| config.insert("layer_types".into(), types));
    let shared = keys.count("attention.shared_kv_layers").unwrap_or(0);
    let wide = keys.count("attention.key_length");
    let counts = [
        ("num_kv_shared_layers", Some(shared)),
        ("head_dim", keys.count("attention.key_length_swa").or(wide)),
        ("global_head_dim", wide),
        ("hidden_size_per_layer_input", Some(keys.count("embedding_length_per_layer_input").unwrap_or(0))),
        ("vocab_size_per_layer_input", keys.rows(LAYERS_TABLE)),
    ];
    for (field, count) in counts.into_iter().filter(|(_, count)| count.is_some()) {
        config.insert(field.into(), json!(count));
    }
    // Of the layers with a window, and of those without.
    let heads = keys.list("attention.head_count_kv").unwrap_or_default();
    let heads_of = |kind: bool| {
        let own = heads.iter().zip(&sliding).find(|(_, own)| **own == kind);
        own.and_then(|(count, _)| if let Value::Integer(count) = count { u64::try_from(*count).ok() } else { None })
    };
    if let Some(count) = heads_of(true) {
        config.insert("num_key_value_heads".into(), json!(count));
    }
    if let Some(count) = heads_of(false) {
        config.insert("num_global_key_value_heads".into(), json!(count));
    }
    let [with_keys, with_values] = ["attn_k.weight", "attn_v.weight"].map(|part| keys.layers_with(part));
    let is_lacking = |layer: usize| with_keys.contains(&layer) && !with_values.contains(&layer);
    let keys_as_values = sliding.iter().enumerate().any(|(layer, is_sliding)| !is_sliding && is_lacking(layer));
    config.insert("attention_k_eq_v".into(), json!(keys_as_values));
    widths(keys, config, shared);
}

/// Feed-forwards of the layers that see others' keys and values are twice as wide as the rest, or all are alike.
fn widths(keys: &Keys<'_>, config: &mut Map<String, Json>, shared: u64) {
    let Some(widths) = keys.list("feed_forward_length").filter(|_| !config.contains_key("intermediate_size")) else {
        return;
    };
    let number = |value: &Value<'_>| if let Value::Integer(width) = value { u64::try_from(*width).ok() } else { None };
    let Some(first) = widths.first().and_then(number) else { return };
    let own = widths.len().saturating_sub(usize::try_from(shared).unwrap_or(usize::MAX));
    let wanted = |layer: usize| if layer < own { Some(first) } else { first.checked_mul(2) };
    if widths.iter().enumerate().all(|(layer, width)| number(width) == wanted(layer)) {
        config.insert("intermediate_size".into(), json!(first));
        config.insert("use_double_wide_mlp".into(), json!(true));
    }
}

/// In layers without a window the first pairs of a head turn, and factors hold the others still.
fn ropes(keys: &Keys<'_>, config: &mut Map<String, Json>) {
    let factors: Option<Vec<f64>> = config
        .get("rope_scaling")
        .and_then(|rope| rope.get("long_factor")?.as_array())
        .map(|all| all.iter().filter_map(Json::as_f64).collect());
    if let Some(factors) = factors {
        let turned = factors.iter().take_while(|factor| **factor == 1.0).count();
        // No text is as long as their wavelengths.
        if factors.iter().skip(turned).all(|factor| *factor >= 1e20) {
            let share = turned as f64 / factors.len().max(1) as f64;
            config
                .insert("rope_scaling".into(), json!({ "rope_type": "proportional", "partial_rotary_factor": share }));
        }
    }
    ropes_apart(keys, config, json!(1_000_000.0), 10_000.0);
    let (turned, narrow) = (keys.float("rope.dimension_count_swa"), keys.float("attention.key_length_swa"));
    if let (Some(turned), Some(narrow)) = (turned, narrow)
        && turned != narrow
        && let Some(rope) =
            config.get_mut("rope_parameters").and_then(|ropes| ropes.get_mut("sliding_attention")?.as_object_mut())
    {
        rope.insert("partial_rotary_factor".into(), json!(turned / narrow));
    }
}
