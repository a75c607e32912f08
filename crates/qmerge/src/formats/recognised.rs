//! Ways of storing weights that are recognised and not understood: data, so that an error can name them and say what to do.
//!
//! A checkpoint that holds such weights is refused as a whole, for every command: codes that were copied beside scales that were rounded, or
//! without the configuration that says how to read them, would be a broken model that looks like one. A format that is learned takes its row
//! out of [`RECOGNISED`]. What no row describes is refused too, where it can only be codes.

use std::collections::{HashMap, HashSet};
use std::path::PathBuf;

use serde::Serialize;
use serde_json::{Map, Value};

use super::Inventory;
use crate::dtype::Dtype;
use crate::error::{Error, unsupported};
use crate::open::{Checkpoint, Entry};

/// A way of storing weights, and how it gives itself away.
struct Recognised {
    /// Its name in reports ("gptq").
    id: &'static str,
    /// Its name in words.
    about: &'static str,
    /// Values of `quant_method` in `config.json`.
    methods: &'static [&'static str],
    /// Files beside the weights that only it has.
    files: &'static [&'static str],
    /// Tensors that only it has.
    marks: &'static [Mark],
    /// A way out beside the checkpoint that it was made from.
    also: &'static str,
}

/// A tensor that gives a format away: the end of its name, its type, and what must stand beside it.
struct Mark {
    end: &'static str,
    /// Any, if empty.
    types: &'static [Dtype],
    /// Ends of names that share the rest with this one.
    beside: &'static [&'static str],
}

const fn mark(end: &'static str, types: &'static [Dtype], beside: &'static [&'static str]) -> Mark {
    Mark { end, types, beside }
}

const FLOAT8: &[Dtype] = &[Dtype::F8E4M3, Dtype::F8E5M2, Dtype::F8E4M3Fnuz, Dtype::F8E5M2Fnuz, Dtype::F8E8M0];
const SMALL_FLOATS: &[Dtype] = &[Dtype::F4, Dtype::F6E2M3, Dtype::F6E3M2];

/// What a row leaves out.
const UNMARKED: Recognised = Recognised { id: "", about: "", methods: &[], files: &[], marks: &[], also: "" };

