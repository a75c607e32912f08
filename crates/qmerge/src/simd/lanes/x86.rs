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
}
