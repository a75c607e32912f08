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

/// Types of words and bytes that hold several codes.
const PACKED: &[Dtype] = &[Dtype::U8, Dtype::I32, Dtype::U32, Dtype::F4];

/// What a row leaves out.
const UNMARKED: Recognised = Recognised { id: "", about: "", methods: &[], marks: &[], also: "" };

/// More specific ones first.
pub(super) static RECOGNISED: &[Recognised] = &[
    Recognised {
        id: "compressed-tensors",
        about: "compressed-tensors' sparse matrices",
        marks: &[mark(".compressed", &[], &[".bitmask"])],
        ..UNMARKED
    },
    Recognised { id: "nvfp4", about: "NVFP4 that is made while a model is loaded", methods: &["nvfp4"], ..UNMARKED },
    Recognised {
        id: "quanto",
        about: "quanto, integers of 2 or 4 bits without the number of their rows",
        marks: &[mark(".weight._data._data", &[], &[])],
        ..UNMARKED
    },
    Recognised {
        id: "torchao",
        about: "torchao, packed codes",
        marks: &[
            mark("_weight_qdata", PACKED, &[]),
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
];
