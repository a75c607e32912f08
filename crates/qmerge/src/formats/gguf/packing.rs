//! How the codes of 256 elements, and scales of six bits, lie in bytes.

// Blocks are arrays of a fixed length; what indexes them counts up to it.
#![allow(clippy::indexing_slicing)]

use super::block::{nibbles, to_nibbles};

/// Codes of two bits: each run of 32 bytes has four runs of 32 elements, the first in the lowest bits.
#[inline(always)]
pub(super) fn two_bits(bytes: &[u8], codes: &mut [u8; 256]) {
    for (bytes, codes) in bytes.chunks_exact(32).zip(codes.chunks_exact_mut(128)) {
        for (field, codes) in codes.chunks_exact_mut(32).enumerate() {
            for (byte, code) in bytes.iter().zip(codes) {
                *code = (byte >> (2 * field)) & 3;
            }
        }
    }
}

#[inline(always)]
pub(super) fn to_two_bits(codes: &[u8; 256], bytes: &mut [u8]) {
    for (bytes, codes) in bytes.chunks_exact_mut(32).zip(codes.chunks_exact(128)) {
        for (i, byte) in bytes.iter_mut().enumerate() {
            let field = |k: usize| (codes[32 * k + i] & 3) << (2 * k);
            *byte = field(0) | field(1) | field(2) | field(3);
        }
    }
}

/// Codes of four bits, 64 elements in 32 bytes.
#[inline(always)]
pub(super) fn four_bits(bytes: &[u8], codes: &mut [u8; 256]) {
    bytes.chunks_exact(32).zip(codes.chunks_exact_mut(64)).for_each(|(bytes, codes)| nibbles(bytes, codes));
}

#[inline(always)]
pub(super) fn to_four_bits(codes: &[u8; 256], bytes: &mut [u8]) {
    bytes.chunks_exact_mut(32).zip(codes.chunks_exact(64)).for_each(|(bytes, codes)| to_nibbles(codes, bytes));
}

/// A bit of each code: bit k of a byte belongs to the k-th run of 32 elements.
#[inline(always)]
pub(super) fn add_bits(bytes: &[u8], shift: u32, codes: &mut [u8; 256]) {
    for (bit, codes) in codes.chunks_exact_mut(32).enumerate() {
        for (byte, code) in bytes.iter().zip(codes) {
            *code |= ((byte >> bit) & 1) << shift;
        }
    }
}

#[inline(always)]
pub(super) fn to_bits(codes: &[u8; 256], shift: u32, bytes: &mut [u8]) {
    for (i, byte) in bytes.iter_mut().enumerate() {
        *byte = (0..8).fold(0, |byte, bit| byte | ((codes[32 * bit + i] >> shift) & 1) << bit);
    }
}

/// Q3_K's sixteen scales of six bits, less 32: four bits in nibbles of eight bytes, two in fields of four.
#[inline(always)]
pub(super) fn q3_scales(bytes: &[u8]) -> [i32; 16] {
    std::array::from_fn(|i| {
        let low = if i < 8 { bytes[i] & 15 } else { bytes[i - 8] >> 4 };
        let high = (bytes[8 + i % 4] >> (2 * (i / 4))) & 3;
        i32::from(low | (high << 4)) - 32
    })
}

#[inline(always)]
pub(super) fn to_q3_scales(scales: &[i32; 16], bytes: &mut [u8]) {
    bytes.fill(0);
    for (i, scale) in scales.iter().enumerate() {
        let scale = (scale + 32) as u8;
        bytes[i % 8] |= (scale & 15) << (i / 8 * 4);
        bytes[8 + i % 4] |= (scale >> 4) << (2 * (i / 4));
    }
}

/// The eight scales and eight minima of six bits of Q4_K and Q5_K, in twelve bytes.
#[inline(always)]
pub(super) fn scales_and_minima(bytes: &[u8]) -> ([u8; 8], [u8; 8]) {
    let scales = std::array::from_fn(|i| match i {
        0..4 => bytes[i] & 63,
        _ => (bytes[i + 4] & 15) | ((bytes[i - 4] >> 6) << 4),
    });
    let minima = std::array::from_fn(|i| match i {
        0..4 => bytes[i + 4] & 63,
        _ => (bytes[i + 4] >> 4) | ((bytes[i] >> 6) << 4),
    });
    (scales, minima)
}

#[inline(always)]
pub(super) fn to_scales_and_minima(scales: &[u8; 8], minima: &[u8; 8], bytes: &mut [u8]) {
    for i in 0..4 {
        bytes[i] = (scales[i] & 63) | ((scales[i + 4] >> 4) << 6);
        bytes[i + 4] = (minima[i] & 63) | ((minima[i + 4] >> 4) << 6);
        bytes[i + 8] = (scales[i + 4] & 15) | (minima[i + 4] << 4);
    }
}
