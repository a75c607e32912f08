//! bitsandbytes 4-bit: NF4 and FP4, with and without double quantization.
//!
//! Parts of a weight `M.weight`: the packed codes (viewed as any `quant_storage` type), `.absmax` (f32, or u8 codes with
//! double quantization), `.quant_map`, `.nested_absmax` and `.nested_quant_map` (double quantization), and
//! `.quant_state.bitsandbytes__nf4|fp4`. Blocks run over the flattened matrix and may cross rows. Arithmetic is that of
//! bitsandbytes 0.50.2 on the CPU; decoding uses the flat block index (its AVX-512 kernel errs where a row is no
//! multiple of the block).

use std::ops::Range;
use std::sync::Arc;

use super::bnb_config::{self, FourBit};
use super::bnb4_state::{BLOCK_SIZES, QuantState};
use super::nested::{self, Nested};
use super::{
    Choices, Claim, Format, Geometry, Grid, Levels, Module, OnGrid, Part, Setting, Settings, Settled, Weight, Writer,
    float_bytes, floats, gcd, grow, part,
};
use crate::dtype::Dtype;
use crate::error::{Result, malformed, mismatch, usage};
use crate::open::{Entry, ModelConfig};
use crate::simd::dots::nibble_dots;
use crate::simd::nibbles::{self, Codebook};

/// NF4 or FP4 as a format.
#[derive(Debug)]
pub(crate) struct Bnb4 {
    id: &'static str,
    about: &'static str,
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
    suffix: "quant_state.bitsandbytes__nf4",
    book: &NF4_BOOK,
    sorted: &NF4_SORTED,
};
/// 4-bit floats, block-scaled.
pub(crate) static FP4: Bnb4 = Bnb4 {
    id: "fp4",
    about: "bitsandbytes FP4, 4 bits, block-scaled",
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

    fn about(&self) -> &'static str {
        self.about
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
        let roles = weight.roles_of(&parts);
        Ok(Some(Claim { weight: Arc::new(Bnb4Weight { parts, roles, ..weight }), entries }))
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

/// What a part holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Role {
    Codes,
    Absmax,
    Map,
    NestedAbsmax,
    NestedMap,
    State,
}

/// One NF4 or FP4 weight.
#[derive(Clone, Debug)]
pub(crate) struct Bnb4Weight {
    format: &'static Bnb4,
    state: QuantState,
    storage: Dtype,
    torch_threads: usize,
    parts: Vec<Part>,
    roles: Vec<Role>,
}

impl Bnb4Weight {
    fn new(format: &'static Bnb4, name: &str, state: QuantState, storage: Dtype, torch_threads: usize) -> Self {
        let mut weight = Self { format, state, storage, torch_threads, parts: Vec::new(), roles: Vec::new() };
        // Of the types that codes are viewed as, an element is a block.
        let packed = weight.elements().div_ceil(2) / storage.block().1 as usize;
        let blocks = weight.blocks();
        let part = |suffix: &str, dtype, shape: Vec<usize>| Part::new(format!("{name}.{suffix}"), dtype, shape);
        weight.parts.push(Part::new(name.to_owned(), storage, vec![packed, 1]));
        let absmax = if weight.state.nested.is_some() { Dtype::U8 } else { Dtype::F32 };
        weight.parts.push(part("absmax", absmax, vec![blocks]));
        weight.parts.push(part("quant_map", Dtype::F32, vec![16]));
        if let Some(nested) = &weight.state.nested {
            weight.parts.push(part("nested_absmax", Dtype::F32, vec![blocks.div_ceil(nested.block)]));
            weight.parts.push(part("nested_quant_map", Dtype::F32, vec![256]));
        }
        let suffix = format!("quant_state.bitsandbytes__{}", format.id);
        // Without a second level nothing in the state depends on the data, so its length is known.
        let bytes = weight.state.max_json_len();
        let exact = weight.state.to_json().len();
        weight.parts.push(match weight.state.nested {
            None => part(&suffix, Dtype::U8, vec![exact]),
            Some(_) => Part { name: format!("{name}.{suffix}"), dtype: Dtype::U8, shape: None, bytes },
        });
        weight.roles = weight.roles_of(&weight.parts);
        weight
    }

    fn roles_of(&self, parts: &[Part]) -> Vec<Role> {
        let role = |part: &Part| match part.name.rsplit('.').next() {
            Some("absmax") => Role::Absmax,
            Some("quant_map") => Role::Map,
            Some("nested_absmax") => Role::NestedAbsmax,
            Some("nested_quant_map") => Role::NestedMap,
            Some(last) if last.starts_with("bitsandbytes__") => Role::State,
            _ => Role::Codes,
        };
        parts.iter().enumerate().map(|(i, part)| if i == 0 { Role::Codes } else { role(part) }).collect()
    }

