//! Zeros of groups, packed along the outputs. GPTQ's first version stores each less one, and tools differ in what becomes of a zero that is 0.

use crate::simd::fields;
use crate::simd::words::PLACES;

/// How zeros are stored.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum ZeroPoints {
    /// As they are.
    Whole,
    /// Less one, field by field: a zero of 0 is stored as the largest field.
    LessOne,
    /// Less one in each field of a word at once, so that a zero of 0 borrows from its neighbour: GPTQModel.
    LessOnes,
    /// As they are, eight to a word in AWQ's order.
    Interleaved,
}

/// A one in each field of a word.
fn ones(bits: usize) -> u32 {
    (0..32).step_by(bits).fold(0, |ones, shift| ones | 1 << shift)
}

impl ZeroPoints {
    /// Bytes of a group.
    pub(super) fn row_bytes(bits: usize, outputs: usize) -> usize {
        4 * (outputs * bits).div_ceil(32)
    }

    /// Zeros of a group, by output.
    pub(super) fn of_group(self, bytes: &[u8], bits: usize, outputs: usize, group: usize) -> Vec<f32> {
        let row = Self::row_bytes(bits, outputs);
        let bytes = bytes.get(group * row..(group + 1) * row).unwrap_or_default();
        let mut zeros = vec![0.0; outputs];
        match self {
            Self::LessOnes if bits != 3 => {
                let words = bytes.as_chunks().0.iter().map(|word| u32::from_le_bytes(*word).wrapping_add(ones(bits)));
                let bytes: Vec<u8> = words.flat_map(u32::to_le_bytes).collect();
                fields::field_levels(bits, true, &bytes, 0.0, &mut zeros);
            }
            Self::Interleaved => {
                let mut placed = vec![0.0; outputs];
                fields::field_levels(4, true, bytes, 0.0, &mut placed);
                for (zeros, placed) in zeros.chunks_mut(8).zip(placed.chunks(8)) {
                    for (zero, &place) in zeros.iter_mut().zip(&PLACES) {
                        *zero = placed.get(place).copied().unwrap_or(0.0);
                    }
                }
            }
            Self::Whole | Self::LessOne | Self::LessOnes => {
                fields::field_levels(bits, true, bytes, 0.0, &mut zeros);
                if self != Self::Whole {
                    let most = ((1_u32 << bits) - 1) as f32;
                    zeros.iter_mut().for_each(|zero| *zero = if *zero == most { 0.0 } else { *zero + 1.0 });
                }
            }
        }
        zeros
    }

    /// The least zero that every reader reads alike.
    pub(super) fn least(self) -> f32 {
        if matches!(self, Self::LessOne | Self::LessOnes) { 1.0 } else { 0.0 }
    }

    /// Appends the zeros of a group, none below [`ZeroPoints::least`].
    pub(super) fn put_group(self, zeros: &[f32], bits: usize, out: &mut Vec<u8>) {
        let mut fields: Vec<f32> = zeros.iter().map(|zero| zero - self.least()).collect();
        if self == Self::Interleaved {
            for (fields, zeros) in fields.chunks_mut(8).zip(zeros.chunks(8)) {
                for (&zero, &place) in zeros.iter().zip(&PLACES) {
                    if let Some(field) = fields.get_mut(place) {
                        *field = zero;
                    }
                }
            }
        }
        fields::pack_fields(bits, true, &fields, 0.0, super::super::grow(out, Self::row_bytes(bits, zeros.len())));
    }
}
