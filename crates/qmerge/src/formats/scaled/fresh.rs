//! Fresh scales, as the libraries choose them.
//!
//! All of them go by the least and the largest value of a group, which a first pass collects. Arithmetic follows the reference in f32; where it computes
//! scales in the type of the weight, so does this.

use std::ops::Range;
use std::sync::Arc;

use super::{Codes, Role, Scaled, Second, Zeros, number_bytes, numbers, tiles};
use crate::dtype::Dtype;
use crate::error::Result;
use crate::formats::{Settings, Settled, Weight, Writer};
use crate::simd::codes as kernels;
use crate::simd::floats::round_one;

/// How a library chooses scales.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(in crate::formats) enum Fresh {
    /// transformers' FP8: values are multiplied with 448 · (1 / max |x|), and one over that is stored, or the next power of two.
    Inverse {
        /// Scales are powers of two.
        powers: bool,
    },
    /// One sign as far as the other: max |x| over half the range of levels, which is 7.5 for four bits in compressed-tensors, and 127 for eight in quanto.
    Symmetric {
        /// Half the range.
        half: f32,
    },
    /// The same in f32, whatever the type of the weight.
    Exact {
        /// Half the range.
        half: f32,
    },
    /// compressed-tensors with zeros: the range of the values, 0 among them, over that of the levels.
    Asymmetric,
    /// NVFP4: max |x| / 6 as an 8-bit float, under one scale of all. Loaders put layers that share an input together under the scale of one of them, so it
    /// is the same for every weight up to 16, by which 16 / 6 becomes the largest 8-bit float; where a weight is larger, its largest magnitude takes 16's place.
    Doubled,
    /// MX: a power of two. compressed-tensors takes the exponent of max |x| less that of the largest level, one more from 1.75 on; MLX the least under which nothing is out of range.
    Powers {
        /// As MLX does.
        up: bool,
    },
    /// MLX: the edge of larger magnitude is a level, and the offset.
    Edge,
    /// HQQ without its optimizer: values are multiplied by the range of levels over that of the values, and one over that is stored.
    Reciprocal {
        /// Zeros are whole numbers.
        whole: bool,
    },
    /// What is stored stays.
    Kept,
}

/// The magnitude up to which weights of NVFP4 have one scale of scales.
const COMMON: f32 = 16.0;

/// Least and largest value of each tile.
struct Bounds(Vec<[f32; 2]>);

impl Bounds {
    fn largest(&self) -> impl Iterator<Item = f32> + '_ {
        self.0.iter().map(|[low, high]| low.abs().max(high.abs()))
    }
}

/// Half of the smallest distance from 1 to the next number of a type, doubled.
fn epsilon(dtype: Dtype) -> f32 {
    match dtype {
        Dtype::BF16 => 1.0 / 128.0,
        Dtype::F16 => 1.0 / 1024.0,
        _ => f32::EPSILON,
    }
}

impl Scaled {
    fn bounds(&self, held: &[f32]) -> Bounds {
        let groups = self.groups();
        let lines = self.tiles.lines(&(0..self.rows)).end;
        let mut bounds = vec![[f32::INFINITY, f32::NEG_INFINITY]; lines * groups];
        for (row, held) in held.chunks_exact((2 * groups).max(1)).enumerate() {
            let line = self.tiles.line(row) * groups;
            let of_line = bounds.get_mut(line..line + groups).unwrap_or_default();
            for ([low, high], &[l, h]) in of_line.iter_mut().zip(held.as_chunks::<2>().0) {
                (*low, *high) = (low.min(l), high.max(h));
            }
        }
        Bounds(bounds)
    }

    /// Levels between the least and the largest.
    pub(super) fn range(&self) -> (f32, f32) {
        match self.codes {
            Codes::E4M3 => (-kernels::E4M3_MAX, kernels::E4M3_MAX),
            Codes::E2M1 => (-6.0, 6.0),
            Codes::Bytes => (-128.0, 127.0),
            Codes::Fields { bits, low, .. } => (low as f32, low as f32 + ((1_u32 << bits) - 1) as f32),
            Codes::Blocks(blocks) => (blocks.low as f32, blocks.high() as f32),
        }
    }

