//! An adapter's folder: its weights, its configuration, and what lies beside them.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use serde_json::{Map, Value};

use super::beside::Beside;
use super::dialects::{self, Dialect, Foreign, Stated, Whereabouts};
use super::keys::{self, Key, Role};
use super::{
    ADAPTERS, AdapterConfig, Changes, Layers, LeftOut, Names, PeftMethod, ReadOptions, UNTRAINED, beside, config, read,
    read_floats, refused, tuned,
};
use crate::error::{Error, Kind, Result, malformed, mismatch, unsupported, usage};
use crate::formats::Inventory;
use crate::open::local::LocalFolder;
use crate::open::{self, Checkpoint, Item, Store, model_order};

/// An opened adapter.
pub struct Adapter {
    /// The folder.
    pub path: PathBuf,
    /// Factor on its effect.
    pub weight: f64,
    /// True if the base is a merge that it is taken out of: then a tensor of the base that came along with it is older than what it is taken from.
    pub(crate) is_undone: bool,
    /// `adapter_config.json`; of another program's file, what PEFT would write there.
    pub config: AdapterConfig,
    /// The program whose way of writing adapters it is in ("PEFT").
    pub writer: &'static str,
    /// Its tensors: those of its weight file, and behind them those of files beside it that are merged too.
    pub tensors: Checkpoint,
    /// Tensor files beside it that are not merged.
    pub left_out: Vec<LeftOut>,
    /// Its method with its configuration; none if it is of a kind that cannot be merged.
    pub(super) method: Option<(&'static dyn PeftMethod, Box<dyn Layers>)>,
    /// What tensors are whose names are not PEFT's.
    pub(super) keys: HashMap<String, Key>,
    /// Ranks and factors by module, where the file states them.
    pub(super) stated: HashMap<String, Stated>,
    /// The weights of a model that was trained whole, if it is one.
    pub(super) tuned: Option<Inventory>,
    /// The way in which it is written, where that is not PEFT's.
    pub(super) dialect: Option<&'static dyn Dialect>,
}

impl std::fmt::Debug for Adapter {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Adapter").field("path", &self.path).field("weight", &self.weight).finish_non_exhaustive()
    }
}

pub(super) const CONFIG_FILE: &str = "adapter_config.json";

/// Weight files of an adapter folder, in the order of preference.
const WEIGHT_FILES: &[&str] = &["adapter_model.safetensors", "adapter_model.bin"];

impl Adapter {
    /// Opens a folder (or one of its weight files, or a hub id in the local cache), as PEFT or a program that is known writes it. `weight` is a factor on what
    /// it does.
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

    /// Opens the adapter that is one file of a store.
    pub fn open_file_in(store: Arc<dyn Store>, file: &str, weight: f64) -> Result<Self> {
        Self::of_file(store, Some(file), weight)
    }

    fn of_file(store: Arc<dyn Store>, file: Option<&str>, weight: f64) -> Result<Self> {
        open::foreign::refuse_pointers_in(&*store)?;
        let file = match file {
            Some(file) => file.to_owned(),
            None => weight_file(&store)?.ok_or_else(|| Self::no_weights(&*store))?,
        };
        let config = read_config(&*store)?;
        let tensors = Checkpoint::open_weights_in(store.clone(), &[&file])?;
        if tensors.entries.is_empty() {
            return Err(malformed("the adapter holds no tensors").in_file(&store.path_of(&file)));
        }
        if tensors.gguf.as_ref().is_some_and(|keys| keys.text("general.type") != Some("adapter")) {
            return Err(unsupported("a GGUF file that holds a model or what belongs to one, not an adapter")
                .in_file(&store.path_of(&file)));
        }
        let dialect = Foreign { tensors: &tensors, config: config.as_ref() }.dialect();
        match dialect {
            Some(dialect) => Self::of_dialect(dialect, tensors, config, weight),
            None => Self::of_peft(store, &file, config, weight),
        }
    }