/// More specific ones first.
static RECOGNISED: &[Recognised] = &[
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

/// `quant_method` of what is read.
const UNDERSTOOD: &[&str] = &["bitsandbytes", "bitsandbytes_4bit", "bitsandbytes_8bit"];

/// Keys of `config.json` under which a way of storing is described.
const KEYS: &[&str] = &["quantization_config", "compression_config", "quantization"];

/// What stands beside codes under such names is not a harmless buffer's.
const SCALES: &[&str] = &[
    "scale",
    "scales",
    "weight_scale",
    "weight_scales",
    "absmax",
    "zero",
    "zeros",
    "zero_point",
    "weight_zero_point",
    "codebook",
    "codebooks",
    "lookup_table",
    "lut",
    "weight_shape",
];

const ORIGINAL: &str = "take the checkpoint that it was quantized from, and quantize the result afterwards";

/// Weights that are stored in a way that is not understood.
#[derive(Clone, Debug, Serialize)]
pub struct Unsupported {
    /// Name of the way ("gptq"), or what the checkpoint calls it.
    pub format: String,
    /// The way in words, and what told it.
    pub about: String,
    /// The file that told it.
    pub file: PathBuf,
    /// The tensor that told it, where one did.
    pub tensor: Option<String>,
    /// What can be done, one sentence.
    pub remedy: String,
}

impl Unsupported {
    /// The refusal.
    pub fn error(&self) -> Error {
        let error = unsupported(format!("{}, which this version does not read", self.about))
            .in_file(&self.file)
            .with_hint(self.remedy.clone());
        match &self.tensor {
            Some(tensor) => error.in_tensor(tensor),
            None => error,
        }
    }
}

/// What the configuration, the files beside the weights and the names of tensors say, before anything is claimed.
pub(crate) fn by_its_marks(checkpoint: &Checkpoint) -> Option<Unsupported> {
    let marked = marked(checkpoint);
    // The configuration knows best what the tensors are called.
    in_config(checkpoint, marked.is_some()).or(marked).or_else(|| beside(checkpoint))
}

fn in_config(checkpoint: &Checkpoint, borne_out: bool) -> Option<Unsupported> {
    let config = checkpoint.config.as_ref()?;
    let described = described(&config.json, 0);
    let (key, about) = described.iter().find(|(_, about)| !is_understood(about))?;
    let method = about.get("quant_method").and_then(Value::as_str);
    let row = method.and_then(|method| RECOGNISED.iter().find(|row| row.methods.contains(&method)));
    // MLX writes what it did under both keys, without a method.
    let mlx = || RECOGNISED.iter().find(|row| row.id == "mlx").filter(|_| *key == "quantization");
    let row = row.or_else(|| if method.is_none() { mlx() } else { None });
    let (format, about) = match (row, method) {
        (Some(row), _) => (row.id.to_owned(), format!("`{key}` says that the weights are stored as {}", row.about)),
        (None, Some(method)) => {
            (method.to_owned(), format!("`{key}` says that the weights are stored by the method `{method}`"))
        }
        (None, None) => ("unknown".to_owned(), format!("`{key}` describes quantized weights without a quant_method")),
    };
    let remedy = if borne_out {
        remedy(row)
    } else {
        format!("{}; if the weights are plain already, take `{key}` out of config.json", remedy(row))
    };
    Some(Unsupported { format, about, file: config.path.clone(), tensor: None, remedy })
}

/// Descriptions of a way of storing, at the top or in configurations of parts of the model.
fn described(map: &Map<String, Value>, depth: usize) -> Vec<(&str, &Map<String, Value>)> {
    /// Parts of parts of a model.
    const DEEPEST: usize = 3;
    let mut found = Vec::new();
    for (key, value) in map {
        let Some(inner) = value.as_object().filter(|inner| !inner.is_empty()) else { continue };
        if KEYS.contains(&key.as_str()) {
            found.push((key.as_str(), inner));
        } else if depth < DEEPEST && key.ends_with("config") {
            found.extend(described(inner, depth.saturating_add(1)));
        }
    }
    found
}

fn is_understood(about: &Map<String, Value>) -> bool {
    match about.get("quant_method").and_then(Value::as_str) {
        Some(method) => UNDERSTOOD.contains(&method),
        // Before transformers wrote a method there was bitsandbytes alone.
        None => about
            .keys()
            .any(|key| key.starts_with("load_in_") || key.starts_with("bnb_4bit_") || key.starts_with("llm_int8_")),
    }
}

fn beside(checkpoint: &Checkpoint) -> Option<Unsupported> {
    let store = &checkpoint.store;
    RECOGNISED.iter().find_map(|row| {
        let name = row.files.iter().find(|name| store.has(name))?;
        Some(Unsupported {
            format: row.id.to_owned(),
            about: format!("it says that the weights beside it are stored as {}", row.about),
            file: store.path_of(name),
            tensor: None,
            remedy: format!("{}; if the weights are plain already, take {name} out of the folder", remedy(Some(row))),
        })
    })
}

fn marked(checkpoint: &Checkpoint) -> Option<Unsupported> {
    RECOGNISED.iter().find_map(|row| {
        let has = |entry: &&Entry| row.marks.iter().any(|mark| mark.is_on(checkpoint, entry));
        let entry = checkpoint.entries.iter().find(has)?;
        Some(of_tensor(checkpoint, entry, row.id, format!("stored as {}", row.about), remedy(Some(row))))
    })
}

impl Mark {
    fn is_on(&self, checkpoint: &Checkpoint, entry: &Entry) -> bool {
        (self.types.is_empty() || self.types.contains(&entry.dtype))
            && entry
                .name
                .strip_suffix(self.end)
                .is_some_and(|stem| self.beside.iter().all(|end| checkpoint.has(&format!("{stem}{end}"))))
    }
}

/// What no format claimed and what can only be codes: whole numbers where a layer's matrix should be, or with scales beside them. Positions,
/// counters and masks are not.
pub(crate) fn unclaimed(checkpoint: &Checkpoint, inventory: &Inventory) -> Option<Unsupported> {
    let matrices: Vec<&Entry> = inventory
        .opaque
        .iter()
        .filter_map(|&at| checkpoint.entries.get(at))
        .filter(|entry| entry.shape.len() >= 2 && is_integer(entry.dtype))
        .collect();
    if matrices.is_empty() {
        return None;
    }
    let mut modules: HashMap<&str, HashSet<&str>> = HashMap::new();
    for entry in &checkpoint.entries {
        let (module, last) = entry.name.rsplit_once('.').unwrap_or(("", &entry.name));
        modules.entry(module).or_default().insert(last);
    }
    let codes = |entry: &&&Entry| {
        let (module, last) = entry.name.rsplit_once('.').unwrap_or(("", &entry.name));
        let scaled = |beside: &HashSet<&str>| {
            SCALES.iter().any(|name| beside.contains(name) || beside.contains(format!("{last}_{name}").as_str()))
        };
        last == "weight" || modules.get(module).is_some_and(scaled)
    };
    let entry = matrices.iter().find(codes)?;
    let about =
        format!("{} of shape {:?} is no plain weight: stored in a format that is not known", entry.dtype, entry.shape);
    Some(of_tensor(checkpoint, entry, "unknown", about, remedy(None)))
}

fn is_integer(dtype: Dtype) -> bool {
    use Dtype::{I8, I16, I32, I64, U8, U16, U32, U64};
    matches!(dtype, I8 | I16 | I32 | I64 | U8 | U16 | U32 | U64)
}

fn of_tensor(checkpoint: &Checkpoint, entry: &Entry, format: &str, about: String, remedy: String) -> Unsupported {
    Unsupported {
        format: format.to_owned(),
        about,
        file: checkpoint.file_of(entry).to_path_buf(),
        tensor: Some(entry.name.clone()),
        remedy,
    }
}

fn remedy(row: Option<&Recognised>) -> String {
    match row.map(|row| row.also).filter(|also| !also.is_empty()) {
        Some(also) => format!("{ORIGINAL}; {also}"),
        None => ORIGINAL.to_owned(),
    }
}
