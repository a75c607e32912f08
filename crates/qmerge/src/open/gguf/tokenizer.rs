//! The tokenizer in a GGUF file's keys, as the `tokenizer.json` that says the same.
//!
//! llama.cpp has three of them that matter here: `gpt2`, merges of pairs of byte-level pieces behind a rule that cuts text (`pre.rs`), and
//! `llama`, SentencePiece's merges, of which a file has the scores of what they make; and `gemma4`, the same pieces with merges in an order. `made/vocabulary.rs` is the way back. Sources: llama.cpp, `src/llama-vocab.cpp`; transformers,
//! `convert_slow_tokenizer.py`.

use std::collections::HashMap;

use serde_json::{Value, json};

use super::pre::{self, Pre};
use super::{Metadata, Value as Stored};
use crate::error::{Error, Kind, Result, malformed};

/// Types of tokens.
const NORMAL: i128 = 1;
const CONTROL: i128 = 3;
const USER_DEFINED: i128 = 4;
const UNUSED: i128 = 5;
const BYTE: i128 = 6;

/// A vocabulary: texts, types and scores by number.
struct Vocabulary<'m> {
    tokens: Vec<&'m str>,
    types: Vec<i128>,
    scores: Vec<f64>,
}

/// What a file says of its tokenizer.
#[derive(Debug)]
#[doc(hidden)]
pub struct TokenizerKeys {
    /// As `tokenizer.json` has it.
    pub tokenizer: Value,
    /// Numbers of tokens that every text begins with, and that end an answer.
    pub begin: Vec<u32>,
    pub stop: Vec<u32>,
    /// Texts of special tokens that templates may name.
    pub special: Vec<(&'static str, String)>,
    pub template: Option<String>,
}

/// Reads a tokenizer. Errors if it is of a kind that is not known.
#[doc(hidden)]
pub fn read_tokenizer(metadata: &Metadata) -> Result<TokenizerKeys> {
    let vocabulary = vocabulary(metadata)?;
    let model = metadata.text("tokenizer.ggml.model").unwrap_or("");
    let (tokenizer, begins) = match model {
        "gpt2" => {
            let name = metadata.text("tokenizer.ggml.pre").unwrap_or("");
            let pre = pre::named(name).ok_or_else(|| unknown("pre", name))?;
            (pairs(&vocabulary, metadata, pre)?, pre.begins)
        }
        "llama" => (pieces(&vocabulary, metadata, scored(&vocabulary)?), true),
        "gemma4" => (pieces(&vocabulary, metadata, listed(metadata)?), true),
        other => return Err(unknown("model", other)),
    };
    let id = |name: &str| {
        let id = metadata.integer(&format!("tokenizer.ggml.{name}_token_id"))?;
        u32::try_from(id).ok().filter(|&id| (id as usize) < vocabulary.tokens.len())
    };
    let begins = metadata.flag("tokenizer.ggml.add_bos_token").unwrap_or(begins);
    let names = [("bos_token", "bos"), ("eos_token", "eos"), ("pad_token", "padding"), ("unk_token", "unknown")];
    let text = |(key, name)| Some((key, (*vocabulary.tokens.get(id(name)? as usize)?).to_owned()));
    Ok(TokenizerKeys {
        tokenizer,
        begin: if begins { id("bos").into_iter().collect() } else { Vec::new() },
        stop: ["eos", "eot"].into_iter().filter_map(id).collect(),
        special: names.into_iter().filter_map(text).collect(),
        template: metadata.text("tokenizer.chat_template").map(str::to_owned),
    })
}

fn unknown(key: &str, value: &str) -> Error {
    Error::new(Kind::Unsupported, format!("the key `tokenizer.ggml.{key}` is `{value}`: a tokenizer that is not known"))
        .with_hint("copy tokenizer.json and tokenizer_config.json of the model into the adapter's folder")
}

fn broken(key: &str) -> Error {
    Error::new(Kind::Malformed, format!("the key `tokenizer.ggml.{key}` is missing, or is not what it should be"))
        .with_hint("take another GGUF file of the model")
}

fn vocabulary(metadata: &Metadata) -> Result<Vocabulary<'_>> {
    let list = |key: &str| metadata.list(&format!("tokenizer.ggml.{key}"));
    let tokens: Vec<&str> = list("tokens")
        .ok_or_else(|| broken("tokens"))?
        .iter()
        .filter_map(|value| if let Stored::Text(text) = value { Some(text) } else { None })
        .collect();
    if list("tokens").map(|list| list.len()) != Some(tokens.len()) {
        return Err(broken("tokens"));
    }
    let integer = |value| if let Stored::Integer(number) = value { number } else { NORMAL };
    let float = |value| if let Stored::Float(number) = value { number } else { 0.0 };
    let types = list("token_type").map_or(Vec::new(), |list| list.iter().map(integer).collect());
    let scores = list("scores").map_or(Vec::new(), |list| list.iter().map(float).collect());
    Ok(Vocabulary { tokens, types, scores })
}