    fn of_peft(store: Arc<dyn Store>, file: &str, config: Option<Map<String, Value>>, weight: f64) -> Result<Self> {
        let Some(config) = config else {
            return Err(Error::new(
                Kind::Malformed,
                "no adapter_config.json beside the weights: the scaling is unknown",
            )
            .in_file(store.path())
            .with_hint("copy adapter_config.json from where the adapter was trained"));
        };
        let path = store.path_of(CONFIG_FILE);
        let config = config::of_json(config, &path).map_err(|error| error.in_file(&path))?;
        let method = configured(&config, ADAPTERS)?;
        let Beside { merged, left_out } = beside::look(&*store, file)?;
        let files: Vec<&str> = std::iter::once(file).chain(merged.iter().map(String::as_str)).collect();
        let tensors = Checkpoint::open_weights_in(store.clone(), &files)?;
        let (keys, stated) = Default::default();
        Ok(Self {
            path: store.path().to_path_buf(),
            weight,
            is_undone: false,
            config,
            writer: "PEFT",
            tensors,
            left_out,
            method,
            tuned: None,
            keys,
            stated,
            dialect: None,
        })
    }

    fn of_dialect(
        dialect: &'static dyn Dialect,
        mut tensors: Checkpoint,
        config: Option<Map<String, Value>>,
        weight: f64,
    ) -> Result<Self> {
        let file = tensors.files.first().map_or(tensors.path.as_path(), |file| file.path()).to_path_buf();
        let at = if config.is_some() { tensors.store.path_of(CONFIG_FILE) } else { file.clone() };
        // What is wrong with a tensor is wrong with the weights.
        let place = |error: Error| if error.tensor().is_some() { error.in_file(&file) } else { error.in_file(&at) };
        let found = dialect.read(&Foreign { tensors: &tensors, config: config.as_ref() }).map_err(place)?;
        for (name, arrangement) in found.arrangements {
            tensors.arrange(&name, arrangement)?;
        }
        let wrong = found.stated.iter().filter(|(_, stated)| stated.rank == 0 || !stated.scale.is_finite());
        if let Some(module) = wrong.map(|(module, _)| module).min() {
            return Err(
                malformed(format!("the factors of `{module}` have no rank, or no finite factor")).in_file(&file)
            );
        }
        let config = config::of_json(found.config, &at).map_err(|error| error.in_file(&at))?;
        let method = configured(&config, &[ADAPTERS, &[&dialects::Whole, &dialects::Added]].concat())?;
        // A file by itself is known by its own name.
        let path = if dialect.is_folder() { tensors.store.path().to_path_buf() } else { file };
        Ok(Self {
            path,
            weight,
            is_undone: false,
            config,
            writer: dialect.writer(),
            tensors,
            left_out: Vec::new(),
            method,
            tuned: None,
            keys: found.keys,
            stated: found.stated,
            dialect: Some(dialect),
        })
    }

    /// True if a folder or file is an adapter, whatever is wrong with it.
    pub(crate) fn is_one(store: &Arc<dyn Store>, file: Option<&str>) -> bool {
        let Some(file) = file else {
            let is_model = store.has("config.json") || store.has("model_index.json");
            return store.has(CONFIG_FILE) || !is_model && weight_file(store).map_or(true, |file| file.is_some());
        };
        file.starts_with("adapter_model") || is_foreign(store, file)
    }

    fn no_weights(store: &dyn Store) -> Error {
        let holds_one = |item: &Item| store.has(&format!("{}/{CONFIG_FILE}", item.name));
        let items = store.list("").unwrap_or_default().into_iter().filter(holds_one);
        let nested: Vec<String> = items.map(|item| store.path_of(&item.name).display().to_string()).collect();
        let error =
            malformed(format!("no {} in this folder: not an adapter", WEIGHT_FILES.join(" or "))).in_file(store.path());
        match &nested[..] {
            [] => error.with_hint("pass the folder that PEFT's save_pretrained wrote, or the file of another program"),
            _ => error.with_hint(format!("the adapters are in {}", nested.join(", "))),
        }
    }

    /// True of a model that was trained whole, which is merged as what it differs from its base by.
    pub fn is_tuned(&self) -> bool {
        self.tuned.is_some()
    }

    /// The weights of a model that was trained whole, if it is one.
    pub(crate) fn tuned_weights(&self) -> Option<&Inventory> {
        self.tuned.as_ref()
    }

    /// Why adapters of this kind are not merged; `None` where they are.
    pub fn refusal(&self) -> Option<Error> {
        (self.method.is_none() && !self.is_tuned())
            .then(|| refused::by_type(&self.config.peft_type).in_file(&self.config.path))
    }

