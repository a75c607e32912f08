//! Texts, scores and kinds of all tokens, by number.

use std::collections::{HashMap, HashSet};

use super::document::{Added, Document};
use super::keys::{Field, Keys};
use super::sentencepiece::{BYTE, CONTROL, NORMAL, Piece, UNKNOWN, UNUSED, USER_DEFINED};
use super::vocabulary::Ways;

/// Scores of tokens that no text is cut into.
const ADDED: f32 = -1000.0;
const EMPTY: f32 = -10_000.0;

/// What parsers of chats look for in a text (Gemma 4).
const CHANNELS: &[&str] =
    &["<|channel>", "<channel|>", "<|tool_call>", "<tool_call|>", "<|tool_response>", "<tool_response|>", "<|\"|>"];

/// What a tokenizer is beside its table.
pub(super) struct Tokenizer<'d> {
    pub(super) model: &'static str,
    /// The rule that text is cut by.
    pub(super) pre: Option<&'d str>,
    pub(super) has_scores: bool,
    /// In their order, where they are not made by scores.
    pub(super) merges: Option<&'d [[String; 2]]>,
}

/// Texts, scores and kinds of all tokens.
pub(super) struct Table {
    tokens: Vec<String>,
    scores: Vec<f32>,
    kinds: Vec<i32>,
}

impl Table {
    /// So many numbers that no token has yet.
    fn empty(tokens: usize) -> Self {
        Self {
            tokens: (0..tokens).map(|id| format!("[PAD{id}]")).collect(),
            scores: vec![EMPTY; tokens],
            kinds: vec![UNUSED; tokens],
        }
    }

    fn set(&mut self, id: usize, text: String, score: f32, kind: i32) {
        if let (Some(own_text), Some(own_score), Some(own_kind)) =
            (self.tokens.get_mut(id), self.scores.get_mut(id), self.kinds.get_mut(id))
        {
            (*own_text, *own_score, *own_kind) = (text, score, kind);
        }
    }

    fn set_added(&mut self, all: &[Added], ways: Ways) {
        for token in all {
            let (kind, text) = added(token, ways);
            self.set(token.id as usize, text, ADDED, kind);
        }
    }

    /// SentencePiece's pieces with their scores, and tokens that were added to them.
    pub(super) fn of_pieces(pieces: &[Piece], added: &[Added], tokens: usize, ways: Ways) -> Self {
        let mut table = Self::empty(tokens);
        for (id, piece) in pieces.iter().enumerate() {
            let kind = if matches!(piece.kind, UNKNOWN | CONTROL | UNUSED | BYTE) { piece.kind } else { NORMAL };
            table.set(id, piece.text.clone(), piece.score, kind);
        }
        table.set_added(added, ways);
        table
    }

    /// Pieces whose order of merges is known: what is made first has the highest score.
    pub(super) fn of_merges(document: &Document, tokens: usize, ways: Ways) -> Self {
        let mut table = Self::empty(tokens);
        let mut by_text = HashMap::new();
        for (text, id) in &document.model.vocab.0 {
            by_text.insert(text.as_str(), *id as usize);
            let kind = if is_byte(text) { BYTE } else { NORMAL };
            table.set(*id as usize, text.clone(), if kind == BYTE { 0.0 } else { EMPTY }, kind);
        }
        if let Some(&id) = document.model.unk_token.as_deref().and_then(|unknown| by_text.get(unknown)) {
            table.set(id, document.model.unk_token.clone().unwrap_or_default(), 0.0, UNKNOWN);
        }
        table.set_added(&document.added_tokens, ways);
        let mut rank = 0.0_f32;
        let mut score = |table: &mut Self, id: usize| {
            let is_open = table.kinds.get(id) == Some(&NORMAL);
            if let Some(own) = table.scores.get_mut(id).filter(|own| is_open && **own == EMPTY) {
                *own = -rank;
                rank += 1.0;
            }
        };
        for [left, right] in &document.model.merges.0 {
            if let Some(&id) = by_text.get([left.as_str(), right].concat().as_str()) {
                score(&mut table, id);
            }
        }
        // Single characters are not made of others.
        (0..tokens).for_each(|id| score(&mut table, id));
        table
    }

