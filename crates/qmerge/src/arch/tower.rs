//! The configuration of the language model in a model of several towers.

use std::borrow::Cow;

use serde_json::{Map, Value};

use super::fields::Fields;
use super::find;
use crate::error::Result;
use crate::open::ModelConfig;

/// Configuration classes of language models, with the numbers that they hold by default: files say in `text_config` only what differs (transformers 4, Gemma 3 as it is published).
const DEFAULTS: &[(&str, &[(&str, u64)])] = &[
    ("llama", &[("vocab_size", 32_000), ("intermediate_size", 11_008), ("max_position_embeddings", 2048)]),
    (
        "mistral",
        &[
            ("vocab_size", 32_000),
            ("intermediate_size", 14_336),
            ("num_key_value_heads", 8),
            ("max_position_embeddings", 131_072),
            ("sliding_window", 4096),
        ],
    ),
    ("qwen2", &[("vocab_size", 151_936), ("intermediate_size", 22_016), ("max_position_embeddings", 32_768)]),
    (
        "gemma3_text",
        &[
            ("vocab_size", 262_208),
            ("hidden_size", 2304),
            ("intermediate_size", 9216),
            ("num_hidden_layers", 26),
            ("num_attention_heads", 8),
            ("num_key_value_heads", 4),
            ("head_dim", 256),
            ("max_position_embeddings", 131_072),
            ("query_pre_attn_scalar", 256),
            ("sliding_window", 4096),
        ],
    ),
    (
        "gemma3n_text",
        &[
            ("vocab_size", 262_400),
            ("hidden_size", 2048),
            ("intermediate_size", 16_384),
            ("num_hidden_layers", 35),
            ("num_attention_heads", 8),
            ("num_key_value_heads", 2),
            ("head_dim", 256),
            ("max_position_embeddings", 32_768),
        ],
    ),
    (
        "gemma4_text",
        &[
            ("vocab_size", 262_144),
            ("hidden_size", 2304),
            ("intermediate_size", 9216),
            ("num_hidden_layers", 30),
            ("num_attention_heads", 8),
            ("num_key_value_heads", 4),
            ("head_dim", 256),
            ("max_position_embeddings", 131_072),
        ],
    ),
    (
        "llama4_text",
        &[
            ("vocab_size", 202_048),
            ("hidden_size", 5120),
            ("intermediate_size", 8192),
            ("intermediate_size_mlp", 16_384),
            ("num_hidden_layers", 48),
            ("num_attention_heads", 40),
            ("num_key_value_heads", 8),
            ("head_dim", 128),
            ("max_position_embeddings", 131_072),
            ("num_local_experts", 16),
            ("num_experts_per_tok", 1),
            ("attention_chunk_size", 8192),
        ],
    ),
    (
        "ministral3",
        &[
            ("vocab_size", 131_072),
            ("intermediate_size", 14_336),
            ("num_hidden_layers", 34),
            ("num_key_value_heads", 8),
            ("head_dim", 128),
            ("max_position_embeddings", 262_144),
        ],
    ),
    (
        "qwen3_5_text",
        &[
            ("vocab_size", 248_320),
            ("intermediate_size", 12_288),
            ("num_attention_heads", 16),
            ("num_key_value_heads", 4),
            ("max_position_embeddings", 32_768),
            ("linear_conv_kernel_dim", 4),
            ("linear_key_head_dim", 128),
            ("linear_value_head_dim", 128),
            ("linear_num_key_heads", 16),
            ("linear_num_value_heads", 32),
        ],
    ),
    (
        "qwen3_5_moe_text",
        &[
            ("vocab_size", 248_320),
            ("hidden_size", 2048),
            ("num_hidden_layers", 40),
            ("num_attention_heads", 16),
            ("num_key_value_heads", 2),
            ("max_position_embeddings", 32_768),
            ("linear_conv_kernel_dim", 4),
            ("linear_key_head_dim", 128),
            ("linear_value_head_dim", 128),
            ("linear_num_key_heads", 16),
            ("linear_num_value_heads", 32),
            ("moe_intermediate_size", 512),
            ("shared_expert_intermediate_size", 512),
            ("num_experts_per_tok", 8),
            ("num_experts", 256),
        ],
    ),
    ("qwen2_vl_text", QWEN2_VL),
    ("qwen2_5_vl_text", QWEN2_VL),
    (
        "qwen3_vl_text",
        &[
            ("vocab_size", 151_936),
            ("intermediate_size", 22_016),
            ("head_dim", 128),
            ("max_position_embeddings", 128_000),
            ("rope_theta", 500_000),
        ],
    ),
    (
        "qwen3_vl_moe_text",
        &[
            ("vocab_size", 151_936),
            ("hidden_size", 2048),
            ("intermediate_size", 5632),
            ("num_hidden_layers", 24),
            ("num_attention_heads", 16),
            ("max_position_embeddings", 128_000),
            ("rope_theta", 500_000),
            ("moe_intermediate_size", 1408),
            ("num_experts_per_tok", 4),
        ],
    ),
];

const QWEN2_VL: &[(&str, u64)] = &[
    ("vocab_size", 152_064),
    ("hidden_size", 8192),
    ("intermediate_size", 29_568),
    ("num_hidden_layers", 80),
    ("num_attention_heads", 64),
    ("num_key_value_heads", 8),
    ("max_position_embeddings", 32_768),
    ("rope_theta", 1_000_000),
];

