//! An adapter's folder: its weights, its configuration, and what lies beside them.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::config::parse as parse_config;
use super::keys::{self, Role};
use super::{ADAPTERS, AdapterConfig, Changes, Layers, LeftOut, Names, PeftMethod, ReadOptions, beside, read, refused};
use crate::dtype::Dtype;
use crate::error::{Error, Kind, Result, malformed, usage};
use crate::open::local::LocalFolder;
use crate::open::{self, Checkpoint, Item, Store, model_order};

/// An opened adapter.
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
    /// Its method with its configuration; none if it is of a kind that cannot be merged.
    method: Option<(&'static dyn PeftMethod, Box<dyn Layers>)>,
}

impl std::fmt::Debug for Adapter {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Adapter").field("path", &self.path).field("weight", &self.weight).finish_non_exhaustive()
    }
}

const CONFIG_FILE: &str = "adapter_config.json";

/// Weight files of an adapter folder, in the order of preference.
const WEIGHT_FILES: &[&str] = &["adapter_model.safetensors", "adapter_model.bin"];

impl Adapter {
    /// Opens a folder (or one of its weight files, or a hub id in the local cache). `weight` is a factor on what it does.
    ///
    /// ```
    /// # fn main() -> qmerge::error::Result<()> {
    /// use qmerge::adapters::Adapter;
    ///
    /// let half = Adapter::open("testdata/tiny-llama/adapters/plain".as_ref(), 0.5)?;
    /// assert_eq!(half.config.peft_type, "LORA");
    /// # Ok(()) }
    /// ```
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
        let method = ADAPTERS.iter().find(|method| method.peft_type() == config.peft_type);
        let configured = method.map(|method| Ok((*method, method.configure(&config)?))).transpose();
        let method = configured.map_err(|error: Error| error.in_file(&config.path))?;
        let beside = beside::look(&*store, file)?;
        let files: Vec<&str> = std::iter::once(file).chain(beside.merged.iter().map(String::as_str)).collect();
        let tensors = Checkpoint::open_weights_in(store.clone(), &files)?;
        if tensors.entries.is_empty() {
            return Err(malformed("the adapter holds no tensors").in_file(&store.path_of(file)));
        }
        Ok(Self { path: store.path().to_path_buf(), weight, config, tensors, left_out: beside.left_out, method })
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
        self.method.is_none().then(|| refused::by_type(&self.config.peft_type).in_file(&self.config.path))
    }

    /// Its weight file.
    pub fn file(&self) -> &Path {
        self.tensors.files.first().map_or(self.path.as_path(), |file| file.path())
    }

    /// Modules whose change is zero, as it is before training, since the factors that begin at zero still are; in the model's order, and beside them the number
    /// of all modules that have such factors.
    pub fn untrained(&self) -> (Vec<String>, usize) {
        let zero_at_first = self.method.as_ref().map_or(&[][..], |(_, layers)| layers.zero_at_first());
        let mut modules: BTreeMap<String, bool> = BTreeMap::new();
        for entry in &self.tensors.entries {
            let key = keys::parse(&entry.name);
            if matches!(key.role, Role::Own(marker, _) if zero_at_first.contains(&marker)) {
                *modules.entry(key.module).or_insert(true) &= self.is_zero(entry);
            }
        }
        let number = modules.len();
        let mut untrained: Vec<String> =
            modules.into_iter().filter(|(_, zero)| *zero).map(|(module, _)| module).collect();
        untrained.sort_by(|a, b| model_order(a, b));
        (untrained, number)
    }

    /// Tensors that are no part of its method: modules trained whole, biases of the base, tokens.
    pub(crate) fn others(&self) -> impl Iterator<Item = &open::Entry> {
        self.tensors
            .entries
            .iter()
            .filter(|entry| matches!(keys::parse(&entry.name).role, Role::Tokens | Role::Parameter(_)))
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
        let (method, layers) =
            self.method.as_ref().ok_or_else(|| refused::by_type(&self.config.peft_type).in_file(&self.config.path))?;
        layers.refuse(options, self.weight).map_err(|error| error.in_file(&self.config.path))?;
        let mut changes =
            read::read(self, *method, layers.as_ref(), names, options).map_err(|error| error.in_file(self.file()))?;
        changes.refuse_twice().map_err(|error| error.in_file(self.file()))?;
        changes.account(&self.tensors);
        Ok(changes)
    }
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

/// Reads a whole adapter tensor of numbers from 0 on. PEFT on Windows stores them as floats.
pub(super) fn read_integers(tensors: &Checkpoint, name: &str) -> Result<Vec<u64>> {
    let entry = tensors.get(name).ok_or_else(|| malformed("missing").in_tensor(name))?;
    let wrong = |value: String| {
        tensors.error(entry, Kind::Malformed, format!("holds {value}, expected whole numbers from 0 on"))
    };
    if entry.dtype.is_plain_float() {
        let whole = |value: &f32| value.fract() == 0.0 && *value >= 0.0;
        let values = read_floats(tensors, name)?;
        return match values.iter().find(|value| !whole(value)) {
            Some(value) => Err(wrong(value.to_string())),
            None => Ok(values.into_iter().map(|value| value as u64).collect()),
        };
    }
    let mut bytes = vec![0; entry.bytes as usize];
    tensors.read_at(entry, 0, &mut bytes)?;
    let size = match entry.dtype {
        Dtype::U8 => 1,
        Dtype::I16 => 2,
        Dtype::I32 => 4,
        Dtype::I64 => 8,
        other => {
            return Err(tensors.error(entry, Kind::Unsupported, format!("stored as {other}, expected whole numbers")));
        }
    };
    let number = |bytes: &[u8]| {
        let negative = size > 1 && bytes.last().is_some_and(|byte| byte & 0x80 != 0);
        let value = bytes.iter().rev().fold(0, |value, byte| value << 8 | u64::from(*byte));
        if negative { Err(wrong("a negative number".into())) } else { Ok(value) }
    };
    bytes.chunks_exact(size).map(number).collect()
}
