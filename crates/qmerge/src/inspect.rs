//! What is in a checkpoint or an adapter, without reading its numbers.

use std::collections::{BTreeMap, HashSet};
use std::path::Path;
use std::sync::Arc;

use serde::Serialize;

use crate::adapters::Adapter;
use crate::arch;
use crate::error::Result;
use crate::formats::{self, Claim};
use crate::open::local::LocalFolder;
use crate::open::{self, Checkpoint, Store};
use crate::plan::fits;
use crate::report::{SCHEMA_VERSION, name_of};
use crate::round::StoredCalibration;

/// What was found.
#[derive(Clone, Debug, Serialize)]
#[serde(tag = "kind", rename_all = "lowercase")]
pub enum Inspection {
    /// A model.
    Model(ModelInspection),
    /// An adapter.
    Adapter(AdapterInspection),
    /// A calibration.
    Calibration(CalibrationInspection),
}

/// A model at a glance.
#[derive(Clone, Debug, Serialize)]
pub struct ModelInspection {
    /// Version of the document.
    pub schema_version: u32,
    /// Folder or file.
    pub path: String,
    /// Family, from `config.json`.
    pub model_type: String,
    /// Formats of its matrices, most bytes first.
    pub format: String,
    /// Weight files.
    pub files: usize,
    /// Tensors as stored.
    pub tensors: usize,
    /// Logical parameters; `None` where the weights are stored in a way that is not understood.
    pub parameters: Option<u64>,
    /// Bytes of all tensors.
    pub bytes: u64,
    /// True if the output embedding is the input embedding.
    pub tied: bool,
    /// By format and kind of module.
    pub groups: Vec<Group>,
    /// Tensors of types that are only ever copied.
    pub opaque: Vec<String>,
    /// How the weights are stored, where that is not understood: every other command refuses the model then.
    pub unsupported: Option<formats::Unsupported>,
    /// Why the model cannot be run, to calibrate and measure merges of it; `None` where it can.
    pub not_run: Option<String>,
    /// True if a report beside the weights says that an adapter was merged into them.
    pub merged_by_qmerge: bool,
    /// True if a report beside the weights says that they were converted, without an adapter.
    pub converted_by_qmerge: bool,
}

/// Weights of one format, details and last name component.
#[derive(Clone, Debug, Serialize)]
pub struct Group {
    /// Kind of module ("q_proj", "embed_tokens").
    pub module: String,
    /// Format.
    pub format: String,
    /// Settings of the format.
    pub details: String,
    /// Shapes, most common first.
    pub shapes: Vec<Vec<usize>>,
    /// Number of weights.
    pub count: usize,
    /// Elements.
    pub parameters: u64,
    /// Bytes with scales and states.
    pub bytes: u64,
}

/// An adapter at a glance.
#[derive(Clone, Debug, Serialize)]
pub struct AdapterInspection {
    /// Version of the document.
    pub schema_version: u32,
    /// Folder.
    pub path: String,
    /// The program whose way of writing adapters it is in ("PEFT").
    pub writer: String,
    /// Kind, in PEFT's words; "FULL" where all that was trained are parameters under the base's own names.
    pub peft_type: String,
    /// Variants that are switched on ("rslora", "dora").
    pub variants: Vec<String>,
    /// Rank of the configuration, where this kind has one.
    pub r: Option<u64>,
    /// `lora_alpha`, where this kind has one.
    pub lora_alpha: Option<f64>,
    /// Why it cannot be merged; `None` where nothing in its kind stands against it.
    pub refused: Option<Refused>,
    /// Base model it says it was trained on.
    pub base_model: Option<String>,
    /// Tensors.
    pub tensors: usize,
    /// Elements of all tensors.
    pub parameters: u64,
    /// Bytes of all tensors.
    pub bytes: u64,
    /// Adapted modules by last name component.
    pub targets: Vec<TargetGroup>,
    /// What their shapes are called ("shape of A"), where they are of one tensor of each module.
    #[serde(skip)]
    pub shapes_of: Option<&'static str>,
    /// Modules trained whole.
    pub modules_to_save: Vec<String>,
}

