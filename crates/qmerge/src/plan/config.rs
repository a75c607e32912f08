//! What a merge or a conversion changes in `config.json`.

use serde_json::{Map, Value, json};

use super::steps::ConfigChange;
use super::{Inputs, Options, classifier};
use crate::error::Result;
use crate::formats::Format;
use crate::open::ModelConfig;

/// The output's configuration, or `None` if the base's serves unchanged.
pub(super) fn edited(
    inputs: &Inputs,
    options: &Options,
    skipped: Option<&[String]>,
    change: &ConfigChange,
) -> Result<Option<ModelConfig>> {
    let Some(base) = &inputs.base.config else { return Ok(None) };
    let mut config = base.clone();
    if change.untie {
        config.set_everywhere("tie_word_embeddings", &Value::Bool(false));
    }
    if let Some(tokens) = change.vocab_size {
        config.set_everywhere("vocab_size", &json!(tokens));
    }
    if let Some(labels) = change.labels {
        classifier::describe(&mut config, labels);
    }
    classifier::skip(&mut config, &change.added);
    if let Some(to) = options.to {
        format(&mut config, options, to, skipped);
    }
    Ok((config.json != base.json).then_some(config))
}

fn format(config: &mut ModelConfig, options: &Options, to: &'static dyn Format, skipped: Option<&[String]>) {
    if !to.quantizes() {
        config.remove_everywhere("quantization_config");
        let name = match to.id() {
            "f32" => "float32",
            "f16" => "float16",
            _ => "bfloat16",
        };
        for key in ["dtype", "torch_dtype"] {
            if config.find(key).is_some() {
                config.set_everywhere(key, &Value::from(name));
            }
        }
        return;
    }
    let quantization = bitsandbytes(options, to, skipped);
    config.remove_everywhere("quantization_config");
    config.json.insert("quantization_config".into(), Value::Object(quantization));
}

/// transformers' `BitsAndBytesConfig` as it is saved.
fn bitsandbytes(options: &Options, to: &'static dyn Format, skipped: Option<&[String]>) -> Map<String, Value> {
    let four = to.id() != "int8";
    let config = json!({
        "_load_in_4bit": four,
        "_load_in_8bit": !four,
        "bnb_4bit_compute_dtype": if four { "bfloat16" } else { "float32" },
        "bnb_4bit_quant_storage": if four { options.settings.quant_storage.torch_name() } else { "uint8" },
        "bnb_4bit_quant_type": if four { to.id() } else { "fp4" },
        "bnb_4bit_use_double_quant": four && options.settings.double_quant,
        "llm_int8_enable_fp32_cpu_offload": false,
        "llm_int8_has_fp16_weight": false,
        "llm_int8_skip_modules": skipped,
        "llm_int8_threshold": 6.0,
        "load_in_4bit": four,
        "load_in_8bit": !four,
        "quant_method": "bitsandbytes",
    });
    match config {
        Value::Object(map) => map,
        _ => Map::new(),
    }
}
