//! Ministral 3, and Mistral models that are stored as it is.

use serde_json::{Map, Value as Json, json};

use super::{Family, Keys, PLAIN};

pub(super) const MINISTRAL3: Family = Family {
    architecture: "mistral3",
    model_type: "ministral3",
    only_with: Some("attention.temperature_scale"),
    reads: &["attention.temperature_scale", "rope.scaling.yarn_log_multiplier"],
    more: ministral3,
    ..PLAIN
};

fn ministral3(keys: &Keys<'_>, config: &mut Map<String, Json>) {
    let mut rope = match config.shift_remove("rope_scaling") {
        Some(Json::Object(scaling)) => scaling,
        _ => return,
    };
    config.shift_remove("rope_theta").map(|theta| rope.insert("rope_theta".into(), theta));
    keys.number("rope.scaling.yarn_log_multiplier").map(|factor| {
        rope.insert("mscale".into(), json!(1.0));
        rope.insert("mscale_all_dim".into(), factor)
    });
    keys.number("attention.temperature_scale").map(|rate| rope.insert("llama_4_scaling_beta".into(), rate));
    config.insert("rope_parameters".into(), Json::Object(rope));
}