/// Adapted modules of one kind.
#[derive(Clone, Debug, Serialize)]
pub struct TargetGroup {
    /// Kind of module.
    pub module: String,
    /// Number of modules.
    pub count: usize,
    /// Shapes of its factors A (for other kinds than LoRA: of each module's first tensor), most common first.
    pub shapes: Vec<Vec<usize>>,
}

/// Why an adapter cannot be merged.
#[derive(Clone, Debug, Serialize)]
pub struct Refused {
    /// The reason.
    pub reason: String,
    /// What can be done.
    pub remedy: Option<String>,
}

/// A calibration at a glance.
#[derive(Clone, Debug, Serialize)]
pub struct CalibrationInspection {
    /// Version of the document.
    pub schema_version: u32,
    /// File.
    pub path: String,
    /// Model, adapter and text that it was taken from, in words.
    pub taken_from: String,
    /// Layers.
    pub layers: usize,
    /// Distinct inputs, each with its second moments.
    pub inputs: usize,
    /// Weights that take them.
    pub weights: usize,
    /// Bytes of all moments.
    pub bytes: u64,
}

/// Opens and describes a model, an adapter or a calibration.
///
/// ```
/// # fn main() -> qmerge::error::Result<()> {
/// use qmerge::inspect::{Inspection, inspect};
///
/// let Inspection::Model(model) = inspect("testdata/tiny-llama/bases/base-int8".as_ref())? else { panic!("a model") };
/// assert_eq!((model.model_type.as_str(), model.format.contains("int8")), ("llama", true));
/// # Ok(()) }
/// ```
pub fn inspect(location: &Path) -> Result<Inspection> {
    let path = open::resolve(location)?;
    if path.is_dir() {
        return inspect_in(Arc::new(LocalFolder::new(path)), None);
    }
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    inspect_in(Arc::new(LocalFolder::of_file(&path)), Some(&name))
}

/// [`inspect`] of the folder that a store is, or of one file in it.
pub fn inspect_in(store: Arc<dyn Store>, file: Option<&str>) -> Result<Inspection> {
    if Adapter::is_one(&store, file) {
        let adapter = match file {
            None => Adapter::open_in(store, 1.0),
            Some(file) => Adapter::open_file_in(store, file, 1.0),
        };
        return Ok(Inspection::Adapter(of_adapter(&adapter?)));
    }
    if let Some(file) = file.filter(|file| file.ends_with(".safetensors"))
        && let Some(found) = calibration(&store, file)?
    {
        return Ok(Inspection::Calibration(found));
    }
    let path = file.map_or_else(|| store.path().to_path_buf(), |file| store.path_of(file));
    let checkpoint = match file {
        None => Checkpoint::open_in(store),
        Some(file) => Checkpoint::open_file_in(store, file),
    };
    of_model(&checkpoint?, &path).map(Inspection::Model)
}

fn calibration(store: &Arc<dyn Store>, file: &str) -> Result<Option<CalibrationInspection>> {
    let path = store.path_of(file);
    let file = Checkpoint::open_container(Arc::clone(store), file)?;
    Ok(StoredCalibration::about(&file).map(|about| CalibrationInspection {
        schema_version: SCHEMA_VERSION,
        path: path.display().to_string(),
        taken_from: about.taken_from,
        layers: about.layers,
        inputs: about.inputs,
        weights: about.weights,
        bytes: file.total_bytes(),
    }))
}

/// Why a model cannot be run, to calibrate and measure merges of it; `None` where it can.
pub fn not_run(checkpoint: &Checkpoint) -> Option<String> {
    match formats::survey(checkpoint) {
        Ok(Ok(inventory)) => not_run_with(checkpoint, Some(&inventory.weights)),
        Ok(Err(_)) => not_run_with(checkpoint, None),
        Err(error) => Some(error.message().to_owned()),
    }
}

