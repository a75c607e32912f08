//! The kinds of storage, each as tensors and configuration of its format.

use super::*;

/// A tensor of a module: its name within it, type, shape and bytes.
type Tensor = (&'static str, Dtype, Vec<usize>, Vec<u8>);

/// Bytes that stand for nothing yet.
fn blank(leaf: &'static str, dtype: Dtype, shape: &[usize]) -> Tensor {
    (leaf, dtype, shape.to_vec(), vec![0; shape.iter().product::<usize>() * dtype.bitsize() / 8])
}

fn numbers(leaf: &'static str, dtype: Dtype, numbers: impl Iterator<Item = i64>) -> Tensor {
    let bytes: Vec<Vec<u8>> = numbers
        .map(|n| if dtype == Dtype::I64 { n.to_le_bytes().to_vec() } else { (n as i32).to_le_bytes().to_vec() })
        .collect();
    (leaf, dtype, vec![bytes.len()], bytes.concat())
}

/// Groups of an act-order: as many inputs each, far from each other.
fn index(leaf: &'static str, inputs: usize, group: usize) -> Tensor {
    numbers(leaf, Dtype::I32, (0..inputs).map(|i| (i * 7 % (inputs / group)) as i64))
}

/// hqq's settings that are read.
fn settings((outputs, inputs): (usize, usize), bits: i64, axis: i64, packing: &str) -> Vec<Tensor> {
    let scalar = |leaf, number| (leaf, Dtype::I32, Vec::new(), numbers(leaf, Dtype::I32, [number].into_iter()).3);
    vec![
        scalar("nbits", bits),
        scalar("axis", axis),
        numbers("shape", Dtype::I64, [outputs as i64, inputs as i64].into_iter()),
        ("packing", Dtype::U8, vec![packing.len()], packing.as_bytes().to_vec()),
    ]
}

pub(super) struct Kind {
    pub(super) name: &'static str,
    pub(super) config: Value,
    /// Tensors of a matrix of so many outputs and inputs.
    pub(super) tensors: fn(usize, usize) -> Vec<Tensor>,
}

/// The kinds of storage, with the format that each is.
pub(super) fn kinds() -> Vec<(&'static str, Kind)> {
    use Dtype::{BF16, F8_E4M3, F8_E8M0, F16, F32, I8, I32, I64, U8, U32};
    let ct = |format: &str, weights: Value| {
        json!({"quantization_config": {"quant_method": "compressed-tensors", "format": format,
            "config_groups": {"group_0": {"targets": ["Linear"], "weights": weights}}}})
    };
    let ints = |bits: u32| ct("pack-quantized", json!({"num_bits": bits, "type": "int", "group_size": 32}));
    let gptq = |bits: u32, version: &str| json!({"quantization_config": {"quant_method": "gptq", "bits": bits, "group_size": 16, "checkpoint_format": version}});
    let fp8 = |block: [usize; 2]| json!({"quantization_config": {"quant_method": "fp8", "weight_block_size": block}});
    vec![
        (
            "fp8",
            Kind {
                name: "blocks",
                config: fp8([24, 48]),
                tensors: |o, i| {
                    vec![
                        blank("weight", F8_E4M3, &[o, i]),
                        blank("weight_scale_inv", F32, &[o.div_ceil(24), i.div_ceil(48)]),
                    ]
                },
            },
        ),
        (
            "fp8",
            Kind {
                name: "powers of two",
                config: fp8([32, 32]),
                tensors: |o, i| {
                    vec![blank("weight", F8_E4M3, &[o, i]), blank("weight_scale_inv", F8_E8M0, &[o / 32, i / 32])]
                },
            },
        ),
        (
            "fp8",
            Kind {
                name: "one scale",
                config: fp8([128, 128]),
                tensors: |o, i| {
                    vec![
                        blank("weight", F8_E4M3, &[o, i]),
                        blank("weight_scale", F32, &[]),
                        blank("input_scale", F32, &[]),
                    ]
                },
            },
        ),
        (
            "ct-fp8",
            Kind {
                name: "rows",
                config: ct("float-quantized", json!({"num_bits": 8, "type": "float"})),
                tensors: |o, i| vec![blank("weight", F8_E4M3, &[o, i]), blank("weight_scale", BF16, &[o, 1])],
            },
        ),
        (
            "ct-int4",
            Kind {
                name: "groups",
                config: ints(4),
                tensors: |o, i| {
                    vec![
                        blank("weight_packed", I32, &[o, i / 8]),
                        blank("weight_scale", BF16, &[o, i / 32]),
                        numbers("weight_shape", I64, [o as i64, i as i64].into_iter()),
                    ]
                },
            },
        ),
        (
            "ct-int4",
            Kind {
                name: "zeros",
                config: ints(4),
                tensors: |o, i| {
                    vec![
                        blank("weight_packed", I32, &[o, i / 8]),
                        blank("weight_scale", BF16, &[o, i / 32]),
                        blank("weight_zero_point", I32, &[o / 8, i / 32]),
                        numbers("weight_shape", I64, [o as i64, i as i64].into_iter()),
                    ]
                },
            },
        ),
        (
            "ct-int4",
            Kind {
                name: "act-order",
                config: ints(4),
                tensors: |o, i| {
                    vec![
                        blank("weight_packed", I32, &[o, i / 8]),
                        blank("weight_scale", BF16, &[o, i / 32]),
                        index("weight_g_idx", i, 32),
                        numbers("weight_shape", I64, [o as i64, i as i64].into_iter()),
                    ]
                },
            },
        ),
        (
            "ct-int",
            Kind {
                name: "3 bits across words",
                config: ints(3),
                tensors: |o, i| {
                    vec![
                        blank("weight_packed", I32, &[o, i * 3 / 32]),
                        blank("weight_scale", BF16, &[o, i / 32]),
                        numbers("weight_shape", I64, [o as i64, i as i64].into_iter()),
                    ]
                },
            },
        ),
        (
            "ct-int",
            Kind {
                name: "5 bits within words",
                config: ints(5),
                tensors: |o, i| {
                    vec![
                        blank("weight_packed", I32, &[o, i.div_ceil(6)]),
                        blank("weight_scale", F16, &[o, i / 32]),
                        numbers("weight_shape", I64, [o as i64, i as i64].into_iter()),
                    ]
                },
            },
        ),
        (
            "ct-int8",
            Kind {
                name: "bytes",
                config: ct("int-quantized", json!({"num_bits": 8, "type": "int"})),
                tensors: |o, i| vec![blank("weight", I8, &[o, i]), blank("weight_scale", BF16, &[o, 1])],
            },
        ),
        (
            "ct-int8",
            Kind {
                name: "bytes with zeros",
                config: ct("int-quantized", json!({"num_bits": 8, "type": "int"})),
                tensors: |o, i| {
                    vec![
                        blank("weight", I8, &[o, i]),
                        blank("weight_scale", F32, &[o, 1]),
                        blank("weight_zero_point", I8, &[o, 1]),
                    ]
                },
            },
        ),
        (
            "ct-nvfp4",
            Kind {
                name: "",
                config: ct("nvfp4-pack-quantized", json!({"num_bits": 4, "type": "float"})),
                tensors: |o, i| {
                    vec![
                        blank("weight_packed", U8, &[o, i / 2]),
                        blank("weight_scale", F8_E4M3, &[o, i / 16]),
                        blank("weight_global_scale", F32, &[1]),
                    ]
                },
            },
        ),
        (
            "ct-mxfp4",
            Kind {
                name: "",
                config: ct("mxfp4-pack-quantized", json!({"num_bits": 4, "type": "float"})),
                tensors: |o, i| vec![blank("weight_packed", U8, &[o, i / 2]), blank("weight_scale", U8, &[o, i / 32])],
            },
        ),
        (
            "ct-mxfp8",
            Kind {
                name: "",
                config: ct("mxfp8-quantized", json!({"num_bits": 8, "type": "float"})),
                tensors: |o, i| vec![blank("weight", F8_E4M3, &[o, i]), blank("weight_scale", U8, &[o, i / 32])],
            },
        ),
        (
            "gptq",
            Kind {
                name: "4 bits",
                config: gptq(4, "gptq"),
                tensors: |o, i| {
                    vec![
                        blank("qweight", I32, &[i / 8, o]),
                        blank("qzeros", I32, &[i / 16, o / 8]),
                        blank("scales", F16, &[i / 16, o]),
                    ]
                },
            },
        ),
        (
            "gptq",
            Kind {
                name: "3 bits, act-order",
                config: gptq(3, "gptq_v2"),
                tensors: |o, i| {
                    vec![
                        blank("qweight", I32, &[i * 3 / 32, o]),
                        blank("qzeros", I32, &[i / 16, o * 3 / 32]),
                        blank("scales", F16, &[i / 16, o]),
                        index("g_idx", i, 16),
                    ]
                },
            },
        ),
        (
            "awq",
            Kind {
                name: "",
                config: json!({"quantization_config": {"quant_method": "awq", "group_size": 16}}),
                tensors: |o, i| {
                    vec![
                        blank("qweight", I32, &[i, o / 8]),
                        blank("qzeros", I32, &[i / 16, o / 8]),
                        blank("scales", F16, &[i / 16, o]),
                    ]
                },
            },
        ),
        (
            "mlx",
            Kind {
                name: "4 bits",
                config: json!({"quantization": {"group_size": 32, "bits": 4}}),
                tensors: |o, i| {
                    vec![
                        blank("weight", U32, &[o, i / 8]),
                        blank("scales", BF16, &[o, i / 32]),
                        blank("biases", BF16, &[o, i / 32]),
                    ]
                },
            },
        ),
        (
            "mlx",
            Kind {
                name: "6 bits",
                config: json!({"quantization": {"group_size": 32, "bits": 6}}),
                tensors: |o, i| {
                    vec![
                        blank("weight", U32, &[o, i * 6 / 32]),
                        blank("scales", F16, &[o, i / 32]),
                        blank("biases", F16, &[o, i / 32]),
                    ]
                },
            },
        ),
        (
            "quanto",
            Kind {
                name: "",
                config: json!({"quantization_config": {"quant_method": "quanto"}}),
                tensors: |o, i| vec![blank("weight._data", I8, &[o, i]), blank("weight._scale", BF16, &[o, 1])],
            },
        ),
        (
            "fp8",
            Kind {
                name: "experts of 4 bits",
                config: fp8([128, 128]),
                tensors: |o, i| {
                    vec![blank("weight", I8, &[o, i / 2]), blank("weight_scale_inv", F8_E8M0, &[o, i / 32])]
                },
            },
        ),
        (
            "modelopt",
            Kind {
                name: "NVFP4",
                config: json!({"quantization_config": {"quant_method": "modelopt", "quant_algo": "NVFP4"}}),
                tensors: |o, i| {
                    vec![
                        blank("weight", U8, &[o, i / 2]),
                        blank("weight_scale", F8_E4M3, &[o, i / 16]),
                        blank("weight_scale_2", F32, &[]),
                    ]
                },
            },
        ),
        (
            "modelopt",
            Kind {
                name: "FP8",
                config: json!({"quantization_config": {"quant_method": "modelopt", "quant_algo": "FP8"}}),
                tensors: |o, i| vec![blank("weight", F8_E4M3, &[o, i]), blank("weight_scale", F32, &[])],
            },
        ),
        (
            "hqq",
            Kind {
                name: "4 bits",
                config: json!({"quantization_config": {"quant_method": "hqq"}}),
                tensors: |o, i| {
                    let groups = [o * i / 32, 1];
                    let mut tensors = vec![
                        blank("W_q", U8, &[o * i / 64, 32]),
                        blank("scale", F16, &groups),
                        blank("zero", F16, &groups),
                    ];
                    tensors.extend(settings((o, i), 4, 1, "4bit_u8"));
                    tensors
                },
            },
        ),
        (
            "hqq",
            Kind {
                name: "3 bits, groups of columns",
                config: json!({"quantization_config": {"quant_method": "hqq"}}),
                tensors: |o, i| {
                    let groups = [1, o * i / 16];
                    let words = [2, o * i / 16];
                    let mut tensors =
                        vec![blank("W_q", I32, &words), blank("scale", BF16, &groups), blank("zero", BF16, &groups)];
                    tensors.extend(settings((o, i), 3, 0, "3bit_32"));
                    tensors
                },
            },
        ),
        (
            "bitnet",
            Kind {
                name: "",
                config: json!({"quantization_config": {"quant_method": "bitnet"}}),
                // Divided by 16.
                tensors: |o, i| {
                    vec![blank("weight", U8, &[o / 4, i]), ("weight_scale", BF16, vec![1], vec![0x80, 0x41])]
                },
            },
        ),
        (
            "torchao",
            Kind {
                name: "",
                config: json!({"quantization_config": {"quant_method": "torchao"}}),
                tensors: |o, i| {
                    vec![
                        blank("_weight_qdata", I8, &[o, i]),
                        blank("_weight_scale", F32, &[o, 1]),
                        blank("_weight_zero_point", I8, &[o, 1]),
                    ]
                },
            },
        ),
    ]
}