    /// What lies beside its weights and belongs to it, as a tokenizer may; none where the adapter is one file, whose folder says nothing of it.
    pub fn beside(&self) -> Option<&dyn Store> {
        let alone = self.dialect.is_some_and(|dialect| !dialect.is_folder());
        (!alone).then_some(&*self.tensors.store)
    }

    /// Its weight file.
    pub fn file(&self) -> &Path {
        self.tensors.files.first().map_or(self.path.as_path(), |file| file.path())
    }

    /// What a tensor is.
    pub(super) fn key(&self, name: &str) -> Key {
        self.keys.get(name).cloned().unwrap_or_else(|| keys::parse(name))
    }

    /// What is said of it where it is as before any training, and of such modules.
    pub(crate) fn said_of_untrained(&self) -> [&'static str; 2] {
        self.method.as_ref().map_or(UNTRAINED, |(method, _)| method.untrained())
    }

    /// What stands for a rank or an alpha that its configuration leaves out, if PEFT wrote it.
    pub(crate) fn default_rank(&self) -> Option<f64> {
        self.method.as_ref().filter(|_| self.writer == "PEFT").and_then(|(method, _)| method.default_rank())
    }

    /// The module that a tensor is of, as an inspection lists them: of a LoRA's pair A alone counts, and what is no module's own does not.
    pub(crate) fn lists(&self, name: &str) -> Option<String> {
        let key = self.key(name);
        let listed = self.listed().map(|(markers, _)| markers);
        let counts = match key.role {
            Role::Own(marker, _) => listed.is_none_or(|listed| listed.contains(&marker)),
            Role::Parameter(_) | Role::Added(_) | Role::Tokens | Role::TokensOf => listed.is_none(),
            Role::Shared(_) | Role::TrainingOnly | Role::Original | Role::PassedOver(_) => false,
        };
        counts.then_some(key.module)
    }

    fn listed(&self) -> Option<(&'static [&'static str], &'static str)> {
        self.method.as_ref().and_then(|(method, _)| method.listed())
    }

    /// What shapes of the tensors are called that an inspection lists, where they are of one tensor of each module.
    pub(crate) fn listed_as(&self) -> Option<&'static str> {
        self.listed().map(|(_, shape)| shape)
    }

    /// The name under which PEFT would write a tensor.
    pub(crate) fn as_peft_writes(&self, name: &str) -> String {
        self.keys.get(name).map_or_else(|| keys::as_peft_writes(name), Key::as_peft_writes)
    }

    /// Where a base has modules, by the names that the adapter has for them; those that are not among them stay as they are called.
    pub(super) fn places(&self, names: &Names<'_>) -> Result<HashMap<String, Whereabouts>> {
        let Some(dialect) = self.dialect.filter(|dialect| dialect.names_need_base()) else { return Ok(HashMap::new()) };
        let modules: BTreeSet<&str> = self.keys.values().map(|key| key.module.as_str()).collect();
        let modules: Vec<&str> = modules.into_iter().collect();
        let places = dialect.places(names, &modules)?;
        let known = modules.into_iter().zip(places).filter_map(|(module, place)| Some((module.to_owned(), place?)));
        let known: HashMap<String, Whereabouts> = known.collect();
        if !known.is_empty() && known.values().all(|place| *place == Whereabouts::Elsewhere) {
            return Err(mismatch("none of its tensors is for this part of the pipeline").with_hint(
                "its names begin with the part that they are for: take that folder of the pipeline as the base",
            ));
        }
        Ok(known)
    }

    /// True if what its names of modules mean is only known beside a base.
    pub(super) fn names_need_base(&self) -> bool {
        self.dialect.is_some_and(|dialect| dialect.names_need_base())
    }

    /// Rank and factor of a module, where the file states them.
    pub(super) fn stated(&self, module: &str) -> Option<Stated> {
        self.stated.get(module).copied()
    }

    /// False where the file holds what all layers share, and nothing by the name of one.
    pub(crate) fn names_layers(&self) -> bool {
        let roles = || self.tensors.entries.iter().map(|entry| self.key(&entry.name).role);
        roles().any(|role| matches!(role, Role::Own(..))) || !roles().any(|role| matches!(role, Role::Shared(_)))
    }

    /// Modules whose change is zero, as it is before training, since the factors that begin at zero still are; in the model's order, and beside them the number
    /// of all modules that have such factors.
    pub fn untrained(&self) -> (Vec<String>, usize) {
        let zero_at_first = self.method.as_ref().map_or(&[][..], |(_, layers)| layers.zero_at_first());
        let mut modules: BTreeMap<String, bool> = BTreeMap::new();
        for entry in &self.tensors.entries {
            let key = self.key(&entry.name);
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
            .filter(|entry| matches!(self.key(&entry.name).role, Role::Tokens | Role::Parameter(_)))
    }

    /// True if all values of a tensor are zero. One that cannot be read is for the merge to explain.
    fn is_zero(&self, entry: &open::Entry) -> bool {
        // The start tells nearly always that it is not. A zero's bytes are 0, or 0x80 where its sign is.
        let mut start = vec![0; entry.bytes.min(4096) as usize];
        self.tensors.read_at(entry, 0, &mut start).is_ok()
            && start.iter().all(|byte| byte & 0x7f == 0)
            && read_floats(&self.tensors, &entry.name).is_ok_and(|values| values.iter().all(|value| *value == 0.0))
    }

    /// The path of the embedding that a tensor is a factor for, if it is one.
    pub(crate) fn embedding(&self, name: &str) -> Option<String> {
        let key = self.key(name);
        matches!(key.role, Role::Own("lora_embedding_A" | "lora_embedding_B", _)).then_some(key.module)
    }

    /// Plans this adapter's edits of a base.
    pub fn read(&self, names: &Names<'_>, options: &ReadOptions) -> Result<Changes> {
        if let Some(inventory) = &self.tuned {
            return tuned::read(self, inventory, names, options).map_err(|error| error.in_file(&self.path));
        }
        let (method, layers) =
            self.method.as_ref().ok_or_else(|| refused::by_type(&self.config.peft_type).in_file(&self.config.path))?;
        layers.refuse(options, self.weight).map_err(|error| error.in_file(&self.config.path))?;
        if let Some(dialect) = self.dialect {
            dialect.check_base(self, names).map_err(|error| error.in_file(self.file()))?;
        }
        let mut changes =
            read::read(self, *method, layers.as_ref(), names, options).map_err(|error| error.in_file(self.file()))?;
        changes.refuse_twice(self).map_err(|error| error.in_file(self.file()))?;
        changes.account(&self.tensors);
        Ok(changes)
    }
}

