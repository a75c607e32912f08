//! The values that elements can take when the scales stay as they are, and the scales that can be stored instead.
//!
//! A grid is what a rounding method sees of a format: levels, and for each short run of elements a scale, a zero and an
//! offset, `value = scale · (level − zero) + offset`, rounded to the type that the weight decodes to. Any method works on any
//! grid; that keeps formats and methods apart.

mod search;
#[cfg(test)]
mod tests;

use std::ops::Range;

use crate::dtype::Dtype;
use crate::linalg::transposed;
use crate::simd::floats::{round_one, round_to};
use crate::simd::neighbours::{table_moved, table_neighbours, uniform_neighbours};
use search::{bracket, bracket_all, bracket_few, neighbour};

/// The levels before scaling.
#[derive(Clone, Copy, Debug)]
pub enum Levels {
    /// A table in ascending order, at most 256 (NF4, FP4, IQ4_NL; the values of 8-bit floats).
    Table(&'static [f32]),
    /// The integers from low to high (int8, and the affine formats).
    Integers(i32, i32),
    /// Every value of a floating-point type; scales do not apply.
    Floats(Dtype),
}

/// The scales, or offsets, that a run can take in the stored form.
#[derive(Clone, Debug, PartialEq)]
pub enum Choices {
    /// Only the one it has.
    Fixed,
    /// Any f32.
    Any,
    /// Any value of a floating-point type.
    Rounded(Dtype),
    /// One of a list (double quantization: the 256 values of a second-level code; the sub-block scales of a K-quant).
    Listed {
        /// Ascending lists.
        lists: Vec<Vec<f32>>,
        /// Consecutive runs that share a list.
        runs: usize,
        /// Number of the grid's first run among those of its list.
        first: usize,
    },
}

/// When a value is rounded to its type. At the end it always is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Rounds {
    /// At the end alone.
    Once,
    /// Before the offset is added, too (MLX).
    BeforeOffset,
    /// Before what a zero leaves of a level is scaled, too (HQQ).
    BeforeScale,
}

/// The grid of a chunk of rows.
#[derive(Clone, Debug)]
pub struct Grid {
    /// The levels, shared by all elements.
    pub levels: Levels,
    /// Consecutive elements (row-major) that share a scale.
    pub run: usize,
    /// Elements after which a run ends early and another begins: those of a row, where it is no whole number of runs. 0 where runs follow each other
    /// without regard to rows.
    pub line: usize,
    /// One scale per run; empty for [`Levels::Floats`]. A method may replace them by others of `choices`.
    pub scales: Vec<f32>,
    /// The level that stands for nothing, one per run; empty where it is 0.
    pub zeros: Vec<f32>,
    /// One offset per run, or empty for none. A method may replace them by others of `offset_choices`.
    pub offsets: Vec<f32>,
    /// Type that decoded values are rounded to.
    pub values: Dtype,
    /// When values are rounded to their type before they are done.
    pub rounds: Rounds,
    /// Scales that can be stored.
    pub choices: Choices,
    /// Offsets that can be stored.
    pub offset_choices: Choices,
}

/// Levels of a table that are looked at all together.
const SMALL: usize = 16;

impl Grid {
    /// The grid of all values of a type.
    pub fn floats(dtype: Dtype) -> Self {
        Self::scaled(Levels::Floats(dtype), 1, Vec::new(), dtype)
    }

    /// A grid with a scale for each run of elements, which cannot be stored otherwise.
    pub fn scaled(levels: Levels, run: usize, scales: Vec<f32>, values: Dtype) -> Self {
        Self {
            levels,
            run,
            line: 0,
            scales,
            zeros: Vec::new(),
            offsets: Vec::new(),
            values,
            rounds: Rounds::Once,
            choices: Choices::Fixed,
            offset_choices: Choices::Fixed,
        }
    }

    /// The same with runs that begin anew in each row of `cols` elements.
    pub fn in_rows(self, cols: usize) -> Self {
        let line = if cols.is_multiple_of(self.run.max(1)) { 0 } else { cols };
        Self { line, ..self }
    }

