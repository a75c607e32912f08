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
mod inventory;
mod mlx;
mod modelopt;
mod module;
mod packed;
mod padded;
pub(crate) mod plain;
mod reader;
pub(crate) mod recognised;
mod scaled;
mod settings;
#[cfg(test)]
pub(crate) mod toy;
mod view;
mod viewed;
mod weight;
mod woven;
mod wrapper;

use std::sync::Arc;

pub(crate) use gguf::OTHER_TYPES;
#[doc(hidden)]
pub use gguf::encode_weighted;
#[cfg(feature = "internals")]
pub(crate) use gguf::row_of as gguf_row;
pub(crate) use gpt_oss::ID as GPT_OSS;
#[doc(hidden)]
pub use grid::{Choices, Grid, Levels, Rounds};
pub(crate) use inventory::experts_of;
pub(crate) use inventory::survey;
pub use inventory::{Inventory, arch_of, inventory};
#[doc(hidden)]
pub use module::Module;
pub(crate) use padded::Padded;
pub use reader::Reader;
pub(crate) use reader::{StoredRows, within};
pub use recognised::Unsupported;
pub use settings::{Setting, Settings};
#[doc(hidden)]
pub use view::Order;
pub(crate) use viewed::Viewed;
pub use weight::{Geometry, Part, Weight};
#[doc(hidden)]
pub use weight::{OnGrid, Settled, Writer};
pub(crate) use woven::Woven;

use crate::arch::Role;
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
    if dtype.is_plain_float() {
        return Ok(plain::format_of(dtype));
    }
    // Types of ggml that others have a name for too.
    by_id(dtype.torch_name()).or_else(|_| by_id(&format!("gguf-{}", dtype.torch_name())))
}

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
