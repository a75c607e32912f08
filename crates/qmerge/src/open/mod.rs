//! Opening: a checkpoint as named byte ranges.
//!
//! A container (safetensors, GGUF, a torch `.bin`) is a parser that yields [`Entry`] values: name, element
//! type, shape and where the bytes lie. Nothing here knows about quantization, adapters or models. All input is
//! hostile: sizes are checked before anything is allocated, offsets before anything is read, and reading goes
//! through positional reads, never through a memory map, so a file that shrinks under us is an error and the
//! resident memory is ours to bound.

// What is read here comes from files that anyone may have written.
#![cfg_attr(
    not(test),
    deny(
        clippy::unwrap_used,
        clippy::expect_used,
        clippy::panic,
        clippy::indexing_slicing,
        clippy::arithmetic_side_effects
    )
)]

pub(crate) mod arranged;
mod beside;
mod config;
pub(crate) mod container;
mod content;
mod folder;
pub(crate) mod foreign;
pub(crate) mod gguf;
#[doc(hidden)]
pub mod hub;
pub(crate) mod imatrix;
#[doc(hidden)]
pub mod json;
pub(crate) mod local;
mod names;
mod order;
mod pickle;
mod reading;
pub(crate) mod safetensors;
mod small;
mod store;
mod torch;

use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};

pub use beside::{QUANTIZATION_FILES, SMALL_ENDINGS, TOKENIZER_FILES};
pub use config::ModelConfig;
#[doc(hidden)]
pub use content::hex;
pub(crate) use content::{content, sampled};
#[doc(hidden)]
pub use gguf::{Metadata, TokenizerKeys, Value, read_tokenizer};
#[doc(hidden)]
pub use hub::HubId;
#[doc(hidden)]
pub use names::{is_plain_name, is_plain_path};
#[doc(hidden)]
pub use order::model_order;
#[doc(hidden)]
pub use small::{MAX_CONFIG, MAX_INDEX, MAX_REPORT, MAX_TOKENIZER, read_small, read_small_text};
pub use store::{Blob, Item, ItemKind, Store};
pub(crate) use store::{pieces, small_text};

use crate::dtype::Dtype;
use crate::error::{Error, Kind, Result, malformed, unsupported};
use container::{Container, WriteContainer};
use local::{LocalFile, LocalFolder};

#[cfg(feature = "internals")]
pub(crate) use pickle::parse as parse_pickle;
#[cfg(feature = "internals")]
pub(crate) use safetensors::parse_header;

/// One tensor of a checkpoint: a name and a byte range of a file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Entry {
    /// Full name, as in the file ("model.layers.0.mlp.up_proj.weight").
    pub name: String,
    /// Element type.
    pub dtype: Dtype,
    /// Dimensions, outermost first.
    pub shape: Vec<usize>,
    /// Index into [`Checkpoint::files`].
    pub file: usize,
    /// First byte in that file.
    pub start: u64,
    /// Length in bytes.
    pub bytes: u64,
}

impl Entry {
    /// Number of elements.
    pub fn elements(&self) -> u64 {
        self.shape.iter().map(|&dim| dim as u64).product()
    }
}

/// What a container parser found in one file: its tensors and its free-form metadata.
#[derive(Clone, Debug, Default)]
pub(crate) struct Contents {
    /// In header order; `file` is filled in by the caller.
    pub entries: Vec<Entry>,
    /// `__metadata__` in file order.
    pub metadata: Vec<(String, String)>,
    /// How a file like it is written; `None` for a kind that is only read.
    pub writer: Option<Arc<dyn WriteContainer>>,
    /// The keys of a GGUF file.
    pub gguf: Option<Arc<Metadata>>,
}

/// An opened file and what is in it.
pub(crate) struct Opened {
    blob: Box<dyn Blob>,
    contents: Contents,
}

impl Opened {
    fn new(blob: Box<dyn Blob>, container: &'static dyn Container) -> Result<Self> {
        let contents = container.read(&*blob).map_err(|error| error.in_file(blob.path()))?;
        Ok(Self { blob, contents })
    }
}

