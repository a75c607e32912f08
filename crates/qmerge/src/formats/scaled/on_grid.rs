//! Values under the scales that are stored, or others that could stand in their place.

use std::borrow::Cow;
use std::ops::Range;

use super::{Codes, E4M3_LEVELS, Role, Scaled, Second, Zeros, number_bytes, numbers};
use crate::dtype::Dtype;
use crate::formats::{Choices, Grid, OnGrid, Order, Rounds, Weight, grow, part};
use crate::simd::codes as kernels;
use crate::simd::floats::round_one;

impl Scaled {
    /// The scales that a group can take instead of its own. Those that several rows share stay.
    fn choices(&self, parts: &[&[u8]]) -> Choices {
        let listed = |list: Vec<f32>| Choices::Listed { lists: vec![list], runs: usize::MAX, first: 0 };
        if self.tiles.rows != 1 {
            return Choices::Fixed;
        }
        match self.dtype(Role::Scales) {
            _ if self.second != Second::None && self.seconds(parts).len() != 1 => Choices::Fixed,
            Dtype::F32 => Choices::Any,
            dtype @ (Dtype::F16 | Dtype::BF16) => Choices::Rounded(dtype),
            Dtype::F8E4M3 => {
                let second = self.second_of(&self.seconds(parts), 0);
                let mut list: Vec<f32> = E4M3_LEVELS.iter().map(|&scale| self.under_second(scale, second)).collect();
                list.retain(|scale| *scale > 0.0 && scale.is_finite());
                list.sort_unstable_by(f32::total_cmp);
                listed(list)
            }
            _ => listed((1..255).map(kernels::e8m0).collect()),
        }
    }

    /// The offsets that a group can take.
    fn offset_choices(&self) -> Choices {
        match self.find(Role::Offsets) {
            Some(_) if self.dtype(Role::Offsets) == Dtype::F32 => Choices::Any,
            Some(_) => Choices::Rounded(self.dtype(Role::Offsets)),
            None => Choices::Fixed,
        }
    }

    /// Columns in the order of their groups, where each group but the last has as many.
    fn in_order(&self) -> Option<Vec<u32>> {
        let groups = self.groups.as_deref()?;
        let mut order: Vec<u32> = (0..groups.len() as u32).collect();
        order.sort_by_key(|&column| groups.get(column as usize));
        let regular = order.iter().enumerate().all(|(at, &column)| {
            groups.get(column as usize).is_some_and(|&group| group as usize == at / self.tiles.cols)
        });
        regular.then_some(order)
    }

    /// The scales of some rows as they are stored, after some of them moved.
    fn moved_scales(&self, parts: &[&[u8]], rows: &Range<usize>, moved: &Grid) -> Vec<u8> {
        let stored = self.bytes(parts, Role::Scales);
        let dtype = self.dtype(Role::Scales);
        let own = self.scales(parts, rows);
        if own.len() != moved.scales.len() {
            return stored.to_vec();
        }
        let (raw, second) = (numbers(dtype, stored), self.second_of(&self.seconds(parts), rows.start));
        let unseconded = |scale: f32| match self.second {
            Second::None => scale,
            Second::Divides => scale * second,
            Second::Multiplies => scale / second,
        };
        let kept = own.iter().zip(&moved.scales).zip(raw);
        let numbers: Vec<f32> =
            kept.map(|((own, &scale), raw)| if *own == scale { raw } else { unseconded(scale) }).collect();
        number_bytes(dtype, &numbers)
    }

    /// The levels nearest to values where two roundings make them: the quotient may miss by one.
    fn levels_of(&self, values: &[f32], scales: &[f32], zeros: &[f32], offsets: &[f32]) -> Vec<f32> {
        let (low, high) = self.range();
        let mut levels = values.to_vec();
        let [scales, zeros, offsets] = [scales, zeros, offsets].map(|of| self.by_runs(of.to_vec()));
        let runs = levels.chunks_mut(self.cols.max(1)).flat_map(|row| row.chunks_mut(self.run()));
        let of_run = |of: &[f32], run: usize| of.get(run).copied().unwrap_or(0.0);
        for (number, (run, &scale)) in runs.zip(&scales).enumerate() {
            let (zero, offset) = (of_run(&zeros, number), of_run(&offsets, number));
            // One of the two is there.
            let value = |level: f32| {
                let round = |x: f32| round_one(self.values, x);
                if offsets.is_empty() {
                    round(round(level - zero) * scale)
                } else {
                    round(round(level * scale) + offset)
                }
            };
            for x in run {
                let near = if scale == 0.0 {
                    0.0
                } else {
                    kernels::round_even(((*x - offset) / scale + zero).clamp(low, high))
                };
                let beside = [near, near - 1.0, near + 1.0].into_iter().filter(|level| (low..=high).contains(level));
                let (wanted, mut best) = (*x, (near, f32::INFINITY));
                for level in beside {
                    let miss = (value(level) - wanted).abs();
                    if miss < best.1 {
                        best = (level, miss);
                    }
                }
                *x = best.0;
            }
        }
        levels
    }

