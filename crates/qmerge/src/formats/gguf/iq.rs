//! IQ1, IQ2 and IQ3: rows of a table for 4 or 8 elements each, with signs. They are only read: which rows come next to some values is a search, and ggml's
//! encoders for most of them ask for an importance matrix.

// Blocks are arrays of a fixed length; what indexes them counts up to it, and tables have a row for every number that a code can be.
#![allow(clippy::indexing_slicing)]

use super::block::f16;

/// The tables of ggml (ggml-common.h), one after the other, in words of two bytes: by element two bits, or three where a row has four, the first lowest.
static PACKED: &[u8; 9216] = include_bytes!("grids.bin");

static IQ2_XXS: [[i8; 8]; 256] = table(0, [8, 25, 43, 0, 0, 0, 0, 0]);
static IQ2_XS: [[i8; 8]; 512] = table(256, [8, 25, 43, 0, 0, 0, 0, 0]);
static IQ2_S: [[i8; 8]; 1024] = table(768, [8, 25, 43, 0, 0, 0, 0, 0]);
static IQ1: [[i8; 8]; 2048] = table(1792, [-1, 0, 1, 0, 0, 0, 0, 0]);
static IQ3_XXS: [[i8; 4]; 256] = table(3840, [4, 12, 20, 28, 36, 44, 52, 62]);
static IQ3_S: [[i8; 4]; 512] = table(4096, [1, 3, 5, 7, 9, 11, 13, 15]);

// Evaluated by the compiler, which refuses what is out of bounds; iterators cannot be used in a constant.
const fn table<const W: usize, const N: usize>(first: usize, values: [i8; 8]) -> [[i8; W]; N] {
    let bits = if W == 4 { 3 } else { 2 };
    let mut table = [[0; W]; N];
    let mut at = 0;
    while at < N {
        let word = PACKED[2 * (first + at)] as usize | ((PACKED[2 * (first + at) + 1] as usize) << 8);
        let mut i = 0;
        while i < W {
            table[at][i] = values[(word >> (bits * i)) & ((1 << bits) - 1)];
            i += 1;
        }
        at += 1;
    }
    table
}

/// Eight signs in seven bits: the last makes their number even.
#[inline(always)]
fn even(bits: u32) -> u8 {
    let bits = (bits & 127) as u8;
    bits | (((bits.count_ones() & 1) as u8) << 7)
}

/// A row under a scale, its signs from bit `first` on.
#[inline(always)]
fn signed(row: &[i8], scale: f32, signs: u8, first: usize, out: &mut [f32]) {
    for (i, (out, &x)) in out.iter_mut().zip(row).enumerate() {
        let value = scale * f32::from(x);
        *out = if (signs >> (first + i)) & 1 == 1 { -value } else { value };
    }
}

#[inline(always)]
fn word(bytes: &[u8], at: usize) -> usize {
    usize::from(u16::from_le_bytes([bytes[2 * at], bytes[2 * at + 1]]))
}

#[inline(always)]
fn long(bytes: &[u8], at: usize) -> u32 {
    u32::from_le_bytes([bytes[4 * at], bytes[4 * at + 1], bytes[4 * at + 2], bytes[4 * at + 3]])
}

/// The first or the second nibble of a byte.
#[inline(always)]
fn nibble(byte: u8, second: bool) -> f32 {
    f32::from(if second { byte >> 4 } else { byte & 15 })
}

/// Calls `f` for each block: its bytes, the number of each of its runs of 32, and where they go.
#[inline(always)]
fn runs<const B: usize>(bytes: &[u8], out: &mut [f32], f: impl Fn(&[u8; B], usize, &mut [f32])) {
    for (block, out) in bytes.as_chunks::<B>().0.iter().zip(out.as_chunks_mut::<256>().0) {
        for (run, out) in out.chunks_exact_mut(32).enumerate() {
            f(block, run, out);
        }
    }
}

#[inline(always)]
pub(super) fn iq2_xxs(bytes: &[u8], out: &mut [f32]) {
    runs::<66>(bytes, out, |block, run, out| {
        let (rows, signs) = (&block[2 + 8 * run..6 + 8 * run], long(&block[2..], 2 * run + 1));
        let scale = f16([block[0], block[1]]) * (0.5 + (signs >> 28) as f32) * 0.25;
        for (l, (out, &row)) in out.chunks_exact_mut(8).zip(rows).enumerate() {
            signed(&IQ2_XXS[usize::from(row)], scale, even(signs >> (7 * l)), 0, out);
        }
    });
}

