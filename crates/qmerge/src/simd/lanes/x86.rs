//! Registers of AVX2 and AVX-512. Values of them are made only inside functions that are compiled for those and called where the processor has them ([`by_lanes`](super::by_lanes)).

use std::arch::x86_64::*;

use super::{Add, Div, LANES, Lanes, Mul, Sub};

macro_rules! intrinsics {
    ($body:expr) => {
        // SAFETY: who makes these values has found out that the processor has the instructions; what is loaded and stored is an array of as many floats.
        unsafe { $body }
    };
}

macro_rules! operators {
    ($type:ident, $wide:ident: $($trait:ident $name:ident $intrinsic:ident;)*) => {
        $(
            impl $trait for $type {
                type Output = Self;

                #[inline(always)]
                fn $name(self, other: Self) -> Self {
                    $wide!(self, other, |a, b| $intrinsic(a, b))
                }
            }
        )*
    };
}

/// Two registers of eight.
#[derive(Clone, Copy)]
pub(crate) struct Avx2(__m256, __m256);

/// The same of both.
macro_rules! both {
    ($x:expr, |$a:ident| $body:expr) => {{
        let ($a, second) = ($x.0, $x.1);
        let first = intrinsics!($body);
        let $a = second;
        Avx2(first, intrinsics!($body))
    }};
    ($x:expr, $y:expr, |$a:ident, $b:ident| $body:expr) => {{
        let ($a, $b) = ($x.0, $y.0);
        let first = intrinsics!($body);
        let ($a, $b) = ($x.1, $y.1);
        Avx2(first, intrinsics!($body))
    }};
}

operators! {
    Avx2, both:
    Add add _mm256_add_ps;
    Sub sub _mm256_sub_ps;
    Mul mul _mm256_mul_ps;
    Div div _mm256_div_ps;
}

impl Lanes for Avx2 {
    /// All bits of a lane, or none.
    type Mask = Self;

    #[inline(always)]
    fn of(x: [f32; LANES]) -> Self {
        intrinsics!(Self(_mm256_loadu_ps(x.as_ptr()), _mm256_loadu_ps(x.as_ptr().add(8))))
    }

    #[inline(always)]
    fn array(self) -> [f32; LANES] {
        let mut x = [0.0; LANES];
        intrinsics!({
            _mm256_storeu_ps(x.as_mut_ptr(), self.0);
            _mm256_storeu_ps(x.as_mut_ptr().add(8), self.1);
        });
        x
    }

    #[inline(always)]
    fn abs(self) -> Self {
        self.bits(0x7fff_ffff, 0)
    }

    #[inline(always)]
    fn mul_add(self, by: Self, plus: Self) -> Self {
        intrinsics!(Self(_mm256_fmadd_ps(self.0, by.0, plus.0), _mm256_fmadd_ps(self.1, by.1, plus.1)))
    }

    #[inline(always)]
    fn least(self, other: Self) -> Self {
        both!(self, other, |a, b| _mm256_min_ps(a, b))
    }

    #[inline(always)]
    fn most(self, other: Self) -> Self {
        both!(self, other, |a, b| _mm256_max_ps(a, b))
    }

    #[inline(always)]
    fn is_less(self, other: Self) -> Self {
        both!(self, other, |a, b| _mm256_cmp_ps::<_CMP_LT_OQ>(a, b))
    }

    #[inline(always)]
    fn differs(self, other: Self) -> Self {
        both!(self, other, |a, b| _mm256_cmp_ps::<_CMP_NEQ_UQ>(a, b))
    }

    #[inline(always)]
    fn both(a: Self, b: Self) -> Self {
        both!(a, b, |x, y| _mm256_and_ps(x, y))
    }

    #[inline(always)]
    fn any(mask: Self) -> bool {
        intrinsics!(_mm256_movemask_ps(_mm256_or_ps(mask.0, mask.1))) != 0
    }

    #[inline(always)]
    fn pick(mask: Self, a: Self, b: Self) -> Self {
        intrinsics!(Self(_mm256_blendv_ps(b.0, a.0, mask.0), _mm256_blendv_ps(b.1, a.1, mask.1)))
    }

    #[inline(always)]
    fn entry(self, table: &[f32; 8]) -> Self {
        both!(self, |a| _mm256_permutevar8x32_ps(_mm256_loadu_ps(table.as_ptr()), _mm256_cvttps_epi32(a)))
    }

