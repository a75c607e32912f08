//! How a matrix is stored: decode, encode, and the grid of values that a stored scale allows.
//!
//! One file per format and one line in [`FORMATS`]. A format knows nothing of adapters and of rounding methods: it
//! turns rows into f32 values and back. A weight consists of *parts* (codes, scales, state), each a tensor of the
//! checkpoint; formats work on chunks of whole rows, and say with [`Geometry::row_step`] how many rows belong together.

// What is read here comes from files that anyone may have written.
#![cfg_attr(not(test), deny(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing))]

mod bitnet;
pub(crate) mod bnb4;
mod bnb8;
mod bnb_config;
mod bytes;
mod ct;
mod fp8;
mod gguf;
mod gpt_oss;
mod grid;
mod hqq;
mod mlx;
mod modelopt;
mod module;
mod packed;
pub(crate) mod plain;
mod reader;
pub(crate) mod recognised;
mod scaled;
mod settings;
#[cfg(test)]
pub(crate) mod toy;
mod view;
mod viewed;

use std::fmt::Debug;
use std::ops::Range;
use std::sync::Arc;

pub(crate) use gguf::OTHER_TYPES;
#[doc(hidden)]
pub use gguf::encode_weighted;
#[cfg(feature = "internals")]
pub(crate) use gguf::row_of as gguf_row;
#[doc(hidden)]
pub use grid::{Choices, Grid, Levels, Rounds};
#[doc(hidden)]
pub use module::Module;
pub use reader::Reader;
pub(crate) use reader::{StoredRows, within};
pub use recognised::Unsupported;
pub use settings::{Setting, Settings};
#[doc(hidden)]
pub use view::Order;
pub(crate) use viewed::{Viewed, in_file_order};

use crate::arch::Role;
use crate::arch::gguf::{File, View};
use crate::dtype::Dtype;
use crate::error::{Result, unsupported, usage};
use crate::open::{Checkpoint, Entry, ModelConfig};

/// Every format, most specific first: a plain tensor is what no other format claims.
pub static FORMATS: &[&dyn Format] = &[
    #[cfg(test)]
    &toy::Toy,
    &bnb4::NF4,
    &bnb4::FP4,
    &bnb8::Int8,
    &modelopt::ModelOpt,
    &bitnet::Bitnet,
    &fp8::Fp8,
    &ct::INT4,
    &ct::INT8,
    &ct::INT,
    &ct::FP8,
    &ct::NVFP4,
    &ct::MXFP4,
    &ct::MXFP8,
    &packed::Gptq,
    &packed::Awq,
    &gpt_oss::GptOss,
    &mlx::Mlx,
    &hqq::Hqq,
    &bytes::QUANTO,
    &bytes::TORCHAO,
    &gguf::Q4_0,
    &gguf::Q4_1,
    &gguf::Q5_0,
    &gguf::Q5_1,
    &gguf::Q8_0,
    &gguf::Q2_K,
    &gguf::Q3_K,
    &gguf::Q4_K,
    &gguf::Q5_K,
    &gguf::Q6_K,
    &gguf::IQ4_NL,
    &gguf::IQ4_XS,
    &gguf::MXFP4,
    &gguf::NVFP4,
    &gguf::TQ1_0,
    &gguf::TQ2_0,
    &gguf::Q1_0,
    &gguf::Q2_0,
    &gguf::IQ3_S,
    &gguf::IQ3_XXS,
    &gguf::IQ2_S,
    &gguf::IQ2_XS,
    &gguf::IQ2_XXS,
    &gguf::IQ1_M,
    &gguf::IQ1_S,
    &plain::F32,
    &plain::F16,
    &plain::BF16,
];

/// A storage format.
pub trait Format: Sync {
    /// Its name in `--to`, reports and errors ("nf4").
    fn id(&self) -> &'static str;

    /// One line for the help and the documentation.
    fn about(&self) -> &'static str;

