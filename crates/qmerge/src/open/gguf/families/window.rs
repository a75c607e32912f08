//! Families of whose layers most have a window, and each says whether it has.

use serde_json::{Map, Value as Json, json};

use super::{Family, Keys, PLAIN};
use crate::open::gguf::Value;
use crate::open::gguf::config::MOST_LAYERS;

pub(super) const PATTERN: &str = "attention.sliding_window_pattern";

pub(super) const OLMO3: Family = Family {
    architecture: "olmo2",
    model_type: "olmo3",
    only_with: Some("attention.sliding_window"),
    reads: &[PATTERN],
    more: olmo3,
    ..PLAIN
};
pub(super) const EXAONE4: Family =
    Family { architecture: "exaone4", model_type: "exaone4", reads: &[PATTERN], more: exaone4, ..PLAIN };

/// The kinds of layers.
pub(super) fn layer_types(keys: &Keys<'_>) -> Option<Json> {
    let kind = |value: Value<'_>| match value {
        Value::Bool(true) => "sliding_attention",
        _ => "full_attention",
    };
    Some(keys.list(PATTERN)?.into_iter().map(kind).collect())
}

/// Layers with a window have a rope of their own, which is not stretched.
pub(super) fn ropes_apart(keys: &Keys<'_>, config: &mut Map<String, Json>, theta: Json, local: f64) {
    let theta = config.shift_remove("rope_theta").unwrap_or(theta);
    let mut full = match config.shift_remove("rope_scaling") {
        Some(Json::Object(scaling)) => scaling,
        _ => Map::from_iter([("rope_type".to_owned(), json!("default"))]),
    };
    full.insert("rope_theta".into(), theta);
    let local = keys.float("rope.freq_base_swa").unwrap_or(local);
    config.insert(
        "rope_parameters".into(),
        json!({ "full_attention": full, "sliding_attention": { "rope_type": "default", "rope_theta": local } }),
    );
}

fn olmo3(keys: &Keys<'_>, config: &mut Map<String, Json>) {
    let theta = keys.float("rope.freq_base").unwrap_or(10_000.0);
    ropes_apart(keys, config, json!(theta), theta);
    layer_types(keys).map(|types| config.insert("layer_types".into(), types));
}

fn exaone4(keys: &Keys<'_>, config: &mut Map<String, Json>) {
    match layer_types(keys) {
        Some(types) => drop(config.insert("layer_types".into(), types)),
        None if config.contains_key("sliding_window") => {}
        // A window is the default, and a pattern of layers.
        None => {
            let layers = config.get("num_hidden_layers").and_then(Json::as_u64).unwrap_or(0).min(MOST_LAYERS);
            config.insert("sliding_window".into(), Json::Null);
            config.insert("layer_types".into(), (0..layers).map(|_| "full_attention").collect());
        }
    }
}