#[inline(always)]
pub(super) fn iq2_xs(bytes: &[u8], out: &mut [f32]) {
    runs::<74>(bytes, out, |block, run, out| {
        let d = f16([block[0], block[1]]);
        for (l, out) in out.chunks_exact_mut(8).enumerate() {
            let code = word(&block[2..66], 4 * run + l);
            let scale = d * (0.5 + nibble(block[66 + run], l >= 2)) * 0.25;
            signed(&IQ2_XS[code & 511], scale, even((code >> 9) as u32), 0, out);
        }
    });
}

#[inline(always)]
pub(super) fn iq2_s(bytes: &[u8], out: &mut [f32]) {
    runs::<82>(bytes, out, |block, run, out| {
        let (d, high) = (f16([block[0], block[1]]), usize::from(block[66 + run]));
        for (l, out) in out.chunks_exact_mut(8).enumerate() {
            let row = usize::from(block[2 + 4 * run + l]) | (((high >> (2 * l)) & 3) << 8);
            let scale = d * (0.5 + nibble(block[74 + run], l >= 2)) * 0.25;
            signed(&IQ2_S[row], scale, block[34 + 4 * run + l], 0, out);
        }
    });
}

#[inline(always)]
pub(super) fn iq3_xxs(bytes: &[u8], out: &mut [f32]) {
    runs::<98>(bytes, out, |block, run, out| {
        let signs = long(&block[66..], run);
        let scale = f16([block[0], block[1]]) * (0.5 + (signs >> 28) as f32) * 0.5;
        for (l, out) in out.chunks_exact_mut(4).enumerate() {
            let row = usize::from(block[2 + 8 * run + l]);
            signed(&IQ3_XXS[row], scale, even(signs >> (7 * (l / 2))), 4 * (l % 2), out);
        }
    });
}

#[inline(always)]
pub(super) fn iq3_s(bytes: &[u8], out: &mut [f32]) {
    runs::<110>(bytes, out, |block, run, out| {
        let high = usize::from(block[66 + run]);
        let scale = f16([block[0], block[1]]) * (1.0 + 2.0 * nibble(block[106 + run / 2], run % 2 == 1));
        for (l, out) in out.chunks_exact_mut(4).enumerate() {
            let row = usize::from(block[2 + 8 * run + l]) | (((high >> l) & 1) << 8);
            signed(&IQ3_S[row], scale, block[74 + 4 * run + l / 2], 4 * (l % 2), out);
        }
    });
}

/// A row of IQ1, moved up or down by an eighth.
#[inline(always)]
fn shifted(row: usize, scale: f32, down: bool, out: &mut [f32]) {
    let shift = if down { -0.125 } else { 0.125 };
    out.iter_mut().zip(&IQ1[row & 2047]).for_each(|(out, &x)| *out = scale * (f32::from(x) + shift));
}

#[inline(always)]
pub(super) fn iq1_s(bytes: &[u8], out: &mut [f32]) {
    runs::<50>(bytes, out, |block, run, out| {
        let high = word(&block[34..], run);
        let scale = f16([block[0], block[1]]) * (2 * ((high >> 12) & 7) + 1) as f32;
        for (l, out) in out.chunks_exact_mut(8).enumerate() {
            let row = usize::from(block[4 * run + 2 + l]) | (((high >> (3 * l)) & 7) << 8);
            shifted(row, scale, high >> 15 == 1, out);
        }
    });
}

#[inline(always)]
pub(super) fn iq1_m(bytes: &[u8], out: &mut [f32]) {
    runs::<56>(bytes, out, |block, run, out| {
        // The f16 is spelled by the highest nibbles of four words, the lowest first.
        let spelled = (0..4).fold(0, |d, i| d | ((word(&block[48..], i) >> 12) << (4 * i)));
        let d = f16((spelled as u16).to_le_bytes());
        let scales = word(&block[48..], run / 2) >> (6 * (run % 2));
        for (l, out) in out.chunks_exact_mut(8).enumerate() {
            let high = usize::from(block[32 + 2 * run + l / 2] >> (4 * (l % 2)));
            let scale = d * (2 * ((scales >> (3 * (l / 2))) & 7) + 1) as f32;
            shifted(usize::from(block[4 * run + l]) | ((high & 7) << 8), scale, high & 8 != 0, out);
        }
    });
}
