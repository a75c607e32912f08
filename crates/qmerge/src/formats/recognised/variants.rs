//! Variants of methods that are understood, which are not: told by what the configuration says beside the method.

use serde_json::{Map, Value};

/// The methods whose formats are read.
const UNDERSTOOD: &[&str] = &[
    "bitsandbytes",
    "bitsandbytes_4bit",
    "bitsandbytes_8bit",
    "fp8",
    "fbgemm_fp8",
    "compressed-tensors",
    "compressed_tensors",
    "sparseml",
    "gptq",
    "awq",
    "auto-round",
    "intel/auto-round",
    "mxfp4",
    "quanto",
    "torchao",
    "hqq",
    "bitnet",
    "modelopt",
    "modelopt_fp4",
];

/// Layouts of compressed-tensors that are read.
const COMPRESSED: &[&str] = &[
    "dense",
    "pack-quantized",
    "int-quantized",
    "naive-quantized",
    "float-quantized",
    "nvfp4-pack-quantized",
    "mxfp4-pack-quantized",
    "mxfp8-quantized",
    "mixed-precision",
];

/// True for a method whose formats are read, whatever else the configuration says.
pub(super) fn is_understood(method: &str) -> bool {
    UNDERSTOOD.contains(&method)
}

/// Why weights of a method that is understood cannot be read all the same: what they are, and what is not understood of it.
pub(super) fn refused(method: &str, about: &Map<String, Value>) -> Option<String> {
    let text = |key: &str| about.get(key).and_then(Value::as_str);
    let named = |what: &str, key: &str, value: &str| Some(format!("{what} with the {key} `{value}`"));
    match method {
        "compressed-tensors" | "compressed_tensors" | "sparseml" => {
            let has_entries = |key: &str| match about.get(key) {
                Some(Value::Object(map)) => !map.is_empty(),
                Some(Value::Array(list)) => !list.is_empty(),
                _ => false,
            };
            if has_entries("transform_config") {
                return Some(
                    "compressed-tensors with rotations (`transform_config`), under which an adapter of the original model does not fit"
                        .into(),
                );
            }
            let sparse = about.get("sparsity_config").and_then(|sparsity| sparsity.get("format")?.as_str());
            if let Some(format) = sparse.filter(|format| *format != "dense") {
                return named("compressed-tensors, sparse,", "format", format);
            }
            text("format")
                .filter(|format| !COMPRESSED.contains(format))
                .and_then(|format| named("compressed-tensors", "format", format))
        }
        "gptq" => match text("checkpoint_format") {
            _ if about.get("is_marlin_format").and_then(Value::as_bool) == Some(true) => {
                Some("GPTQ in the layout of a GPU's kernel (Marlin)".into())
            }
            Some(format) if !matches!(format, "gptq" | "gptq_v2") => named("GPTQ", "checkpoint_format", format),
            _ => None,
        },
        "awq" => text("version")
            .or_else(|| text("format"))
            .filter(|version| !version.eq_ignore_ascii_case("gemm"))
            .and_then(|version| named("AWQ", "version", version)),
        "auto-round" | "intel/auto-round" => text("packing_format")
            .filter(|format| !matches!(*format, "auto_round" | "auto_round:auto_gptq" | "auto_round:auto_awq"))
            .and_then(|format| named("AutoRound", "packing_format", format)),
        // Its weights are plain, and become ternary each time that they are loaded.
        "bitnet" if text("quantization_mode") == Some("online") => {
            Some("BitNet's weights in training, which are rounded to -1, 0 and 1 whenever they are loaded".into())
        }
        _ => None,
    }
}