    #[inline(always)]
    fn bits(self, keep: u32, with: u32) -> Self {
        both!(self, |a| {
            let kept = _mm256_and_si256(_mm256_castps_si256(a), _mm256_set1_epi32(keep.cast_signed()));
            _mm256_castsi256_ps(_mm256_or_si256(kept, _mm256_set1_epi32(with.cast_signed())))
        })
    }

    #[inline(always)]
    fn beyond(self, more: u32) -> Self {
        both!(self, |a| {
            _mm256_castsi256_ps(_mm256_add_epi32(_mm256_castps_si256(a), _mm256_set1_epi32(more.cast_signed())))
        })
    }

    #[inline(always)]
    fn signed(self, sign: Self) -> Self {
        both!(self, sign, |a, b| {
            let minus = _mm256_set1_ps(-0.0);
            _mm256_or_ps(_mm256_andnot_ps(minus, a), _mm256_and_ps(minus, b))
        })
    }

    #[inline(always)]
    fn turned(rows: [Self; LANES]) -> [Self; LANES] {
        // Quarters of eight rows and columns. (No closures: they would be compiled without AVX, and called.)
        let mut columns = rows;
        let (mut low, mut high) = ([[rows[0].0; 8]; 2], [[rows[0].1; 8]; 2]);
        for r in 0..LANES {
            low[r / 8][r % 8] = rows[r].0;
            high[r / 8][r % 8] = rows[r].1;
        }
        for (first, [upper, lower]) in [(0, low), (8, high)] {
            let (upper, lower) = intrinsics!((eight_turned(upper), eight_turned(lower)));
            for c in 0..8 {
                columns[first + c] = Self(upper[c], lower[c]);
            }
        }
        columns
    }
}

/// Columns of eight rows: pairs, then fours, then eights.
#[inline(always)]
unsafe fn eight_turned(r: [__m256; 8]) -> [__m256; 8] {
    macro_rules! pairs {
        ($a:expr) => {
            intrinsics!((_mm256_unpacklo_ps(r[$a], r[$a + 1]), _mm256_unpackhi_ps(r[$a], r[$a + 1])))
        };
    }
    macro_rules! fours {
        ($a:expr, $b:expr) => {
            intrinsics!((_mm256_shuffle_ps::<0b01_00_01_00>($a, $b), _mm256_shuffle_ps::<0b11_10_11_10>($a, $b)))
        };
    }
    let ((a, b), (c, d), (e, f), (g, h)) = (pairs!(0), pairs!(2), pairs!(4), pairs!(6));
    let ((c0, c1), (c2, c3)) = (fours!(a, c), fours!(b, d));
    let ((d0, d1), (d2, d3)) = (fours!(e, g), fours!(f, h));
    let (first, last, mut out) = ([c0, c1, c2, c3], [d0, d1, d2, d3], r);
    for k in 0..4 {
        out[k] = intrinsics!(_mm256_permute2f128_ps::<0x20>(first[k], last[k]));
        out[k + 4] = intrinsics!(_mm256_permute2f128_ps::<0x31>(first[k], last[k]));
    }
    out
}

/// One register.
#[derive(Clone, Copy)]
pub(crate) struct Avx512(__m512);

macro_rules! one {
    ($x:expr, $y:expr, |$a:ident, $b:ident| $body:expr) => {{
        let ($a, $b) = ($x.0, $y.0);
        Avx512(intrinsics!($body))
    }};
}

operators! {
    Avx512, one:
    Add add _mm512_add_ps;
    Sub sub _mm512_sub_ps;
    Mul mul _mm512_mul_ps;
    Div div _mm512_div_ps;
}

impl Lanes for Avx512 {
    type Mask = __mmask16;

    #[inline(always)]
    fn of(x: [f32; LANES]) -> Self {
        Self(intrinsics!(_mm512_loadu_ps(x.as_ptr())))
    }

    #[inline(always)]
    fn array(self) -> [f32; LANES] {
        let mut x = [0.0; LANES];
        intrinsics!(_mm512_storeu_ps(x.as_mut_ptr(), self.0));
        x
    }

    #[inline(always)]
    fn abs(self) -> Self {
        self.bits(0x7fff_ffff, 0)
    }

    #[inline(always)]
    fn mul_add(self, by: Self, plus: Self) -> Self {
        Self(intrinsics!(_mm512_fmadd_ps(self.0, by.0, plus.0)))
    }

    #[inline(always)]
    fn least(self, other: Self) -> Self {
        one!(self, other, |a, b| _mm512_min_ps(a, b))
    }