    /// The grid of the matrix turned over, of which this one has rows of `cols` elements; `None` where several elements share a scale that rows do not.
    pub(crate) fn turned(self, cols: usize) -> Option<Self> {
        let is_apart = self.scales.is_empty() || self.run == 1;
        let is_fixed = [&self.choices, &self.offset_choices].iter().all(|choices| matches!(choices, Choices::Fixed));
        if !is_apart || !(is_fixed || self.scales.is_empty()) {
            return None;
        }
        let turn = |list: Vec<f32>| transposed(&list, cols);
        Some(Self { scales: turn(self.scales), zeros: turn(self.zeros), offsets: turn(self.offsets), ..self })
    }

    /// The run of element `i`.
    pub fn run_of(&self, i: usize) -> usize {
        match self.line {
            0 => i / self.run,
            line => i / line * line.div_ceil(self.run) + i % line / self.run,
        }
    }

    /// The elements from `i` on that have its run.
    fn rest_of_run(&self, i: usize) -> Range<usize> {
        match self.line {
            0 => i..(i / self.run + 1) * self.run,
            line => i..(i - i % line) + (((i % line) / self.run + 1) * self.run).min(line),
        }
    }

    /// The scales of some elements.
    pub fn scales_of(&self, elements: Range<usize>) -> &[f32] {
        let last = elements.end.max(elements.start + 1) - 1;
        self.scales.get(self.run_of(elements.start)..=self.run_of(last)).unwrap_or_default()
    }

    /// The value of a level at a run under a scale and an offset.
    fn value(&self, run: usize, scale: f32, level: f32) -> f32 {
        self.shifted_value(run, scale, self.offset(run), level)
    }

    fn shifted_value(&self, run: usize, scale: f32, offset: f32, level: f32) -> f32 {
        let round = |x: f32, at: Rounds| if self.rounds == at { round_one(self.values, x) } else { x };
        let scaled = round(level - self.zero(run), Rounds::BeforeScale) * scale;
        round_one(self.values, round(scaled, Rounds::BeforeOffset) + offset)
    }

    /// The values of all levels of a small table at a run under a scale and an offset, NaN where it has fewer.
    fn stored(&self, run: usize, scale: f32, offset: f32, levels: &[f32]) -> [f32; SMALL] {
        let (mut stored, zero) = ([f32::NAN; SMALL], self.zero(run));
        stored.iter_mut().zip(levels).for_each(|(stored, level)| *stored = (level - zero) * scale + offset);
        round_to(self.values, &mut stored);
        stored
    }

    /// A run without a scale would be a defect: its values are NaN, which every check finds.
    fn scale(&self, run: usize) -> f32 {
        self.scales.get(run).copied().unwrap_or(f32::NAN)
    }

    fn zero(&self, run: usize) -> f32 {
        self.zeros.get(run).copied().unwrap_or(0.0)
    }

    /// The offset of a run.
    pub fn offset(&self, run: usize) -> f32 {
        self.offsets.get(run).copied().unwrap_or(0.0)
    }

    /// Number of levels.
    fn count(&self) -> usize {
        match self.levels {
            Levels::Table(levels) => levels.len(),
            Levels::Integers(low, high) => (high - low + 1).max(0) as usize,
            Levels::Floats(_) => 0,
        }
    }

    /// The level of that number.
    fn numbered(&self, number: usize) -> f32 {
        match self.levels {
            Levels::Table(levels) => levels.get(number).copied().unwrap_or(f32::NAN),
            Levels::Integers(low, _) => low as f32 + number as f32,
            Levels::Floats(_) => f32::NAN,
        }
    }

    /// The number of the level nearest to `x` at a run, before values are rounded.
    fn number(&self, run: usize, x: f32) -> usize {
        let level = (x - self.offset(run)) / self.scale(run) + self.zero(run);
        match self.levels {
            Levels::Table(levels) => {
                let above = levels.partition_point(|&have| have < level).min(levels.len().saturating_sub(1));
                let below = above.saturating_sub(1);
                if level - self.numbered(below) < self.numbered(above) - level { below } else { above }
            }
            Levels::Integers(low, high) => (level.round().clamp(low as f32, high as f32) - low as f32) as usize,
            Levels::Floats(_) => 0,
        }
    }

