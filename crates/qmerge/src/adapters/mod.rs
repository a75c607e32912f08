//! Adapters: what an adapter folder means, as edits of named weights.
//!
//! One file per kind of adapter and one line in [`ADAPTERS`]. A kind reads the names and shapes of an adapter's tensors and
//! plans edits ([`EditPlan`]); numbers are read later, one weight at a time. Every tensor of the adapter must end up in one of
//! four places: merged, replaced, ignored for a stated reason, or unused, which is an error unless allowed. The reference for
//! the meaning of a file is PEFT 0.21; where its merge contradicts its own forward pass, the forward pass wins.

// An adapter's file is hostile: nothing here may panic on it.
#![cfg_attr(not(test), deny(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing, clippy::panic))]

pub(crate) mod base_names;
mod beside;
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
mod whole;

use std::collections::{BTreeMap, HashMap};
use std::fmt::Debug;
use std::path::{Path, PathBuf};
use std::sync::Arc;

pub use beside::{LeftOut, MERGED as MERGED_BESIDE};
pub use config::{AdapterConfig, Task};
pub(crate) use factors::{Pair, Parts, linear_module};
use keys::Role;
pub(crate) use keys::as_peft_writes;
pub use names::{Names, Rename};
pub use patterns::Patterns;

use crate::edit::Edit;
use crate::error::{Error, Kind, Result, malformed, mismatch, usage};
use crate::open::local::LocalFolder;
use crate::open::{self, Checkpoint, Item, Store, model_order};

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
    /// Its tensors: those of its weight file, and behind them those of files beside it that are merged too.
    pub tensors: Checkpoint,
    /// Tensor files beside it that are not merged.
    pub left_out: Vec<LeftOut>,
}

/// Weight files of an adapter folder, in the order of preference.
const WEIGHT_FILES: &[&str] = &["adapter_model.safetensors", "adapter_model.bin"];

const CONFIG_FILE: &str = "adapter_config.json";

impl Adapter {
    /// Opens a folder (or one of its weight files, or a hub id in the local cache).
    pub fn open(location: &Path, weight: f64) -> Result<Self> {
        if !weight.is_finite() {
            return Err(usage(format!("adapter weight {weight} is not a number")).in_file(location));
        }
        let path = open::resolve(location)?;
        if path.is_dir() {
            return Self::open_in(Arc::new(LocalFolder::new(path)), weight);
        }
        let file = path.file_name().unwrap_or_default().to_string_lossy();
        Self::of_file(Arc::new(LocalFolder::of_file(&path)), Some(&file), weight)
    }

    /// Opens the adapter that a store is the folder of.
    pub fn open_in(store: Arc<dyn Store>, weight: f64) -> Result<Self> {
        Self::of_file(store, None, weight)
    }

    fn of_file(store: Arc<dyn Store>, file: Option<&str>, weight: f64) -> Result<Self> {
        open::foreign::refuse_as_adapter(&store, file)?;
        let file = match file {
            Some(file) => file,
            None => WEIGHT_FILES.iter().find(|name| store.has(name)).ok_or_else(|| Self::no_weights(&*store))?,
        };
        let Some(config) = open::small_text(&*store, CONFIG_FILE, open::MAX_CONFIG)? else {
            return Err(Error::new(
                Kind::Malformed,
                "no adapter_config.json beside the weights: the scaling is unknown",
            )
            .in_file(store.path())
            .with_hint("copy adapter_config.json from where the adapter was trained"));
        };
        let path = store.path_of(CONFIG_FILE);
        let config = parse_config(&config, &path).map_err(|error| error.in_file(&path))?;
        let beside = beside::look(&*store, file)?;
        let files: Vec<&str> = std::iter::once(file).chain(beside.merged.iter().map(String::as_str)).collect();
        let tensors = Checkpoint::open_weights_in(store.clone(), &files)?;
        if tensors.entries.is_empty() {
            return Err(malformed("the adapter holds no tensors").in_file(&store.path_of(file)));
        }
        Ok(Self { path: store.path().to_path_buf(), weight, config, tensors, left_out: beside.left_out })
    }

    fn no_weights(store: &dyn Store) -> Error {
        let holds_one = |item: &Item| store.has(&format!("{}/{CONFIG_FILE}", item.name));
        let items = store.list("").unwrap_or_default().into_iter().filter(holds_one);
        let nested: Vec<String> = items.map(|item| store.path_of(&item.name).display().to_string()).collect();
        let error =
            malformed(format!("no {} in this folder: not an adapter", WEIGHT_FILES.join(" or "))).in_file(store.path());
        match &nested[..] {
            [] => error.with_hint("pass the folder that PEFT's save_pretrained wrote"),
            _ => error.with_hint(format!("the adapters are in {}", nested.join(", "))),
        }
    }

    /// Why adapters of this kind are not merged; `None` where they are.
    pub fn refusal(&self) -> Option<Error> {
        let known = ADAPTERS.iter().any(|method| method.peft_type() == self.config.peft_type);
        (!known).then(|| refused::by_type(&self.config.peft_type).in_file(&self.config.path))
    }

