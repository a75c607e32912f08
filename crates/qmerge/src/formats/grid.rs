//! The values that elements can take when the scales stay as they are.
//!
//! A grid is what a rounding method sees of a format: levels, and for each short run of elements a scale and an
//! offset, `value = scale · level + offset`. Any method works on any grid; that keeps formats and methods apart.

use crate::dtype::Dtype;
use crate::simd::floats::round_one;

/// The levels before scaling.
#[derive(Clone, Copy, Debug)]
pub enum Levels {
    /// A sorted table (NF4, FP4).
    Table(&'static [f32]),
    /// The integers from low to high (int8, and the affine formats).
    Integers(i32, i32),
    /// Every value of a floating-point type; scales do not apply.
    Floats(Dtype),
}

/// The grid of a chunk of rows.
#[derive(Clone, Debug)]
pub struct Grid {
    /// The levels, shared by all elements.
    pub levels: Levels,
    /// Consecutive elements (row-major) that share a scale.
    pub run: usize,
    /// One scale per run; empty for [`Levels::Floats`].
    pub scales: Vec<f32>,
    /// One offset per run, or empty for none.
    pub offsets: Vec<f32>,
}

impl Grid {
    /// The two values of the grid around `x` at element `i`: the largest not above and the smallest not below.
    ///
    /// Outside the grid's range both are the nearest end; on a grid value both are that value.
    pub fn around(&self, i: usize, x: f32) -> (f32, f32) {
        if let Levels::Floats(dtype) = self.levels {
            let near = round_one(dtype, x);
            return match near.partial_cmp(&x) {
                Some(std::cmp::Ordering::Less) => (near, neighbour(dtype, near, true)),
                Some(std::cmp::Ordering::Greater) => (neighbour(dtype, near, false), near),
                _ => (near, near),
            };
        }
        let scale = self.scales[i / self.run];
        let offset = self.offsets.get(i / self.run).copied().unwrap_or(0.0);
        let level = (x - offset) / scale;
        if scale == 0.0 || !level.is_finite() {
            return (offset, offset);
        }
        let (a, b) = match self.levels {
            Levels::Table(levels) => {
                let above = levels.partition_point(|&have| have < level).min(levels.len() - 1);
                let exact_or_low = levels[above] <= level || above == 0;
                (levels[if exact_or_low { above } else { above - 1 }], levels[above])
            }
            Levels::Integers(low, high) => {
                let clamp = |x: f32| x.clamp(low as f32, high as f32);
                (clamp(level.floor()), clamp(level.ceil()))
            }
            Levels::Floats(_) => (level, level),
        };
        let (a, b) = (a * scale + offset, b * scale + offset);
        if a <= b { (a, b) } else { (b, a) }
    }

    /// The grid value nearest to `x` at element `i`; a tie takes the lower.
    pub fn nearest(&self, i: usize, x: f32) -> f32 {
        let (low, high) = self.around(i, x);
        if high - x < x - low { high } else { low }
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

    #[test]
    fn values_are_bracketed_on_every_kind_of_grid() {
        static LEVELS: [f32; 4] = [-1.0, -0.25, 0.5, 1.0];
        let grids = [
            Grid { levels: Levels::Table(&LEVELS), run: 2, scales: vec![0.5, 2.0], offsets: vec![] },
            Grid { levels: Levels::Integers(-8, 7), run: 1, scales: vec![0.1; 4], offsets: vec![0.05; 4] },
            Grid { levels: Levels::Floats(Dtype::BF16), run: 1, scales: vec![], offsets: vec![] },
            Grid { levels: Levels::Floats(Dtype::F16), run: 1, scales: vec![], offsets: vec![] },
        ];
        for grid in &grids {
            for i in 0..4 {
                for x in [0.123_f32, -0.3, 0.0, 0.41, -0.07, 1e-9, -1e-9] {
                    let (low, high) = grid.around(i, x);
                    assert!(low <= x && x <= high, "{grid:?} {x}: {low} {high}");
                    for on in [low, high] {
                        // Exact where levels are exact; the affine grid divides and may land one step aside.
                        if !matches!(grid.levels, Levels::Integers(..)) {
                            assert_eq!(grid.around(i, on), (on, on), "{grid:?} {on}");
                        }
                    }
                }
                let (low, high) = grid.around(i, 1e3);
                assert!(matches!(grid.levels, Levels::Floats(_)) || low == high);
            }
        }
    }
}
