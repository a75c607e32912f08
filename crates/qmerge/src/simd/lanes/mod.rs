//! Sixteen f32 side by side, for searches whose sums go from left to right: a run of values has a lane of its own.
//!
//! A compiler makes vectors of such loops too, but mixes several sums in one register and shuffles them in every step, which takes four times as long.

use std::ops::{Add, Div, Mul, Sub};

/// Values of as many runs.
pub(crate) const LANES: usize = 16;

/// Sixteen numbers. [`Plain`] is the definition; what stands for it on a processor agrees bit for bit.
pub(crate) trait Lanes:
    Copy + Add<Output = Self> + Sub<Output = Self> + Mul<Output = Self> + Div<Output = Self>
{
    /// A yes or no for each.
    type Mask: Copy;

    fn of(x: [f32; LANES]) -> Self;
    fn array(self) -> [f32; LANES];

    #[inline(always)]
    fn all(x: f32) -> Self {
        Self::of([x; LANES])
    }

    fn abs(self) -> Self;
    /// `self · by + plus`, rounded once.
    fn mul_add(self, by: Self, plus: Self) -> Self;
    /// `self` where it is less than `other`, elsewhere `other`.
    fn least(self, other: Self) -> Self;
    /// `self` where it is greater than `other`, elsewhere `other`.
    fn most(self, other: Self) -> Self;

    fn is_less(self, other: Self) -> Self::Mask;
    fn differs(self, other: Self) -> Self::Mask;
    fn both(a: Self::Mask, b: Self::Mask) -> Self::Mask;
    fn any(mask: Self::Mask) -> bool;
    /// `a` where the mask says yes, elsewhere `b`.
    fn pick(mask: Self::Mask, a: Self, b: Self) -> Self;

    /// What entry of a table each number picks; only numbers from 0 to 7 do.
    fn entry(self, table: &[f32; 8]) -> Self;

    /// The bits of `self` under a mask, and others.
    fn bits(self, keep: u32, with: u32) -> Self;
    /// The number whose bits are these and `more`, added as whole numbers.
    fn beyond(self, more: u32) -> Self;
    /// With the signs of others.
    fn signed(self, sign: Self) -> Self;

    /// Columns of sixteen rows. A compiler makes gathers of it, which take three times as long.
    fn turned(rows: [Self; LANES]) -> [Self; LANES];

    /// The nearest whole number from `low` to `high`, of halves the even one. Beyond 2²² it is any of these, the one that adding 1.5·2²³ and taking the last 23 bits gives.
    #[inline(always)]
    fn nearest(self, low: i32, high: i32) -> Self {
        const MAGIC: f32 = 12_582_912.0;
        let whole = (self + Self::all(MAGIC)).bits(0x007f_ffff, 0x4b00_0000);
        let least = Self::all(MAGIC + low as f32);
        let most = Self::all(MAGIC + high as f32);
        whole.most(least).least(most) - Self::all(MAGIC)
    }
}

/// Lanes as an array.
#[derive(Clone, Copy)]
pub(crate) struct Plain([f32; LANES]);

macro_rules! plain_operators {
    ($($trait:ident $name:ident $operator:tt;)*) => {
        $(
            impl $trait for Plain {
                type Output = Self;

                #[inline(always)]
                fn $name(self, other: Self) -> Self {
                    Self(std::array::from_fn(|l| self.0[l] $operator other.0[l]))
                }
            }
        )*
    };
}

plain_operators! {
    Add add +;
    Sub sub -;
    Mul mul *;
    Div div /;
}

impl Lanes for Plain {
    type Mask = [bool; LANES];

    #[inline(always)]
    fn of(x: [f32; LANES]) -> Self {
        Self(x)
    }

    #[inline(always)]
    fn array(self) -> [f32; LANES] {
        self.0
    }

    #[inline(always)]
    fn abs(self) -> Self {
        Self(self.0.map(f32::abs))
    }

    #[inline(always)]
    fn mul_add(self, by: Self, plus: Self) -> Self {
        Self(std::array::from_fn(|l| self.0[l].mul_add(by.0[l], plus.0[l])))
    }

    #[inline(always)]
    fn least(self, other: Self) -> Self {
        Self::pick(self.is_less(other), self, other)
    }

    #[inline(always)]
    fn most(self, other: Self) -> Self {
        Self::pick(other.is_less(self), self, other)
    }

    #[inline(always)]
    fn is_less(self, other: Self) -> Self::Mask {
        std::array::from_fn(|l| self.0[l] < other.0[l])
    }

    #[inline(always)]
    fn differs(self, other: Self) -> Self::Mask {
        std::array::from_fn(|l| self.0[l] != other.0[l])
    }

    #[inline(always)]
    fn both(a: Self::Mask, b: Self::Mask) -> Self::Mask {
        std::array::from_fn(|l| a[l] & b[l])
    }

    #[inline(always)]
    fn any(mask: Self::Mask) -> bool {
        mask.contains(&true)
    }

    #[inline(always)]
    fn pick(mask: Self::Mask, a: Self, b: Self) -> Self {
        Self(std::array::from_fn(|l| if mask[l] { a.0[l] } else { b.0[l] }))
    }

