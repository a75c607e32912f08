//! Qwen 3 Next and 3.5: which layers have the gated delta rule, and its heads.

use serde_json::{Map, Value as Json, json};

use super::super::Value;
use super::experts::MIXTURE;
use super::{FURTHER, Family, Keys, PLAIN, without_further};

pub(super) const QWEN3_NEXT: Family =
    Family { architecture: "qwen3next", model_type: "qwen3_next", reads: READS, more: next, ..MIXTURE };
pub(super) const QWEN35: Family =
    Family { architecture: "qwen35", model_type: "qwen3_5_text", reads: READS, more: dense, ..PLAIN };
pub(super) const QWEN35_MOE: Family =
    Family { architecture: "qwen35moe", model_type: "qwen3_5_moe_text", reads: READS, more: mixture, ..MIXTURE };

const READS: &[&str] = &[
    "attention.recurrent_layers",
    "full_attention_interval",
    FURTHER,
    "rope.dimension_sections",
    "ssm.conv_kernel",
    "ssm.group_count",
    "ssm.inner_size",
    "ssm.state_size",
    "ssm.time_step_rank",
];

fn next(keys: &Keys<'_>, config: &mut Map<String, Json>) {
    delta(keys, config);
    config.insert("num_experts".into(), json!(keys.count("expert_count")));
    config.insert("norm_topk_prob".into(), json!(true));
}

fn dense(keys: &Keys<'_>, config: &mut Map<String, Json>) {
    delta(keys, config);
    rope(keys, config);
}

fn mixture(keys: &Keys<'_>, config: &mut Map<String, Json>) {
    delta(keys, config);
    rope(keys, config);
    config.insert("num_experts".into(), json!(keys.count("expert_count")));
}

fn delta(keys: &Keys<'_>, config: &mut Map<String, Json>) {
    without_further(keys, config);
    let values = keys.count("ssm.time_step_rank");
    let counts = [
        ("linear_conv_kernel_dim", keys.count("ssm.conv_kernel")),
        ("linear_key_head_dim", keys.count("ssm.state_size")),
        ("linear_num_key_heads", keys.count("ssm.group_count")),
        ("linear_num_value_heads", values),
        (
            "linear_value_head_dim",
            keys.count("ssm.inner_size").zip(values).and_then(|(all, heads)| all.checked_div(heads)),
        ),
    ];
    for (field, count) in counts {
        config.insert(field.into(), json!(count));
    }
    let every = keys.count("full_attention_interval").filter(|every| *every > 0).unwrap_or(4);
    let layers = config.get("num_hidden_layers").and_then(Json::as_u64).filter(|layers| *layers < 1 << 16).unwrap_or(0);
    let said = keys.list("attention.recurrent_layers").unwrap_or_default();
    let is_linear = |layer: u64| match usize::try_from(layer).ok().and_then(|layer| said.get(layer)) {
        Some(Value::Bool(linear)) => *linear,
        _ => !layer.saturating_add(1).is_multiple_of(every),
    };
    let kind = |layer| if is_linear(layer) { "linear_attention" } else { "full_attention" };
    config.insert("layer_types".into(), (0..layers).map(kind).collect());
}

/// Its parameters lie together, and features are turned by three positions.
fn rope(keys: &Keys<'_>, config: &mut Map<String, Json>) {
    let mut parameters = match config.shift_remove("rope_scaling") {
        Some(Json::Object(scaling)) => scaling,
        _ => Map::from_iter([("rope_type".to_owned(), json!("default"))]),
    };
    for field in ["rope_theta", "partial_rotary_factor"] {
        if let Some(value) = config.shift_remove(field) {
            parameters.insert(field.into(), value);
        }
    }
    let counts = keys.list("rope.dimension_sections").unwrap_or_default();
    let counts = counts.iter().take(3).map(|count| match count {
        Value::Integer(count) => i64::try_from(*count).ok(),
        _ => None,
    });
    if let Some(counts) = counts.collect::<Option<Vec<i64>>>().filter(|counts| counts.len() == 3) {
        parameters.insert("mrope_section".into(), json!(counts));
        parameters.insert("mrope_interleaved".into(), json!(true));
    }
    config.insert("rope_parameters".into(), Json::Object(parameters));
}