/// The same of all these classes that have no other.
const SHARED: &[(&str, u64)] = &[("hidden_size", 4096), ("num_hidden_layers", 32), ("num_attention_heads", 32)];

/// The configuration of what is run: the document itself, or what a model of several towers says of its language model.
pub fn language_model(config: &ModelConfig) -> Result<Cow<'_, ModelConfig>> {
    let fields = Fields::new(config);
    let key = "text_config";
    let arch = find(config.model_type());
    let own = config.json.get(key).and_then(|text| text.get("model_type")?.as_str());
    // A family whose text is of its own is read from the whole document, but for what its class has by default. Around another family's text may be anything.
    let has_defaults = own.is_some_and(|own| arch.model_types.contains(&own) && defaults(own).is_some());
    if !arch.is_composed && !has_defaults {
        return Ok(Cow::Borrowed(config));
    }
    let value = fields.get(key).ok_or_else(|| fields.missing(key))?;
    let json = value.as_object().ok_or_else(|| fields.bad(key, value, "that is not an object"))?;
    let nested = ModelConfig { json: json.clone(), text: String::new(), ..config.clone() };
    if nested.model_type().is_empty() {
        return Err(fields.missing("text_config.model_type"));
    }
    Ok(Cow::Owned(ModelConfig { json: with_defaults(nested.model_type(), json), ..nested }))
}

/// The same of a model that has the language model's fields among its own; `text` is the language model's type.
pub(crate) fn language_model_beside(config: &ModelConfig, text: &str) -> ModelConfig {
    let mut json = with_defaults(text, &config.json);
    json.insert("model_type".into(), text.into());
    ModelConfig { json, text: String::new(), ..config.clone() }
}

fn defaults(model_type: &str) -> Option<&'static [(&'static str, u64)]> {
    DEFAULTS.iter().find(|(name, _)| *name == model_type).map(|(_, own)| *own)
}

fn with_defaults(model_type: &str, json: &Map<String, Value>) -> Map<String, Value> {
    let mut json = json.clone();
    for (key, value) in defaults(model_type).into_iter().flat_map(|own| own.iter().chain(SHARED)) {
        json.entry(*key).or_insert_with(|| Value::from(*value));
    }
    json
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::arch::spec_of;

    fn config(json: Value) -> ModelConfig {
        ModelConfig {
            path: "config.json".into(),
            text: String::new(),
            json: json.as_object().unwrap().clone(),
            is_of_gguf: false,
            unread: None,
        }
    }

    #[test]
    fn what_a_tower_leaves_out_is_what_its_class_holds() {
        // As two published models have it.
        let vicuna =
            json!({"model_type": "llama", "max_position_embeddings": 4096, "rms_norm_eps": 1e-5, "vocab_size": 32_064});
        let spec = spec_of(&config(json!({"model_type": "llava", "text_config": vicuna}))).unwrap();
        assert_eq!((spec.hidden, spec.layers.len(), spec.vocab, spec.max_positions), (4096, 32, 32_064, 4096));
        let mistral = json!({"model_type": "mistral", "max_position_embeddings": 32_768, "rope_theta": 1e6, "sliding_window": null});
        let spec = spec_of(&config(json!({"model_type": "llava_next", "text_config": mistral}))).unwrap();
        let super::super::spec::Mixer::Attention(attention) = spec.layers[31].mixer else { panic!() };
        assert_eq!((attention.kv_heads, attention.window), (8, None));
    }

    #[test]
    fn gemma_3_is_read_as_it_is_published() {
        let text = json!({"model_type": "gemma3_text", "hidden_size": 2560, "intermediate_size": 10_240, "num_hidden_layers": 34,
                          "rope_scaling": {"factor": 8.0, "rope_type": "linear"}, "sliding_window": 1024});
        let spec = spec_of(&config(json!({"model_type": "gemma3", "text_config": text}))).unwrap();
        assert_eq!((spec.hidden, spec.layers.len(), spec.vocab, spec.max_positions), (2560, 34, 262_208, 131_072));
        let super::super::spec::Mixer::Attention(attention) = spec.layers[0].mixer else { panic!() };
        assert_eq!(
            (attention.heads, attention.kv_heads, attention.head_dim, attention.window),
            (8, 4, 256, Some(1024))
        );
    }

    #[test]
    fn what_lies_around_a_known_text_has_to_be_known_too() {
        let text = json!({"model_type": "qwen2", "hidden_size": 64});
        let sees = config(json!({"model_type": "ovis2", "text_config": text}));
        assert_eq!(super::language_model(&sees).unwrap().model_type(), "ovis2");
        assert!(spec_of(&sees).is_err());
    }

    #[test]
    fn a_tower_that_is_unknown_is_named() {
        for (text, said) in [
            (json!(null), "`text_config` is missing"),
            (json!([]), "`text_config` is []"),
            (json!({}), "`text_config.model_type` is missing"),
            (json!({"model_type": "mamba"}), "`mamba` cannot be run"),
        ] {
            let error = spec_of(&config(json!({"model_type": "llava", "text_config": text}))).unwrap_err();
            assert!(error.to_string().contains(said), "{error}");
        }
    }
}