/// An opened checkpoint or adapter: entries over one or more files, and the `config.json` beside them.
#[derive(Debug)]
pub struct Checkpoint {
    /// The folder, or the file where a single file was named.
    pub path: PathBuf,
    /// What lies beside the weights.
    pub store: Arc<dyn Store>,
    /// The files that hold tensors, in shard order.
    pub files: Vec<Box<dyn Blob>>,
    /// How a file like each is written; `None` for a kind that is only read.
    pub(crate) writers: Vec<Option<Arc<dyn WriteContainer>>>,
    /// Metadata of each file (`{"format": "pt"}` as a rule).
    pub metadata: Vec<Vec<(String, String)>>,
    /// All tensors: by file, within a file by position of the data.
    pub entries: Vec<Entry>,
    /// Name of the index file, when there is one.
    pub index: Option<String>,
    /// `config.json`, when there is one; of a GGUF file, what it would say.
    pub config: Option<ModelConfig>,
    /// The keys of a GGUF file, of the first where there are several.
    #[doc(hidden)]
    pub gguf: Option<Arc<Metadata>>,
    by_name: HashMap<String, usize>,
    /// Orders of the tensors that are not seen as they lie in the file, by name.
    orders: HashMap<String, arranged::Order>,
    /// What was read ahead, by name.
    ahead: Mutex<HashMap<String, Vec<u8>>>,
}

impl Checkpoint {
    /// Opens a model: a folder, a single `.safetensors` or `.gguf` file (of several GGUF files any), or a hub id found in the local cache.
    ///
    /// ```
    /// # fn main() -> qmerge::error::Result<()> {
    /// use qmerge::open::Checkpoint;
    ///
    /// let base = Checkpoint::open("testdata/tiny-llama/bases/base-nf4dq".as_ref())?;
    /// let codes = base.get("model.layers.0.mlp.up_proj.weight").expect("a Llama has one");
    /// println!("{} tensors; {} is stored as {} of shape {:?}", base.entries.len(), codes.name, codes.dtype, codes.shape);
    /// # Ok(()) }
    /// ```
    pub fn open(location: &Path) -> Result<Self> {
        let path = hub::resolve(location)?;
        if path.is_dir() {
            return Self::open_in(Arc::new(LocalFolder::new(path)));
        }
        let name = path.file_name().unwrap_or_default().to_string_lossy();
        Self::of_file(Arc::new(LocalFolder::of_file(&path)), Box::new(LocalFile::open(&path)?), &name)
    }

    /// Opens the model that is one file of a store, or one of several that name each other.
    pub fn open_file_in(store: Arc<dyn Store>, name: &str) -> Result<Self> {
        let blob = store.open(name)?;
        Self::of_file(store, blob, name)
    }

    fn of_file(store: Arc<dyn Store>, blob: Box<dyn Blob>, name: &str) -> Result<Self> {
        match container::of(&*blob)? {
            Some(container) => match container.files(name).as_slice() {
                [_] => Self::from_blobs(store, vec![blob])?.into_model(),
                files => folder::open_parts(store, files)?.into_model(),
            },
            None => Err(unsupported("not a model: neither a folder, nor a .safetensors or .gguf file")
                .in_file(blob.path())
                .with_hint("pass the folder that holds config.json and the weights")),
        }
    }

    /// Opens the model that a store is the folder of.
    pub fn open_in(store: Arc<dyn Store>) -> Result<Self> {
        folder::open(store)?.into_model()
    }

    /// Refuses what is no model, and reads the configuration beside the weights.
    fn into_model(mut self) -> Result<Self> {
        foreign::refuse_as_model(&self)?;
        if let Some(metadata) = &self.gguf {
            let read = |entry: &Entry| self.read_small(entry, MAX_CONFIG);
            self.config = Some(gguf::config(metadata, &self.entries, &self.path, &read)?);
            return Ok(self);
        }
        foreign::refuse_pointers_in(&*self.store)?;
        if let Some(text) = small_text(&*self.store, "config.json", MAX_CONFIG)? {
            self.config = Some(ModelConfig::parse(text, &self.store.path_of("config.json"))?);
        }
        Ok(self)
    }