    /// The weights of this format among the free tensors of a module, as a rule none or one.
    ///
    /// Errors if something is this format's but broken: a missing scale, a shape that does not fit.
    fn claim(&self, module: &Module<'_>) -> Result<Vec<Claim>>;

    /// True for tensors whose bytes [`Format::claim`] reads, by their name: they are read in one go before.
    fn reads(&self, _name: &str) -> bool {
        false
    }

    /// A weight of this format for values of type `values`, with nothing in it yet. Errors where there is no such weight.
    fn create(&self, name: &str, _shape: &[usize], _values: Dtype, _settings: &Settings) -> Result<Arc<dyn Weight>> {
        Err(unsupported(format!("{} is not made from other formats", self.id())).in_tensor(name))
    }

    /// True if a weight of another format can become one of this; false for formats that are read, and written back where a base has them.
    fn is_made(&self) -> bool {
        true
    }

    /// True if values become codes, so that only some matrices are stored this way (and everything else stays as it is).
    fn quantizes(&self) -> bool {
        true
    }

    /// Bytes per value that the lists of scales in a weight's grid take.
    #[doc(hidden)]
    fn listed_bytes(&self) -> u64 {
        0
    }

    /// False of a type that is only read.
    #[doc(hidden)]
    fn is_written(&self) -> bool {
        true
    }

    /// True if only GGUF files have it.
    #[doc(hidden)]
    fn is_of_gguf(&self) -> bool {
        false
    }

    /// What other tools call it.
    fn aliases(&self) -> &'static [&'static str] {
        &[]
    }

    /// True if its quantizer moves factors between layers: the model has the same function then, and other weights than the one that was quantized.
    #[doc(hidden)]
    fn moves_factors(&self) -> bool {
        false
    }

    /// True if loaders look for this format where a plain weight of that role and shape is: linear layers, for most.
    fn takes(&self, role: Role, shape: &[usize]) -> bool {
        role == Role::Linear && shape.len() == 2
    }

    /// True if loaders replace GPT-2's `Conv1D` by it as they do linear layers.
    fn takes_conv1d(&self) -> bool {
        false
    }

    /// Choices that it leaves to the user.
    fn settings(&self) -> &'static [Setting] {
        &[]
    }

    /// Says in `config.json` how a loader finds this format. `skipped` are modules that it has to keep plain, where its own defaults do not say so.
    ///
    /// Errors if a setting has no such value. A format that is not made is found as the base says.
    fn describe(&self, _config: &mut ModelConfig, _settings: &Settings, _skipped: Option<&[String]>) -> Result<()> {
        Ok(())
    }
}

/// A recognised weight and the entries that its parts are read from (same order as [`Weight::parts`]).
#[derive(Clone, Debug)]
pub struct Claim {
    /// The weight.
    pub weight: Arc<dyn Weight>,
    /// One entry per part.
    pub entries: Vec<Entry>,
}

/// A weight seen as a matrix in the order it is stored.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Geometry {
    /// Rows; all leading dimensions taken together.
    pub rows: usize,
    /// Elements per row.
    pub cols: usize,
    /// Chunks start at multiples of this many rows (the last chunk may be shorter).
    pub row_step: usize,
}

impl Geometry {
    /// Number of elements.
    pub fn elements(&self) -> usize {
        self.rows * self.cols
    }
}

/// One stored tensor of a weight.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Part {
    /// Full tensor name.
    pub name: String,
    /// Element type.
    pub dtype: Dtype,
    /// Dimensions; `None` where the length is known only once the weight is encoded (a JSON state).
    pub shape: Option<Vec<usize>>,
    /// Bytes, or the most it can take where the length is not known.
    pub bytes: u64,
}

impl Part {
    pub(crate) fn new(name: String, dtype: Dtype, shape: Vec<usize>) -> Self {
        let bytes = crate::open::byte_size(dtype, &shape).unwrap_or(u64::MAX);
        Self { name, dtype, shape: Some(shape), bytes }
    }
}