/// The same, where it is known how the weights are stored, or that it is not.
fn not_run_with(checkpoint: &Checkpoint, weights: Option<&[Claim]>) -> Option<String> {
    let Some(config) = &checkpoint.config else { return Some("there is no config.json".into()) };
    let fits = || {
        let weights = weights?;
        fits::refuse_mlx(checkpoint, weights).and_then(|()| fits::check(checkpoint, weights)).err()
    };
    let error = arch::spec_of(config).err().or_else(fits)?;
    Some(match error.tensor() {
        Some(tensor) => format!("`{tensor}`: {}", error.message()),
        None => error.message().to_owned(),
    })
}

fn of_model(checkpoint: &Checkpoint, path: &Path) -> Result<ModelInspection> {
    let (merged_by_qmerge, converted_by_qmerge) = made_by(checkpoint)?;
    let mut found = ModelInspection {
        schema_version: SCHEMA_VERSION,
        path: path.display().to_string(),
        model_type: checkpoint.config.as_ref().map_or(String::new(), |config| config.model_type().to_owned()),
        format: String::new(),
        files: checkpoint.files.len(),
        tensors: checkpoint.entries.len(),
        parameters: None,
        bytes: checkpoint.total_bytes(),
        tied: checkpoint.config.as_ref().and_then(open::ModelConfig::tied).unwrap_or(false),
        groups: Vec::new(),
        opaque: Vec::new(),
        unsupported: None,
        not_run: None,
        merged_by_qmerge,
        converted_by_qmerge,
    };
    match formats::survey(checkpoint)? {
        Ok(inventory) => {
            let names = crate::adapters::Names::new(checkpoint, &inventory.weights, &[])?;
            let groups = groups(&inventory);
            found.tied = names.is_tied();
            found.not_run = not_run_with(checkpoint, Some(&inventory.weights));
            found.format = formats::in_words(&inventory);
            found.parameters = Some(groups.iter().map(|group| group.parameters).sum());
            let name = |&at: &usize| checkpoint.entries.get(at).map(|entry| entry.name.clone());
            found.opaque = inventory.opaque.iter().filter_map(name).collect();
            found.groups = groups;
        }
        Err(unsupported) => {
            found.format.clone_from(&unsupported.format);
            found.unsupported = Some(unsupported);
            found.not_run = not_run_with(checkpoint, None);
        }
    }
    Ok(found)
}

/// Whether a report beside the weights says that an adapter was merged into them, and whether it says that they were converted.
fn made_by(checkpoint: &Checkpoint) -> Result<(bool, bool)> {
    let name = name_of(checkpoint);
    let Some(text) = open::small_text(&*checkpoint.store, &name, open::MAX_REPORT)? else {
        return Ok((false, false));
    };
    let report = open::json::parse(&text).map_err(|error| {
        crate::error::malformed(format!("not a report of qmerge: {error}")).in_file(&checkpoint.store.path_of(&name))
    })?;
    let adapters = report.get("adapters").and_then(serde_json::Value::as_array);
    Ok(adapters.map_or((false, false), |adapters| (!adapters.is_empty(), adapters.is_empty())))
}

fn groups(inventory: &formats::Inventory) -> Vec<Group> {
    // By kind of module, format and settings: shapes, parameters, bytes.
    type Totals = (Vec<Vec<usize>>, u64, u64);
    let mut groups: BTreeMap<(String, &str, String), Totals> = BTreeMap::new();
    for claim in &inventory.weights {
        let weight = &claim.weight;
        let key = (kind(weight.name()), weight.format(), weight.details());
        let (shapes, parameters, bytes) = groups.entry(key).or_default();
        shapes.push(weight.shape().to_vec());
        *parameters += weight.geometry().elements() as u64;
        *bytes += claim.entries.iter().map(|entry| entry.bytes).sum::<u64>();
    }
    let mut groups: Vec<Group> = groups
        .into_iter()
        .map(|((module, format, details), (shapes, parameters, bytes))| Group {
            module,
            format: format.to_owned(),
            details,
            count: shapes.len(),
            shapes: by_frequency(shapes),
            parameters,
            bytes,
        })
        .collect();
    groups.sort_by(|a, b| b.bytes.cmp(&a.bytes).then_with(|| a.module.cmp(&b.module)));
    groups
}

