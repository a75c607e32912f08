//! Adapters: what an adapter folder means, as edits of named weights.
//!
//! One file per kind of adapter and one line in [`ADAPTERS`]. A kind reads the names and shapes of an adapter's tensors and
//! plans edits ([`EditPlan`]); numbers are read later, one weight at a time. Every tensor of the adapter must end up in one of
//! four places: merged, replaced, ignored for a stated reason, or unused, which is an error unless allowed. The reference for
//! the meaning of a file is PEFT 0.21; where its merge contradicts its own forward pass, the forward pass wins.

mod config;
mod dora;
mod experts;
mod factors;
mod keys;
mod lora;
mod low_rank;
mod names;
mod patterns;
mod refused;
mod tokens;

use std::fmt::Debug;
use std::path::{Path, PathBuf};
use std::sync::Arc;

pub use config::AdapterConfig;
pub(crate) use factors::{Pair, Parts, linear_module};
pub(crate) use keys::as_peft_writes;
pub use names::{Names, Rename};
pub use patterns::Patterns;

use crate::edit::Edit;
use crate::error::{Error, Kind, Result, malformed, usage};
use crate::open::{self, Checkpoint};

#[cfg(feature = "internals")]
pub(crate) use config::parse as parse_config;

/// Every kind of adapter that can be merged.
pub static ADAPTERS: &[&dyn Method] = &[&lora::Lora, &tokens::TrainableTokens];

/// One kind of adapter.
pub trait Method: Sync {
    /// `peft_type` in `adapter_config.json`.
    fn peft_type(&self) -> &'static str;

    /// Plans the edits. Looks at names, shapes and the configuration only.
    fn read(&self, adapter: &Adapter, names: &Names<'_>, options: &ReadOptions) -> Result<Changes>;
}

/// Choices that change what an adapter means.
#[derive(Clone, Debug, Default)]
pub struct ReadOptions {
    /// The base already holds the residual weights that a PiSSA, OLoRA, CorDA or LoftQ initialisation left.
    pub base_is_residual: bool,
    /// Reproduce what PEFT writes where that contradicts its own forward pass.
    pub peft_bugs: bool,
}

/// An opened adapter.
#[derive(Debug)]
pub struct Adapter {
    /// The folder.
    pub path: PathBuf,
    /// Factor on its effect.
    pub weight: f64,
    /// `adapter_config.json`.
    pub config: AdapterConfig,
    /// Its tensors.
    pub tensors: Checkpoint,
}

/// Weight files of an adapter folder, in the order of preference.
const WEIGHT_FILES: &[&str] = &["adapter_model.safetensors", "adapter_model.bin"];

impl Adapter {
    /// Opens a folder (or one of its weight files, or a hub id in the local cache).
    pub fn open(location: &Path, weight: f64) -> Result<Self> {
        if !weight.is_finite() {
            return Err(usage(format!("adapter weight {weight} is not a number")).in_file(location));
        }
        let path = open::resolve(location)?;
        let (folder, file) = if path.is_dir() {
            let file = WEIGHT_FILES.iter().map(|name| path.join(name)).find(|file| file.is_file());
            (path.clone(), file.ok_or_else(|| Self::no_weights(&path))?)
        } else {
            (path.parent().unwrap_or(Path::new(".")).to_path_buf(), path.clone())
        };
        let config = folder.join("adapter_config.json");
        if !config.is_file() {
            return Err(Error::new(
                Kind::Malformed,
                "no adapter_config.json beside the weights: the scaling is unknown",
            )
            .in_file(&folder)
            .with_hint("copy adapter_config.json from where the adapter was trained"));
        }
        let config = AdapterConfig::read(&config)?;
        let tensors = Checkpoint::open_weights(&file)?;
        if tensors.entries.is_empty() {
            return Err(malformed("the adapter holds no tensors").in_file(&file));
        }
        Ok(Self { path: folder, weight, config, tensors })
    }

    fn no_weights(folder: &Path) -> Error {
        let nested: Vec<String> = std::fs::read_dir(folder)
            .into_iter()
            .flatten()
            .filter_map(|item| {
                let path = item.ok()?.path();
                path.join("adapter_config.json").is_file().then(|| path.display().to_string())
            })
            .collect();
        let error =
            malformed(format!("no {} in this folder: not an adapter", WEIGHT_FILES.join(" or "))).in_file(folder);
        match &nested[..] {
            [] => error.with_hint("pass the folder that PEFT's save_pretrained wrote"),
            _ => error.with_hint(format!("the adapters are in {}", nested.join(", "))),
        }
    }