    /// The values of levels around the nearest to `x`: the quotient is rounded, and so are values, so the level beside it may be the right one.
    fn near(&self, run: usize, x: f32) -> impl Iterator<Item = f32> + '_ {
        let (number, scale) = (self.number(run, x), self.scale(run));
        let last = (number + 2).min(self.count().saturating_sub(1));
        (number.saturating_sub(2)..=last).map(move |number| self.value(run, scale, self.numbered(number)))
    }

    /// The two values of the grid around `x` at element `i`: the largest not above and the smallest not below.
    ///
    /// Outside the grid's range both are the nearest end; on a grid value both are that value.
    pub fn around(&self, i: usize, x: f32) -> (f32, f32) {
        self.around_in(self.run_of(i), x)
    }

    /// The same at a run.
    fn around_in(&self, run: usize, x: f32) -> (f32, f32) {
        match self.levels {
            Levels::Floats(dtype) => {
                let near = round_one(dtype, x);
                match near.partial_cmp(&x) {
                    Some(std::cmp::Ordering::Less) => (near, neighbour(dtype, near, true)),
                    Some(std::cmp::Ordering::Greater) => (neighbour(dtype, near, false), near),
                    _ => (near, near),
                }
            }
            Levels::Table(levels) if levels.len() <= SMALL => {
                bracket_few(&self.stored(run, self.scale(run), self.offset(run), levels), x)
            }
            _ => bracket(self.near(run, x), x),
        }
    }

    /// [`Grid::around`] of consecutive elements from `first` on: lower values into `low`, upper ones into `high`.
    pub fn around_all(&self, first: usize, x: &[f32], low: &mut [f32], high: &mut [f32]) {
        self.by_runs(first, x, low, high, |i, x, low, high| match self.levels {
            Levels::Table(levels) if levels.len() <= SMALL => {
                let run = self.run_of(i);
                bracket_all(&self.stored(run, self.scale(run), self.offset(run), levels), x, low, high);
            }
            _ => {
                for (k, ((&x, low), high)) in x.iter().zip(low).zip(high).enumerate() {
                    (*low, *high) = self.around(i + k, x);
                }
            }
        });
    }

    /// Calls `f` for the elements of each run: the first's number, the values, and where two others go for each.
    fn by_runs(
        &self,
        first: usize,
        x: &[f32],
        low: &mut [f32],
        high: &mut [f32],
        f: impl Fn(usize, &[f32], &mut [f32], &mut [f32]),
    ) {
        let mut at = 0;
        while at < x.len() {
            let to = (self.rest_of_run(first + at).end - first).min(x.len());
            f(
                first + at,
                x.get(at..to).unwrap_or_default(),
                low.get_mut(at..to).unwrap_or_default(),
                high.get_mut(at..to).unwrap_or_default(),
            );
            at = to;
        }
    }

    /// The grid value nearest to `x` at element `i`; a tie takes the lower.
    pub fn nearest(&self, i: usize, x: f32) -> f32 {
        self.nearest_in(self.run_of(i), x)
    }

    /// The same at a run.
    pub(crate) fn nearest_in(&self, run: usize, x: f32) -> f32 {
        let (low, high) = self.around_in(run, x);
        if high - x < x - low { high } else { low }
    }

    /// The level of a grid value at element `i`, before scaling.
    pub fn level(&self, i: usize, value: f32) -> f32 {
        match self.levels {
            Levels::Floats(_) => value,
            _ => {
                let run = self.run_of(i);
                self.numbered(self.number(run, value))
            }
        }
    }

    /// For grid values of consecutive elements from `first` on: the next value of the grid below and above each, −∞ and
    /// +∞ at its ends.
    pub fn neighbours(&self, first: usize, values: &[f32], below: &mut [f32], above: &mut [f32]) {
        if let Levels::Floats(dtype) = self.levels {
            for ((&x, below), above) in values.iter().zip(below).zip(above) {
                let moves = dtype != Dtype::F32 && x.is_finite();
                *below = if moves { neighbour(dtype, x, false) } else { f32::NEG_INFINITY };
                *above = if moves { neighbour(dtype, x, true) } else { f32::INFINITY };
            }
            return;
        }
        self.by_runs(first, values, below, above, |i, values, below, above| {
            let run = self.run_of(i);
            let (scale, offset, zero) = (self.scale(run), self.offset(run), self.zero(run));
            match self.levels {
                Levels::Table(levels) if levels.len() <= SMALL => {
                    table_neighbours(&self.stored(run, scale, offset, levels), values, below, above);
                }
                Levels::Integers(low, high) if self.values == Dtype::F32 && zero.fract() == 0.0 => {
                    uniform_neighbours(scale, offset, low as f32 - zero, high as f32 - zero, values, below, above);
                }
                _ => {
                    for ((&x, below), above) in values.iter().zip(below).zip(above) {
                        (*below, *above) = self.beside(run, x);
                    }
                }
            }
        });
    }

    /// The values of a run next to one of them.
    fn beside(&self, run: usize, x: f32) -> (f32, f32) {
        let (number, scale) = (self.number(run, x), self.scale(run));
        let value = |number: usize| self.value(run, scale, self.numbered(number));
        // Values that are rounded may be the same for several levels.
        let mut down = (0..number).rev().map(value).filter(|&value| value != x);
        let mut up = (number + 1..self.count()).map(value).filter(|&value| value != x);
        let (a, b) = (down.next(), up.next());
        let (below, above) = if scale < 0.0 { (b, a) } else { (a, b) };
        (below.unwrap_or(f32::NEG_INFINITY), above.unwrap_or(f32::INFINITY))
    }

    /// Half of the least distance between values of a run, in units of its scale, or less; 0 where that is not known. It holds for other scales too, as
    /// long as none is below an eighth of the least.
    pub fn half_gap(&self) -> f32 {
        // What a value is moved by where it is rounded to its type, at most, relative to it.
        let rounding = match self.values {
            Dtype::BF16 => 1.0 / 256.0,
            Dtype::F16 => 1.0 / 2048.0,
            _ => 1e-6,
        };
        let ratio = |(offset, scale): (&f32, &f32)| (offset / scale).abs();
        let offset = 8.0 * self.offsets.iter().zip(&self.scales).map(ratio).fold(0.0, f32::max);
        let zero = self.zeros.iter().fold(0.0, |most: f32, zero| most.max(zero.abs()));
        let gap = match self.levels {
            Levels::Table(levels) => {
                let gap = |(low, high): (&f32, &f32)| {
                    high - low - rounding * (low.abs() + high.abs() + 2.0 * (zero + offset))
                };
                levels.iter().zip(levels.iter().skip(1)).map(gap).fold(f32::INFINITY, f32::min)
            }
            Levels::Integers(low, high) => 1.0 - 2.0 * rounding * (low.abs().max(high.abs()) as f32 + zero + offset),
            Levels::Floats(_) => 0.0,
        };
        0.5 * gap.max(0.0)
    }

    /// The scale nearest to `wanted` that run `run` can take.
    pub fn choice(&self, run: usize, wanted: f32) -> f32 {
        self.choices.nearest(run, self.scale(run), wanted)
    }

    /// The offset nearest to `wanted` that run `run` can take.
    pub fn offset_choice(&self, run: usize, wanted: f32) -> f32 {
        self.offset_choices.nearest(run, self.offset(run), wanted)
    }

    /// The values that a run's elements take at their levels if its scale becomes `scale`. `values` are the run's, on the grid.
    pub fn rescaled(&self, run: usize, values: &[f32], scale: f32, out: &mut [f32]) {
        self.moved(run, values, scale, self.offset(run), out);
    }

    /// The same if its scale and its offset become these.
    pub fn moved(&self, run: usize, values: &[f32], scale: f32, offset: f32, out: &mut [f32]) {
        if let Levels::Table(levels) = self.levels
            && levels.len() <= SMALL
        {
            let old = self.stored(run, self.scale(run), self.offset(run), levels);
            return table_moved(&old, &self.stored(run, scale, offset, levels), values, out);
        }
        for (value, out) in values.iter().zip(out) {
            *out = self.shifted_value(run, scale, offset, self.numbered(self.number(run, *value)));
        }
    }
}

impl Choices {
    /// The nearest to `wanted` that run `run`, which has `own`, can take.
    fn nearest(&self, run: usize, own: f32, wanted: f32) -> f32 {
        match self {
            Self::Fixed => own,
            Self::Any => wanted,
            Self::Rounded(dtype) => round_one(*dtype, wanted),
            Self::Listed { lists, runs, first } => {
                let Some(list) = lists.get((first + run) / runs).filter(|list| !list.is_empty()) else { return own };
                let above = list.partition_point(|&have| have < wanted).min(list.len() - 1);
                let at = |place: usize| list.get(place).copied().unwrap_or(wanted);
                let (below, above) = (at(above.saturating_sub(1)), at(above));
                if wanted - below < above - wanted { below } else { above }
            }
        }
    }
}
