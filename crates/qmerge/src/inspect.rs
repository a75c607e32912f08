//! What is in a checkpoint or an adapter, without reading its numbers.

use std::collections::BTreeMap;
use std::path::Path;

use serde::Serialize;

use crate::adapters::Adapter;
use crate::error::Result;
use crate::formats;
use crate::open::{self, Checkpoint};
use crate::report::{FILE_NAME, SCHEMA_VERSION};

/// What was found.
#[derive(Clone, Debug, Serialize)]
#[serde(tag = "kind", rename_all = "lowercase")]
pub enum Inspection {
    /// A model.
    Model(ModelInspection),
    /// An adapter.
    Adapter(AdapterInspection),
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
    /// Logical parameters.
    pub parameters: u64,
    /// Bytes of all tensors.
    pub bytes: u64,
    /// True if the output embedding is the input embedding.
    pub tied: bool,
    /// By format and kind of module.
    pub groups: Vec<Group>,
    /// Tensors of types that are only ever copied.
    pub opaque: Vec<String>,
    /// True if a merge report lies beside the weights.
    pub merged_by_qmerge: bool,
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
    /// Kind.
    pub peft_type: String,
    /// Variants that are switched on ("rslora", "dora").
    pub variants: Vec<String>,
    /// Rank of the configuration.
    pub r: u64,
    /// `lora_alpha`.
    pub lora_alpha: f64,
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
    /// Shapes of its first factors, most common first.
    pub shapes: Vec<Vec<usize>>,
}

/// Opens and describes a model or an adapter.
pub fn inspect(location: &Path) -> Result<Inspection> {
    let path = open::resolve(location)?;
    let is_adapter = path.join("adapter_config.json").is_file()
        || path.is_file() && path.file_name().is_some_and(|name| name.to_string_lossy().starts_with("adapter_model"));
    if is_adapter { adapter(&path).map(Inspection::Adapter) } else { model(&path).map(Inspection::Model) }
}

fn model(path: &Path) -> Result<ModelInspection> {
    let checkpoint = Checkpoint::open(path)?;
    let inventory = formats::inventory(&checkpoint)?;
    let names = crate::adapters::Names::new(&checkpoint, &inventory.weights, &[])?;
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
    Ok(ModelInspection {
        schema_version: SCHEMA_VERSION,
        path: path.display().to_string(),
        model_type: checkpoint.config.as_ref().map_or(String::new(), |config| config.model_type().to_owned()),
        format: formats::in_words(&inventory),
        files: checkpoint.files.len(),
        tensors: checkpoint.entries.len(),
        parameters: groups.iter().map(|group| group.parameters).sum(),
        bytes: checkpoint.total_bytes(),
        tied: names.is_tied(),
        opaque: inventory.opaque.iter().map(|&at| checkpoint.entries[at].name.clone()).collect(),
        groups,
        merged_by_qmerge: checkpoint.folder().join(FILE_NAME).is_file(),
    })
}

fn adapter(path: &Path) -> Result<AdapterInspection> {
    let adapter = Adapter::open(path, 1.0)?;
    let mut targets: BTreeMap<String, Vec<Vec<usize>>> = BTreeMap::new();
    for entry in &adapter.tensors.entries {
        if let Some((module, _)) =
            entry.name.split_once(".lora_A").or_else(|| entry.name.split_once(".lora_embedding_A"))
        {
            targets
                .entry(module.rsplit('.').next().unwrap_or(module).to_owned())
                .or_default()
                .push(entry.shape.clone());
        }
    }
    let config = &adapter.config;
    let variants = [
        ("rslora", config.use_rslora),
        ("dora", config.use_dora),
        ("lora_bias", config.lora_bias),
        ("rank_pattern", !config.rank_pattern.is_empty()),
        ("alpha_pattern", !config.alpha_pattern.is_empty()),
        ("target_parameters", !config.target_parameters.is_empty()),
        ("trained tokens", config.is_set("trainable_token_indices")),
        ("bd-lora", config.is_set("use_bdlora")),
    ];
    let mut variants: Vec<String> =
        variants.into_iter().filter(|(_, on)| *on).map(|(name, _)| name.to_owned()).collect();
    variants.extend(config.init.as_ref().map(|init| format!("init {init}")));
    Ok(AdapterInspection {
        schema_version: SCHEMA_VERSION,
        path: adapter.path.display().to_string(),
        peft_type: config.peft_type.clone(),
        variants,
        r: config.r,
        lora_alpha: config.lora_alpha,
        base_model: config.base_model.clone(),
        tensors: adapter.tensors.entries.len(),
        parameters: adapter.tensors.entries.iter().map(open::Entry::elements).sum(),
        bytes: adapter.tensors.total_bytes(),
        targets: targets
            .into_iter()
            .map(|(module, shapes)| TargetGroup { module, count: shapes.len(), shapes: by_frequency(shapes) })
            .collect(),
        modules_to_save: config.modules_to_save.clone(),
    })
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
