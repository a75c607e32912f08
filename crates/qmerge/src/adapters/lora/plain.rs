//! The configuration of an ordinary LoRA.

use serde_json::{Map, Value, json};

/// An adapter's configuration with one rank, a scaling of 1, and nothing that would initialise or train anew.
pub(crate) fn plain_config(json: &Map<String, Value>, rank: usize) -> Map<String, Value> {
    let mut config = json.clone();
    for (key, value) in [
        ("r", json!(rank)),
        ("lora_alpha", json!(rank)),
        ("use_rslora", json!(false)),
        ("rank_pattern", json!({})),
        ("alpha_pattern", json!({})),
        ("init_lora_weights", json!(true)),
    ] {
        config.insert(key.into(), value);
    }
    for key in ["corda_config", "eva_config", "lora_ga_config", "monteclora_config", "velora_config"] {
        if let Some(value) = config.get_mut(key) {
            *value = Value::Null;
        }
    }
    if let Some(value) = config.get_mut("loftq_config") {
        *value = json!({});
    }
    config
}
