//! One NF4 or FP4 weight: decoding, its grid, and writing under fresh scales.

use std::ops::Range;
use std::sync::Arc;

use super::Bnb4;
use super::nested::{self, Nested};
use super::state::QuantState;
use crate::dtype::Dtype;
use crate::error::Result;
use crate::formats::{
    Choices, Geometry, Grid, Levels, OnGrid, Part, Settings, Settled, Weight, Writer, float_bytes, floats, grow, part,
};
use crate::simd::dots::nibble_dots;
use crate::simd::nibbles;

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
pub(super) struct Bnb4Weight {
    format: &'static Bnb4,
    pub(super) state: QuantState,
    storage: Dtype,
    torch_threads: usize,
    pub(super) parts: Vec<Part>,
    roles: Vec<Role>,
}

impl Bnb4Weight {
    pub(super) fn new(
        format: &'static Bnb4,
        name: &str,
        state: QuantState,
        storage: Dtype,
        torch_threads: usize,
    ) -> Self {
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

    /// With its parts as they are stored.
    pub(super) fn with_parts(self, parts: Vec<Part>) -> Self {
        Self { roles: self.roles_of(&parts), parts, ..self }
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

    pub(super) fn elements(&self) -> usize {
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

/// The greatest common divisor.
fn gcd(a: usize, b: usize) -> usize {
    if b == 0 { a } else { gcd(b, a % b) }
}
