//! Gemma 1 to 3: what llama.cpp knows of them without a key.

use serde_json::{Map, Value as Json, json};

use super::window::ropes_apart;
use super::{Family, Keys, PLAIN};

pub(super) const GEMMA: Family = Family { architecture: "gemma", model_type: "gemma", ..PLAIN };
pub(super) const GEMMA2: Family = Family { architecture: "gemma2", model_type: "gemma2", more: gemma2, ..PLAIN };
pub(super) const GEMMA3: Family = Family { architecture: "gemma3", model_type: "gemma3_text", more: gemma3, ..PLAIN };

/// The width that queries are scaled by: a head's, but for the largest model, by its number of layers.
fn query_scale(keys: &Keys<'_>, largest: u64) -> Option<f64> {
    if keys.count("block_count")? == largest {
        return Some(keys.float("embedding_length")? / keys.float("attention.head_count")?);
    }
    keys.float("attention.key_length")
}

/// A number as transformers takes it: a whole one is an integer.
fn whole(number: f64) -> Json {
    if number.fract() == 0.0 && (0.0..1e9).contains(&number) { json!(number as u64) } else { json!(number) }
}

fn gemma2(keys: &Keys<'_>, config: &mut Map<String, Json>) {
    if let Some(scale) = query_scale(keys, 46) {
        config.insert("query_pre_attn_scalar".into(), whole(scale));
    }
    // Files from before there were keys for them.
    let missing = [
        ("sliding_window", json!(4096)),
        ("attn_logit_softcapping", json!(50.0)),
        ("final_logit_softcapping", json!(30.0)),
    ];
    for (field, value) in missing {
        config.entry(field).or_insert(value);
    }
}

fn gemma3(keys: &Keys<'_>, config: &mut Map<String, Json>) {
    if let Some(scale) = query_scale(keys, 62) {
        config.insert("query_pre_attn_scalar".into(), whole(scale));
    }
    ropes_apart(keys, config, json!(1_000_000.0), 10_000.0);
    config.insert("sliding_window_pattern".into(), json!(6));
}
