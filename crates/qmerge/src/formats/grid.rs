//! The values that elements can take when the scales stay as they are, and the scales that can be stored instead.
//!
//! A grid is what a rounding method sees of a format: levels, and for each short run of elements a scale and an
//! offset, `value = scale · level + offset`, rounded to the type that the weight decodes to. Any method works on any
//! grid; that keeps formats and methods apart.

use crate::dtype::Dtype;
use crate::simd::floats::{round_one, round_to};
use crate::simd::neighbours::{table_moved, table_neighbours, uniform_neighbours};

/// The levels before scaling.
#[derive(Clone, Copy, Debug)]
pub enum Levels {
    /// A sorted table of at most 16 (NF4, FP4).
    Table(&'static [f32]),
    /// The integers from low to high (int8, and the affine formats).
    Integers(i32, i32),
    /// Every value of a floating-point type; scales do not apply.
    Floats(Dtype),
}

/// The scales that a run can take in the stored form.
#[derive(Clone, Debug, PartialEq)]
pub enum Choices {
    /// Only the one it has.
    Fixed,
    /// Any f32.
    Any,
    /// One of a list (double quantization: the 256 values of a second-level code).
    Listed {
        /// Ascending lists.
        lists: Vec<Vec<f32>>,
        /// Consecutive runs that share a list.
        runs: usize,
        /// Number of the grid's first run among those of its list.
        first: usize,
    },
}

/// The grid of a chunk of rows.
#[derive(Clone, Debug)]
pub struct Grid {
    /// The levels, shared by all elements.
    pub levels: Levels,
    /// Consecutive elements (row-major) that share a scale.
    pub run: usize,
    /// One scale per run; empty for [`Levels::Floats`]. A method may replace them by others of `choices`.
    pub scales: Vec<f32>,
    /// One offset per run, or empty for none.
    pub offsets: Vec<f32>,
    /// Type that decoded values are rounded to.
    pub values: Dtype,
    /// Scales that can be stored.
    pub choices: Choices,
}

impl Grid {
    /// The grid of all values of a type.
    pub fn floats(dtype: Dtype) -> Self {
        let (scales, offsets) = (Vec::new(), Vec::new());
        Self { levels: Levels::Floats(dtype), run: 1, scales, offsets, values: dtype, choices: Choices::Fixed }
    }

    /// The value of a level at a run under a scale.
    fn value(&self, run: usize, scale: f32, level: f32) -> f32 {
        round_one(self.values, level * scale + self.offset(run))
    }

    /// The values of all levels of a table at a run under a scale, NaN where it has fewer.
    fn stored(&self, run: usize, scale: f32, levels: &[f32]) -> [f32; 16] {
        let (mut stored, offset) = ([f32::NAN; 16], self.offset(run));
        stored.iter_mut().zip(levels).for_each(|(stored, level)| *stored = level * scale + offset);
        round_to(self.values, &mut stored);
        stored
    }

    /// A run without a scale would be a defect: its values are NaN, which every check finds.
    fn scale(&self, run: usize) -> f32 {
        self.scales.get(run).copied().unwrap_or(f32::NAN)
    }

    fn offset(&self, run: usize) -> f32 {
        self.offsets.get(run).copied().unwrap_or(0.0)
    }

    /// The two values of the grid around `x` at element `i`: the largest not above and the smallest not below.
    ///
    /// Outside the grid's range both are the nearest end; on a grid value both are that value.
    pub fn around(&self, i: usize, x: f32) -> (f32, f32) {
        let run = i / self.run;
        match self.levels {
            Levels::Floats(dtype) => {
                let near = round_one(dtype, x);
                match near.partial_cmp(&x) {
                    Some(std::cmp::Ordering::Less) => (near, neighbour(dtype, near, true)),
                    Some(std::cmp::Ordering::Greater) => (neighbour(dtype, near, false), near),
                    _ => (near, near),
                }
            }
            Levels::Table(levels) => bracket(self.stored(run, self.scale(run), levels).into_iter(), x),
            Levels::Integers(low, high) => {
                let scale = self.scale(run);
                // The quotient is rounded, so the level below or above may be the right one.
                let level = ((x - self.offset(run)) / scale).round();
                let near = [level - 1.0, level, level + 1.0].map(|level| level.clamp(low as f32, high as f32));
                bracket(near.into_iter().map(|level| self.value(run, scale, level)), x)
            }
        }
    }

