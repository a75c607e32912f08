//! A rotary embedding's angles: each pair of a head's features turns with the position, at a frequency of its own.
//!
//! The two halves of a head's rotary part are the pairs' two coordinates, or neighbours are a pair.

use std::ops::Range;

use qmerge::arch::Rope;

/// Angles of some positions: cosines and sines, each (pairs, positions).
#[derive(Clone, Debug)]
pub(crate) struct Angles {
    pairs: usize,
    count: usize,
    interleaved: bool,
    cos: Vec<f32>,
    sin: Vec<f32>,
}

impl Angles {
    /// Those of some positions of a sequence of `length`.
    pub(crate) fn new(rope: &Rope, positions: Range<usize>, length: usize) -> Self {
        let frequencies = rope.frequencies(length);
        let turn = |f: fn(f32) -> f32| -> Vec<f32> {
            let each = |&frequency: &f32| positions.clone().map(move |p| f(p as f32 * frequency) * rope.factor());
            frequencies.iter().flat_map(each).collect()
        };
        let (pairs, count) = (frequencies.len(), positions.len());
        Self { pairs, count, interleaved: rope.interleaved, cos: turn(libm::cosf), sin: turn(libm::sinf) }
    }

    /// Turns one head's features in place: `x` is a run of rows `tokens` wide, of which the columns from `first` on are these positions. A head has as many
    /// features as pairs have, or more: `Rope::read` checked that.
    pub(crate) fn turn(&self, x: &mut [f32], tokens: usize, first: usize) {
        let rows = &mut x[..2 * self.pairs * tokens];
        let angles = self.cos.chunks_exact(self.count.max(1)).zip(self.sin.chunks_exact(self.count.max(1)));
        let columns = first..first + self.count;
        if self.interleaved {
            for (pair, (cos, sin)) in rows.chunks_exact_mut(2 * tokens).zip(angles) {
                let (left, right) = pair.split_at_mut(tokens);
                turn(&mut left[columns.clone()], &mut right[columns.clone()], cos, sin);
            }
        } else {
            let (left, right) = rows.split_at_mut(self.pairs * tokens);
            let pairs = left.chunks_exact_mut(tokens).zip(right.chunks_exact_mut(tokens));
            for ((left, right), (cos, sin)) in pairs.zip(angles) {
                turn(&mut left[columns.clone()], &mut right[columns.clone()], cos, sin);
            }
        }
    }
}

/// Turns one pair at some positions.
fn turn(left: &mut [f32], right: &mut [f32], cos: &[f32], sin: &[f32]) {
    for ((a, b), (cos, sin)) in left.iter_mut().zip(right).zip(cos.iter().zip(sin)) {
        (*a, *b) = (*a * cos - *b * sin, *b * cos + *a * sin);
    }
}

#[cfg(test)]
mod tests {
    use qmerge::arch::Fields;
    use qmerge::open::ModelConfig;

    use super::*;

    /// Theta, features, pair, position; and the bits of frequency, cosine and sine from exact arithmetic (mpmath, 200 bits), each rounded to f32.
    #[test]
    fn angles_are_the_same_to_the_bit_on_every_machine() {
        for (theta, dims, pair, position, bits) in [
            (1e4, 64, 1, 7, [0x3f3f_f911, 0x3f02_ee57, 0xbf5b_fbf8]),
            (1e4, 64, 31, 4_095, [0x390b_d472, 0x3f5a_c4ff, 0x3f04_f364]),
            (5e5, 128, 20, 8_191, [0x3c87_a9c3, 0xbf59_2809, 0xbf07_91cd]),
            (1e6, 256, 3, 131_071, [0x3f39_305c, 0xbf6a_32ce, 0x3ece_c1b8]),
            (1e4, 64, 0, 2, [0x3f80_0000, 0xbed5_1133, 0x3f68_c7b7]),
        ] {
            let text = serde_json::json!({"max_position_embeddings": position + 1}).to_string();
            let config = ModelConfig::parse(text, "config.json".as_ref()).unwrap();
            let rope = Rope::plain(&Fields::new(&config), dims, theta).unwrap();
            let angles = Angles::new(&rope, position..position + 1, position + 1);
            let got = [rope.frequencies(position + 1)[pair], angles.cos[pair], angles.sin[pair]];
            assert_eq!(got.map(f32::to_bits), bits, "{theta} {dims} {pair} {position}: {got:?}");
        }
    }
}
