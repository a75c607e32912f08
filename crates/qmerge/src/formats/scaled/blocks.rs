//! Codes of several runs of a matrix in the same words: the first run's in one field of each word, the next run's in the next.

/// How such codes lie. A field that is left over at the end of the last run is 0.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::formats) struct Blocks {
    /// Bits of a field.
    pub(in crate::formats) bits: usize,
    /// Fields of a word, each of another run.
    pub(in crate::formats) fields: usize,
    /// Bytes of a word: 1 or 4.
    pub(in crate::formats) word: usize,
    /// The first run has the highest field, not the lowest.
    pub(in crate::formats) descending: bool,
    /// Number of words, which is the length of a run.
    pub(in crate::formats) words: usize,
    /// What a field of 0 stands for.
    pub(in crate::formats) low: i32,
    /// Number of levels.
    pub(in crate::formats) levels: i32,
}

impl Blocks {
    /// Bytes of all words.
    pub(in crate::formats) fn bytes(self) -> usize {
        self.words * self.word
    }

    /// The largest level.
    pub(super) fn high(self) -> i32 {
        self.low + self.levels - 1
    }

    fn shift(self, field: usize) -> usize {
        self.bits * if self.descending { self.fields - 1 - field } else { field }
    }

    /// A byte for each of so many codes.
    pub(super) fn unpack(self, bytes: &[u8], count: usize) -> Vec<u8> {
        let mut codes = vec![0; count];
        let mask = ((1_u32 << self.bits) - 1) as u8;
        for (field, run) in codes.chunks_mut(self.words.max(1)).enumerate().take(self.fields) {
            let shift = self.shift(field);
            if self.word == 1 {
                run.iter_mut().zip(bytes).for_each(|(code, byte)| *code = (byte >> shift) & mask);
            } else {
                let words = bytes.as_chunks().0.iter().map(|word| u32::from_le_bytes(*word));
                run.iter_mut().zip(words).for_each(|(code, word)| *code = (word >> shift) as u8 & mask);
            }
        }
        codes
    }

    /// The same back: codes of a byte each into words that are all 0.
    pub(super) fn pack(self, codes: &[u8], bytes: &mut [u8]) {
        for (field, run) in codes.chunks(self.words.max(1)).enumerate().take(self.fields) {
            let shift = self.shift(field);
            if self.word == 1 {
                bytes.iter_mut().zip(run).for_each(|(byte, code)| *byte |= code << shift);
            } else {
                for (word, &code) in bytes.as_chunks_mut().0.iter_mut().zip(run) {
                    *word = (u32::from_le_bytes(*word) | u32::from(code) << shift).to_le_bytes();
                }
            }
        }
    }
}