    /// The scale of one tile whose largest magnitude is given, as it is stored.
    fn symmetric(&self, largest: f32, half: f32) -> f32 {
        let round = |x: f32| round_one(self.values, x);
        let scale = round(round(largest) / round(half));
        if scale == 0.0 { epsilon(self.values) } else { scale }
    }

    /// The scale and the zero of one tile.
    fn asymmetric(&self, [low, high]: [f32; 2]) -> (f32, f32) {
        let (least, most) = self.range();
        let round = |x: f32| round_one(self.values, x);
        let (low, high) = (round(low.min(0.0)), round(high.max(0.0)));
        let scale = round(round(high - low) / (most - least));
        if scale == 0.0 {
            return (epsilon(self.values), 0.0);
        }
        let zero = round(least - round(low / scale));
        (scale, kernels::round_even(zero.clamp(least, most)))
    }

    fn power(&self, largest: f32) -> f32 {
        let exponent = match self.codes {
            Codes::E2M1 => 2,
            _ => 8,
        };
        let largest = round_one(self.values, largest);
        // From 1.75 on what is cut off the mantissa carries into the exponent.
        let up = largest.to_bits().wrapping_add(1 << 21) >> 23;
        let code = up.saturating_sub(exponent).min(254) as u8;
        if largest == 0.0 { kernels::e8m0(0) } else { kernels::e8m0(code) }
    }

    /// MLX's scale and offset of one group.
    fn edge(&self, [low, high]: [f32; 2]) -> (f32, f32) {
        let (_, most) = self.range();
        let is_low = low.abs() > high.abs();
        let scale = ((high - low) / most).max(1e-7);
        let scale = if is_low { scale } else { -scale };
        let edge = if is_low { low } else { high };
        let level = kernels::round_even(edge / scale);
        if level == 0.0 { (scale, 0.0) } else { (edge / level, edge) }
    }

    /// HQQ's multiplier and zero of one group.
    fn reciprocal(&self, [low, high]: [f32; 2], whole: bool) -> (f32, f32) {
        let (_, most) = self.range();
        let range = high - low;
        // What is not above, or is no number, counts as nothing.
        let multiplier = if range > 1e-4 { (most * (1.0 / range)).min(2e4) } else { 1.0 };
        let zero = -low * multiplier;
        // With the sign of what rounds to nothing, as torch keeps it.
        (multiplier, if whole { zero.round_ties_even() } else { zero })
    }

    /// NVFP4's scales, under the one in `second` or one that is put there.
    fn doubled(&self, bounds: &Bounds, second: &mut Option<Vec<u8>>) -> Vec<f32> {
        let whole = bounds.largest().fold(0.0, f32::max);
        let full = kernels::E4M3_MAX * 6.0;
        let own = match self.second {
            Second::Multiplies => {
                if whole > 0.0 {
                    whole / full
                } else {
                    1.0
                }
            }
            Second::None | Second::Divides => full / whole.max(COMMON),
        };
        let bytes = second.get_or_insert_with(|| own.to_le_bytes().to_vec());
        let seconds = numbers(Dtype::F32, bytes);
        let second_of = |tile: usize| {
            let matrix = tile / self.groups().max(1) / self.tiles.matrix.max(1);
            seconds.get(if seconds.len() > 1 { matrix } else { 0 }).copied().unwrap_or(own)
        };
        let stored = |x: f32| kernels::e4m3(kernels::to_e4m3(x));
        let unless_zero = |x: f32, otherwise: f32| if x == 0.0 { otherwise } else { x };
        let scale = |(tile, largest): (usize, f32)| {
            let round = |x: f32| round_one(self.values, x);
            match self.second {
                Second::None => stored(largest / 6.0),
                Second::Divides => unless_zero(stored(round(round(largest) / 6.0) * second_of(tile)), 0.125),
                Second::Multiplies => stored(unless_zero(largest / (6.0 * second_of(tile)), 1.0).max(1.0 / 512.0)),
            }
        };
        bounds.largest().enumerate().map(scale).collect()
    }