    /// [`Grid::around`] of consecutive elements from `first` on: lower values into `low`, upper ones into `high`.
    pub fn around_all(&self, first: usize, x: &[f32], low: &mut [f32], high: &mut [f32]) {
        let mut at = 0;
        while at < x.len() {
            let i = first + at;
            let to = x.len().min(at + self.run - i % self.run);
            let x = x.get(at..to).unwrap_or_default();
            let (low, high) = (low.get_mut(at..to).unwrap_or_default(), high.get_mut(at..to).unwrap_or_default());
            match self.levels {
                Levels::Table(levels) => {
                    let run = i / self.run;
                    bracket_all(&self.stored(run, self.scale(run), levels), x, low, high);
                }
                _ => {
                    for (k, ((&x, low), high)) in x.iter().zip(low).zip(high).enumerate() {
                        (*low, *high) = self.around(i + k, x);
                    }
                }
            }
            at = to;
        }
    }

    /// The grid value nearest to `x` at element `i`; a tie takes the lower.
    pub fn nearest(&self, i: usize, x: f32) -> f32 {
        let (low, high) = self.around(i, x);
        if high - x < x - low { high } else { low }
    }

    /// The level of a grid value at element `i`, before scaling.
    pub fn level(&self, i: usize, value: f32) -> f32 {
        let run = i / self.run;
        let x = (value - self.offset(run)) / self.scales.get(run).copied().unwrap_or(1.0);
        match self.levels {
            Levels::Table(levels) => {
                let nearer = |a: &&f32, b: &&f32| (*a - x).abs().total_cmp(&(*b - x).abs());
                levels.iter().min_by(nearer).copied().unwrap_or(0.0)
            }
            Levels::Integers(low, high) => x.round().clamp(low as f32, high as f32),
            Levels::Floats(_) => value,
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
        let mut at = 0;
        while at < values.len() {
            let run = (first + at) / self.run;
            let end = ((run + 1) * self.run - first).min(values.len());
            let values = values.get(at..end).unwrap_or_default();
            let (below, above) =
                (below.get_mut(at..end).unwrap_or_default(), above.get_mut(at..end).unwrap_or_default());
            let (scale, offset) = (self.scale(run), self.offset(run));
            match self.levels {
                Levels::Table(levels) => {
                    table_neighbours(&self.stored(run, scale, levels), values, below, above);
                }
                Levels::Integers(low, high) => {
                    uniform_neighbours(scale, offset, low as f32, high as f32, values, below, above);
                }
                Levels::Floats(_) => {}
            }
            at = end;
        }
    }

    /// Half of the least distance between values of a run, in units of its scale, or less; 0 where that is not known.
    pub fn half_gap(&self) -> f32 {
        if !self.offsets.is_empty() {
            return 0.0;
        }
        // What a value is moved by where it is rounded to its type, at most, relative to it.
        let rounding = match self.values {
            Dtype::BF16 => 1.0 / 256.0,
            Dtype::F16 => 1.0 / 2048.0,
            _ => 1e-6,
        };
        let gap = match self.levels {
            Levels::Table(levels) => {
                let gap = |(low, high): (&f32, &f32)| high - low - rounding * (low.abs() + high.abs());
                levels.iter().zip(levels.iter().skip(1)).map(gap).fold(f32::INFINITY, f32::min)
            }
            Levels::Integers(low, high) => 1.0 - 2.0 * rounding * low.abs().max(high.abs()) as f32,
            Levels::Floats(_) => 0.0,
        };
        0.5 * gap.max(0.0)
    }

    /// The scale nearest to `wanted` that run `run` can take.
    pub fn choice(&self, run: usize, wanted: f32) -> f32 {
        match &self.choices {
            Choices::Fixed => self.scale(run),
            Choices::Any => wanted,
            Choices::Listed { lists, runs, first } => {
                let Some(list) = lists.get((first + run) / runs).filter(|list| !list.is_empty()) else {
                    return self.scale(run);
                };
                let above = list.partition_point(|&have| have < wanted).min(list.len() - 1);
                let at = |place: usize| list.get(place).copied().unwrap_or(wanted);
                let (below, above) = (at(above.saturating_sub(1)), at(above));
                if wanted - below < above - wanted { below } else { above }
            }
        }
    }

    /// The values that a run's elements take at their levels if its scale becomes `scale`. `values` are the run's, on the grid.
    pub fn rescaled(&self, run: usize, values: &[f32], scale: f32, out: &mut [f32]) {
        if let Levels::Table(levels) = self.levels {
            let (old, new) = (self.stored(run, self.scale(run), levels), self.stored(run, scale, levels));
            return table_moved(&old, &new, values, out);
        }
        for (i, (value, out)) in values.iter().zip(out).enumerate() {
            *out = self.value(run, scale, self.level(run * self.run + i, *value));
        }
    }
}

/// The largest of some values not above `x` and the smallest not below; where there is none, the other one.
fn bracket(values: impl Iterator<Item = f32>, x: f32) -> (f32, f32) {
    let (mut low, mut high) = (f32::NEG_INFINITY, f32::INFINITY);
    for value in values {
        if value <= x && value > low {
            low = value;
        }
        if value >= x && value < high {
            high = value;
        }
    }
    match (low.is_finite(), high.is_finite()) {
        (true, true) => (low, high),
        (true, false) => (low, low),
        (false, true) => (high, high),
        (false, false) => (0.0, 0.0),
    }
}

/// [`bracket`] of many, level by level, so that the inner loop has no branches.
fn bracket_all(values: &[f32], x: &[f32], low: &mut [f32], high: &mut [f32]) {
    low.fill(f32::NEG_INFINITY);
    high.fill(f32::INFINITY);
    for &value in values {
        for ((&x, low), high) in x.iter().zip(low.iter_mut()).zip(high.iter_mut()) {
            let below = if value <= x { value } else { f32::NEG_INFINITY };
            *low = if below > *low { below } else { *low };
            let above = if value >= x { value } else { f32::INFINITY };
            *high = if above < *high { above } else { *high };
        }
    }
    for (low, high) in low.iter_mut().zip(high) {
        match (low.is_finite(), high.is_finite()) {
            (true, true) => {}
            (true, false) => *high = *low,
            (false, true) => *low = *high,
            (false, false) => (*low, *high) = (0.0, 0.0),
        }
    }
}

/// The next value of `dtype` above or below one of its values.
fn neighbour(dtype: Dtype, x: f32, up: bool) -> f32 {
    let step = match dtype {
        Dtype::BF16 => 16,
        Dtype::F16 => {
            let h = half::f16::from_f32(x);
            let bits = h.to_bits();
            let away = up != h.is_sign_negative();
            let next = match (bits & 0x7fff, away) {
                (0, _) => {
                    if up {
                        1
                    } else {
                        0x8001
                    }
                }
                (_, true) => bits + 1,
                (_, false) => bits - 1,
            };
            return half::f16::from_bits(next).to_f32();
        }
        _ => 0,
    };
    let bits = x.to_bits();
    if bits << 1 == 0 {
        return f32::from_bits((1 << step) | if up { 0 } else { 1 << 31 });
    }
    let away = up != (x < 0.0);
    f32::from_bits(if away { bits + (1 << step) } else { bits - (1 << step) })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::simd::forced::at_every_level;

    static LEVELS: [f32; 4] = [-1.0, -0.25, 0.5, 1.0];

    fn grids() -> Vec<Grid> {
        let scaled = |levels, run, scales: &[f32], offsets: &[f32], values| Grid {
            levels,
            run,
            scales: scales.to_vec(),
            offsets: offsets.to_vec(),
            values,
            choices: Choices::Fixed,
        };
        vec![
            scaled(Levels::Table(&LEVELS), 2, &[0.5, 2.0], &[], Dtype::F32),
            scaled(Levels::Table(&LEVELS), 2, &[0.123_456, 1.7], &[], Dtype::BF16),
            scaled(Levels::Integers(-8, 7), 1, &[0.1; 4], &[0.05; 4], Dtype::F32),
            Grid::floats(Dtype::BF16),
            Grid::floats(Dtype::F16),
        ]
    }

    #[test]
    fn values_are_bracketed_on_every_kind_of_grid() {
        for grid in &grids() {
            for i in 0..4 {
                for x in [0.123_f32, -0.1, 0.0, 0.061, -0.07, 1e-9, -1e-9] {
                    let (low, high) = grid.around(i, x);
                    assert!(low <= x && x <= high, "{grid:?} {x}: {low} {high}");
                    for on in [low, high] {
                        assert_eq!(grid.around(i, on), (on, on), "{grid:?} {on}");
                    }
                }
                let x = [-1e3, -0.3, 0.0, 0.061, f32::NAN, 0.5, 1e3, f32::INFINITY];
                let x = &x[..x.len().min(4 - i)];
                let (mut low, mut high) = (vec![7.0; x.len()], vec![7.0; x.len()]);
                grid.around_all(i, x, &mut low, &mut high);
                for (k, &x) in x.iter().enumerate() {
                    let (one, other) = grid.around(i + k, x);
                    assert_eq!((low[k].to_bits(), high[k].to_bits()), (one.to_bits(), other.to_bits()), "{grid:?} {x}");
                }
                let (low, high) = grid.around(i, 1e3);
                assert!(matches!(grid.levels, Levels::Floats(_)) || low == high);
            }
        }
    }

    #[test]
    fn neighbours_are_the_next_values_at_every_vector_level() {
        for grid in &grids() {
            let on: Vec<f32> = (0..4).map(|i| grid.nearest(i, 0.1 - 0.2 * i as f32)).collect();
            for (level, (below, above)) in at_every_level(|| {
                let (mut below, mut above) = (vec![0.0; 4], vec![0.0; 4]);
                grid.neighbours(0, &on, &mut below, &mut above);
                (below, above)
            }) {
                for i in 0..4 {
                    assert!(below[i] < on[i] && on[i] < above[i], "{level:?} {grid:?}");
                    let middle = |a: f32, b: f32| a + (b - a) * 0.5;
                    if above[i].is_finite() {
                        let near = grid.around(i, middle(on[i], above[i]));
                        assert!((near.0 - on[i]).abs() < 1e-6 && (near.1 - above[i]).abs() < 1e-6, "{grid:?}");
                    }
                    if below[i].is_finite() {
                        assert!((grid.around(i, middle(below[i], on[i])).0 - below[i]).abs() < 1e-6, "{grid:?}");
                    }
                }
            }
        }
    }

    #[test]
    fn no_two_levels_are_nearer_than_the_least_gap() {
        let integers =
            |values| Grid { levels: Levels::Integers(-127, 127), run: 4, scales: vec![0.0123], ..Grid::floats(values) };
        let scaled = [integers(Dtype::F32), integers(Dtype::F16)];
        assert!(scaled.iter().chain(&grids()[..2]).all(|grid| grid.half_gap() > 0.0));
        for grid in scaled.iter().chain(&grids()) {
            let gap = 2.0 * grid.half_gap();
            let scales = grid.scales.iter().map(|scale| scale.abs()).chain([1.0]);
            let scale = scales.fold(f32::INFINITY, f32::min);
            for (i, start) in (0..4).map(|i| (i, grid.nearest(i, f32::MIN))) {
                let (mut value, mut seen) = (start, 0);
                while seen < 300 {
                    let (mut below, mut above) = ([0.0], [0.0]);
                    grid.neighbours(i, &[value], &mut below, &mut above);
                    if !above[0].is_finite() {
                        break;
                    }
                    assert!(above[0] - value >= gap * scale, "{value} {} {gap} {grid:?}", above[0]);
                    (value, seen) = (above[0], seen + 1);
                }
                assert!(seen > 1, "{grid:?}");
            }
        }
    }

    #[test]
    fn a_listed_scale_is_the_nearest_of_its_list() {
        let lists = vec![vec![0.1, 0.2, 0.4], vec![1.0, 2.0]];
        let grid = Grid {
            scales: vec![0.2; 4],
            choices: Choices::Listed { lists, runs: 3, first: 1 },
            ..Grid::floats(Dtype::F32)
        };
        assert_eq!([0.0, 0.16, 0.31, 9.0].map(|x| grid.choice(1, x)), [0.1, 0.2, 0.4, 0.4]);
        assert_eq!(grid.choice(2, 1.6), 2.0);
    }
}
