//! How the codes of a row are packed, and the levels that they stand for.

use std::sync::LazyLock;

use super::Blocks;
use crate::dtype::Dtype;
use crate::formats::Levels;
use crate::simd::codes as kernels;
use crate::simd::fields;
use crate::simd::floats::round_to;

/// How codes are packed in a row.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::formats) enum Codes {
    /// 8-bit floats with four bits of exponent.
    E4M3,
    /// Signed bytes.
    Bytes,
    /// 4-bit floats with two bits of exponent, two in a byte, the first in the low half.
    E2M1,
    /// Whole numbers from `low` on, in fields of little-endian words.
    Fields {
        /// Bits of a field, 1 to 8.
        bits: usize,
        /// Fields cross words.
        dense: bool,
        /// What a field of 0 stands for.
        low: i32,
    },
    /// Whole numbers in words that hold codes of other rows too: rows have a byte for each once they are unpacked.
    Blocks(Blocks),
}

/// The finite 8-bit floats in ascending order.
pub(in crate::formats) static E4M3_LEVELS: LazyLock<Vec<f32>> = LazyLock::new(|| {
    let up: Vec<f32> = (0..127).map(kernels::e4m3).collect();
    up.iter().skip(1).rev().map(|x| -x).chain(up.iter().copied()).collect()
});

static E2M1_LEVELS: [f32; 15] = [-6.0, -4.0, -3.0, -2.0, -1.5, -1.0, -0.5, 0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0];

impl Codes {
    /// Bytes of a row.
    pub(in crate::formats) fn row_bytes(self, cols: usize) -> usize {
        match self {
            Self::E4M3 | Self::Bytes | Self::Blocks(_) => cols,
            Self::E2M1 => cols.div_ceil(2),
            Self::Fields { bits, dense: true, .. } => 4 * (cols * bits).div_ceil(32),
            Self::Fields { bits, dense: false, .. } => 4 * cols.div_ceil(32 / bits),
        }
    }

    /// True if the codes of a row end where the next row's begin.
    pub(super) fn fills_words(self, cols: usize) -> bool {
        match self {
            Self::E4M3 | Self::Bytes | Self::Blocks(_) => true,
            Self::E2M1 => cols.is_multiple_of(2),
            Self::Fields { bits, dense: true, .. } => (cols * bits).is_multiple_of(32),
            Self::Fields { bits, dense: false, .. } => cols.is_multiple_of(32 / bits),
        }
    }

    pub(super) fn table(self) -> Levels {
        match self {
            Self::E4M3 => Levels::Table(&E4M3_LEVELS),
            Self::E2M1 => Levels::Table(&E2M1_LEVELS),
            Self::Bytes => Levels::Integers(-128, 127),
            Self::Fields { bits, low, .. } => Levels::Integers(low, low + (1 << bits) - 1),
            Self::Blocks(blocks) => Levels::Integers(blocks.low, blocks.high()),
        }
    }

    /// Values of rows whose zeros are 0, where a kernel does all of it at once; false, and nothing done, where there is none.
    pub(super) fn decode_row(self, codes: &[u8], run: usize, scales: &[f32], values: Dtype, out: &mut [f32]) -> bool {
        let bf16 = values == Dtype::BF16;
        let done = match self {
            Self::E4M3 => kernels::e4m3_values(codes, run, scales, bf16, out),
            Self::Bytes => kernels::byte_values(codes, 0, run, scales, bf16, out),
            Self::Fields { bits: 8, low: -128, .. } => kernels::byte_values(codes, 128, run, scales, bf16, out),
            Self::E2M1 | Self::Fields { .. } | Self::Blocks(_) => false,
        };
        if done && values == Dtype::F16 {
            round_to(values, out);
        }
        done
    }

    /// The levels of rows.
    pub(super) fn levels(self, codes: &[u8], out: &mut [f32]) {
        match self {
            Self::E4M3 => kernels::e4m3_levels(codes, out),
            Self::Bytes => kernels::byte_levels(codes, out),
            Self::E2M1 => kernels::e2m1_levels(codes, out),
            Self::Fields { bits, dense, low } => fields::field_levels(bits, dense, codes, low as f32, out),
            Self::Blocks(Blocks { low, .. }) => {
                out.iter_mut().zip(codes).for_each(|(level, &code)| *level = f32::from(code) + low as f32);
            }
        }
    }

    /// Stores the levels nearest to these of a row.
    pub(super) fn pack(self, levels: &[f32], out: &mut [u8]) {
        match self {
            Self::E4M3 => kernels::pack_e4m3(levels, out),
            Self::Bytes => kernels::pack_bytes(levels, out),
            Self::E2M1 => kernels::pack_e2m1(levels, out),
            Self::Fields { bits, dense, low } => fields::pack_fields(bits, dense, levels, low as f32, out),
            Self::Blocks(blocks) => {
                let (low, high) = (blocks.low as f32, blocks.high() as f32);
                for (code, &level) in out.iter_mut().zip(levels) {
                    *code = (kernels::round_even(level).clamp(low, high) - low) as u8;
                }
            }
        }
    }
}
