//! Values under the scales and zeros that are stored.

use std::ops::Range;

use super::{Packed, Packing, SCALES, ZEROS};
use crate::dtype::Dtype;
use crate::formats::scaled::{number_bytes, numbers};
use crate::formats::{Choices, Grid, Levels, OnGrid, Order, grow, part};
use crate::simd::words;

impl Packed {
    fn levels(&self) -> Levels {
        Levels::Integers(0, (1 << self.bits) - 1)
    }

    /// Inputs in the order of their groups, where each group but the last has as many; `None` where groups are no runs in any order.
    fn in_order(&self) -> Option<Vec<u32>> {
        let mut order: Vec<u32> = (0..self.inputs() as u32).collect();
        order.sort_by_key(|&input| self.groups.get(input as usize));
        let regular = order.iter().enumerate().all(|(at, &input)| self.group(input as usize) == at / self.width.max(1));
        regular.then_some(order)
    }

    /// What groups have, (groups, outputs), as runs of outputs' rows.
    fn turned(&self, of_groups: &[f32]) -> Vec<f32> {
        crate::linalg::transposed(of_groups, self.outputs())
    }

    fn all(&self, parts: &[&[u8]]) -> (Vec<f32>, Vec<f32>) {
        let zeros = (0..self.count).flat_map(|group| self.zeros_of(parts, group)).collect();
        (numbers(self.scales_type(), part(parts, SCALES)), zeros)
    }

    /// Appends the codes of some inputs: the level nearest to each value under these scales and zeros by group.
    pub(super) fn pack(&self, scales_and_zeros: &[&[u8]], rows: Range<usize>, values: &[f32], out: &mut Vec<u8>) {
        let (outputs, first) = (self.outputs(), rows.start);
        let bytes = self.code_bytes(rows.end) - self.code_bytes(rows.start);
        let codes = grow(out, bytes);
        let mut lines = values.chunks_exact(outputs.max(1));
        let mut fields = vec![0_u8; outputs];
        self.by_input(scales_and_zeros, rows, |input, scales, zeros| {
            let Some(values) = lines.next() else { return };
            words::fields(values, scales, zeros, self.most(), &mut fields);
            match self.packing {
                Packing::Down => {
                    let bit = (input - first) * self.bits;
                    words::put_down(&fields, bit, codes);
                }
                Packing::Across => {
                    let row = outputs / 2;
                    let at = (input - first) * row;
                    words::put_across(&fields, codes.get_mut(at..at + row).unwrap_or_default());
                }
            }
        });
    }
}

impl OnGrid for Packed {
    fn grid(&self, parts: &[&[u8]], rows: Range<usize>) -> Grid {
        let (mut scales, mut zeros) = (Vec::new(), Vec::new());
        self.by_input(parts, rows, |_, own_scales, own_zeros| {
            scales.extend_from_slice(own_scales);
            zeros.extend_from_slice(own_zeros);
        });
        Grid { zeros, ..Grid::scaled(self.levels(), 1, scales, self.values) }
    }

    fn ordered(&self, parts: &[&[u8]]) -> Option<(Order, Grid)> {
        let Some(order) = self.in_order() else {
            // No runs: each value has its own scale, and keeps it.
            let own = self.grid(parts, 0..self.inputs());
            let turn = |of: &[f32]| crate::linalg::transposed(of, self.outputs());
            let grid = Grid { scales: turn(&own.scales), zeros: turn(&own.zeros), ..own };
            return Some((Order { transposed: true, inputs: None }, grid));
        };
        let (scales, zeros) = self.all(parts);
        let grid = Grid::scaled(self.levels(), self.width.max(1), self.turned(&scales), self.values);
        let choices = match self.scales_type() {
            Dtype::F32 => Choices::Any,
            dtype => Choices::Rounded(dtype),
        };
        let grid = Grid { zeros: self.turned(&zeros), choices, ..grid.in_rows(self.inputs().max(1)) };
        let is_sorted = order.is_sorted();
        Some((Order { transposed: true, inputs: (!is_sorted).then_some(order) }, grid))
    }

    fn store(&self, parts: &[&[u8]], rows: Range<usize>, values: &[f32], moved: Option<&Grid>, out: &mut [Vec<u8>]) {
        let (own, dtype) = (part(parts, SCALES), self.scales_type());
        let all = self.count * self.outputs();
        // Scales by output and group, as they were handed out in order.
        let moved =
            moved.filter(|grid| rows == (0..self.inputs()) && grid.run == self.width && grid.scales.len() == all);
        let scales = match moved {
            Some(grid) => number_bytes(dtype, &crate::linalg::transposed(&grid.scales, self.count)),
            None => own.to_vec(),
        };
        let now = [&[], part(parts, ZEROS), scales.as_slice()];
        if let Some(codes) = out.first_mut() {
            self.pack(&now, rows, values, codes);
        }
        if scales != own
            && let Some(out) = out.get_mut(SCALES)
        {
            *out = scales;
        }
    }
}
