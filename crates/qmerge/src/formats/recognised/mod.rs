//! Ways of storing weights that are recognised and not understood: data, so that an error can name them and say what to do.
//!
//! A checkpoint that holds such weights is refused as a whole, for every command: codes that were copied beside scales that were rounded, or
//! without the configuration that says how to read them, would be a broken model that looks like one. A format that is learned takes its row
//! out of [`RECOGNISED`]. What no row describes is refused too, where it can only be codes.

mod table;
mod variants;

use std::collections::{HashMap, HashSet};
use std::path::PathBuf;

use serde::Serialize;
use serde_json::{Map, Value};
use table::{Mark, RECOGNISED, Recognised};

use super::Inventory;
use crate::arch::gguf::Unknown;
use crate::dtype::Dtype;
use crate::error::{Error, unsupported};
use crate::open::{Checkpoint, Entry};

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
    /// What is not known of a GGUF file.
    pub(super) fn of_gguf(checkpoint: &Checkpoint, unknown: Unknown) -> Self {
        let Unknown { about, tensor, remedy } = unknown;
        Self { format: "gguf".into(), about, file: checkpoint.path.clone(), tensor, remedy }
    }

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

/// What the configuration and the names of tensors say, before anything is claimed.
pub(crate) fn by_its_marks(checkpoint: &Checkpoint) -> Option<Unsupported> {
    let marked = marked(checkpoint);
    // The configuration knows best what the tensors are called.
    in_config(checkpoint, marked.is_some()).or(marked)
}

fn in_config(checkpoint: &Checkpoint, borne_out: bool) -> Option<Unsupported> {
    let config = checkpoint.config.as_ref()?;
    let described = described(&config.json, 0);
    let (key, about) = described.iter().find(|(_, about)| !is_understood(about))?;
    let method = about.get("quant_method").and_then(Value::as_str);
    let row = method.and_then(|method| RECOGNISED.iter().find(|row| row.methods.contains(&method)));
    let variant = method.and_then(|method| variants::refused(method, about));
    let (format, about) = match (row, method) {
        (_, Some(method)) if variant.is_some() => {
            (method.to_owned(), format!("`{key}` says that the weights are stored as {}", variant.unwrap_or_default()))
        }
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
        Some(method) => variants::is_understood(method) && variants::refused(method, about).is_none(),
        // MLX writes no method. Before transformers wrote one there was bitsandbytes alone.
        None if about.contains_key("bits") && about.contains_key("group_size") => true,
        None => about
            .keys()
            .any(|key| key.starts_with("load_in_") || key.starts_with("bnb_4bit_") || key.starts_with("llm_int8_")),
    }
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

/// What no format claimed and what can only be codes: floats of fewer than 16 bits, and whole numbers where a layer's matrix should be, or with scales
/// beside them. Positions, counters and masks are not.
pub(crate) fn unclaimed(checkpoint: &Checkpoint, inventory: &Inventory) -> Option<Unsupported> {
    let opaque = || inventory.opaque.iter().filter_map(|&at| checkpoint.entries.get(at));
    if let Some(entry) = opaque().find(|entry| is_small_float(entry.dtype)) {
        let about = format!("{} of shape {:?} without scales of a known format", entry.dtype, entry.shape);
        return Some(of_tensor(checkpoint, entry, "unknown", about, remedy(None)));
    }
    let matrices: Vec<&Entry> = opaque().filter(|entry| entry.shape.len() >= 2 && is_integer(entry.dtype)).collect();
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
        last == "weight" || last == "qweight" || modules.get(module).is_some_and(scaled)
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

fn is_small_float(dtype: Dtype) -> bool {
    use Dtype::{F4, F6E2M3, F6E3M2, F8E4M3, F8E4M3Fnuz, F8E5M2, F8E5M2Fnuz, F8E8M0};
    matches!(dtype, F4 | F6E2M3 | F6E3M2 | F8E4M3 | F8E4M3Fnuz | F8E5M2 | F8E5M2Fnuz | F8E8M0)
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
