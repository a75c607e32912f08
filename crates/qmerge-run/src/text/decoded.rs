//! Tokens back to text: all of them at once, or as they come.

use qmerge::error::{Error, Kind, Result};
use tokenizers::{Decoder, DecoderWrapper};

use super::{Tokenizer, guarded};

/// What stands for bytes that are no character.
const REPLACEMENT: char = '\u{fffd}';

impl Tokenizer {
    /// Text of some tokens, without special ones. Bytes that are no characters are replaced, each where a token is one byte; those beside them stay.
    pub fn decode(&self, tokens: &[u32]) -> Result<String> {
        self.joined(self.pieces(tokens).0)
    }

    /// The text of an answer whose tokens are yet to come.
    pub fn written(&self) -> Written<'_> {
        Written { tokenizer: self, tokens: Vec::new(), text: String::new() }
    }

    /// The vocabulary's words for tokens, and how many at the end are bytes of a character that is not whole.
    fn pieces(&self, tokens: &[u32]) -> (Vec<String>, usize) {
        let added = self.inner.get_added_vocabulary();
        let words = tokens.iter().filter_map(|token| self.inner.id_to_token(*token));
        let words: Vec<String> = words.filter(|word| !added.is_special_token(word)).collect();
        match self.inner.get_decoder() {
            Some(decoder) if has_bytes(decoder) => whole(words),
            _ => (words, 0),
        }
    }

    fn joined(&self, words: Vec<String>) -> Result<String> {
        guarded(|| match self.inner.get_decoder() {
            Some(decoder) => decoder.decode(words),
            None => Ok(words.join(" ")),
        })
        .map_err(|error| Error::new(Kind::Mismatch, format!("cannot decode: {error}")).in_file(&self.path))
    }
}

/// A text whose tokens come one by one. A character may come in several, so what is not whole waits for the next.
pub struct Written<'t> {
    tokenizer: &'t Tokenizer,
    tokens: Vec<u32>,
    /// What was given out.
    text: String,
}

impl Written<'_> {
    /// Takes the next token; returns what of the text is certain now and was not before.
    pub fn push(&mut self, token: u32) -> Result<String> {
        self.tokens.push(token);
        let (mut words, waiting) = self.tokenizer.pieces(&self.tokens);
        words.truncate(words.len() - waiting);
        let text = self.tokenizer.joined(words)?;
        // Where a word is several bytes, the last of them may be replaced since others are yet to come.
        let certain = text.strip_suffix(REPLACEMENT).unwrap_or(&text).to_owned();
        Ok(self.given(certain))
    }

    /// What waited for tokens that do not come.
    pub fn finish(&mut self) -> Result<String> {
        let text = self.tokenizer.decode(&self.tokens)?;
        Ok(self.given(text))
    }

    /// What `text` has behind that which was given out.
    fn given(&mut self, text: String) -> String {
        if self.text.starts_with(&text) {
            return String::new();
        }
        // A decoder that thinks better of what it wrote is followed from there on.
        let same = text.char_indices().zip(self.text.chars()).take_while(|((_, one), other)| one == other);
        let at = same.last().map_or(0, |((at, c), _)| at + c.len_utf8());
        let fresh = text.get(at..).unwrap_or_default().to_owned();
        self.text = text;
        fresh
    }
}

/// True if words of a byte (`<0xE2>`) become bytes.
fn has_bytes(decoder: &DecoderWrapper) -> bool {
    match decoder {
        DecoderWrapper::ByteFallback(_) => true,
        DecoderWrapper::Sequence(sequence) => sequence.get_decoders().iter().any(has_bytes),
        _ => false,
    }
}

/// The byte that a word is.
fn byte(word: &str) -> Option<u8> {
    let digits = word.strip_prefix("<0x")?.strip_suffix('>').filter(|digits| digits.len() == 2)?;
    u8::from_str_radix(digits, 16).ok()
}

