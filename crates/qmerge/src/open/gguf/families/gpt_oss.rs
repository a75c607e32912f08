//! gpt-oss: every second layer has a window, and the rope's stretching is not rounded to whole features, both without a key.

use serde_json::{Map, Value as Json, json};

use super::experts::MIXTURE;
use super::{Family, Keys};

pub(super) const GPT_OSS: Family = Family { architecture: "gpt-oss", model_type: "gpt_oss", more, ..MIXTURE };

fn more(keys: &Keys<'_>, config: &mut Map<String, Json>) {
    config.insert("num_local_experts".into(), json!(keys.count("expert_count")));
    if let Some(width) = config.shift_remove("moe_intermediate_size") {
        config.insert("intermediate_size".into(), width);
    }
    match config.get_mut("rope_scaling") {
        Some(Json::Object(scaling)) => drop(scaling.insert("truncate".into(), json!(false))),
        // Where nothing is said its class stretches the rope.
        _ => {
            let theta = config.get("rope_theta").cloned().unwrap_or(json!(10_000.0));
            config.insert("rope_parameters".into(), json!({ "rope_type": "default", "rope_theta": theta }));
        }
    }
}