    /// Appends the codes of some rows to `out`: the level nearest to each value under these scales, zeros and offsets of groups, row by row.
    pub(super) fn pack(&self, values: &[f32], (scales, zeros, offsets): (&[f32], &[f32], &[f32]), out: &mut Vec<u8>) {
        let groups = self.groups();
        self.pack_levels(values, out, |k, levels| {
            let row = |of_rows: &[f32]| of_rows.get(k * groups..(k + 1) * groups).unwrap_or_default().to_vec();
            for (levels, offset) in levels.chunks_mut(self.tiles.cols).zip(row(offsets)) {
                levels.iter_mut().for_each(|x| *x -= offset);
            }
            kernels::unscale(levels, self.run(), &self.by_runs(row(scales)), &self.by_runs(row(zeros)));
        });
    }

    /// Stores the levels that `of_row` makes of each row's values, which it is given with the row's number.
    pub(super) fn pack_levels(&self, values: &[f32], out: &mut Vec<u8>, of_row: impl Fn(usize, &mut [f32])) {
        let (cols, row_bytes) = (self.cols, self.codes.row_bytes(self.cols));
        if cols == 0 {
            return;
        }
        let (mut levels, first) = (vec![0.0; cols], out.len());
        for (k, values) in values.chunks_exact(cols).enumerate() {
            levels.copy_from_slice(values);
            of_row(k, &mut levels);
            self.codes.pack(&levels, grow(out, row_bytes));
        }
        if let Codes::Blocks(blocks) = self.codes {
            let codes = out.split_off(first);
            blocks.pack(&codes, grow(out, blocks.bytes()));
        }
    }
}

impl OnGrid for Scaled {
    fn grid(&self, parts: &[&[u8]], rows: Range<usize>) -> Grid {
        let (scales, zeros) = (self.by_runs(self.scales(parts, &rows)), self.by_runs(self.zeros(parts, &rows)));
        let choices = if self.groups.is_some() { Choices::Fixed } else { self.choices(parts) };
        let offsets =
            if self.find(Role::Offsets).is_some() { self.by_rows(parts, Role::Offsets, &rows) } else { Vec::new() };
        let grid = Grid::scaled(self.codes.table(), self.run(), scales, self.values).in_rows(self.cols.max(1));
        let rounds = self.rounds();
        Grid { zeros, offsets, choices, rounds, offset_choices: self.offset_choices(), ..grid }
    }

    fn ordered(&self, parts: &[&[u8]]) -> Option<(Order, Grid)> {
        let inputs = self.in_order()?;
        let rows = 0..self.rows;
        let grid = Grid::scaled(self.codes.table(), self.tiles.cols, self.scales(parts, &rows), self.values);
        let (zeros, choices, rounds) = (self.zeros(parts, &rows), self.choices(parts), self.rounds());
        let grid = Grid { zeros, choices, rounds, ..grid.in_rows(self.cols) };
        Some((Order { transposed: false, inputs: Some(inputs) }, grid))
    }

    fn store(&self, parts: &[&[u8]], rows: Range<usize>, values: &[f32], moved: Option<&Grid>, out: &mut [Vec<u8>]) {
        // Only what is cut by rows is written with them.
        let cut = self.tiles.rows == 1;
        let mut scale_bytes = Cow::Borrowed(self.bytes(parts, Role::Scales));
        let mut offset_bytes = Cow::Borrowed(self.bytes(parts, Role::Offsets));
        if let Some(moved) = moved.filter(|_| cut) {
            scale_bytes = self.moved_scales(parts, &rows, moved).into();
            if self.find(Role::Offsets).is_some() && !moved.offsets.is_empty() {
                offset_bytes = number_bytes(self.dtype(Role::Offsets), &moved.offsets).into();
            }
        }
        // What is stored now, beside what stays.
        let now: Vec<&[u8]> = (self.roles.iter().enumerate())
            .map(|(at, role)| match role {
                Role::Scales => &*scale_bytes,
                Role::Offsets => &*offset_bytes,
                _ => part(parts, at),
            })
            .collect();
        let scales = self.scales(&now, &rows);
        if let Some(codes) = out.first_mut() {
            let zeros = self.zeros(parts, &rows);
            if self.rounds() == Rounds::Once {
                self.pack(values, (&scales, &zeros, &[]), codes);
            } else {
                let offsets =
                    if offset_bytes.is_empty() { Vec::new() } else { self.by_rows(&now, Role::Offsets, &rows) };
                self.pack_levels(&self.levels_of(values, &scales, &zeros, &offsets), codes, |_, _| {});
            }
        }
        for (at, role) in self.roles.iter().enumerate() {
            let is_cut = cut && matches!(role, Role::Scales | Role::Offsets | Role::Zeros);
            if is_cut
                && self.part_rows(at, &rows).is_some()
                && !(*role == Role::Zeros && matches!(self.zeros, Zeros::Packed { .. }))
                && let (Some(out), Some(bytes)) = (out.get_mut(at), now.get(at))
            {
                out.extend_from_slice(bytes);
            }
        }
    }
}