    /// What is kept of the weight as it was stored, or what a new one has in its place.
    fn kept(&self, at: usize, stored: &[Option<Vec<u8>>]) -> Option<Vec<u8>> {
        let own = stored.get(at).cloned().flatten();
        own.or_else(|| self.told.iter().find(|(part, _)| *part == at).map(|(_, bytes)| bytes.clone()))
    }
}

impl Writer for Scaled {
    fn renewed(&self, _: Dtype, _: &Settings) -> Result<Arc<dyn Weight>> {
        Ok(Arc::new(self.clone()))
    }

    fn needs_survey(&self) -> bool {
        true
    }

    fn survey(&self, _: Range<usize>, values: &[f32], held: &mut Vec<f32>) {
        let groups = self.groups();
        if groups == 0 {
            return;
        }
        let mut bounds = vec![[f32::INFINITY, f32::NEG_INFINITY]; groups];
        for row in values.chunks_exact(self.cols) {
            match &self.groups {
                None => kernels::bounds(row, self.tiles.cols, &mut bounds),
                Some(_) => {
                    bounds.fill([f32::INFINITY, f32::NEG_INFINITY]);
                    for (column, &x) in row.iter().enumerate() {
                        if let Some([low, high]) = bounds.get_mut(self.group_of(column)) {
                            (*low, *high) = (low.min(x), high.max(x));
                        }
                    }
                }
            }
            held.extend(bounds.as_flattened());
        }
    }

    fn settle(&self, held: &[f32], stored: &[Option<Vec<u8>>]) -> Settled {
        let bounds = self.bounds(held);
        let dtype = self.dtype(Role::Scales);
        let mut weight = self.clone();
        let (mut zeros, mut offsets, mut multipliers) = (Vec::new(), Vec::new(), Vec::new());
        let second_at = self.find(Role::Second);
        let mut second = second_at.and_then(|at| self.kept(at, stored));
        let scales: Vec<f32> = match self.fresh {
            Fresh::Inverse { powers } => {
                let pair = |largest: f32| {
                    let multiplier = if largest == 0.0 { 1.0 } else { kernels::E4M3_MAX * (1.0 / largest) };
                    let inverse = 1.0 / multiplier;
                    if powers { (1.0 / next_power(inverse), next_power(inverse)) } else { (multiplier, inverse) }
                };
                let scales;
                (multipliers, scales) = bounds.largest().map(pair).unzip();
                scales
            }
            Fresh::Symmetric { half } => bounds.largest().map(|largest| self.symmetric(largest, half)).collect(),
            Fresh::Exact { half } => {
                let scale = |largest: f32| if largest == 0.0 { f32::EPSILON } else { largest / half };
                bounds.largest().map(scale).collect()
            }
            Fresh::Asymmetric => {
                let scales;
                (scales, zeros) = bounds.0.iter().map(|&bounds| self.asymmetric(bounds)).unzip();
                scales
            }
            Fresh::Powers { up: false } => bounds.largest().map(|largest| self.power(largest)).collect(),
            Fresh::Powers { up: true } => {
                let (_, most) = self.range();
                let scale = |largest: f32| if largest == 0.0 { 1.0 } else { next_power(largest / most) };
                bounds.largest().map(scale).collect()
            }
            Fresh::Doubled => self.doubled(&bounds, &mut second),
            Fresh::Reciprocal { whole } => {
                (multipliers, zeros) = bounds.0.iter().map(|&bounds| self.reciprocal(bounds, whole)).unzip();
                multipliers.iter().map(|multiplier| 1.0 / multiplier).collect()
            }
            Fresh::Kept => Vec::new(),
            Fresh::Edge => {
                let scales;
                (scales, offsets) = bounds.0.iter().map(|&bounds| self.edge(bounds)).unzip();
                scales
            }
        };
        let parts = (self.roles.iter().enumerate())
            .map(|(at, role)| match role {
                Role::Codes => None,
                Role::Scales => Some(number_bytes(dtype, &scales)),
                Role::Offsets => Some(number_bytes(self.dtype(Role::Offsets), &offsets)),
                Role::Zeros => Some(match self.zeros {
                    Zeros::Packed { bits, dense } => tiles::pack_zeros((bits, dense), &zeros, self.groups()),
                    _ => number_bytes(self.dtype(Role::Zeros), &zeros),
                }),
                Role::Second => Some(second.clone().unwrap_or_else(|| number_bytes(self.dtype(Role::Second), &[1.0]))),
                Role::Kept => Some(self.kept(at, stored).unwrap_or_default()),
            })
            .collect();
        if self.fresh == Fresh::Edge {
            // Codes are chosen under what was computed, not under what is stored of it.
            weight.unrounded = Some(Arc::new((scales, offsets)));
        } else if matches!(self.fresh, Fresh::Reciprocal { .. }) {
            weight.unrounded = Some(Arc::new((std::mem::take(&mut multipliers), zeros)));
        }
        weight.multipliers = (!multipliers.is_empty()).then(|| multipliers.into());
        Settled { weight: Arc::new(weight), parts }
    }