impl Vocabulary<'_> {
    fn kind(&self, id: usize) -> i128 {
        self.types.get(id).copied().unwrap_or(NORMAL)
    }

    /// Texts with their numbers; of two that are alike the first.
    fn ids(&self) -> serde_json::Map<String, Value> {
        let mut ids = serde_json::Map::new();
        for (id, token) in self.tokens.iter().enumerate().filter(|(id, _)| self.kind(*id) != UNUSED) {
            ids.entry(*token).or_insert(json!(id));
        }
        ids
    }

    /// Tokens that are looked for in a text before anything else is done with it.
    fn added(&self) -> Vec<Value> {
        let added = |(id, token): (usize, &&str)| {
            let kind = self.kind(id);
            (matches!(kind, CONTROL | USER_DEFINED) && !token.is_empty()).then(|| {
                json!({ "id": id, "content": token, "single_word": false, "lstrip": false, "rstrip": false,
                        "normalized": false, "special": kind == CONTROL })
            })
        };
        self.tokens.iter().enumerate().filter_map(added).collect()
    }

    fn document(&self, parts: [Value; 3], model: Value) -> Value {
        let [normalizer, pre_tokenizer, decoder] = parts;
        json!({ "version": "1.0", "truncation": null, "padding": null, "added_tokens": self.added(),
                "normalizer": normalizer, "pre_tokenizer": pre_tokenizer, "post_processor": null, "decoder": decoder, "model": model })
    }
}

/// Pairs in the order in which they are merged.
fn listed(metadata: &Metadata) -> Result<Vec<Value>> {
    let list = metadata.list("tokenizer.ggml.merges").ok_or_else(|| broken("merges"))?;
    let pair = |value| match value {
        Stored::Text(text) => text.split_once(' ').map(|(a, b)| json!([a, b])),
        _ => None,
    };
    let merges: Option<Vec<Value>> = list.iter().map(pair).collect();
    merges.filter(|merges| merges.len() == list.len()).ok_or_else(|| broken("merges"))
}