/// One weight in one storage format, as it is read.
pub trait Weight: Debug + Send + Sync {
    /// The format's id.
    fn format(&self) -> &'static str;

    /// The name that the model has for it (`….q_proj.weight`), whatever its stored tensors are called.
    fn name(&self) -> &str;

    /// Logical dimensions, as the model sees them.
    fn shape(&self) -> &[usize];

    /// The matrix view that chunks are cut from.
    fn geometry(&self) -> Geometry;

    /// True if the stored rows are the layer's inputs.
    fn is_transposed(&self) -> bool {
        false
    }

    /// Type that decoded values are rounded to.
    fn value_dtype(&self) -> Dtype;

    /// True if values are stored as they are, not as codes.
    fn is_plain(&self) -> bool {
        false
    }

    /// Settings in words, for `inspect` ("block 64, double quantized").
    fn details(&self) -> String {
        String::new()
    }

    /// The stored tensors, lead first.
    fn parts(&self) -> &[Part];

    /// The bytes of a part that belong to `rows`; `None` if the part belongs to the weight as a whole.
    fn part_rows(&self, part: usize, rows: &Range<usize>) -> Option<Range<u64>>;

    /// Decodes `rows` into `out` (row-major, `rows.len() · cols`). `parts` holds, per part, the bytes of these rows, or
    /// all bytes of a part that is not cut by rows.
    fn decode(&self, parts: &[&[u8]], rows: Range<usize>, out: &mut [f32]);

    /// `out += rows · x` for one column `x`, straight from the stored bytes, with the bits of [`Weight::decode`] followed by
    /// [`matmul`](crate::simd::matmul::matmul). False, and nothing done, where the format has no kernel for it.
    fn dots(&self, _parts: &[&[u8]], _rows: Range<usize>, _x: &[f32], _out: &mut [f32]) -> bool {
        false
    }

    /// The same bytes seen with other rows; `None` where the format's blocks forbid it.
    fn reshaped(&self, _rows: usize, _cols: usize) -> Option<Arc<dyn Weight>> {
        None
    }

    /// How other values are stored under the scales that it has; `None` for a type that is only read.
    fn on_grid(&self) -> Option<&dyn OnGrid> {
        None
    }

    /// How values are stored with fresh scales; `None` for a type that is only read.
    fn writer(&self) -> Option<&dyn Writer> {
        None
    }

    /// What the file has in another way than the model, where it is GGUF.
    #[doc(hidden)]
    fn view(&self) -> Option<&View> {
        None
    }
}

/// Values under the scales that are stored.
#[doc(hidden)]
pub trait OnGrid {
    /// The grid of stored `rows` under the stored scales.
    fn grid(&self, parts: &[&[u8]], rows: Range<usize>) -> Grid;

    /// Where scales are not shared by runs of stored rows: an order in which runs of outputs' rows do, and the grid of the whole weight in it.
    fn ordered(&self, _parts: &[&[u8]]) -> Option<(Order, Grid)> {
        None
    }

    /// Stores the level nearest to each value of stored `rows`, under the scales in `parts` or those of `moved`: the grid of the same rows, or of all in
    /// the order of [`OnGrid::ordered`], with others of its choices. Appends to every part that is cut by rows. A part of the whole weight stays what it is, and its buffer empty, unless `moved` has
    /// all rows and changes it.
    fn store(&self, parts: &[&[u8]], rows: Range<usize>, values: &[f32], moved: Option<&Grid>, out: &mut [Vec<u8>]);
}

/// Values under fresh scales, as the format's reference quantizer chooses them.
#[doc(hidden)]
pub trait Writer {
    /// The weight for values of type `values`, as the reference library would make it of them under the same block size and, of the
    /// settings, on as many threads.
    fn renewed(&self, values: Dtype, settings: &Settings) -> Result<Arc<dyn Weight>>;