    fn encode(&self, decided: &[Option<Vec<u8>>], rows: Range<usize>, values: &[f32], out: &mut [Vec<u8>]) {
        let views: Vec<&[u8]> = (decided.iter().enumerate())
            .map(|(at, bytes)| {
                let bytes = bytes.as_deref().unwrap_or_default();
                match self.part_rows(at, &rows) {
                    Some(range) => bytes.get(range.start as usize..range.end as usize).unwrap_or_default(),
                    None => bytes,
                }
            })
            .collect();
        let Some(codes) = out.first_mut() else { return };
        let groups = self.groups();
        if let Some(multipliers) = &self.multipliers {
            let multipliers = self.tiles.of_rows(multipliers, 0, groups, &rows);
            return self.pack_levels(values, codes, |k, levels| {
                kernels::scale(
                    levels,
                    self.tiles.cols,
                    multipliers.get(k * groups..(k + 1) * groups).unwrap_or_default(),
                    &[],
                );
            });
        }
        if let Some(unrounded) = &self.unrounded {
            let (scales, offsets) = &**unrounded;
            let of = |all: &[f32]| self.tiles.of_rows(all, 0, groups, &rows);
            if matches!(self.fresh, Fresh::Reciprocal { .. }) {
                let (multipliers, zeros) = (of(scales), of(offsets));
                return self.pack_levels(values, codes, |k, levels| {
                    let [multipliers, zeros] = [&multipliers, &zeros]
                        .map(|of| self.by_runs(of.get(k * groups..(k + 1) * groups).unwrap_or_default().to_vec()));
                    for ((run, multiplier), zero) in levels.chunks_mut(self.run()).zip(multipliers).zip(zeros) {
                        run.iter_mut().for_each(|x| *x = *x * multiplier + zero);
                    }
                });
            }
            return self.pack(values, (&of(scales), &[], &of(offsets)), codes);
        }
        let scales = self.scales(&views, &rows);
        let zeros = self.zeros(&views, &rows);
        self.pack(values, (&scales, &zeros, &[]), codes);
    }
}

/// The least power of two not below a positive number.
fn next_power(x: f32) -> f32 {
    let bits = x.to_bits();
    f32::from_bits(if bits & 0x7f_ffff == 0 { bits } else { (bits | 0x7f_ffff).wrapping_add(1) })
}