/// Byte-level pieces, merged in the order that the file has.
fn pairs(vocabulary: &Vocabulary<'_>, metadata: &Metadata, pre: &Pre) -> Result<Value> {
    let merges = listed(metadata)?;
    let mut cuts = Vec::new();
    if pre.digits {
        cuts.push(json!({ "type": "Digits", "individual_digits": true }));
    }
    for pattern in pre.first.iter().copied().chain(pre.pattern) {
        cuts.push(json!({ "type": "Split", "pattern": { "Regex": pattern }, "behavior": "Isolated", "invert": false }));
    }
    let bytes = json!({ "type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true, "use_regex": pre.pattern.is_none() });
    cuts.push(bytes.clone());
    let normalizer = if pre.composes { json!({ "type": "NFC" }) } else { Value::Null };
    let model = json!({ "type": "BPE", "dropout": null, "unk_token": null, "continuing_subword_prefix": null,
                        "end_of_word_suffix": null, "fuse_unk": false, "byte_fallback": false,
                        "ignore_merges": pre.takes_whole, "vocab": vocabulary.ids(), "merges": merges });
    Ok(vocabulary.document([normalizer, json!({ "type": "Sequence", "pretokenizers": cuts }), bytes], model))
}

/// Most bytes of all pairs of pieces: ten times what the largest vocabularies have.
const MOST_PAIRED: usize = 1 << 26;

/// The order of merges that scores stand for: of two pairs that can be merged, that first whose whole has the higher one. Errors if there are so many that they cannot be of a vocabulary that was
/// learned.
fn scored(vocabulary: &Vocabulary<'_>) -> Result<Vec<Value>> {
    let ids: HashMap<&str, usize> =
        vocabulary.tokens.iter().enumerate().rev().map(|(id, token)| (*token, id)).collect();
    let mut merges: Vec<(f64, &str, &str)> = Vec::new();
    let (mut looked_at, mut paired) = (0_usize, 0_usize);
    for (id, whole) in vocabulary.tokens.iter().enumerate().filter(|(id, _)| vocabulary.kind(*id) == NORMAL) {
        // A piece is hashed at each of its cuts.
        looked_at = looked_at.saturating_add(whole.len().saturating_mul(whole.len()));
        if looked_at > 16 * MOST_PAIRED || paired > MOST_PAIRED {
            return Err(malformed(
                "the pieces of its vocabulary are too long, or of too many others, to have been learned",
            )
            .with_hint("take another GGUF file of the model"));
        }
        let score = vocabulary.scores.get(id).copied().unwrap_or(0.0);
        let cut = |(at, _): (usize, char)| {
            let (left, right) = whole.split_at(at);
            let known = |part: &str| ids.get(part).filter(|&&id| vocabulary.kind(id) != BYTE).copied();
            Some((known(left)?, known(right)?, left, right))
        };
        let mut own: Vec<_> = whole.char_indices().skip(1).filter_map(cut).collect();
        own.sort_by_key(|(left, right, ..)| (*left, *right));
        paired = paired.saturating_add(own.len().saturating_mul(whole.len()));
        merges.extend(own.into_iter().map(|(.., left, right)| (score, left, right)));
    }
    let length = |text: &str| text.chars().count();
    merges.sort_by(|a, b| {
        b.0.total_cmp(&a.0).then_with(|| length(b.1).cmp(&length(a.1))).then_with(|| length(b.2).cmp(&length(a.2)))
    });
    Ok(merges.into_iter().map(|(_, left, right)| json!([left, right])).collect())
}

/// SentencePiece's pieces.
fn pieces(vocabulary: &Vocabulary<'_>, metadata: &Metadata, merges: Vec<Value>) -> Value {
    let spaces = json!({ "type": "Replace", "pattern": { "String": " " }, "content": "▁" });
    let begins = metadata.flag("tokenizer.ggml.add_space_prefix").unwrap_or(true);
    let normalizer = if begins {
        json!({ "type": "Sequence", "normalizers": [{ "type": "Prepend", "prepend": "▁" }, spaces] })
    } else {
        spaces
    };
    let mut decoders = vec![
        json!({ "type": "Replace", "pattern": { "String": "▁" }, "content": " " }),
        json!({ "type": "ByteFallback" }),
        json!({ "type": "Fuse" }),
    ];
    if begins {
        decoders.push(json!({ "type": "Strip", "content": " ", "start": 1, "stop": 0 }));
    }
    let unknown = metadata.integer("tokenizer.ggml.unknown_token_id").unwrap_or(0) as usize;
    let model = json!({ "type": "BPE", "dropout": null, "unk_token": vocabulary.tokens.get(unknown),
                        "continuing_subword_prefix": null, "end_of_word_suffix": null, "fuse_unk": true,
                        "byte_fallback": true, "ignore_merges": false, "vocab": vocabulary.ids(), "merges": merges });
    vocabulary.document([normalizer, Value::Null, json!({ "type": "Sequence", "decoders": decoders })], model)
}