    /// Plans this adapter's edits of a base.
    pub fn read(&self, names: &Names<'_>, options: &ReadOptions) -> Result<Changes> {
        let peft_type = &self.config.peft_type;
        let method = ADAPTERS
            .iter()
            .find(|method| method.peft_type() == peft_type)
            .ok_or_else(|| refused::by_type(peft_type).in_file(&self.config.path))?;
        let mut changes =
            method.read(self, names, options).map_err(|error| error.in_file(&self.tensors.files[0].path))?;
        changes.account(&self.tensors);
        Ok(changes)
    }
}

/// What an adapter does to a base, decided from names and shapes.
#[derive(Debug, Default)]
pub struct Changes {
    /// Edits of weights that exist in the base (or will: a head that parts from its embedding).
    pub edits: Vec<PlannedEdit>,
    /// Tensors that take the place of the base's.
    pub replacements: Vec<Replacement>,
    /// Tensors that need not be merged, each with the reason.
    pub ignored: Vec<(String, &'static str)>,
    /// Tensors that matched nothing.
    pub unused: Vec<String>,
    /// What the user should know.
    pub warnings: Vec<String>,
}

/// One edit of one weight.
#[derive(Clone, Debug)]
pub struct PlannedEdit {
    /// Name of the weight's lead entry in the base.
    pub target: String,
    /// The edit.
    pub plan: Arc<dyn EditPlan>,
    /// Adapter tensors it takes.
    pub tensors: Vec<String>,
}

/// A tensor of the adapter that replaces one of the base.
#[derive(Clone, Debug)]
pub struct Replacement {
    /// Name in the base.
    pub target: String,
    /// Name in the adapter.
    pub tensor: String,
    /// True if the user trained this copy (`modules_to_save`, biases); false if it only came along (the base's own tensor of an
    /// edited or resized embedding).
    pub trained: bool,
}

/// An edit before its numbers are read.
pub trait EditPlan: Debug + Send + Sync {
    /// Reads the factors. Every value is checked to be finite.
    fn load(&self, tensors: &Checkpoint) -> Result<Edit>;

    /// Bytes that the loaded edit holds.
    fn memory(&self) -> u64;

    /// True if the edit is a sum, so that merged values keep f32; a map's result takes the base's type, as in PEFT.
    fn is_additive(&self) -> bool {
        true
    }

    /// The factor on the adapter's product, where there is one.
    fn scale(&self) -> Option<f64> {
        None
    }

    /// True if the loaded edit needs sums over the whole weight before it can be applied.
    fn needs_survey(&self) -> bool {
        false
    }

    /// Rows and columns of the stored matrix that it fits, where it fits only one shape.
    fn shape(&self) -> Option<(usize, usize)> {
        None
    }

    /// A plain type that the edited tensor must be stored as, instead of its own.
    fn stores_as(&self) -> Option<crate::dtype::Dtype> {
        None
    }
}

impl Changes {
    /// Collects the tensors that no one took.
    fn account(&mut self, tensors: &Checkpoint) {
        let mut used: std::collections::HashSet<&str> = std::collections::HashSet::new();
        used.extend(self.edits.iter().flat_map(|edit| edit.tensors.iter().map(String::as_str)));
        used.extend(self.replacements.iter().map(|replacement| replacement.tensor.as_str()));
        used.extend(self.ignored.iter().map(|(name, _)| name.as_str()));
        self.unused = tensors
            .entries
            .iter()
            .map(|entry| &entry.name)
            .filter(|name| !used.contains(name.as_str()))
            .cloned()
            .collect();
    }
}

/// Looks a name up in all patterns of a configuration.
#[cfg(feature = "internals")]
pub(crate) fn try_patterns(config: &AdapterConfig, name: &str) {
    let _ = config.rank_pattern.lookup(name);
    let _ = config.alpha_pattern.lookup(name);
}

/// Reads a whole adapter tensor as f32 and checks that it is finite.
pub(crate) fn read_floats(tensors: &Checkpoint, name: &str) -> Result<Vec<f32>> {
    let entry = tensors.get(name).ok_or_else(|| malformed("missing").in_tensor(name))?;
    if !entry.dtype.is_plain_float() {
        return Err(tensors.error(
            entry,
            Kind::Unsupported,
            format!("stored as {}, expected F32, F16 or BF16", entry.dtype),
        ));
    }
    let mut bytes = vec![0; entry.bytes as usize];
    tensors.read_at(entry, 0, &mut bytes)?;
    let mut values = vec![0.0; entry.elements() as usize];
    crate::simd::floats::decode(entry.dtype, &bytes, &mut values);
    crate::check::adapter_tensor(tensors, entry, &values)?;
    Ok(values)
}
