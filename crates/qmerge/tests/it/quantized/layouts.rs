//! How golden cases lie in checkpoints.

use super::*;

/// Names in the golden file and in the checkpoint, with `config.json`.
pub(super) type Layout = (Vec<(String, String)>, Value);

/// Ways in which a case may lie in a checkpoint; none for formats that are not read.
pub(super) fn layouts(case: &Value) -> Vec<Layout> {
    let params = &case["params"];
    let of = |leaves: &[&str]| -> Vec<_> {
        leaves.iter().map(|leaf| ((*leaf).to_owned(), format!("{MODULE}.{leaf}"))).collect()
    };
    let config = |quantization: Value| json!({"dtype": "bfloat16", "quantization_config": quantization});
    match case["format"].as_str().unwrap() {
        "fp8-block" => vec![(
            of(&["weight", "weight_scale_inv"]),
            config(json!({"quant_method": "fp8", "weight_block_size": params["block"]})),
        )],
        "compressed-tensors" => vec![(
            of(&[
                "weight",
                "weight_packed",
                "weight_scale",
                "weight_zero_point",
                "weight_shape",
                "weight_g_idx",
                "weight_global_scale",
            ]),
            config(json!({
                "quant_method": "compressed-tensors",
                "format": params["format"],
                "config_groups": {"group_0": {"targets": ["Linear"], "weights": params}},
            })),
        )],
        "gptq" => {
            let about = |format: &str| {
                config(json!({"quant_method": "gptq", "bits": params["bits"], "group_size": params["group_size"],
                    "checkpoint_format": format, "meta": {"quantizer": ["gptqmodel:7.7.0"]}}))
            };
            let names = |zeros: &str| {
                let mut names = of(&["qweight", "scales", "g_idx"]);
                names.push((zeros.to_owned(), format!("{MODULE}.qzeros")));
                names
            };
            vec![(names("qzeros_v1"), about("gptq")), (names("qzeros_v2"), about("gptq_v2"))]
        }
        "awq" => vec![(
            of(&["qweight", "qzeros", "scales"]),
            config(json!({"quant_method": "awq", "bits": 4, "group_size": params["group_size"], "version": "gemm"})),
        )],
        "gpt-oss-mxfp4" => vec![(
            ["blocks", "scales"]
                .map(|end| (end.to_owned(), format!("model.layers.0.mlp.experts.down_proj_{end}")))
                .to_vec(),
            config(json!({"quant_method": "mxfp4"})),
        )],
        kind if kind.starts_with("mlx") => {
            let about = json!({"group_size": params["group_size"], "bits": params["bits"]});
            vec![(of(&["weight", "scales", "biases"]), json!({"quantization": about, "quantization_config": about}))]
        }
        "quanto" => vec![(
            ["_data", "_scale"].map(|end| (format!("layer.weight.{end}"), format!("{MODULE}.weight.{end}"))).to_vec(),
            config(json!({"quant_method": "quanto"})),
        )],
        "torchao" => vec![(
            ["qdata", "scale", "zero_point"]
                .map(|end| (format!("layer._weight_{end}"), format!("{MODULE}._weight_{end}")))
                .to_vec(),
            config(json!({"quant_method": "torchao"})),
        )],
        "hqq" => vec![(
            of(&[&["W_q", "scale", "zero"], SETTINGS].concat()),
            config(json!({"quant_method": "hqq", "quant_config": {}})),
        )],
        "modelopt" => {
            let algorithm = json!({"quant_method": "modelopt", "quant_algo": params["quant_algo"]});
            vec![(of(&["weight", "weight_scale", "weight_scale_2"]), config(algorithm))]
        }
        "bitnet" => vec![(
            of(&["weight", "weight_scale"]),
            json!({"dtype": "float32", "quantization_config": {"quant_method": "bitnet", "linear_class": params["linear_class"]}}),
        )],
        _ => Vec::new(),
    }
}

/// hqq's settings, each a tensor beside the codes.
pub(super) const SETTINGS: &[&str] = &[
    "nbits",
    "group_size",
    "shape",
    "axis",
    "packing",
    "unpack_view_dtype",
    "view_as_float",
    "quant_scale",
    "quant_zero",
    "compute_dtype",
    "offload_meta",
    "encoded_state_dict",
    "stores_quant_config",
    "channel_wise",
    "optimize",
    "round_zero",
];