    /// Opens one weight file: `.safetensors` or a torch `.bin`.
    pub fn open_weights(path: &Path) -> Result<Self> {
        let checkpoint =
            Self::from_blobs(Arc::new(LocalFolder::of_file(path)), vec![Box::new(LocalFile::open(path)?)])?;
        foreign::refuse_empty(&checkpoint)?;
        Ok(checkpoint)
    }

    /// Opens one file, by the container that its ending names.
    pub(crate) fn open_container(store: Arc<dyn Store>, name: &str) -> Result<Self> {
        let blob = store.open(name)?;
        Self::from_blobs(store, vec![blob])
    }

    /// Tells the files that all their tensors will be read.
    #[doc(hidden)]
    pub fn expect_all(&self) {
        for (number, file) in self.files.iter().enumerate() {
            let own = self.entries.iter().filter(|entry| entry.file == number);
            let ranges: Vec<_> = own.map(|entry| entry.start..entry.start.saturating_add(entry.bytes)).collect();
            file.expect(&ranges);
        }
    }

    /// Opens weight files in a store as one.
    pub(crate) fn open_weights_in(store: Arc<dyn Store>, names: &[&str]) -> Result<Self> {
        let blobs = names.iter().map(|name| store.open(name)).collect::<Result<_>>()?;
        let checkpoint = Self::from_blobs(store, blobs)?;
        foreign::refuse_empty(&checkpoint)?;
        Ok(checkpoint)
    }

    fn from_blobs(store: Arc<dyn Store>, blobs: Vec<Box<dyn Blob>>) -> Result<Self> {
        let path = blobs.first().map(|blob| blob.path().to_path_buf());
        let mut opened = Vec::new();
        for blob in blobs {
            let Some(container) = container::of(&*blob)? else {
                return Err(unsupported("neither safetensors, nor GGUF, nor what torch.save writes")
                    .in_file(blob.path())
                    .with_hint("give the file that holds the tensors, or load and save it again as safetensors"));
            };
            opened.push(Opened::new(blob, container)?);
        }
        gguf::refuse_incomplete(&opened, &*store)?;
        Self::from_opened(store, path, opened, None)
    }

    /// `file` is the path of the one file that was named, if it was one.
    fn from_opened(
        store: Arc<dyn Store>,
        file: Option<PathBuf>,
        opened: Vec<Opened>,
        index: Option<String>,
    ) -> Result<Self> {
        let mut checkpoint = Self {
            path: file.unwrap_or_else(|| store.path().to_path_buf()),
            store,
            files: Vec::new(),
            writers: Vec::new(),
            metadata: Vec::new(),
            entries: Vec::new(),
            index,
            config: None,
            gguf: None,
            by_name: HashMap::new(),
            orders: HashMap::new(),
            ahead: Mutex::default(),
        };
        for (file, Opened { blob, contents }) in opened.into_iter().enumerate() {
            let mut entries = contents.entries;
            entries.sort_by_key(|entry| (entry.start, entry.bytes));
            for mut entry in entries {
                entry.file = file;
                let at = checkpoint.entries.len();
                if let Some(before) = checkpoint.by_name.insert(entry.name.clone(), at) {
                    let other = checkpoint.entries.get(before).and_then(|other| checkpoint.files.get(other.file));
                    let other_file = other.unwrap_or(&blob).path();
                    return Err(malformed(format!("the name stands twice: also in {}", other_file.display()))
                        .in_file(blob.path())
                        .in_tensor(&entry.name));
                }
                checkpoint.entries.push(entry);
            }
            checkpoint.files.push(blob);
            checkpoint.writers.push(contents.writer);
            checkpoint.metadata.push(contents.metadata);
            checkpoint.gguf = checkpoint.gguf.or(contents.gguf);
        }
        Ok(checkpoint)
    }

