//! bitsandbytes 4-bit: NF4 and FP4, with and without double quantization.
//!
//! Parts of a weight `M.weight`: the packed codes (viewed as any `quant_storage` type), `.absmax` (f32, or u8 codes with
//! double quantization), `.quant_map`, `.nested_absmax` and `.nested_quant_map` (double quantization), and
//! `.quant_state.bitsandbytes__nf4|fp4`. Blocks run over the flattened matrix and may cross rows. Arithmetic is that of
//! bitsandbytes 0.50.2 on the CPU; decoding uses the flat block index (its AVX-512 kernel errs where a row is no
//! multiple of the block).

mod nested;
pub(crate) mod state;
mod weight;

use std::sync::Arc;

use nested::Nested;
use state::{BLOCK_SIZES, QuantState};
use weight::Bnb4Weight;

use super::bnb_config::{self, FourBit};
use super::{Claim, Format, Module, Part, Setting, Settings, Weight};
use crate::dtype::Dtype;
use crate::error::{Result, malformed, mismatch, usage};
use crate::open::{Entry, ModelConfig};
use crate::simd::nibbles::Codebook;

/// NF4 or FP4 as a format.
#[derive(Debug)]
pub(crate) struct Bnb4 {
    id: &'static str,
    about: &'static str,
    aliases: &'static [&'static str],
    /// What its state's name adds to the weight's.
    suffix: &'static str,
    book: &'static Codebook,
    /// The levels in ascending order.
    sorted: &'static [f32; 16],
}

/// 16 quantiles of a normal distribution, block-scaled.
pub(crate) static NF4: Bnb4 = Bnb4 {
    id: "nf4",
    about: "bitsandbytes NF4, 4 bits, block-scaled",
    aliases: &["merged_4bit", "merged_4bit_forced"],
    suffix: "quant_state.bitsandbytes__nf4",
    book: &NF4_BOOK,
    sorted: &NF4_SORTED,
};
/// 4-bit floats, block-scaled.
pub(crate) static FP4: Bnb4 = Bnb4 {
    id: "fp4",
    about: "bitsandbytes FP4, 4 bits, block-scaled",
    aliases: &[],
    suffix: "quant_state.bitsandbytes__fp4",
    book: &FP4_BOOK,
    sorted: &FP4_SORTED,
};

#[rustfmt::skip]
pub(crate) static NF4_BOOK: Codebook = Codebook::new(
    [
        0xbf80_0000, 0xbf32_39b1, 0xbf06_6b30, 0xbeca_32a0, 0xbe91_a24d, 0xbe3d_353f, 0xbdba_7871, 0x0000_0000,
        0x3da2_faff, 0x3e24_cae3, 0x3e7c_04dd, 0x3ead_033a, 0x3ee1_a4b8, 0x3f10_07ab, 0x3f39_13b3, 0x3f80_0000,
    ],
    [0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15],
    true,
);

#[rustfmt::skip]
pub(crate) static FP4_BOOK: Codebook = Codebook::new(
    [
        0x0000_0000, 0x3baa_aaab, 0x3f2a_aaab, 0x3f80_0000, 0x3eaa_aaab, 0x3f00_0000, 0x3e2a_aaab, 0x3e80_0000,
        0x0000_0000, 0xbbaa_aaab, 0xbf2a_aaab, 0xbf80_0000, 0xbeaa_aaab, 0xbf00_0000, 0xbe2a_aaab, 0xbe80_0000,
    ],
    [11, 10, 13, 12, 15, 14, 9, 0, 8, 1, 6, 7, 4, 5, 2, 3],
    false,
);

static NF4_SORTED: [f32; 16] = sorted(&NF4_BOOK);
static FP4_SORTED: [f32; 16] = sorted(&FP4_BOOK);

// Evaluated by the compiler, which refuses what is out of bounds; iterators cannot be used in a constant.
#[allow(clippy::indexing_slicing)]
const fn sorted(book: &Codebook) -> [f32; 16] {
    let mut levels = [0.0; 16];
    let mut i = 0;
    while i < 16 {
        levels[i] = book.levels[book.codes[i] as usize];
        i += 1;
    }
    levels
}

/// A state is a few hundred bytes; anything much larger is not one.
const MAX_STATE: u64 = 1 << 16;

impl Format for Bnb4 {
    fn id(&self) -> &'static str {
        self.id
    }

    fn takes_conv1d(&self) -> bool {
        true
    }

    fn about(&self) -> &'static str {
        self.about
    }

    fn aliases(&self) -> &'static [&'static str] {
        self.aliases
    }

    fn settings(&self) -> &'static [Setting] {
        &[
            Setting { name: "block_size", of_scales: false },
            Setting { name: "double_quant", of_scales: false },
            Setting { name: "quant_storage", of_scales: false },
            Setting { name: "torch_threads", of_scales: true },
        ]
    }

    fn describe(&self, config: &mut ModelConfig, settings: &Settings, skipped: Option<&[String]>) -> Result<()> {
        let (double_quant, quant_storage) = (settings.get("double_quant", true)?, storage(settings)?);
        let four = FourBit { quant_type: self.id, double_quant, quant_storage };
        bnb_config::describe(config, Some(&four), skipped);
        Ok(())
    }

    fn reads(&self, name: &str) -> bool {
        name.contains(".quant_state.bitsandbytes__")
    }

    fn claim(&self, module: &Module<'_>) -> Result<Vec<Claim>> {
        let mut claims = Vec::new();
        for (leaf, lead) in module.free() {
            let claim = self
                .of_module(module, leaf, lead)
                .map_err(|error| error.in_tensor(&lead.name).in_file(module.checkpoint.file_of(lead)))?;
            claims.extend(claim);
        }
        Ok(claims)
    }

    fn create(&self, name: &str, shape: &[usize], values: Dtype, settings: &Settings) -> Result<Arc<dyn Weight>> {
        let chosen = Chosen::of(settings)?;
        let nested = chosen.double_quant.then_some(Nested { offset: 0.0, dtype: Dtype::F32, block: nested::BLOCK });
        let state = QuantState {
            quant_type: self.id.to_owned(),
            block: chosen.block_size,
            dtype: values,
            shape: shape.to_vec(),
            nested,
        };
        let weight = Bnb4Weight::new(self.format(), name, state, chosen.quant_storage, chosen.torch_threads);
        let packed = weight.elements().div_ceil(2) as u64;
        if !packed.is_multiple_of(chosen.quant_storage.block().1) {
            return Err(
                mismatch(format!("{packed} packed bytes cannot be viewed as {}", chosen.quant_storage)).in_tensor(name)
            );
        }
        Ok(Arc::new(weight))
    }
}

