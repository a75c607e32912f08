//! What a `config.json` would say, out of a GGUF file's keys.
//!
//! Both say the same of a model in other words. What llama.cpp knows of an architecture without a key for it (Gemma's scale of queries) is filled in here, as its
//! `llama-model.cpp` has it, family by family ([`families`]).

use std::collections::HashSet;
use std::path::Path;

use serde_json::{Map, Value as Json, json};

use super::families::{self, Family};
use super::{Metadata, Value};
use crate::dtype::Dtype;
use crate::error::Result;
use crate::open::{Entry, ModelConfig};

/// No model has more layers.
pub(super) const MOST_LAYERS: u64 = 1 << 14;

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

/// The same, for families with experts.
const OF_EXPERTS: &[(&str, &str)] = &[
    ("num_experts_per_tok", "expert_used_count"),
    ("moe_intermediate_size", "expert_feed_forward_length"),
    ("shared_expert_intermediate_size", "expert_shared_feed_forward_length"),
];

/// Families whose classes in transformers have a width of heads, and a number of those of keys, that does not follow from the model's other figures.
const FIXED_HEADS: &[&str] = &[
    "ernie4_5",
    "gemma",
    "gemma2",
    "gemma3_text",
    "gemma3n_text",
    "gemma4_text",
    "glm",
    "glm4",
    "gpt_oss",
    "llama4_text",
    "minimax_m2",
    "ministral3",
    "qwen3",
    "qwen3_5_moe_text",
    "qwen3_5_text",
    "qwen3_next",
    "seed_oss",
];

/// Other keys behind the architecture's name that are looked at, or say nothing of how a model is run.
const ALSO_READ: &[&str] = &[
    "attention.value_length",
    "expert_count",
    "rope.dimension_count",
    "rope.freq_base_swa",
    "rope.scaling.attn_factor",
    "rope.scaling.factor",
    "rope.scaling.finetuned",
    "rope.scaling.original_context_length",
    "rope.scaling.type",
    "rope.scaling.yarn_attn_factor",
    "rope.scaling.yarn_beta_fast",
    "rope.scaling.yarn_beta_slow",
    "vocab_size",
];

/// Fields of a rope that is stretched by a rule, and keys behind `rope.scaling.`.
const OF_YARN: &[(&str, &str)] = &[
    ("factor", "factor"),
    ("attention_factor", "yarn_attn_factor"),
    ("beta_fast", "yarn_beta_fast"),
    ("beta_slow", "yarn_beta_slow"),
];

/// The table of embeddings.
pub(crate) const TABLE: &str = "token_embd.weight";
/// That of embeddings for each layer.
pub(crate) const LAYERS_TABLE: &str = "per_layer_token_embd.weight";
/// The output embedding, where it is a tensor of its own.
pub(crate) const HEAD_WEIGHT: &str = "output.weight";
/// Factors on the wavelengths of a rope, which are stored as a tensor: those for all lengths, or for short ones and for long ones.
pub(crate) const FACTORS: &str = "rope_freqs.weight";
pub(crate) const SHORT_FACTORS: &str = "rope_factors_short.weight";
pub(crate) const LONG_FACTORS: &str = "rope_factors_long.weight";
/// Most pairs of features that a rope turns.
const MAX_PAIRS: u64 = 1 << 16;

