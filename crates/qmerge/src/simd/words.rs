//! Codes of many outputs in words: GPTQ packs inputs down a column of words, AWQ eight outputs across a word.

use super::codes::round_even;
use super::versions;

/// The nibble of a word that holds each of eight outputs: AWQ's order.
pub(crate) const PLACES: [usize; 8] = [0, 4, 1, 5, 2, 6, 3, 7];

/// `(field − zero) · scale` of one input, for all outputs: the field begins at `shift` of each word, and ends in the other words where it crosses.
pub(crate) fn down(words: [&[u8]; 2], shift: u32, bits: usize, zeros: &[f32], scales: &[f32], out: &mut [f32]) {
    let [low, high] = words;
    let mask = (1_u32 << bits) - 1;
    if high.is_empty() {
        within(low, shift, mask, zeros, scales, out)
    } else {
        crossing(low, high, shift, mask, zeros, scales, out)
    }
}

versions! {
    fn within(words: &[u8], shift: u32, mask: u32, zeros: &[f32], scales: &[f32], out: &mut [f32]) = within_body;
}

#[inline(always)]
fn within_body(words: &[u8], shift: u32, mask: u32, zeros: &[f32], scales: &[f32], out: &mut [f32]) {
    for (((out, word), &zero), &scale) in out.iter_mut().zip(words.as_chunks::<4>().0).zip(zeros).zip(scales) {
        *out = (((u32::from_le_bytes(*word) >> shift) & mask) as i32 as f32 - zero) * scale;
    }
}

versions! {
    fn crossing(low: &[u8], high: &[u8], shift: u32, mask: u32, zeros: &[f32], scales: &[f32], out: &mut [f32]) = crossing_body;
}

#[inline(always)]
fn crossing_body(low: &[u8], high: &[u8], shift: u32, mask: u32, zeros: &[f32], scales: &[f32], out: &mut [f32]) {
    let words = low.as_chunks::<4>().0.iter().zip(high.as_chunks::<4>().0);
    for (((out, (low, high)), &zero), &scale) in out.iter_mut().zip(words).zip(zeros).zip(scales) {
        let field = u32::from_le_bytes(*low) >> shift | u32::from_le_bytes(*high) << (32 - shift);
        *out = ((field & mask) as i32 as f32 - zero) * scale;
    }
}

versions! {
    /// `(field − zero) · scale` of one input in AWQ's order.
    pub(crate) fn across(words: &[u8], zeros: &[f32], scales: &[f32], out: &mut [f32]) = across_body;
}

#[inline(always)]
fn across_body(words: &[u8], zeros: &[f32], scales: &[f32], out: &mut [f32]) {
    let eights = out.as_chunks_mut::<8>().0.iter_mut().zip(words.as_chunks::<4>().0);
    for ((out, word), (zeros, scales)) in eights.zip(zeros.as_chunks::<8>().0.iter().zip(scales.as_chunks::<8>().0)) {
        let word = u32::from_le_bytes(*word);
        for j in 0..8 {
            out[j] = (((word >> (4 * PLACES[j])) & 15) as i32 as f32 - zeros[j]) * scales[j];
        }
    }
}

versions! {
    /// The field nearest to each value, 0 to `most`. Under no scale a value is its zero.
    pub(crate) fn fields(values: &[f32], scales: &[f32], zeros: &[f32], most: f32, out: &mut [u8]) = fields_body;
}

#[inline(always)]
fn fields_body(values: &[f32], scales: &[f32], zeros: &[f32], most: f32, out: &mut [u8]) {
    for (((out, &x), &scale), &zero) in out.iter_mut().zip(values).zip(scales).zip(zeros) {
        let divisor = if scale == 0.0 { f32::INFINITY } else { scale };
        // What is far out of range is not rounded well, and need not be.
        *out = (round_even((x / divisor).clamp(-1024.0, 1024.0)) + zero).clamp(0.0, most) as u8;
    }
}

/// Puts the fields of one input, for all outputs, at a bit of each column of words; the words hold nothing there yet.
pub(crate) fn put_down(fields: &[u8], bit: usize, words: &mut [u8]) {
    let line = 4 * fields.len();
    let mut put = |at: usize, field: &dyn Fn(u8) -> u32| {
        let Some(words) = words.get_mut(at * line..(at + 1) * line) else { return };
        for (word, &own) in words.as_chunks_mut::<4>().0.iter_mut().zip(fields) {
            *word = (u32::from_le_bytes(*word) | field(own)).to_le_bytes();
        }
    };
    let shift = bit % 32;
    put(bit / 32, &|own| u32::from(own) << shift);
    // What fits leaves nothing for the next word: fields have eight bits at most.
    if shift > 24 && fields.iter().any(|&own| u64::from(own) << shift > u64::from(u32::MAX)) {
        put(bit / 32 + 1, &|own| (u64::from(own) << shift >> 32) as u32);
    }
}

/// Puts the fields of one input in AWQ's order.
pub(crate) fn put_across(fields: &[u8], words: &mut [u8]) {
    for (word, fields) in words.as_chunks_mut::<4>().0.iter_mut().zip(fields.as_chunks::<8>().0) {
        let placed = fields.iter().zip(PLACES).fold(0, |word, (&field, place)| word | u32::from(field) << (4 * place));
        *word = placed.to_le_bytes();
    }
}
