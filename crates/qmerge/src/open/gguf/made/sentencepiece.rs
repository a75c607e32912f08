//! The pieces of a SentencePiece model: the first field of its protocol buffer.
//!
//! `ModelProto` is field 1 repeated, a piece each: field 1 its text, field 2 its score (f32), field 3 its kind, normal where it is missing. Other fields are skipped.
//! Source: sentencepiece, `src/sentencepiece_model.proto`.

/// Kinds of pieces, which GGUF numbers alike.
pub(super) const NORMAL: i32 = 1;
pub(super) const UNKNOWN: i32 = 2;
pub(super) const CONTROL: i32 = 3;
pub(super) const USER_DEFINED: i32 = 4;
pub(super) const UNUSED: i32 = 5;
pub(super) const BYTE: i32 = 6;

/// A piece.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Piece {
    pub(super) text: String,
    pub(super) score: f32,
    pub(super) kind: i32,
}

/// The pieces of a model, in the order of their numbers; `None` if the bytes are no such model.
pub(super) fn pieces(bytes: &[u8]) -> Option<Vec<Piece>> {
    let mut fields = Fields(bytes);
    let mut pieces = Vec::new();
    while let Some((number, field)) = fields.next()? {
        if let (1, Field::Bytes(bytes)) = (number, field) {
            pieces.push(piece(bytes)?);
        }
    }
    (!pieces.is_empty()).then_some(pieces)
}

fn piece(bytes: &[u8]) -> Option<Piece> {
    let mut fields = Fields(bytes);
    let mut piece = Piece { text: String::new(), score: 0.0, kind: NORMAL };
    while let Some((number, field)) = fields.next()? {
        match (number, field) {
            (1, Field::Bytes(text)) => piece.text = String::from_utf8(text.to_vec()).ok()?,
            (2, Field::Four(bytes)) => piece.score = f32::from_le_bytes(bytes),
            (3, Field::Number(kind)) => piece.kind = i32::try_from(kind).ok()?,
            _ => {}
        }
    }
    Some(piece)
}

/// The fields of a message that are left.
struct Fields<'b>(&'b [u8]);

enum Field<'b> {
    Number(u64),
    Four([u8; 4]),
    Bytes(&'b [u8]),
    Eight,
}

impl<'b> Fields<'b> {
    /// The number and the content of the next field, or nothing behind the last; `None` where the bytes are no message.
    #[allow(clippy::should_implement_trait)]
    fn next(&mut self) -> Option<Option<(u64, Field<'b>)>> {
        if self.0.is_empty() {
            return Some(None);
        }
        let key = self.number()?;
        let field = match key & 7 {
            0 => Field::Number(self.number()?),
            1 => {
                self.take(8)?;
                Field::Eight
            }
            2 => {
                let length = self.number()?;
                Field::Bytes(self.take(usize::try_from(length).ok()?)?)
            }
            5 => Field::Four(self.take(4)?.first_chunk().copied()?),
            _ => return None,
        };
        Some(Some((key >> 3, field)))
    }

    fn take(&mut self, count: usize) -> Option<&'b [u8]> {
        let (taken, left) = self.0.split_at_checked(count)?;
        self.0 = left;
        Some(taken)
    }

    /// Seven bits in each byte, the lowest first.
    fn number(&mut self) -> Option<u64> {
        let mut number = 0_u64;
        for shift in (0..64).step_by(7) {
            let byte = self.take(1)?.first().copied()?;
            number |= u64::from(byte & 0x7f).checked_shl(shift)?;
            if byte & 0x80 == 0 {
                return Some(number);
            }
        }
        None
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Two pieces, and a field that is skipped.
    fn model() -> Vec<u8> {
        let mut bytes = vec![0x0a, 12, 0x0a, 3];
        bytes.extend("▁".bytes());
        bytes.extend([0x15]);
        bytes.extend((-2.5_f32).to_le_bytes());
        bytes.extend([0x18, 3]);
        bytes[1] = bytes.len() as u8 - 2;
        bytes.extend([0x0a, 3, 0x0a, 1, b'a']);
        bytes.extend([0x12, 2, 0x08, 1]);
        bytes
    }

    #[test]
    fn pieces_are_read_and_all_else_is_none() {
        let piece = |text: &str, score, kind| Piece { text: text.into(), score, kind };
        assert_eq!(pieces(&model()).unwrap(), [piece("▁", -2.5, CONTROL), piece("a", 0.0, NORMAL)]);
        for end in 0..model().len() {
            let _ = pieces(&model()[..end]);
        }
        for at in 0..model().len() {
            let mut changed = model();
            changed[at] = 0xff;
            let _ = pieces(&changed);
        }
        // A list of tokens of another kind, as tiktoken's, is text.
        for other in [&b""[..], b"IQ== 0\nIg== 1\n", &[0xff; 32], &[0x0a, 0xff, 0xff, 0xff, 0xff, 0x0f]] {
            assert_eq!(pieces(other), None);
        }
    }
}