    #[inline(always)]
    fn most(self, other: Self) -> Self {
        one!(self, other, |a, b| _mm512_max_ps(a, b))
    }

    #[inline(always)]
    fn is_less(self, other: Self) -> __mmask16 {
        intrinsics!(_mm512_cmp_ps_mask::<_CMP_LT_OQ>(self.0, other.0))
    }

    #[inline(always)]
    fn differs(self, other: Self) -> __mmask16 {
        intrinsics!(_mm512_cmp_ps_mask::<_CMP_NEQ_UQ>(self.0, other.0))
    }

    #[inline(always)]
    fn both(a: __mmask16, b: __mmask16) -> __mmask16 {
        a & b
    }

    #[inline(always)]
    fn any(mask: __mmask16) -> bool {
        mask != 0
    }

    #[inline(always)]
    fn pick(mask: __mmask16, a: Self, b: Self) -> Self {
        Self(intrinsics!(_mm512_mask_blend_ps(mask, b.0, a.0)))
    }

    #[inline(always)]
    fn entry(self, table: &[f32; 8]) -> Self {
        Self(intrinsics!({
            let table = _mm512_broadcast_f32x8(_mm256_loadu_ps(table.as_ptr()));
            _mm512_permutexvar_ps(_mm512_cvttps_epi32(self.0), table)
        }))
    }

    #[inline(always)]
    fn bits(self, keep: u32, with: u32) -> Self {
        Self(intrinsics!({
            let kept = _mm512_and_si512(_mm512_castps_si512(self.0), _mm512_set1_epi32(keep.cast_signed()));
            _mm512_castsi512_ps(_mm512_or_si512(kept, _mm512_set1_epi32(with.cast_signed())))
        }))
    }

    #[inline(always)]
    fn beyond(self, more: u32) -> Self {
        Self(intrinsics!({
            let more = _mm512_set1_epi32(more.cast_signed());
            _mm512_castsi512_ps(_mm512_add_epi32(_mm512_castps_si512(self.0), more))
        }))
    }

    #[inline(always)]
    fn signed(self, sign: Self) -> Self {
        Self(intrinsics!({
            let minus = _mm512_set1_ps(-0.0);
            _mm512_or_ps(_mm512_andnot_ps(minus, self.0), _mm512_and_ps(minus, sign.0))
        }))
    }

    #[inline(always)]
    fn turned(rows: [Self; LANES]) -> [Self; LANES] {
        // Of four rows each, the columns whose number is j, 4 + j, 8 + j and 12 + j, a quarter of a register each.
        let mut quarters = rows;
        for first in (0..LANES).step_by(4) {
            let r = [rows[first].0, rows[first + 1].0, rows[first + 2].0, rows[first + 3].0];
            quarters[first..first + 4].copy_from_slice(&intrinsics!({
                let (a, b) = (_mm512_unpacklo_ps(r[0], r[1]), _mm512_unpackhi_ps(r[0], r[1]));
                let (c, d) = (_mm512_unpacklo_ps(r[2], r[3]), _mm512_unpackhi_ps(r[2], r[3]));
                [
                    Self(_mm512_shuffle_ps::<0b01_00_01_00>(a, c)),
                    Self(_mm512_shuffle_ps::<0b11_10_11_10>(a, c)),
                    Self(_mm512_shuffle_ps::<0b01_00_01_00>(b, d)),
                    Self(_mm512_shuffle_ps::<0b11_10_11_10>(b, d)),
                ]
            }));
        }
        let mut columns = rows;
        for j in 0..4 {
            let [a, b, c, d] = [quarters[j].0, quarters[4 + j].0, quarters[8 + j].0, quarters[12 + j].0];
            intrinsics!({
                let (ab, cd) = (_mm512_shuffle_f32x4::<0x88>(a, b), _mm512_shuffle_f32x4::<0x88>(c, d));
                columns[j] = Self(_mm512_shuffle_f32x4::<0x88>(ab, cd));
                columns[8 + j] = Self(_mm512_shuffle_f32x4::<0xdd>(ab, cd));
                let (ab, cd) = (_mm512_shuffle_f32x4::<0xdd>(a, b), _mm512_shuffle_f32x4::<0xdd>(c, d));
                columns[4 + j] = Self(_mm512_shuffle_f32x4::<0x88>(ab, cd));
                columns[12 + j] = Self(_mm512_shuffle_f32x4::<0xdd>(ab, cd));
            });
        }
        columns
    }
}
