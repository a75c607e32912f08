//! How `config.json` describes bitsandbytes' formats: transformers' `BitsAndBytesConfig` as it is saved.

use serde_json::json;

use crate::dtype::Dtype;
use crate::open::ModelConfig;

/// What a checkpoint of 4-bit weights says beyond one of int8.
pub(super) struct FourBit {
    pub(super) quant_type: &'static str,
    pub(super) double_quant: bool,
    pub(super) quant_storage: Dtype,
}

/// Writes the description; `four` is `None` for int8. `skipped` are the modules that a loader has to keep plain.
pub(super) fn describe(config: &mut ModelConfig, four: Option<&FourBit>, skipped: Option<&[String]>) {
    let quantization = json!({
        "_load_in_4bit": four.is_some(),
        "_load_in_8bit": four.is_none(),
        "bnb_4bit_compute_dtype": if four.is_some() { "bfloat16" } else { "float32" },
        "bnb_4bit_quant_storage": four.map_or("uint8", |four| four.quant_storage.torch_name()),
        "bnb_4bit_quant_type": four.map_or("fp4", |four| four.quant_type),
        "bnb_4bit_use_double_quant": four.is_some_and(|four| four.double_quant),
        "llm_int8_enable_fp32_cpu_offload": false,
        "llm_int8_has_fp16_weight": false,
        "llm_int8_skip_modules": skipped,
        "llm_int8_threshold": 6.0,
        "load_in_4bit": four.is_some(),
        "load_in_8bit": four.is_none(),
        "quant_method": "bitsandbytes",
    });
    config.remove_everywhere("quantization_config");
    config.json.insert("quantization_config".into(), quantization);
}
