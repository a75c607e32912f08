//! A format that no one has, of all that makes formats hard: inputs as rows, groups of inputs in any order (`toy_g_idx`, which must stay), a scale and an
//! offset by group and output in tensors of the whole weight, names that are not the model's. Tests merge into it by every rounding method.

use std::ops::Range;
use std::sync::Arc;

use super::{
    Choices, Claim, Format, Geometry, Grid, Levels, Module, OnGrid, Order, Part, Settings, Settled, Weight, Writer,
    float_bytes, floats, grow, part,
};
use crate::dtype::Dtype;
use crate::error::{Result, malformed};
use crate::linalg::transposed;
use crate::open::Entry;

#[derive(Debug)]
pub(super) struct Toy;

impl Format for Toy {
    fn id(&self) -> &'static str {
        "toy"
    }

    fn about(&self) -> &'static str {
        "toy, inputs as rows"
    }

    fn claim(&self, module: &Module<'_>) -> Result<Vec<Claim>> {
        let leaves = ["toy_codes", "toy_scales", "toy_offsets", "toy_g_idx"];
        let Some(entries) = leaves.iter().map(|leaf| module.get(leaf).cloned()).collect::<Option<Vec<Entry>>>() else {
            return Ok(Vec::new());
        };
        let groups = module.checkpoint.read_small(&entries[3], 1 << 20)?;
        let groups: Vec<u32> = groups.as_chunks().0.iter().map(|b| u32::from_le_bytes(*b)).collect();
        let ([inputs, outputs], [count, _]) = (&entries[0].shape[..], &entries[1].shape[..]) else {
            return Err(malformed("no matrix"));
        };
        let parts = entries
            .iter()
            .map(|e| Part { name: e.name.clone(), dtype: e.dtype, shape: Some(e.shape.clone()), bytes: e.bytes })
            .collect();
        let name = format!("{}.weight", module.path);
        let weight = ToyWeight { name, shape: vec![*outputs, *inputs], parts, groups, count: *count };
        Ok(vec![Claim { weight: Arc::new(weight), entries }])
    }

    fn is_made(&self) -> bool {
        false
    }
}

#[derive(Clone, Debug)]
struct ToyWeight {
    name: String,
    shape: Vec<usize>,
    parts: Vec<Part>,
    /// Group of each input.
    groups: Vec<u32>,
    count: usize,
}

impl ToyWeight {
    fn outputs(&self) -> usize {
        self.shape[0]
    }

    /// Scale, offset of input `i` and output `o`.
    fn pair(&self, scales: &[f32], offsets: &[f32], i: usize, o: usize) -> (f32, f32) {
        let at = self.groups[i] as usize * self.outputs() + o;
        (scales[at], offsets[at])
    }
}

/// The code of the level nearest to a value.
pub(crate) fn code(value: f32, scale: f32, offset: f32) -> u8 {
    ((value - offset) / scale).round().clamp(0.0, 15.0) as u8
}

impl Weight for ToyWeight {
    fn format(&self) -> &'static str {
        "toy"
    }

    fn name(&self) -> &str {
        &self.name
    }

    fn shape(&self) -> &[usize] {
        &self.shape
    }

    fn geometry(&self) -> Geometry {
        Geometry { rows: self.shape[1], cols: self.shape[0], row_step: 1 }
    }

    fn is_transposed(&self) -> bool {
        true
    }

    fn value_dtype(&self) -> Dtype {
        Dtype::F32
    }

    fn parts(&self) -> &[Part] {
        &self.parts
    }

    fn part_rows(&self, part: usize, rows: &Range<usize>) -> Option<Range<u64>> {
        (part == 0).then(|| (rows.start * self.outputs()) as u64..(rows.end * self.outputs()) as u64)
    }

    fn decode(&self, parts: &[&[u8]], rows: Range<usize>, out: &mut [f32]) {
        let (scales, offsets): (Vec<f32>, Vec<f32>) =
            (floats(part(parts, 1)).collect(), floats(part(parts, 2)).collect());
        for (k, (out, code)) in out.iter_mut().zip(part(parts, 0)).enumerate() {
            let (scale, offset) = self.pair(&scales, &offsets, rows.start + k / self.outputs(), k % self.outputs());
            *out = f32::from(*code) * scale + offset;
        }
    }

    fn on_grid(&self) -> Option<&dyn OnGrid> {
        Some(self)
    }

    fn writer(&self) -> Option<&dyn Writer> {
        Some(self)
    }
}