/// The configuration that a model's keys and tensors describe. What they do not say is left out; a family that is not known keeps GGUF's name. `read` gets the
/// bytes of a small tensor.
pub(crate) fn config(
    metadata: &Metadata,
    entries: &[Entry],
    file: &Path,
    read: &dyn Fn(&Entry) -> Result<Vec<u8>>,
) -> Result<ModelConfig> {
    let architecture = metadata.architecture();
    let keys = Keys { metadata, architecture, entries };
    let family = families::of(&keys);
    let mut config = Map::new();
    config.insert("model_type".into(), json!(family.map_or(architecture, |family| family.model_type)));
    let of_experts = OF_EXPERTS.iter().filter(|_| keys.has_experts());
    for (field, key) in FIELDS.iter().chain(of_experts) {
        // A window of nothing is none: Phi 4's files say so of themselves.
        let is_none = |value: &Json| *field == "sliding_window" && value.as_u64() == Some(0);
        if let Some(value) = keys.number(key).filter(|value| !is_none(value)) {
            config.insert((*field).into(), value);
        }
    }
    if family.is_some_and(|family| FIXED_HEADS.contains(&family.model_type)) {
        share_heads(&keys, &mut config);
    }
    let table = entries.iter().find(|entry| entry.name == TABLE);
    if let Some(tokens) = table.and_then(|entry| entry.shape.first()) {
        config.insert("vocab_size".into(), json!(tokens));
    }
    config.insert("tie_word_embeddings".into(), json!(!entries.iter().any(|entry| entry.name == HEAD_WEIGHT)));
    let list = |name: &str| factors(entries.iter().find(|entry| entry.name == name), read);
    if let Some(scaling) = scaling(&keys, [list(FACTORS)?, list(SHORT_FACTORS)?, list(LONG_FACTORS)?]) {
        config.insert("rope_scaling".into(), scaling);
    }
    if let (Some(turns), Some(head)) = (keys.float("rope.dimension_count"), keys.head())
        && turns != head
    {
        config.insert("partial_rotary_factor".into(), json!(turns / head));
    }
    let tokens = [("bos_token_id", "bos"), ("eos_token_id", "eos"), ("pad_token_id", "padding")];
    for (field, key) in tokens {
        if let Some(id) = metadata.integer(&format!("tokenizer.ggml.{key}_token_id")) {
            config.insert(field.into(), json!(id));
        }
    }
    // Classes have a padding token where nothing is said, which a smaller vocabulary may lack.
    config.entry("pad_token_id").or_insert(Json::Null);
    let name = ["general.base_model.0.name", "general.name"].into_iter().find_map(|key| metadata.text(key));
    if let Some(name) = name {
        config.insert("_name_or_path".into(), json!(name));
    }
    if let Some(family) = family {
        (family.more)(&keys, &mut config);
    }
    Ok(ModelConfig::of_gguf(config, file, keys.unread(family)))
}

/// Says what llama.cpp takes where a file does not say it: heads share the residual stream, and keys have as many as queries.
fn share_heads(keys: &Keys<'_>, config: &mut Map<String, Json>) {
    let Some(heads) = keys.count("attention.head_count") else { return };
    if keys.get("attention.head_count_kv").is_none() {
        config.insert("num_key_value_heads".into(), json!(heads));
    }
    let width = keys.count("embedding_length").and_then(|hidden| hidden.checked_div(heads));
    if let Some(width) = width.filter(|_| keys.get("attention.key_length").is_none()) {
        config.insert("head_dim".into(), json!(width));
    }
}

/// The values of a list of f32, if it is there.
fn factors(entry: Option<&Entry>, read: &dyn Fn(&Entry) -> Result<Vec<u8>>) -> Result<Option<Vec<f32>>> {
    let Some(entry) = entry.filter(|entry| entry.dtype == Dtype::F32 && entry.bytes <= 4 * MAX_PAIRS) else {
        return Ok(None);
    };
    Ok(Some(read(entry)?.as_chunks().0.iter().map(|x| f32::from_le_bytes(*x)).collect()))
}

/// Keys that begin with the architecture's name.
pub(super) struct Keys<'m> {
    metadata: &'m Metadata,
    pub(super) architecture: &'m str,
    entries: &'m [Entry],
}