    /// The same, where an error in a column counts as much as its inputs are large: by column, their mean square. `None` for a format that has no such encoder.
    fn weighted(&self, _importance: &Arc<[f32]>) -> Option<Arc<dyn Weight>> {
        None
    }

    /// True if scales depend on the whole weight: then every chunk goes through [`Writer::survey`] first.
    fn needs_survey(&self) -> bool {
        false
    }

    /// Appends to `held` what scales need of these rows (their block maxima).
    fn survey(&self, _rows: Range<usize>, _values: &[f32], _held: &mut Vec<f32>) {}

    /// Decides the scales from all that [`Writer::survey`] held, in row order. `stored` are the parts of the whole weight that it was read from, by part, where
    /// it was stored in the same format: what a rounding does not choose anew (GPTQ's `g_idx`) is taken from there.
    fn settle(&self, held: &[f32], stored: &[Option<Vec<u8>>]) -> Settled;

    /// Encodes `rows` and appends to each part that `settle` left open; `decided` are the parts that it returned. Called on the weight that it returned.
    fn encode(&self, decided: &[Option<Vec<u8>>], rows: Range<usize>, values: &[f32], out: &mut [Vec<u8>]);
}

/// A weight whose scales are decided: what [`Writer::settle`] returns.
#[doc(hidden)]
#[derive(Clone, Debug)]
pub struct Settled {
    /// The weight to encode and decode with.
    pub weight: Arc<dyn Weight>,
    /// Bytes of the parts that are complete now, by part; `None` for parts that [`Writer::encode`] fills.
    pub parts: Vec<Option<Vec<u8>>>,
}

/// The format of that name.
pub fn by_id(id: &str) -> Result<&'static dyn Format> {
    FORMATS.iter().copied().find(|format| format.id() == id).ok_or_else(|| {
        let known: Vec<_> = FORMATS.iter().filter(|format| format.is_made()).map(|format| format.id()).collect();
        usage(format!("there is no format `{id}`")).with_hint(format!("formats: same, {}", known.join(", ")))
    })
}

/// True of the name of a format whose quantizer moves factors between layers.
pub(crate) fn moves_factors(id: &str) -> bool {
    by_id(id).is_ok_and(|format| format.moves_factors())
}

/// The format of tensors of one part, all of that element type.
pub(crate) fn of_dtype(dtype: Dtype) -> Result<&'static dyn Format> {
    if dtype.is_plain_float() { Ok(plain::format_of(dtype)) } else { by_id(dtype.torch_name()) }
}

/// All weights of a checkpoint, and the entries that belong to none.
#[derive(Debug)]
pub struct Inventory {
    /// Weights in the order of their lead entries.
    pub weights: Vec<Claim>,
    /// Indices of entries that no format claims (integers, unknown types): copied, never edited.
    pub opaque: Vec<usize>,
}

/// Claims every entry of a checkpoint. Errors where something is stored in a way that is not understood.
pub fn inventory(checkpoint: &Checkpoint) -> Result<Inventory> {
    survey(checkpoint)?.map_err(|unsupported| unsupported.error())
}

/// Claims every entry of a checkpoint, or says what is stored in a way that is not understood.
pub(crate) fn survey(checkpoint: &Checkpoint) -> Result<std::result::Result<Inventory, Unsupported>> {
    let file = match File::of(checkpoint) {
        Ok(None) => None,
        Ok(file) => file,
        Err(unknown) => return Ok(Err(Unsupported::of_gguf(checkpoint, unknown))),
    };
    if file.is_none()
        && let Some(unsupported) = recognised::by_its_marks(checkpoint)
    {
        return Ok(Err(unsupported));
    }
    let mut inventory = claim_all(checkpoint)?;
    if let Some(file) = file {
        view(&mut inventory, &file).map_err(|error| error.in_file(&checkpoint.path))?;
    }
    Ok(match recognised::unclaimed(checkpoint, &inventory) {
        Some(unsupported) => Err(unsupported),
        None => Ok(inventory),
    })
}