    #[inline(always)]
    fn entry(self, table: &[f32; 8]) -> Self {
        // Looked up one by one, they would not be vectors.
        Self(self.0.map(|x| (1..8).fold(table[0], |entry, k| if x >= k as f32 { table[k] } else { entry })))
    }

    #[inline(always)]
    fn bits(self, keep: u32, with: u32) -> Self {
        Self(self.0.map(|x| f32::from_bits(x.to_bits() & keep | with)))
    }

    #[inline(always)]
    fn beyond(self, more: u32) -> Self {
        Self(self.0.map(|x| f32::from_bits(x.to_bits().wrapping_add(more))))
    }

    #[inline(always)]
    fn signed(self, sign: Self) -> Self {
        Self(std::array::from_fn(|l| self.0[l].copysign(sign.0[l])))
    }

    #[inline(always)]
    fn turned(rows: [Self; LANES]) -> [Self; LANES] {
        std::array::from_fn(|column| Self(std::array::from_fn(|row| rows[row].0[column])))
    }
}

#[cfg(target_arch = "x86_64")]
pub(crate) mod x86;

/// A function of `$body::<V>` with the widest [`Lanes`] that the processor has.
macro_rules! by_lanes {
    ($(#[$meta:meta])* $vis:vis fn $name:ident $(<const $n:ident: usize>)? ($($arg:ident: $ty:ty),* $(,)?) $(-> $ret:ty)? = $body:ident;) => {
        $(#[$meta])*
        $vis fn $name $(<const $n: usize>)? ($($arg: $ty),*) $(-> $ret)? {
            #[cfg(target_arch = "x86_64")]
            {
                use $crate::simd::{Level, lanes::x86::{Avx2, Avx512}, level};

                #[target_feature(enable = "avx2,fma,f16c")]
                fn avx2 $(<const $n: usize>)? ($($arg: $ty),*) $(-> $ret)? {
                    $body::<Avx2 $(, $n)?>($($arg),*)
                }
                #[target_feature(enable = "avx2,fma,f16c,avx512f,avx512bw,avx512dq,avx512vl")]
                fn avx512 $(<const $n: usize>)? ($($arg: $ty),*) $(-> $ret)? {
                    $body::<Avx512 $(, $n)?>($($arg),*)
                }
                match level() {
                    // SAFETY: `level()` returns a level only after the processor was found to have its features.
                    Level::Avx512 => return unsafe { avx512 $(::<$n>)? ($($arg),*) },
                    // SAFETY: as above.
                    Level::Avx2 => return unsafe { avx2 $(::<$n>)? ($($arg),*) },
                    _ => {}
                }
            }
            $body::<$crate::simd::lanes::Plain $(, $n)?>($($arg),*)
        }
    };
}
pub(crate) use by_lanes;

#[cfg(test)]
mod tests {
    use super::*;
    use crate::simd::forced::at_every_level;

    by_lanes! {
        fn columns(rows: &[[f32; LANES]; LANES]) -> [[f32; LANES]; LANES] = columns_body;
    }

    fn columns_body<V: Lanes>(rows: &[[f32; LANES]; LANES]) -> [[f32; LANES]; LANES] {
        V::turned(rows.map(V::of)).map(V::array)
    }

    #[test]
    fn rows_become_columns() {
        let rows: [[f32; LANES]; LANES] = std::array::from_fn(|r| std::array::from_fn(|c| (100 * r + c) as f32));
        for (level, columns) in at_every_level(|| columns(&rows)) {
            for (c, column) in columns.iter().enumerate() {
                for (r, value) in column.iter().enumerate() {
                    assert_eq!(*value, (100 * r + c) as f32, "{level:?}");
                }
            }
        }
    }

    by_lanes! {
        fn by_bits(x: [f32; LANES], y: [f32; LANES]) -> [[u32; LANES]; 3] = by_bits_body;
    }

    fn by_bits_body<V: Lanes>(x: [f32; LANES], y: [f32; LANES]) -> [[u32; LANES]; 3] {
        let (x, y) = (V::of(x), V::of(y));
        [x.mul_add(y, V::all(-1.0)), x.beyond(0x1_0000), x.signed(y)].map(|x| x.array().map(f32::to_bits))
    }

    #[test]
    fn what_goes_by_bits_is_the_definition() {
        let x: [f32; LANES] = std::array::from_fn(|l| (l as f32 - 7.5) * 0.37);
        let y: [f32; LANES] = std::array::from_fn(|l| if l % 3 == 0 { -0.0 } else { 1.1 / (l as f32 - 4.5) });
        for (level, found) in at_every_level(|| by_bits(x, y)) {
            for l in 0..LANES {
                assert_eq!(found[0][l], x[l].mul_add(y[l], -1.0).to_bits(), "{level:?}");
                assert_eq!(found[1][l], x[l].to_bits() + 0x1_0000, "{level:?}");
                assert_eq!(found[2][l], x[l].copysign(y[l]).to_bits(), "{level:?}");
            }
        }
    }
}