    /// True if all that is known of the model stands in its weight files, and nothing beside them belongs to it.
    #[doc(hidden)]
    pub fn is_self_contained(&self) -> bool {
        self.gguf.is_some()
    }

    /// The entry of that name.
    pub fn get(&self, name: &str) -> Option<&Entry> {
        self.by_name.get(name).and_then(|&at| self.entries.get(at))
    }

    /// True if an entry of that name exists.
    pub fn has(&self, name: &str) -> bool {
        self.by_name.contains_key(name)
    }

    /// The file an entry lies in.
    pub(crate) fn file_of(&self, entry: &Entry) -> &Path {
        self.files.get(entry.file).map_or(self.path.as_path(), |file| file.path())
    }

    /// The folder that holds the files beside the weights.
    pub fn folder(&self) -> &Path {
        self.store.path()
    }

    /// Errors if a file was changed after it was opened.
    pub fn check_unchanged(&self) -> Result<()> {
        self.files.iter().try_for_each(|file| file.check_unchanged())
    }

    /// Sum of the bytes of all tensors.
    pub fn total_bytes(&self) -> u64 {
        self.entries.iter().map(|entry| entry.bytes).sum()
    }

    /// An error about one entry of this checkpoint.
    pub(crate) fn error(&self, entry: &Entry, kind: Kind, message: impl Into<String>) -> Error {
        Error::new(kind, message).in_file(self.file_of(entry)).in_tensor(&entry.name)
    }
}

/// True if two tensors have one type and the same bytes.
pub(crate) fn same_bytes((of, one): (&Checkpoint, &Entry), (other, two): (&Checkpoint, &Entry)) -> Result<bool> {
    /// Bytes that are read of each at once.
    const PIECE: u64 = 1 << 20;
    if (one.dtype, one.bytes) != (two.dtype, two.bytes) {
        return Ok(false);
    }
    let (mut left, mut right) = (Vec::new(), Vec::new());
    for at in (0..one.bytes).step_by(PIECE as usize) {
        let n = one.bytes.saturating_sub(at).min(PIECE) as usize;
        left.resize(n, 0);
        right.resize(n, 0);
        of.read_at(one, at, &mut left)?;
        other.read_at(two, at, &mut right)?;
        if left != right {
            return Ok(false);
        }
    }
    Ok(true)
}

/// A folder of this machine.
#[doc(hidden)]
pub fn folder(path: &Path) -> Arc<dyn Store> {
    Arc::new(LocalFolder::new(path))
}

/// Resolves what a user typed (folder, file, hub id) to a path.
pub fn resolve(location: &Path) -> Result<PathBuf> {
    hub::resolve(location)
}

/// The most that the other dimensions of a tensor without elements may come to.
const MOST_OF_NOTHING: u64 = 1 << 24;

/// Number of bytes of a tensor, checked: they must be whole bytes (of a type of ggml, each row must be whole blocks), and neither they nor any product of some of
/// the dimensions may overflow. Where one is 0 the others may not be anything either: there are things kept by row.
pub(crate) fn byte_size(dtype: Dtype, shape: &[usize]) -> Option<u64> {
    let largest = shape.iter().try_fold(1_u64, |product, &dim| product.checked_mul((dim as u64).max(1)))?;
    let (elements, bytes) = dtype.block();
    if dtype.is_ggml_block() && !shape.last().is_some_and(|&row| (row as u64).is_multiple_of(elements)) {
        return None;
    }
    let bits = largest.div_ceil(elements).checked_mul(bytes)?.checked_mul(8)?;
    usize::try_from(bits).ok()?;
    if shape.contains(&0) && largest > MOST_OF_NOTHING {
        return None;
    }
    if shape.contains(&0) { Some(0) } else { dtype.bytes_of(largest) }
}