/// Sees the weights of a GGUF file as the model has them. Others keep the names that they have there, which no model and no adapter uses.
fn view(inventory: &mut Inventory, file: &File<'_>) -> Result<()> {
    for claim in &mut inventory.weights {
        let rows = claim.weight.geometry().rows;
        if let Some(view) = file.view(claim.weight.name(), rows)? {
            claim.weight = Arc::new(Viewed::new(Arc::clone(&claim.weight), view));
        }
    }
    Ok(())
}

fn claim_all(checkpoint: &Checkpoint) -> Result<Inventory> {
    checkpoint.read_ahead(|entry| FORMATS.iter().any(|format| format.reads(&entry.name)), MAX_READ_AHEAD);
    let mut claims: Vec<(usize, Claim)> = Vec::new();
    let mut opaque = Vec::new();
    for mut module in module::modules(checkpoint) {
        for format in FORMATS {
            for claim in format.claim(&module)? {
                claims.push((module.take(&claim.entries), claim));
            }
        }
        opaque.extend(module.left());
    }
    claims.sort_by_key(|(at, _)| *at);
    opaque.sort_unstable();
    Ok(Inventory { weights: claims.into_iter().map(|(_, claim)| claim).collect(), opaque })
}

/// States and markers are a few hundred bytes; what is larger is read alone.
const MAX_READ_AHEAD: u64 = 4096;

/// The largest part that may belong to a weight as a whole: a table, a state, second-level scales.
pub(crate) const MAX_UNCUT_PART: u64 = 1 << 28;

/// The formats of a checkpoint's matrices in a phrase, in the order of [`FORMATS`] ("nf4 + bf16").
#[doc(hidden)]
pub fn in_words(inventory: &Inventory) -> String {
    let matrices = inventory.weights.iter().filter(|claim| claim.weight.shape().len() >= 2);
    phrase(matrices.map(|claim| claim.weight.format()))
}

/// Names of formats in a phrase: each once, in the order of [`FORMATS`], so that the same formats always make the same phrase.
#[doc(hidden)]
pub fn phrase<'n>(names: impl Iterator<Item = &'n str>) -> String {
    let place = |name: &str| FORMATS.iter().position(|format| format.id() == name);
    let mut names: Vec<&str> = names.collect();
    names.sort_by_key(|name| (place(name), *name));
    names.dedup();
    names.join(" + ")
}

/// What `config.json` calls the way in which a checkpoint's weights are stored.
fn method(checkpoint: &Checkpoint) -> Option<&str> {
    let config = checkpoint.config.as_ref()?;
    let about = config.quantization().or_else(|| config.find("compression_config")?.as_object())?;
    about.get("quant_method")?.as_str()
}

/// Reads little-endian f32 values.
pub(crate) fn floats(bytes: &[u8]) -> impl ExactSizeIterator<Item = f32> + Clone + '_ {
    bytes.as_chunks().0.iter().map(|quad| f32::from_le_bytes(*quad))
}

/// Room for `n` more bytes at the end of a buffer.
pub(crate) fn grow(buffer: &mut Vec<u8>, n: usize) -> &mut [u8] {
    let at = buffer.len();
    buffer.resize(at + n, 0);
    buffer.get_mut(at..).unwrap_or_default()
}

/// The bytes of a part; none where a caller gives fewer parts than the weight has.
fn part<'a>(parts: &[&'a [u8]], at: usize) -> &'a [u8] {
    parts.get(at).copied().unwrap_or_default()
}

/// Writes little-endian f32 values.
pub(crate) fn float_bytes(values: &[f32]) -> Vec<u8> {
    values.iter().flat_map(|x| x.to_le_bytes()).collect()
}