    fn elements(&self) -> usize {
        self.state.shape.iter().try_fold(1_usize, |product, &dim| product.checked_mul(dim)).unwrap_or(usize::MAX)
    }

    fn blocks(&self) -> usize {
        self.elements().div_ceil(self.state.block)
    }

    /// First and last block (exclusive) that `rows` touch; chunks start at a block.
    fn block_range(&self, rows: &Range<usize>) -> Range<usize> {
        let cols = self.geometry().cols;
        rows.start * cols / self.state.block..(rows.end * cols).div_ceil(self.state.block)
    }

    fn find(&self, role: Role) -> Option<usize> {
        self.roles.iter().position(|&have| have == role)
    }

    /// The scales that the blocks of `rows` can take while the second level stays.
    fn choices(&self, parts: &[&[u8]], rows: &Range<usize>) -> Choices {
        let Some(nested) = &self.state.nested else { return Choices::Any };
        let bytes = |role| self.find(role).map_or(&[][..], |i| part(parts, i));
        let blocks = self.block_range(rows);
        let groups = blocks.start / nested.block..blocks.end.div_ceil(nested.block);
        let lists = groups
            .map(|group| {
                let mut list = nested::table(nested, group, bytes(Role::NestedAbsmax), bytes(Role::NestedMap)).to_vec();
                list.sort_unstable_by(f32::total_cmp);
                list
            })
            .collect();
        Choices::Listed { lists, runs: nested.block, first: blocks.start % nested.block }
    }

    /// The scales of the blocks of `rows`.
    fn absmax(&self, parts: &[&[u8]], rows: &Range<usize>) -> Vec<f32> {
        self.restored(self.find(Role::Absmax).map_or(&[][..], |i| part(parts, i)), parts, rows)
    }

    /// What the stored form of these blocks' scales stands for.
    fn restored(&self, absmax: &[u8], parts: &[&[u8]], rows: &Range<usize>) -> Vec<f32> {
        let bytes = |role| self.find(role).map_or(&[][..], |i| part(parts, i));
        match &self.state.nested {
            None => floats(absmax).collect(),
            Some(nested) => {
                let first = self.block_range(rows).start;
                nested::restore(nested, absmax, first, bytes(Role::NestedAbsmax), bytes(Role::NestedMap))
            }
        }
    }
}

impl Weight for Bnb4Weight {
    fn format(&self) -> &'static str {
        self.format.id
    }

    fn name(&self) -> &str {
        self.parts.first().map_or("", |lead| &lead.name)
    }

    fn shape(&self) -> &[usize] {
        &self.state.shape
    }

    fn geometry(&self) -> Geometry {
        let cols = *self.state.shape.last().unwrap_or(&1);
        let rows = self.elements().checked_div(cols).unwrap_or(0);
        let row_step = self.state.block / gcd(cols, self.state.block);
        Geometry { rows, cols, row_step: row_step.clamp(1, rows.max(1)) }
    }

    fn value_dtype(&self) -> Dtype {
        self.state.dtype
    }

    fn details(&self) -> String {
        let double = if self.state.nested.is_some() { ", double quantized" } else { "" };
        format!("block {}{double}, decodes to {}", self.state.block, self.state.dtype.torch_name())
    }

    fn parts(&self) -> &[Part] {
        &self.parts
    }

    fn part_rows(&self, part: usize, rows: &Range<usize>) -> Option<Range<u64>> {
        let cols = self.geometry().cols;
        let blocks = self.block_range(rows);
        match self.roles.get(part)? {
            // Chunks start at an even element; only the last may end at an odd one, and then the byte is shared with
            // padding.
            Role::Codes => Some((rows.start * cols / 2) as u64..(rows.end * cols).div_ceil(2) as u64),
            Role::Absmax if self.state.nested.is_some() => Some(blocks.start as u64..blocks.end as u64),
            Role::Absmax => Some(4 * blocks.start as u64..4 * blocks.end as u64),
            _ => None,
        }
    }

    fn decode(&self, parts: &[&[u8]], rows: Range<usize>, out: &mut [f32]) {
        let absmax = self.absmax(parts, &rows);
        nibbles::decode(self.format.book, part(parts, 0), &absmax, self.state.block, self.state.dtype, out);
    }

    fn dots(&self, parts: &[&[u8]], rows: Range<usize>, x: &[f32], out: &mut [f32]) -> bool {
        let bf16 = self.state.dtype == Dtype::BF16;
        // Other blocks and rows that begin inside a block are decoded first.
        if self.state.block != 64 || !x.len().is_multiple_of(64) || !(bf16 || self.state.dtype == Dtype::F32) {
            return false;
        }
        nibble_dots(&self.format.book.levels, part(parts, 0), &self.absmax(parts, &rows), bf16, x, out)
    }

    fn on_grid(&self) -> Option<&dyn OnGrid> {
        Some(self)
    }

    fn writer(&self) -> Option<&dyn Writer> {
        Some(self)
    }
}

