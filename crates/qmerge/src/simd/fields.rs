//! Whole numbers in fields of 1 to 8 bits of little-endian words, from the low end of each.

use super::codes::round_even;
use super::versions;

/// Levels of fields of `bits` (1 to 8) in words, each plus `low`. `dense` fields follow each other without a gap; others never cross a word.
pub(crate) fn field_levels(bits: usize, dense: bool, codes: &[u8], low: f32, out: &mut [f32]) {
    match (bits, dense) {
        (1, _) => stream1(codes, low, out),
        (2, _) => stream2(codes, low, out),
        (4, _) => fields4(codes, low, out),
        (8, _) => fields8(codes, low, out),
        (3, true) => stream3(codes, low, out),
        (5, true) => stream5(codes, low, out),
        (6, true) => stream6(codes, low, out),
        (7, true) => stream7(codes, low, out),
        (3, false) => fields3(codes, low, out),
        (5, false) => fields5(codes, low, out),
        (6, false) => fields6(codes, low, out),
        _ => fields7(codes, low, out),
    }
}

versions! { fn fields3(codes: &[u8], low: f32, out: &mut [f32]) = fields_body::<3>; }
versions! { fn fields4(codes: &[u8], low: f32, out: &mut [f32]) = fields_body::<4>; }
versions! { fn fields5(codes: &[u8], low: f32, out: &mut [f32]) = fields_body::<5>; }
versions! { fn fields6(codes: &[u8], low: f32, out: &mut [f32]) = fields_body::<6>; }
versions! { fn fields7(codes: &[u8], low: f32, out: &mut [f32]) = fields_body::<7>; }
versions! { fn fields8(codes: &[u8], low: f32, out: &mut [f32]) = fields_body::<8>; }
versions! { fn stream1(codes: &[u8], low: f32, out: &mut [f32]) = stream_body::<1>; }
versions! { fn stream2(codes: &[u8], low: f32, out: &mut [f32]) = stream_body::<2>; }
versions! { fn stream3(codes: &[u8], low: f32, out: &mut [f32]) = stream_body::<3>; }
versions! { fn stream5(codes: &[u8], low: f32, out: &mut [f32]) = stream_body::<5>; }
versions! { fn stream6(codes: &[u8], low: f32, out: &mut [f32]) = stream_body::<6>; }
versions! { fn stream7(codes: &[u8], low: f32, out: &mut [f32]) = stream_body::<7>; }

#[inline(always)]
fn fields_body<const BITS: usize>(codes: &[u8], low: f32, out: &mut [f32]) {
    let (per, mask) = (32 / BITS, (1_u32 << BITS) - 1);
    let words = codes.as_chunks::<4>().0;
    let whole = out.len() / per;
    let (head, tail) = out.split_at_mut(whole * per);
    let level = |word: u32, j: usize| ((word >> (j * BITS)) & mask) as i32 as f32 + low;
    for (out, word) in head.chunks_exact_mut(per).zip(words) {
        let word = u32::from_le_bytes(*word);
        for (j, out) in out.iter_mut().enumerate() {
            *out = level(word, j);
        }
    }
    if let Some(word) = words.get(whole) {
        tail.iter_mut().enumerate().for_each(|(j, out)| *out = level(u32::from_le_bytes(*word), j));
    }
}

#[inline(always)]
fn stream_body<const BITS: usize>(codes: &[u8], low: f32, out: &mut [f32]) {
    // Eight fields are whole bytes.
    let mask = (1_u64 << BITS) - 1;
    let level = |eight: u64, j: usize| ((eight >> (j * BITS)) & mask) as u32 as i32 as f32 + low;
    let of = |bytes: &[u8]| {
        let mut eight = [0; 8];
        eight[..bytes.len()].copy_from_slice(bytes);
        u64::from_le_bytes(eight)
    };
    let (eights, tail) = out.as_chunks_mut::<8>();
    for (out, bytes) in eights.iter_mut().zip(codes.as_chunks::<BITS>().0) {
        let eight = of(bytes);
        for (j, out) in out.iter_mut().enumerate() {
            *out = level(eight, j);
        }
    }
    let rest = codes.get(eights.len() * BITS..).unwrap_or_default();
    let eight = of(&rest[..rest.len().min(8)]);
    tail.iter_mut().enumerate().for_each(|(j, out)| *out = level(eight, j));
}

/// Stores levels as fields; see [`field_levels`]. Bits of the words that belong to no field are 0.
pub(crate) fn pack_fields(bits: usize, dense: bool, levels: &[f32], low: f32, out: &mut [u8]) {
    let most = ((1_u32 << bits) - 1) as f32;
    let field = |x: f32| round_even(x - low).clamp(0.0, most) as u64;
    let per = if dense { 32 } else { 32 / bits };
    let bytes = if dense { 4 * bits } else { 4 };
    for (out, levels) in out.chunks_mut(bytes).zip(levels.chunks(per)) {
        let (mut words, mut held, mut filled) = (out.chunks_mut(4), 0_u64, 0);
        for &x in levels {
            held |= field(x) << filled;
            filled += bits;
            if filled >= 32 {
                words.next().into_iter().for_each(|word| word.copy_from_slice(&(held as u32).to_le_bytes()));
                (held, filled) = (held >> 32, filled - 32);
            }
        }
        if filled > 0 {
            words.next().into_iter().for_each(|word| word.copy_from_slice(&(held as u32).to_le_bytes()));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::simd::forced::at_every_level;

    #[test]
    fn fields_of_every_width_read_back_at_every_level() {
        for bits in 1..=8_usize {
            for dense in [true, false] {
                for n in [1, 31, 32, 40, 200] {
                    let low = -((1 << (bits - 1)) as f32);
                    let levels: Vec<f32> = (0..n).map(|i| (i * 37 % (1 << bits)) as f32 + low).collect();
                    let words = if dense { (n * bits).div_ceil(32) } else { n.div_ceil(32 / bits) };
                    let mut codes = vec![0; 4 * words];
                    pack_fields(bits, dense, &levels, low, &mut codes);
                    for (level, back) in at_every_level(|| {
                        let mut back = vec![9.0; n];
                        field_levels(bits, dense, &codes, low, &mut back);
                        back
                    }) {
                        assert_eq!(back, levels, "{level:?} {bits} {dense} {n}");
                    }
                }
            }
        }
    }
}
