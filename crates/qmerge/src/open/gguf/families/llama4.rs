//! Llama 4: what llama.cpp knows of it without a key.

use serde_json::{Map, Value as Json, json};

use super::experts::MIXTURE;
use super::{Family, Keys};
use crate::open::gguf::config::MOST_LAYERS;

pub(super) const LLAMA4: Family = Family {
    architecture: "llama4",
    model_type: "llama4_text",
    reads: &["interleave_moe_layer_step"],
    more,
    ..MIXTURE
};

fn more(keys: &Keys<'_>, config: &mut Map<String, Json>) {
    let experts = keys.count("expert_count");
    let counts = [
        ("num_local_experts", experts),
        ("intermediate_size_mlp", keys.count("feed_forward_length")),
        ("intermediate_size", keys.count("expert_feed_forward_length")),
        ("interleave_moe_layer_step", keys.count("interleave_moe_layer_step")),
    ];
    for (field, count) in counts {
        config.insert(field.into(), json!(count));
    }
    config.shift_remove("moe_intermediate_size");
    // The largest model has none.
    config.insert("use_qk_norm".into(), json!(experts != Some(128)));
    let layers = config.get("num_hidden_layers").and_then(Json::as_u64).unwrap_or(0).min(MOST_LAYERS);
    // A window of nothing: all layers see everything, and all but the last have a rope.
    let is_whole = keys.count("attention.sliding_window") == Some(0);
    config.shift_remove("sliding_window");
    let turns = |layer: u64| if is_whole { layers.checked_sub(1) != Some(layer) } else { layer % 4 != 3 };
    let kind = |layer: u64| if turns(layer) && !is_whole { "chunked_attention" } else { "full_attention" };
    config.insert("no_rope_layers".into(), (0..layers).map(|layer| u64::from(turns(layer))).collect());
    config.insert("layer_types".into(), (0..layers).map(kind).collect());
    let known = [
        ("attention_chunk_size", json!(8192)),
        ("attn_temperature_tuning", json!(true)),
        ("floor_scale", json!(8192)),
        ("attn_scale", json!(0.1)),
    ];
    for (field, value) in known {
        config.insert(field.into(), value);
    }
}