impl Bnb4 {
    fn format(&self) -> &'static Bnb4 {
        if self.id == NF4.id { &NF4 } else { &FP4 }
    }

    fn of_module(&self, module: &Module<'_>, leaf: &str, lead: &Entry) -> Result<Option<Claim>> {
        let checkpoint = module.checkpoint;
        let Some(state_entry) = module.beside(leaf, self.suffix) else {
            return self.refuse_half(module, leaf).map(|()| None);
        };
        let state = QuantState::parse(&checkpoint.read_small(state_entry, MAX_STATE)?)
            .map_err(|error| error.in_tensor(&state_entry.name))?;
        if state.quant_type != self.id {
            return Err(malformed(format!("its quant_state says `{}`", state.quant_type)));
        }
        let weight = Bnb4Weight::new(self.format(), &lead.name, state, lead.dtype, 1);
        let mut parts = Vec::new();
        let mut entries = Vec::new();
        for part in &weight.parts {
            let entry = if part.name == lead.name { Some(lead) } else { checkpoint.get(&part.name) };
            let Some(entry) = entry else {
                // The code table is informative: the type of the state decides.
                if part.name.ends_with(".quant_map") {
                    continue;
                }
                return Err(mismatch(format!("its companion `{}` is missing", part.name))
                    .with_hint("the checkpoint is incomplete: download it again"));
            };
            // A stored state may be padded; every other part must have the size that the shape implies.
            let fits = part.shape.is_none()
                || entry.bytes == part.bytes && (part.name == lead.name || entry.dtype == part.dtype);
            if !fits {
                return Err(malformed(format!(
                    "{} of shape {:?}, but a {} weight of shape {:?} needs {} of {} bytes",
                    entry.dtype, entry.shape, self.id, weight.state.shape, part.dtype, part.bytes
                ))
                .in_tensor(&entry.name));
            }
            parts.push(Part {
                name: entry.name.clone(),
                dtype: entry.dtype,
                shape: Some(entry.shape.clone()),
                bytes: entry.bytes,
            });
            entries.push(entry.clone());
        }
        Ok(Some(Claim { weight: Arc::new(weight.with_parts(parts)), entries }))
    }

    /// A weight with an absmax but no state of either type is broken, not plain.
    fn refuse_half(&self, module: &Module<'_>, leaf: &str) -> Result<()> {
        if leaf.starts_with("bitsandbytes__")
            && let Some(weight) = module.path.strip_suffix(".quant_state")
        {
            return Err(mismatch(format!("the weight `{weight}` that it describes is missing"))
                .with_hint("the checkpoint is incomplete: download it again"));
        }
        let stateless = [NF4.suffix, FP4.suffix].iter().all(|suffix| module.beside(leaf, suffix).is_none());
        if stateless && module.beside(leaf, "absmax").is_some() {
            return Err(mismatch("it has an absmax, but its quant_state is missing")
                .with_hint("the checkpoint is incomplete: download it again"));
        }
        Ok(())
    }
}

/// What the user may choose of a new weight.
struct Chosen {
    /// Elements per scale.
    block_size: usize,
    /// Whether the scales are themselves quantized.
    double_quant: bool,
    /// Type that the packed codes are viewed as.
    quant_storage: Dtype,
    /// Threads that torch is taken to have summed the mean absmax with: it changes the last bit of the offset of
    /// weights with 2²¹ elements and more.
    torch_threads: usize,
}

impl Chosen {
    fn of(settings: &Settings) -> Result<Self> {
        let block_size = settings.get("block_size", 64)?;
        if !BLOCK_SIZES.contains(&block_size) {
            return Err(usage(format!("block size {block_size} is none of {BLOCK_SIZES:?}")));
        }
        Ok(Self {
            block_size,
            double_quant: settings.get("double_quant", true)?,
            quant_storage: storage(settings)?,
            torch_threads: settings.get("torch_threads", 1)?,
        })
    }
}

fn storage(settings: &Settings) -> Result<Dtype> {
    let of_codes = |dtype: &Dtype| matches!(dtype, Dtype::U8 | Dtype::F16 | Dtype::BF16 | Dtype::F32);
    settings
        .read("quant_storage", Dtype::U8, |name| Dtype::from_torch_name(name).filter(of_codes))
        .map_err(|error| error.with_hint("storage types: uint8, float16, bfloat16, float32"))
}