/// Names that weight files of adapters have, in the order of preference.
pub fn weight_files() -> impl Iterator<Item = &'static str> {
    let others = dialects::DIALECTS.iter().flat_map(|dialect| dialect.files());
    WEIGHT_FILES.iter().chain(others).copied()
}

/// The weight file of a folder: PEFT's own where it is there.
fn weight_file(store: &Arc<dyn Store>) -> Result<Option<String>> {
    match WEIGHT_FILES.iter().find(|name| store.has(name)) {
        Some(file) => Ok(Some((*file).to_owned())),
        None => dialects::find(&**store, |file| is_foreign(store, file)),
    }
}

/// True for a file that another program than PEFT wrote.
fn is_foreign(store: &Arc<dyn Store>, file: &str) -> bool {
    let Ok(tensors) = Checkpoint::open_weights_in(Arc::clone(store), &[file]) else { return false };
    let config = read_config(&**store).unwrap_or_default();
    Foreign { tensors: &tensors, config: config.as_ref() }.dialect().is_some()
}

fn read_config(store: &dyn Store) -> Result<Option<Map<String, Value>>> {
    let path = store.path_of(CONFIG_FILE);
    let text = open::small_text(store, CONFIG_FILE, open::MAX_CONFIG)?;
    text.map(|text| config::object(&text).map_err(|error| error.in_file(&path))).transpose()
}

/// A method, and what a configuration says of it.
type Configured = (&'static dyn PeftMethod, Box<dyn Layers>);

/// The method that a configuration is of, with what it says.
fn configured(config: &AdapterConfig, methods: &[&'static dyn PeftMethod]) -> Result<Option<Configured>> {
    let method = methods.iter().find(|method| method.peft_type() == config.peft_type);
    let configured = method.map(|method| Ok((*method, method.configure(config)?))).transpose();
    configured.map_err(|error: Error| error.in_file(&config.path))
}