impl Keys<'_> {
    pub(super) fn get(&self, key: &str) -> Option<Value<'_>> {
        self.metadata.get(&format!("{}.{key}", self.architecture))
    }

    /// Of each layer, from a list that has one for each.
    pub(super) fn list(&self, key: &str) -> Option<Vec<Value<'_>>> {
        let Value::List(list) = self.get(key)? else { return None };
        // No model has more layers: a longer list is none of theirs, and would take memory.
        let layers = self.count("block_count").unwrap_or(0).min(MOST_LAYERS);
        let items: Vec<Value<'_>> = list.iter().take(usize::try_from(layers).ok()?.checked_add(1)?).collect();
        (u64::try_from(items.len()) == Ok(layers)).then_some(items)
    }

    /// A number; of a list with one for each layer, that of all where it is one.
    pub(super) fn number(&self, key: &str) -> Option<Json> {
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

    pub(super) fn float(&self, key: &str) -> Option<f64> {
        self.number(key)?.as_f64()
    }

    pub(super) fn flag(&self, key: &str) -> Option<bool> {
        match self.get(key)? {
            Value::Bool(flag) => Some(flag),
            _ => None,
        }
    }

    pub(super) fn count(&self, key: &str) -> Option<u64> {
        self.number(key)?.as_u64()
    }

    /// True of a file with a tensor of that name.
    pub(super) fn has(&self, name: &str) -> bool {
        self.entries.iter().any(|entry| entry.name == name)
    }

    /// The layers that have such a part.
    pub(super) fn layers_with(&self, part: &str) -> HashSet<usize> {
        let layer = |entry: &Entry| {
            let (number, own) = entry.name.strip_prefix("blk.")?.split_once('.')?;
            number.parse().ok().filter(|_| own == part)
        };
        self.entries.iter().filter_map(layer).collect()
    }

    /// Rows of the tensor of that name.
    pub(super) fn rows(&self, name: &str) -> Option<u64> {
        let entry = self.entries.iter().find(|entry| entry.name == name)?;
        entry.shape.first().map(|rows| *rows as u64)
    }

    /// True of a model with experts.
    pub(super) fn has_experts(&self) -> bool {
        self.count("expert_count").is_some_and(|experts| experts > 0)
    }

    /// Features of a head.
    pub(super) fn head(&self) -> Option<f64> {
        let share = || Some(self.float("embedding_length")? / self.float("attention.head_count")?);
        self.float("attention.key_length").or_else(share)
    }

    /// A key behind the architecture's name that would have to be understood for the model to be run; none for a family that is not run at all.
    fn unread(&self, family: Option<&Family>) -> Option<String> {
        let family = family?;
        let is_read = |key: &str| {
            let mut known = FIELDS.iter().chain(OF_EXPERTS);
            known.any(|(_, known)| *known == key) || ALSO_READ.contains(&key) || family.reads.contains(&key)
        };
        let prefix = format!("{}.", self.architecture);
        let values = self.float("attention.value_length");
        let mut unread: Vec<&str> =
            self.metadata.keys().filter(|key| key.strip_prefix(&prefix).is_some_and(|key| !is_read(key))).collect();
        unread.sort_unstable();
        let is_told = family.reads.contains(&"attention.value_length");
        let widths =
            (values.is_some() && values != self.head() && !is_told).then(|| format!("{prefix}attention.value_length"));
        let scaled = !family.scales_attention && self.float("rope.scaling.attn_factor").is_some_and(|by| by != 1.0);
        let scaled = scaled.then(|| format!("{prefix}rope.scaling.attn_factor"));
        unread.first().map(|key| (*key).to_owned()).or(widths).or(scaled)
    }
}

/// How the rope is stretched: by factors for all lengths, for short and for long ones, or by what the keys say.
fn scaling(keys: &Keys<'_>, [all, short, long]: [Option<Vec<f32>>; 3]) -> Option<Json> {
    let kind = match keys.get("rope.scaling.type") {
        Some(Value::Text("none")) | None => None,
        Some(Value::Text(kind)) => Some(kind.to_owned()),
        // Of another type than a text: no kind that is known.
        Some(_) => Some(String::new()),
    };
    let mut scaling = Map::new();
    let original = keys.number("rope.scaling.original_context_length");
    match (all, short.zip(long), kind) {
        // Frequencies are divided by them, at any length.
        (Some(all), _, None) => {
            scaling.insert("rope_type".into(), json!("longrope"));
            scaling.insert("short_factor".into(), json!(all));
            scaling.insert("long_factor".into(), json!(all));
            scaling.insert("attention_factor".into(), json!(1.0));
        }
        (None, Some((short, long)), _) => {
            scaling.insert("rope_type".into(), json!("longrope"));
            scaling.insert("short_factor".into(), json!(short));
            scaling.insert("long_factor".into(), json!(long));
            if let Some(factor) = keys.number("rope.scaling.attn_factor") {
                scaling.insert("attention_factor".into(), factor);
            }
        }
        (None, None, None) => return None,
        (None, None, Some(kind)) => {
            scaling.insert("rope_type".into(), json!(kind));
            for (field, key) in OF_YARN {
                if let Some(number) = keys.number(&format!("rope.scaling.{key}")) {
                    scaling.insert((*field).into(), number);
                }
            }
        }
        // Both at once: no kind that is known.
        (Some(_), _, Some(kind)) => {
            scaling.insert("rope_type".into(), json!(format!("{kind} with factors")));
        }
    }
    if let Some(original) = original {
        scaling.insert("original_max_position_embeddings".into(), original);
    }
    Some(Json::Object(scaling))
}