impl OnGrid for ToyWeight {
    fn grid(&self, parts: &[&[u8]], rows: Range<usize>) -> Grid {
        let (scales, offsets): (Vec<f32>, Vec<f32>) =
            (floats(part(parts, 1)).collect(), floats(part(parts, 2)).collect());
        let all: Vec<(f32, f32)> = rows
            .flat_map(|i| (0..self.outputs()).map(move |o| (i, o)))
            .map(|(i, o)| self.pair(&scales, &offsets, i, o))
            .collect();
        let (scales, offsets) = all.into_iter().unzip();
        Grid { offsets, ..Grid::scaled(Levels::Integers(0, 15), 1, scales, Dtype::F32) }
    }

    fn ordered(&self, parts: &[&[u8]]) -> Option<(Order, Grid)> {
        let (scales, offsets): (Vec<f32>, Vec<f32>) =
            (floats(part(parts, 1)).collect(), floats(part(parts, 2)).collect());
        let mut inputs: Vec<u32> = (0..self.groups.len() as u32).collect();
        inputs.sort_by_key(|&i| self.groups[i as usize]);
        let turned = |x: &[f32]| transposed(x, self.outputs());
        let run = self.groups.len() / self.count;
        let grid = Grid::scaled(Levels::Integers(0, 15), run, turned(&scales), Dtype::F32);
        let grid = Grid { offsets: turned(&offsets), choices: Choices::Any, offset_choices: Choices::Any, ..grid };
        Some((Order { transposed: true, inputs: Some(inputs) }, grid))
    }

    fn store(&self, parts: &[&[u8]], rows: Range<usize>, values: &[f32], moved: Option<&Grid>, out: &mut [Vec<u8>]) {
        let (mut scales, mut offsets): (Vec<f32>, Vec<f32>) =
            (floats(part(parts, 1)).collect(), floats(part(parts, 2)).collect());
        if let Some(grid) = moved {
            for (run, (&scale, &offset)) in grid.scales.iter().zip(&grid.offsets).enumerate() {
                let at = run % self.count * self.outputs() + run / self.count;
                (scales[at], offsets[at]) = (scale, offset);
            }
            out[1] = float_bytes(&scales);
            out[2] = float_bytes(&offsets);
        }
        let codes = grow(&mut out[0], values.len());
        for (k, (value, to)) in values.iter().zip(codes).enumerate() {
            let (scale, offset) = self.pair(&scales, &offsets, rows.start + k / self.outputs(), k % self.outputs());
            *to = code(*value, scale, offset);
        }
    }
}

impl Writer for ToyWeight {
    fn renewed(&self, _: Dtype, _: &Settings) -> Result<Arc<dyn Weight>> {
        Ok(Arc::new(self.clone()))
    }

    fn needs_survey(&self) -> bool {
        true
    }

    fn survey(&self, _: Range<usize>, values: &[f32], held: &mut Vec<f32>) {
        held.extend_from_slice(values);
    }

    fn settle(&self, held: &[f32], stored: &[Option<Vec<u8>>]) -> Settled {
        let n = self.count * self.outputs();
        let (mut low, mut high) = (vec![f32::INFINITY; n], vec![f32::NEG_INFINITY; n]);
        for (k, &x) in held.iter().enumerate() {
            let at = self.groups[k / self.outputs()] as usize * self.outputs() + k % self.outputs();
            (low[at], high[at]) = (low[at].min(x), high[at].max(x));
        }
        let scales: Vec<f32> = low.iter().zip(&high).map(|(low, high)| ((high - low) / 15.0).max(1e-8)).collect();
        let parts = vec![None, Some(float_bytes(&scales)), Some(float_bytes(&low)), stored[3].clone()];
        Settled { weight: Arc::new(self.clone()), parts }
    }

    fn encode(&self, decided: &[Option<Vec<u8>>], rows: Range<usize>, values: &[f32], out: &mut [Vec<u8>]) {
        let parts: Vec<&[u8]> = decided.iter().map(|part| part.as_deref().unwrap_or_default()).collect();
        self.store(&parts, rows, values, None, out);
    }
}