    /// Pieces that are merged in the order of a list. Those of `special` are control.
    pub(super) fn of_listed_pieces(document: &Document, tokens: usize, special: &HashSet<String>) -> Self {
        let mut table = Self::empty(tokens);
        for (text, id) in &document.model.vocab.0 {
            let kind = if is_byte(text) { BYTE } else { NORMAL };
            table.set(*id as usize, text.clone(), ADDED, kind);
        }
        for token in &document.added_tokens {
            let is_new = table.kinds.get(token.id as usize) == Some(&UNUSED);
            if is_new {
                table.set(token.id as usize, token.content.clone(), ADDED, USER_DEFINED);
            }
        }
        let all = table.tokens.iter().zip(&mut table.kinds).filter(|(_, kind)| **kind != UNUSED);
        for (text, kind) in all {
            if CHANNELS.contains(&text.as_str()) {
                *kind = USER_DEFINED;
            } else if *kind != BYTE && special.contains(text) {
                *kind = CONTROL;
            }
        }
        table
    }

    /// Byte-level pieces.
    pub(super) fn of_bytes(document: &Document, tokens: usize, ways: Ways) -> Self {
        let mut table = Self::empty(tokens);
        for (text, id) in &document.model.vocab.0 {
            table.set(*id as usize, text.clone(), 0.0, NORMAL);
        }
        table.set_added(&document.added_tokens, ways);
        table
    }

    /// Puts down what a file says of a tokenizer and its table, in the order of llama.cpp's converter.
    pub(super) fn add(self, keys: &mut Keys, tokenizer: Tokenizer<'_>) {
        keys.set("tokenizer.ggml.model", Field::Text(tokenizer.model.to_owned()));
        if let Some(pre) = tokenizer.pre {
            keys.set("tokenizer.ggml.pre", Field::Text(pre.to_owned()));
        }
        keys.set("tokenizer.ggml.tokens", Field::Texts(self.tokens));
        if tokenizer.has_scores {
            keys.set("tokenizer.ggml.scores", Field::Floats(self.scores));
        }
        keys.set("tokenizer.ggml.token_type", Field::Numbers(self.kinds));
        if let Some(merges) = tokenizer.merges {
            keys.set("tokenizer.ggml.merges", Field::Texts(merges.iter().map(merge).collect()));
        }
    }
}

/// A merge as a file has it: the two are parted by a space, so one that a token has is written as byte-level pieces write it.
fn merge([left, right]: &[String; 2]) -> String {
    [left.replace(' ', "Ġ"), right.replace(' ', "Ġ")].join(" ")
}

/// True of a token that is control however a file flags it.
fn looks_special(text: &str) -> bool {
    let between = |start: &str, end: &str| text.starts_with(start) && text.ends_with(end);
    matches!(text, "<pad>" | "<mask>" | "<2mass>" | "[@BOS@]")
        || between("<|", "|>")
        || between("<｜", "｜>")
        || between("<unused", ">")
}

/// A token that was added as llama.cpp sees it: its kind and its text.
fn added(token: &Added, ways: Ways) -> (i32, String) {
    if token.special || !ways.by_flags_alone && looks_special(&token.content) {
        (CONTROL, token.content.clone())
    } else if ways.by_flags_alone {
        (USER_DEFINED, token.content.clone())
    } else {
        (USER_DEFINED, token.content.replace('▁', " "))
    }
}

/// `<0x0A>` and its kin.
fn is_byte(text: &str) -> bool {
    let digits = text.strip_prefix("<0x").and_then(|rest| rest.strip_suffix('>'));
    digits.is_some_and(|digits| digits.len() == 2 && digits.bytes().all(|byte| byte.is_ascii_hexdigit()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::open::json;

    #[test]
    fn scores_are_made_of_the_order_of_merges() {
        let document: Document = json::parse_as(
            r#"{"added_tokens": [{"id": 0, "content": "<unk>", "special": true}, {"id": 9, "content": "▁▁", "special": false}],
                "model": {"type": "BPE", "byte_fallback": true, "unk_token": "<unk>",
                          "vocab": {"<unk>": 0, "<0x0A>": 1, "a": 2, "b": 3, "▁": 4, "ab": 5, "▁a": 6, "▁▁": 9},
                          "merges": [["▁", "▁"], "▁ a", ["a", "b"]]}}"#,
        )
        .unwrap();
        let table = Table::of_merges(&document, 11, Ways::default());
        assert_eq!(table.kinds, [3, 6, 1, 1, 1, 1, 1, 5, 5, 4, 5]);
        assert_eq!(table.scores[..7], [ADDED, 0.0, -2.0, -3.0, -4.0, -1.0, 0.0]);
        assert_eq!((table.tokens[9].as_str(), table.tokens[10].as_str()), ("  ", "[PAD10]"));
    }
}