    /// Its weight file.
    pub fn file(&self) -> &Path {
        self.tensors.files.first().map_or(self.path.as_path(), |file| file.path())
    }

    /// Modules of an ordinary LoRA whose B factor is all zero, as it is before training, so that their delta is zero too; in the model's order, and beside
    /// them the number of all its modules. Of DoRA it names none.
    pub fn untrained(&self) -> (Vec<String>, usize) {
        let mut modules: BTreeMap<String, bool> = BTreeMap::new();
        for entry in &self.tensors.entries {
            let key = keys::parse(&entry.name);
            if matches!(key.role, Role::B | Role::BiasB | Role::EmbeddingB) {
                *modules.entry(key.module).or_insert(true) &= self.is_zero(entry);
            }
        }
        let number = modules.len();
        let mut untrained: Vec<String> =
            modules.into_iter().filter(|(_, zero)| *zero && !self.config.use_dora).map(|(module, _)| module).collect();
        untrained.sort_by(|a, b| model_order(a, b));
        (untrained, number)
    }

    /// True if all values of a tensor are zero. One that cannot be read is for the merge to explain.
    fn is_zero(&self, entry: &open::Entry) -> bool {
        // The start tells nearly always that it is not. A zero's bytes are 0, or 0x80 where its sign is.
        let mut start = vec![0; entry.bytes.min(4096) as usize];
        self.tensors.read_at(entry, 0, &mut start).is_ok()
            && start.iter().all(|byte| byte & 0x7f == 0)
            && read_floats(&self.tensors, &entry.name).is_ok_and(|values| values.iter().all(|value| *value == 0.0))
    }

    /// Plans this adapter's edits of a base.
    pub fn read(&self, names: &Names<'_>, options: &ReadOptions) -> Result<Changes> {
        let peft_type = &self.config.peft_type;
        let method = ADAPTERS
            .iter()
            .find(|method| method.peft_type() == peft_type)
            .ok_or_else(|| refused::by_type(peft_type).in_file(&self.config.path))?;
        let mut changes = method.read(self, names, options).map_err(|error| error.in_file(self.file()))?;
        changes.refuse_twice().map_err(|error| error.in_file(self.file()))?;
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
    /// Tensors that the base has none of: the head of a classifier.
    pub additions: Vec<Addition>,
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

/// A tensor of the adapter that is new to the base.
#[derive(Clone, Debug)]
pub struct Addition {
    /// Its name in the output.
    pub target: String,
    /// Name in the adapter.
    pub tensor: String,
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

    /// Where in the weight it acts, if beside others of the same adapter: one expert's rows of a stack.
    fn part(&self) -> Option<(usize, usize)> {
        None
    }

    /// A plain type that the edited tensor must be stored as, instead of its own.
    fn stores_as(&self) -> Option<crate::dtype::Dtype> {
        None
    }
}

impl Changes {
    /// Errors if two modules of the adapter ended in one weight: each was trained on its own, so one of them was named wrongly.
    fn refuse_twice(&self) -> Result<()> {
        let mut taken = HashMap::new();
        for edit in &self.edits {
            let (target, Some(tensor)) = (edit.target.as_str(), edit.tensors.first()) else { continue };
            if let Some(other) = taken.insert((target, edit.plan.part()), tensor.as_str())
                && keys::parse(other).module != keys::parse(tensor).module
            {
                return Err(twice(target, other, tensor));
            }
        }
        let mut replaced: HashMap<&str, &str> = HashMap::new();
        let whole = self.replacements.iter().map(|replacement| (&replacement.target, &replacement.tensor));
        let added = self.additions.iter().map(|addition| (&addition.target, &addition.tensor));
        for (target, tensor) in whole.chain(added) {
            if let Some(other) = replaced.insert(target, tensor) {
                return Err(twice(target, other, tensor));
            }
        }
        Ok(())
    }

    /// True if it is nothing but products of factors: no module trained whole, no trained tokens.
    pub(crate) fn is_low_rank_only(&self) -> bool {
        self.additions.is_empty()
            && self.replacements.iter().all(|replacement| !replacement.trained)
            && self.edits.iter().all(|edit| edit.plan.scale().is_some())
    }

    /// Collects the tensors that no one took.
    fn account(&mut self, tensors: &Checkpoint) {
        let mut used: std::collections::HashSet<&str> = std::collections::HashSet::new();
        used.extend(self.edits.iter().flat_map(|edit| edit.tensors.iter().map(String::as_str)));
        used.extend(self.replacements.iter().map(|replacement| replacement.tensor.as_str()));
        used.extend(self.additions.iter().map(|addition| addition.tensor.as_str()));
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

fn twice(target: &str, one: &str, two: &str) -> Error {
    mismatch(format!("it and `{one}` both mean `{target}` of the base"))
        .in_tensor(two)
        .with_hint("say with --map 'regex=>replacement' what each of them means, or take one out of the adapter")
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
