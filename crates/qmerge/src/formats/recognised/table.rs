//! The ways of storing weights that are known by their marks: one row each.

use crate::dtype::Dtype;

/// A way of storing weights, and how it gives itself away.
pub(super) struct Recognised {
    /// Its name in reports ("gptq").
    pub(super) id: &'static str,
    /// Its name in words.
    pub(super) about: &'static str,
    /// Values of `quant_method` in `config.json`.
    pub(super) methods: &'static [&'static str],
    /// Files beside the weights that only it has.
    pub(super) files: &'static [&'static str],
    /// Tensors that only it has.
    pub(super) marks: &'static [Mark],
    /// A way out beside the checkpoint that it was made from.
    pub(super) also: &'static str,
}

/// A tensor that gives a format away: the end of its name, its type, and what must stand beside it.
pub(super) struct Mark {
    pub(super) end: &'static str,
    /// Any, if empty.
    pub(super) types: &'static [Dtype],
    /// Ends of names that share the rest with this one.
    pub(super) beside: &'static [&'static str],
}

const fn mark(end: &'static str, types: &'static [Dtype], beside: &'static [&'static str]) -> Mark {
    Mark { end, types, beside }
}

const FLOAT8: &[Dtype] = &[Dtype::F8E4M3, Dtype::F8E5M2, Dtype::F8E4M3Fnuz, Dtype::F8E5M2Fnuz, Dtype::F8E8M0];
const SMALL_FLOATS: &[Dtype] = &[Dtype::F4, Dtype::F6E2M3, Dtype::F6E3M2];

/// What a row leaves out.
const UNMARKED: Recognised = Recognised { id: "", about: "", methods: &[], files: &[], marks: &[], also: "" };