impl OnGrid for Bnb4Weight {
    fn grid(&self, parts: &[&[u8]], rows: Range<usize>) -> Grid {
        let (levels, scales) = (Levels::Table(self.format.sorted), self.absmax(parts, &rows));
        let grid = Grid::scaled(levels, self.state.block, scales, self.state.dtype);
        Grid { choices: self.choices(parts, &rows), ..grid }
    }

    fn store(&self, parts: &[&[u8]], rows: Range<usize>, values: &[f32], moved: Option<&Grid>, out: &mut [Vec<u8>]) {
        let bytes = |role| self.find(role).map_or(&[][..], |i| part(parts, i));
        let stored = bytes(Role::Absmax);
        let scales = match (moved, &self.state.nested) {
            (None, _) => stored.to_vec(),
            (Some(grid), None) => float_bytes(&grid.scales),
            (Some(grid), Some(nested)) => {
                let first = self.block_range(&rows).start;
                let (second, map) = (bytes(Role::NestedAbsmax), bytes(Role::NestedMap));
                nested::recode(nested, stored, first, second, map, &grid.scales)
            }
        };
        let absmax = self.restored(&scales, parts, &rows);
        let Some(codes) = out.first_mut() else { return };
        let codes = grow(codes, values.len().div_ceil(2));
        nibbles::encode_under(self.format.book, values, &absmax, self.state.block, codes);
        if let Some(out) = self.find(Role::Absmax).and_then(|at| out.get_mut(at)) {
            out.extend_from_slice(&scales);
        }
    }
}

impl Writer for Bnb4Weight {
    fn renewed(&self, values: Dtype, settings: &Settings) -> Result<Arc<dyn Weight>> {
        let nested = self.state.nested.map(|_| Nested { offset: 0.0, dtype: Dtype::F32, block: nested::BLOCK });
        let state = QuantState { dtype: values, nested, ..self.state.clone() };
        let threads = settings.get("torch_threads", 1)?;
        Ok(Arc::new(Self::new(self.format, self.name(), state, self.storage, threads)))
    }

    fn needs_survey(&self) -> bool {
        self.state.nested.is_some()
    }

    fn survey(&self, _: Range<usize>, values: &[f32], held: &mut Vec<f32>) {
        nibbles::absmax(values, self.state.block, held);
    }

    fn settle(&self, held: &[f32], _: &[Option<Vec<u8>>]) -> Settled {
        let mut weight = self.clone();
        let quantized = self.state.nested.as_ref().map(|_| nested::quantize(held, self.torch_threads));
        if let (Some(nested), Some(quantized)) = (&mut weight.state.nested, &quantized) {
            nested.offset = quantized.offset;
        }
        let bytes = |role: &Role| match (role, &quantized) {
            (Role::Map, _) => Some(float_bytes(&self.format.book.levels)),
            (Role::State, _) => Some(weight.state.to_json().into_bytes()),
            (Role::Absmax, Some(quantized)) => Some(quantized.codes.clone()),
            (Role::NestedAbsmax, Some(quantized)) => Some(float_bytes(&quantized.scales)),
            (Role::NestedMap, _) => Some(nested::map_bytes()),
            _ => None,
        };
        let parts = self.roles.iter().map(bytes).collect();
        Settled { weight: Arc::new(weight), parts }
    }

    fn encode(&self, _: &[Option<Vec<u8>>], _: Range<usize>, values: &[f32], out: &mut [Vec<u8>]) {
        let mut absmax = Vec::with_capacity(values.len().div_ceil(self.state.block));
        let Some(codes) = out.first_mut() else { return };
        let codes = grow(codes, values.len().div_ceil(2));
        nibbles::encode(self.format.book, values, self.state.block, codes, &mut absmax);
        if self.state.nested.is_none()
            && let Some(scales) = self.find(Role::Absmax).and_then(|at| out.get_mut(at))
        {
            scales.extend(float_bytes(&absmax));
        }
    }
}