/// The same words, with bytes replaced that are no characters: the library gives up all bytes in a row for one of them. Also how many at the end are the beginning of a character.
fn whole(mut words: Vec<String>) -> (Vec<String>, usize) {
    let mut waiting = 0;
    let mut at = 0;
    while at < words.len() {
        let bytes: Vec<u8> = words.iter().skip(at).map_while(|word| byte(word)).collect();
        let mut begin = at;
        for chunk in bytes.utf8_chunks() {
            begin += chunk.valid().len();
            let end = begin + chunk.invalid().len();
            if end == words.len() && std::str::from_utf8(chunk.invalid()).is_err_and(|e| e.error_len().is_none()) {
                waiting = chunk.invalid().len();
            }
            words.iter_mut().take(end).skip(begin).for_each(|word| *word = REPLACEMENT.to_string());
            begin = end;
        }
        at += bytes.len().max(1);
    }
    (words, waiting)
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    /// Pieces of tests' texts that no byte is.
    const WORDS: [&str; 3] = ["\u{2581}a", "\u{2581}\u{fffd}", "!"];

    fn tokenizer(words: &[String], decoder: Value) -> Tokenizer {
        let vocab: serde_json::Map<String, Value> =
            words.iter().enumerate().map(|(id, word)| (word.clone(), id.into())).collect();
        let special = json!({"id": words.len(), "content": "<s>", "single_word": false, "lstrip": false,
            "rstrip": false, "normalized": false, "special": true});
        let tokenizer = json!({"version": "1.0", "added_tokens": [special], "decoder": decoder,
            "model": {"type": "BPE", "vocab": vocab, "merges": []}});
        let inner = serde_json::from_value(tokenizer).unwrap();
        Tokenizer { path: "x".into(), inner, template: None, special: Vec::new(), stop: Vec::new(), begin: Vec::new() }
    }

    /// As Llama 2 has it: what is in no vocabulary is bytes.
    fn of_bytes() -> Tokenizer {
        let bytes = (0..=255).map(|byte| format!("<0x{byte:02X}>"));
        let words: Vec<String> = bytes.chain(WORDS.map(str::to_owned)).collect();
        let replace = json!({"type": "Replace", "pattern": {"String": "\u{2581}"}, "content": " "});
        let strip = json!({"type": "Strip", "content": " ", "start": 1, "stop": 0});
        let steps = [replace, json!({"type": "ByteFallback"}), json!({"type": "Fuse"}), strip];
        tokenizer(&words, json!({"type": "Sequence", "decoders": steps}))
    }

    /// As GPT-2 has it: words are written in characters that stand for bytes.
    fn of_characters() -> Tokenizer {
        let mut others = 256..;
        let mut letter = |byte: u32| match byte {
            33..=126 | 161..=172 | 174..=255 => byte,
            _ => others.next().unwrap(),
        };
        let words: Vec<String> = (0..256).map(|byte| char::from_u32(letter(byte)).unwrap().to_string()).collect();
        let decoder = json!({"type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true, "use_regex": true});
        tokenizer(&words, decoder)
    }

    /// What is shown token by token, and in the end.
    fn shown(tokenizer: &Tokenizer, tokens: &[u32]) -> (Vec<String>, String) {
        let mut written = tokenizer.written();
        let each = tokens.iter().map(|token| written.push(*token).unwrap()).collect();
        (each, written.finish().unwrap())
    }

    /// What Python's `bytes.decode(errors="replace")` makes of the bytes, with how many of the tokens are known by which text.
    const BYTES: &[(&[u8], &str)] = &[
        (b"abc", "abc"),
        (b"\xe2\x82\xac", "\u{20ac}"),
        (b"\xe2\x82", "\u{fffd}"),
        (b"a\xe2\x82", "a\u{fffd}"),
        (b"\xc3\xa9\xffa", "\u{e9}\u{fffd}a"),
        (b"\xc3\xa9\xc3", "\u{e9}\u{fffd}"),
        (b"a\x82b\xf0\x9f\x98\x80\x80c", "a\u{fffd}b\u{1f600}\u{fffd}c"),
        (b"\xf0\x9f\x98!", "\u{fffd}!"),
        (b"\xef\xbf\xbd\xef\xbf\xbd", "\u{fffd}\u{fffd}"),
        (b"\xff\xfe", "\u{fffd}\u{fffd}"),
    ];

    #[test]
    fn what_is_shown_is_the_text() {
        for (tokenizer, by_byte) in [(of_bytes(), true), (of_characters(), false)] {
            for (bytes, text) in BYTES {
                let tokens: Vec<u32> = bytes.iter().map(|byte| u32::from(*byte)).collect();
                let (each, end) = shown(&tokenizer, &tokens);
                let all = each.concat() + &end;
                assert_eq!(all, tokenizer.decode(&tokens).unwrap(), "{bytes:?}");
                // Of bytes in a row that are no character each is replaced, or all by one.
                let valid = |text: &str| text.split(REPLACEMENT).filter(|part| !part.is_empty()).collect::<String>();
                assert_eq!(valid(&all), valid(text), "{bytes:?}");
                if !by_byte {
                    assert_eq!(&all, text, "{bytes:?}");
                }
            }
        }
    }

    #[test]
    fn a_character_is_shown_when_it_is_whole() {
        let euro = [0xe2, 0x82, 0xac, 0x61];
        for tokenizer in [of_bytes(), of_characters()] {
            let (each, end) = shown(&tokenizer, &euro);
            assert_eq!((each, end.as_str()), (["", "", "\u{20ac}", "a"].map(str::to_owned).to_vec(), ""));
            // A special token shows nothing, and parts no character.
            let special = tokenizer.inner.get_vocab_size(true) as u32 - 1;
            let (each, _) = shown(&tokenizer, &[0xe2, special, 0x82, 0xac]);
            assert_eq!(each.concat(), "\u{20ac}");
        }
    }

    /// As transformers decodes them: alone, bytes that are no character are replaced one by one.
    #[test]
    fn words_stand_beside_bytes() {
        let tokenizer = of_bytes();
        let cases: &[(&[u32], &str)] = &[
            (&[256, 0xe5, 0x8f, 256], "a\u{fffd}\u{fffd} a"),
            (&[256, 0xe5, 0x8f, 0xab, 256], "a\u{53eb} a"),
            (&[256, 257, 258], "a \u{fffd}!"),
            (&[0xe2, 0x96, 0x81, 258], "\u{2581}!"),
            (&[256, 0xc3, 0xa9, 0xc3], "a\u{e9}\u{fffd}"),
        ];
        for (tokens, text) in cases {
            let (each, end) = shown(&tokenizer, tokens);
            assert_eq!((tokenizer.decode(tokens).unwrap().as_str(), each.concat() + &end), (*text, (*text).to_owned()));
        }
    }
}
