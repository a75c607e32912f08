//! What a `config.json` would say, out of a GGUF file's keys.
//!
//! Both say the same of a model in other words. What llama.cpp knows of an architecture without a key for it (Gemma's scale of queries) is filled in here, as its
//! `llama-model.cpp` has it.

use std::path::Path;

use serde_json::{Map, Value as Json, json};

use super::{Metadata, Value};
use crate::error::Result;
use crate::open::{Entry, ModelConfig};

/// What GGUF and transformers call a family, and what is to be said of it that others need not.
struct Family {
    architecture: &'static str,
    model_type: &'static str,
    more: fn(&Keys<'_>, &mut Map<String, Json>),
}

const FAMILIES: &[Family] = &[
    Family { architecture: "llama", model_type: "llama", more: nothing },
    Family { architecture: "qwen2", model_type: "qwen2", more: nothing },
    Family { architecture: "qwen3", model_type: "qwen3", more: nothing },
    Family { architecture: "gemma", model_type: "gemma", more: nothing },
    Family { architecture: "gemma2", model_type: "gemma2", more: gemma2 },
    Family { architecture: "gemma3", model_type: "gemma3_text", more: gemma3 },
    Family { architecture: "phi3", model_type: "phi3", more: nothing },
];

/// Field of `config.json`, and key of GGUF behind the architecture's name.
const FIELDS: &[(&str, &str)] = &[
    ("hidden_size", "embedding_length"),
    ("num_hidden_layers", "block_count"),
    ("intermediate_size", "feed_forward_length"),
    ("num_attention_heads", "attention.head_count"),
    ("num_key_value_heads", "attention.head_count_kv"),
    ("head_dim", "attention.key_length"),
    ("max_position_embeddings", "context_length"),
    ("rms_norm_eps", "attention.layer_norm_rms_epsilon"),
    ("layer_norm_eps", "attention.layer_norm_epsilon"),
    ("rope_theta", "rope.freq_base"),
    ("sliding_window", "attention.sliding_window"),
    ("attn_logit_softcapping", "attn_logit_softcapping"),
    ("final_logit_softcapping", "final_logit_softcapping"),
];

/// The configuration that a model's keys and tensors describe. What they do not say is left out; a family that is not known keeps GGUF's name.
pub(crate) fn config(metadata: &Metadata, entries: &[Entry], file: &Path) -> Result<ModelConfig> {
    let architecture = metadata.architecture();
    let keys = Keys { metadata, architecture };
    let family = FAMILIES.iter().find(|family| family.architecture == architecture);
    let mut config = Map::new();
    config.insert("model_type".into(), json!(family.map_or(architecture, |family| family.model_type)));
    for (field, key) in FIELDS {
        if let Some(value) = keys.number(key) {
            config.insert((*field).into(), value);
        }
    }
    let table = entries.iter().find(|entry| entry.name == "token_embd.weight");
    if let Some(tokens) = table.and_then(|entry| entry.shape.first()) {
        config.insert("vocab_size".into(), json!(tokens));
    }
    config.insert("tie_word_embeddings".into(), json!(!entries.iter().any(|entry| entry.name == "output.weight")));
    if let Some(scaling) = scaling(&keys) {
        config.insert("rope_scaling".into(), scaling);
    }
    let tokens = [("bos_token_id", "bos"), ("eos_token_id", "eos"), ("pad_token_id", "padding")];
    for (field, key) in tokens {
        if let Some(id) = metadata.integer(&format!("tokenizer.ggml.{key}_token_id")) {
            config.insert(field.into(), json!(id));
        }
    }
    let name = ["general.base_model.0.name", "general.name"].into_iter().find_map(|key| metadata.text(key));
    if let Some(name) = name {
        config.insert("_name_or_path".into(), json!(name));
    }
    if let Some(family) = family {
        (family.more)(&keys, &mut config);
    }
    Ok(ModelConfig::of_gguf(config, file))
}

/// Keys that begin with the architecture's name.
struct Keys<'m> {
    metadata: &'m Metadata,
    architecture: &'m str,
}

impl Keys<'_> {
    fn get(&self, key: &str) -> Option<Value<'_>> {
        self.metadata.get(&format!("{}.{key}", self.architecture))
    }

    /// A number; of a list with one for each layer, that of all where it is one.
    fn number(&self, key: &str) -> Option<Json> {
        let number = |value: &Value<'_>| match value {
            Value::Integer(number) => i64::try_from(*number).ok().map(Json::from),
            Value::Float(number) => Some(json!(number)),
            _ => None,
        };
        match self.get(key)? {
            Value::List(list) => {
                let mut items = list.iter();
                let first = items.next()?;
                if items.all(|item| item == first) { number(&first) } else { None }
            }
            value => number(&value),
        }
    }

    fn float(&self, key: &str) -> Option<f64> {
        self.number(key)?.as_f64()
    }

    fn count(&self, key: &str) -> Option<u64> {
        self.number(key)?.as_u64()
    }
}

fn nothing(_: &Keys<'_>, _: &mut Map<String, Json>) {}

/// How the rope is stretched.
fn scaling(keys: &Keys<'_>) -> Option<Json> {
    let kind = match keys.get("rope.scaling.type")? {
        Value::Text("none") => return None,
        Value::Text(kind) => kind.to_owned(),
        _ => return None,
    };
    let mut scaling = Map::new();
    scaling.insert("rope_type".into(), json!(kind));
    let fields = [("factor", "factor"), ("original_max_position_embeddings", "original_context_length")];
    for (field, key) in fields {
        if let Some(value) = keys.number(&format!("rope.scaling.{key}")) {
            scaling.insert(field.into(), value);
        }
    }
    Some(Json::Object(scaling))
}

/// The width that queries are scaled by: a head's, but for the largest model, by its number of layers.
fn query_scale(keys: &Keys<'_>, largest: u64) -> Option<f64> {
    if keys.count("block_count")? == largest {
        return Some(keys.float("embedding_length")? / keys.float("attention.head_count")?);
    }
    keys.float("attention.key_length")
}

fn gemma2(keys: &Keys<'_>, config: &mut Map<String, Json>) {
    if let Some(scale) = query_scale(keys, 46) {
        config.insert("query_pre_attn_scalar".into(), json!(scale));
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
        config.insert("query_pre_attn_scalar".into(), json!(scale));
    }
    // Layers with a window have a rope of their own, which is not stretched.
    let theta = config.shift_remove("rope_theta").unwrap_or(json!(1_000_000.0));
    let mut full = match config.shift_remove("rope_scaling") {
        Some(Json::Object(scaling)) => scaling,
        _ => Map::from_iter([("rope_type".to_owned(), json!("default"))]),
    };
    full.insert("rope_theta".into(), theta);
    let local = keys.float("rope.freq_base_swa").unwrap_or(10_000.0);
    config.insert(
        "rope_parameters".into(),
        json!({ "full_attention": full, "sliding_attention": { "rope_type": "default", "rope_theta": local } }),
    );
    config.insert("sliding_window_pattern".into(), json!(6));
}