/// More specific ones first.
pub(super) static RECOGNISED: &[Recognised] = &[
    Recognised {
        id: "gptq",
        about: "GPTQ, integers of 2 to 8 bits packed into words",
        methods: &["gptq"],
        files: &["quantize_config.json"],
        marks: &[mark(".qweight", &[Dtype::I32], &[".qzeros", ".g_idx"])],
        ..UNMARKED
    },
    Recognised {
        id: "awq",
        about: "AWQ, integers of 4 bits packed into words",
        methods: &["awq"],
        files: &["quant_config.json"],
        marks: &[mark(".qweight", &[Dtype::I32], &[".qzeros", ".scales"])],
        ..UNMARKED
    },
    Recognised {
        id: "auto-round",
        about: "AutoRound, packed integers",
        methods: &["auto-round", "intel/auto-round"],
        ..UNMARKED
    },
    Recognised {
        id: "modelopt",
        about: "NVIDIA ModelOpt (NVFP4, FP8 and others)",
        methods: &["modelopt", "modelopt_fp4", "nvfp4"],
        files: &["hf_quant_config.json"],
        marks: &[mark(".weight", &[Dtype::U8, Dtype::F8E4M3], &[".weight_scale_2"])],
        ..UNMARKED
    },
    Recognised {
        id: "compressed-tensors",
        about: "compressed-tensors (llm-compressor)",
        methods: &["compressed-tensors", "compressed_tensors", "sparseml"],
        marks: &[
            mark(".weight_packed", &[], &[]),
            mark(".weight", &[Dtype::I8], &[".weight_scale"]),
            mark(".compressed", &[], &[".bitmask"]),
        ],
        also: "or write it plain: load it in transformers with CompressedTensorsConfig(run_compressed=False) and save it",
        ..UNMARKED
    },
    Recognised {
        id: "mxfp4",
        about: "MXFP4, blocks of 4-bit floats with shared exponents",
        methods: &["mxfp4"],
        marks: &[mark("_blocks", &[Dtype::U8], &["_scales"])],
        also: "or write it in bf16: load it in transformers with Mxfp4Config(dequantize=True) and save it",
        ..UNMARKED
    },
    Recognised {
        id: "fp8",
        about: "FP8, 8-bit floats with scales",
        methods: &["fp8", "fbgemm_fp8"],
        marks: &[mark("_scale_inv", &[], &[]), mark("", FLOAT8, &[])],
        ..UNMARKED
    },
    Recognised {
        id: "hqq",
        about: "HQQ, packed integers with fitted zero points",
        methods: &["hqq"],
        marks: &[mark(".W_q", &[], &[])],
        ..UNMARKED
    },
    Recognised {
        id: "mlx",
        about: "MLX, integers packed into words with scales and biases",
        marks: &[mark(".weight", &[Dtype::U32], &[".scales"])],
        also: "or write it plain with `mlx_lm.convert --dequantize`",
        ..UNMARKED
    },
    Recognised {
        id: "quanto",
        about: "quanto",
        methods: &["quanto"],
        files: &["quanto_qmap.json"],
        marks: &[
            mark(".weight._data", &[], &[]),
            mark(".weight._data._data", &[], &[]),
            mark(".weight._scale", &[], &[]),
        ],
        ..UNMARKED
    },
    Recognised {
        id: "torchao",
        about: "torchao",
        methods: &["torchao"],
        marks: &[
            mark("_weight_qdata", &[], &[]),
            mark(":qdata", &[], &[]),
            mark("_weight_int_data", &[], &[]),
            mark(":int_data", &[], &[]),
        ],
        ..UNMARKED
    },
    Recognised {
        id: "eetq",
        about: "EETQ, 8-bit integers in a GPU's layout",
        methods: &["eetq"],
        marks: &[
            mark(".weight", &[Dtype::I8], &[".weight_scales"]),
            mark(".qweight", &[Dtype::I8], &[".weight_scales"]),
        ],
        ..UNMARKED
    },
    Recognised {
        id: "aqlm",
        about: "AQLM, indices into codebooks",
        methods: &["aqlm"],
        marks: &[mark(".codes", &[], &[".codebooks"])],
        ..UNMARKED
    },
    Recognised {
        id: "vptq",
        about: "VPTQ, indices into codebooks",
        methods: &["vptq"],
        marks: &[mark(".indices", &[], &[".centroids.weight"])],
        ..UNMARKED
    },
    Recognised {
        id: "quip",
        about: "QuIP#, indices into a lattice",
        methods: &["quip"],
        marks: &[mark(".Qidxs", &[], &[])],
        ..UNMARKED
    },
    Recognised {
        id: "spqr",
        about: "SpQR, packed integers with outliers apart",
        methods: &["spqr"],
        marks: &[mark(".dense_weights", &[], &[])],
        ..UNMARKED
    },
    Recognised {
        id: "bitnet",
        about: "BitNet, ternary weights packed into bytes",
        methods: &["bitnet"],
        marks: &[mark(".weight", &[Dtype::U8], &[".weight_scale"])],
        ..UNMARKED
    },
    Recognised {
        id: "exl2",
        about: "EXL2 (ExLlamaV2)",
        methods: &["exl2"],
        marks: &[mark(".q_weight", &[], &[".q_scale"])],
        ..UNMARKED
    },
    Recognised {
        id: "exl3",
        about: "EXL3 (ExLlamaV3)",
        methods: &["exl3"],
        marks: &[mark(".trellis", &[], &[])],
        ..UNMARKED
    },
    Recognised { id: "higgs", about: "HIGGS", methods: &["higgs"], ..UNMARKED },
    Recognised { id: "quark", about: "AMD Quark", methods: &["quark"], ..UNMARKED },
    Recognised { id: "fp-quant", about: "FP-Quant", methods: &["fp_quant"], ..UNMARKED },
    Recognised { id: "sinq", about: "SINQ", methods: &["sinq"], ..UNMARKED },
    Recognised {
        id: "small floats",
        about: "floats of 4 or 6 bits",
        marks: &[mark("", SMALL_FLOATS, &[])],
        ..UNMARKED
    },
    Recognised {
        id: "packed integers",
        about: "packed integers of a format that is not known",
        marks: &[mark(".qweight", &[], &[]), mark(".qzeros", &[], &[]), mark(".g_idx", &[], &[])],
        ..UNMARKED
    },
];