fn of_adapter(adapter: &Adapter) -> AdapterInspection {
    let mut targets: BTreeMap<String, Vec<Vec<usize>>> = BTreeMap::new();
    let config = &adapter.config;
    let mut seen = HashSet::new();
    for entry in &adapter.tensors.entries {
        if let Some(module) = adapter.lists(&entry.name).filter(|module| seen.insert(module.clone())) {
            targets.entry(kind(&module)).or_default().push(entry.shape.clone());
        }
    }
    let variants = [
        ("rslora", config.is_set("use_rslora")),
        ("dora", config.is_set("use_dora")),
        ("lora_bias", config.is_set("lora_bias")),
        ("rank_pattern", config.is_set("rank_pattern")),
        ("alpha_pattern", config.is_set("alpha_pattern")),
        ("target_parameters", !config.target_parameters.is_empty()),
        ("trained tokens", config.is_set("trainable_token_indices")),
        ("bd-lora", config.is_set("use_bdlora")),
    ];
    let mut variants: Vec<String> =
        variants.into_iter().filter(|(_, on)| *on).map(|(name, _)| name.to_owned()).collect();
    let init = config.json.get("init_lora_weights").and_then(serde_json::Value::as_str);
    variants.extend(init.map(|init| format!("init {init}")));
    // What the file leaves out has PEFT's default, in the kind that has the field.
    let number =
        |key: &str| config.json.get(key).and_then(serde_json::Value::as_f64).or_else(|| adapter.default_rank());
    AdapterInspection {
        schema_version: SCHEMA_VERSION,
        path: adapter.path.display().to_string(),
        writer: adapter.writer.to_owned(),
        peft_type: config.peft_type.clone(),
        variants,
        r: number("r").map(|r| r as u64),
        lora_alpha: number("lora_alpha"),
        refused: adapter
            .refusal()
            .map(|error| Refused { reason: error.message().to_owned(), remedy: error.hint().map(str::to_owned) }),
        base_model: config.base_model.clone(),
        tensors: adapter.tensors.entries.len(),
        parameters: adapter.tensors.entries.iter().map(open::Entry::elements).sum(),
        bytes: adapter.tensors.total_bytes(),
        targets: targets
            .into_iter()
            .map(|(module, shapes)| TargetGroup { module, count: shapes.len(), shapes: by_frequency(shapes) })
            .collect(),
        shapes_of: adapter.listed_as(),
        modules_to_save: config.modules_to_save.clone(),
    }
}

/// The last name component that says what a weight is: its module's for `….weight`, else the parameter's.
fn kind(name: &str) -> String {
    let stem = name.strip_suffix(".weight").unwrap_or(name);
    let last = stem.rsplit('.').next().unwrap_or(stem);
    match last {
        "bias" => stem.rsplit('.').take(2).collect::<Vec<_>>().into_iter().rev().collect::<Vec<_>>().join("."),
        _ => last.to_owned(),
    }
}

fn by_frequency(shapes: Vec<Vec<usize>>) -> Vec<Vec<usize>> {
    let mut counts: BTreeMap<Vec<usize>, usize> = BTreeMap::new();
    for shape in shapes {
        *counts.entry(shape).or_default() += 1;
    }
    let mut shapes: Vec<_> = counts.into_iter().collect();
    shapes.sort_by_key(|(_, count)| std::cmp::Reverse(*count));
    shapes.into_iter().map(|(shape, _)| shape).collect()
}
