//! Gemma 3n: which layers have a window, whose keys and values the last ones see, and which gates open.

use serde_json::{Map, Value as Json, json};

use super::window::{PATTERN, layer_types, ropes_apart};
use super::{Family, Keys, PLAIN};
use crate::open::gguf::{LAYERS_TABLE, Value};

pub(super) const GEMMA3N: Family = Family {
    architecture: "gemma3n",
    model_type: "gemma3n_text",
    reads: &[
        PATTERN,
        SCALES,
        "altup.active_idx",
        "altup.num_inputs",
        "attention.shared_kv_layers",
        "embedding_length_per_layer_input",
    ],
    more,
    ..PLAIN
};

const SCALES: &str = "activation_sparsity_scale";

fn more(keys: &Keys<'_>, config: &mut Map<String, Json>) {
    ropes_apart(keys, config, json!(1_000_000.0), 10_000.0);
    layer_types(keys).map(|types| config.insert("layer_types".into(), types));
    let counts = [
        ("altup_active_idx", keys.count("altup.active_idx")),
        ("altup_num_inputs", keys.count("altup.num_inputs")),
        ("num_kv_shared_layers", keys.count("attention.shared_kv_layers")),
        ("hidden_size_per_layer_input", keys.count("embedding_length_per_layer_input")),
        ("vocab_size_per_layer_input", keys.rows(LAYERS_TABLE)),
        ("laurel_rank", keys.rows("blk.0.laurel_l.weight")),
    ];
    for (field, count) in counts.into_iter().filter(|(_, count)| count.is_some()) {
        config.insert(field.into(), json!(count));
    }
    config.insert("altup_correct_scale".into(), json!(keys.has("blk.0.altup_correct_scale.weight")));
    let width = |value: Value<'_>| if let Value::Integer(width) = value { u64::try_from(width).ok() } else { None };
    let widths =
        keys.list("feed_forward_length").and_then(|all| all.into_iter().map(width).collect::<Option<Vec<_>>>());
    if let Some(widths) = widths {
        config.insert("intermediate_size".into(), json!(widths));
    }
    let share = |value: Value<'_>| if let Value::Float(scale) = value { Some(below(scale)) } else { None };
    let shares = keys.list(SCALES).and_then(|all| all.into_iter().map(share).collect::<Option<Vec<_>>>());
    if let Some(shares) = shares {
        config.insert("activation_sparsity_pattern".into(), json!(shares));
    }
}

/// The share of a normal distribution that lies below so many standard deviations; one of few digits where that is within what the file's f32 tells.
fn below(scale: f64) -> f64 {
    let share = 0.5 * libm::erfc(-scale * std::f64::consts::FRAC_1_SQRT_2);
    let short = (share * 1e4).round() / 1e4;
    // A share of all, or of nothing, would be another gate.
    if 0.0 < short && short < 1.0 && (share - short).abs() < 1e-6 { short } else { share }
}
