//! Whole numbers packed into words whose rows are inputs: GPTQ and AWQ.
//!
//! Parts of `M.weight`, which the model has as (outputs, inputs): `M.qweight`, `M.qzeros` (a zero per group and output, packed along the outputs), `M.scales` (groups, outputs), and for GPTQ
//! `M.g_idx`, the group of each input. A value is `(q − z) · s`, rounded once to the type of the scales. Scales and zeros belong to the weight as a whole, since any row may use any
//! of them; groups are runs of each output's inputs once those are in the order of their groups.

mod awq;
mod fresh;
mod gptq;
mod on_grid;
mod zeros;

use std::collections::HashMap;
use std::ops::Range;
use std::sync::Arc;

pub(super) use awq::Awq;
pub(super) use gptq::Gptq;
use zeros::ZeroPoints;

use super::scaled::numbers;
use super::{Geometry, OnGrid, Part, Weight, Writer, part};
use crate::dtype::Dtype;
use crate::simd::floats::round_to;
use crate::simd::words;

/// Where the parts of such a weight stand among its parts.
const ZEROS: usize = 1;
const SCALES: usize = 2;

/// How codes lie in words.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Packing {
    /// Along the inputs, from the low end of each word, across words where need be: GPTQ.
    Down,
    /// Eight outputs to a word, in AWQ's order.
    Across,
}

/// A weight of packed inputs.
#[derive(Clone, Debug)]
struct Packed {
    format: &'static str,
    name: String,
    /// (outputs, inputs).
    shape: [usize; 2],
    bits: usize,
    packing: Packing,
    zeros: ZeroPoints,
    /// Group of each input.
    groups: Arc<[u32]>,
    /// Number of groups, and inputs of each.
    count: usize,
    width: usize,
    values: Dtype,
    about: String,
    /// Codes, zeros, scales, and an index of groups where there is one.
    parts: Vec<Part>,
}

impl Packed {
    fn outputs(&self) -> usize {
        self.shape[0]
    }

    fn inputs(&self) -> usize {
        self.shape[1]
    }

    fn most(&self) -> f32 {
        ((1_u32 << self.bits) - 1) as f32
    }

    /// Inputs that fill whole words.
    fn step(&self) -> usize {
        match (self.packing, self.bits) {
            (Packing::Across, _) => 1,
            (Packing::Down, 3) => 32,
            (Packing::Down, bits) => 32 / bits,
        }
    }

    /// Bytes of so many inputs, a whole number of steps.
    fn code_bytes(&self, inputs: usize) -> usize {
        4 * match self.packing {
            Packing::Down => (inputs * self.bits).div_ceil(32) * self.outputs(),
            Packing::Across => inputs * self.outputs() / 8,
        }
    }

    fn scales_type(&self) -> Dtype {
        self.parts.get(SCALES).map_or(Dtype::F16, |part| part.dtype)
    }

    /// Scales of a group, by output.
    fn scales_of(&self, parts: &[&[u8]], group: usize) -> Vec<f32> {
        let dtype = self.scales_type();
        let row = self.outputs() * dtype.block().1 as usize;
        numbers(dtype, part(parts, SCALES).get(group * row..(group + 1) * row).unwrap_or_default())
    }

    /// Zeros of a group, by output.
    fn zeros_of(&self, parts: &[&[u8]], group: usize) -> Vec<f32> {
        self.zeros.of_group(part(parts, ZEROS), self.bits, self.outputs(), group)
    }

    fn group(&self, input: usize) -> usize {
        self.groups.get(input).map_or(0, |&group| group as usize)
    }

    /// Calls `f` for each of some inputs, in order, with its number, its group's scales and its zeros by output.
    fn by_input(&self, parts: &[&[u8]], rows: Range<usize>, mut f: impl FnMut(usize, &[f32], &[f32])) {
        let mut known: HashMap<usize, (Vec<f32>, Vec<f32>)> = HashMap::new();
        for input in rows {
            let group = self.group(input);
            if group >= self.count {
                continue;
            }
            let own = known.entry(group);
            let (scales, zeros) = own.or_insert_with(|| (self.scales_of(parts, group), self.zeros_of(parts, group)));
            f(input, scales, zeros);
        }
    }
}

impl Weight for Packed {
    fn format(&self) -> &'static str {
        self.format
    }

    fn name(&self) -> &str {
        &self.name
    }

    fn shape(&self) -> &[usize] {
        &self.shape
    }

    fn geometry(&self) -> Geometry {
        Geometry { rows: self.inputs(), cols: self.outputs(), row_step: self.step() }
    }

    fn is_transposed(&self) -> bool {
        true
    }

    fn value_dtype(&self) -> Dtype {
        self.values
    }

    fn details(&self) -> String {
        self.about.clone()
    }

    fn parts(&self) -> &[Part] {
        &self.parts
    }

    fn part_rows(&self, part: usize, rows: &Range<usize>) -> Option<Range<u64>> {
        (part == 0).then(|| self.code_bytes(rows.start) as u64..self.code_bytes(rows.end) as u64)
    }

    fn decode(&self, parts: &[&[u8]], rows: Range<usize>, out: &mut [f32]) {
        let (outputs, first, codes) = (self.outputs(), rows.start, part(parts, 0));
        let mut lines = out.chunks_exact_mut(outputs.max(1));
        self.by_input(parts, rows, |input, scales, zeros| {
            let Some(out) = lines.next() else { return };
            match self.packing {
                Packing::Down => {
                    let (words, shift) = self.words(codes, input - first);
                    words::down(words, shift, self.bits, zeros, scales, out);
                }
                Packing::Across => {
                    let row = outputs / 2;
                    let words = codes.get((input - first) * row..(input - first + 1) * row).unwrap_or_default();
                    words::across(words, zeros, scales, out);
                }
            }
            round_to(self.values, out);
        });
    }

    fn on_grid(&self) -> Option<&dyn OnGrid> {
        Some(self)
    }

    fn writer(&self) -> Option<&dyn Writer> {
        Some(self)
    }
}

impl Packed {
    /// The words of all outputs that hold an input, counted from the first of a step, those that it crosses into, and where it begins in them.
    fn words<'b>(&self, codes: &'b [u8], input: usize) -> ([&'b [u8]; 2], u32) {
        let (line, bit) = (4 * self.outputs(), input * self.bits);
        let of = |at: usize| codes.get(at * line..(at + 1) * line).unwrap_or_default();
        let (at, shift) = (bit / 32, bit % 32);
        ([of(at), if shift + self.bits > 32 { of(at + 1) } else { &[] }], shift as u32)
    }
}
