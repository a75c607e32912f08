//! The tokenizer in a GGUF file's keys, as the `tokenizer.json` that says the same.
//!
//! llama.cpp has two of them that matter here: `gpt2`, merges of pairs of byte-level pieces behind a rule that cuts text (`tokenizer.ggml.pre` names it), and
//! `llama`, SentencePiece's merges, of which a file has the scores of what they make. Sources: llama.cpp, `src/llama-vocab.cpp`; transformers,
//! `convert_slow_tokenizer.py`.

use std::collections::HashMap;

use qmerge::error::{Error, Kind, Result};
use qmerge::open::{Metadata, Value as Stored};
use serde_json::{Value, json};

/// Types of tokens.
const NORMAL: i128 = 1;
const CONTROL: i128 = 3;
const USER_DEFINED: i128 = 4;
const UNUSED: i128 = 5;
const BYTE: i128 = 6;

/// How text is cut before pairs are merged, by the names that files give to it.
struct Rule {
    names: &'static [&'static str],
    /// Digits are cut one by one first.
    digits: bool,
    /// What is cut off as one piece; `None` for GPT-2's own.
    pattern: Option<&'static str>,
    /// Characters are composed first.
    composes: bool,
    /// A piece that is a token is not put together from others.
    takes_whole: bool,
    /// Texts begin with BOS where the file does not say.
    begins: bool,
}

const GPT2: Rule = Rule {
    names: &["gpt-2", "phi-2", "mpt"],
    digits: false,
    pattern: None,
    composes: false,
    takes_whole: false,
    begins: false,
};

const RULES: &[Rule] = &[
    GPT2,
    Rule { names: &["smollm", "refact", "starcoder", "command-r", "codeshell"], digits: true, ..GPT2 },
    Rule {
        names: &["llama-bpe", "llama3", "llama-v3"],
        pattern: Some(
            r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+",
        ),
        takes_whole: true,
        begins: true,
        ..GPT2
    },
    Rule {
        names: &["qwen2", "deepseek-r1-qwen"],
        pattern: Some(
            r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+",
        ),
        composes: true,
        ..GPT2
    },
];

/// A vocabulary: texts, types and scores by number.
struct Vocabulary<'m> {
    tokens: Vec<&'m str>,
    types: Vec<i128>,
    scores: Vec<f64>,
}

/// What a file says of its tokenizer.
pub(super) struct Said {
    /// As `tokenizer.json` has it.
    pub(super) tokenizer: Value,
    /// Numbers of tokens that every text begins with, and that end an answer.
    pub(super) begin: Vec<u32>,
    pub(super) stop: Vec<u32>,
    /// Texts of special tokens that templates may name.
    pub(super) special: Vec<(&'static str, String)>,
    pub(super) template: Option<String>,
}

/// Reads a tokenizer. Errors if it is of a kind that is not known.
pub(super) fn read(metadata: &Metadata) -> Result<Said> {
    let vocabulary = vocabulary(metadata)?;
    let model = metadata.text("tokenizer.ggml.model").unwrap_or("");
    let (tokenizer, begins) = match model {
        "gpt2" => {
            let name = metadata.text("tokenizer.ggml.pre").unwrap_or("");
            let rule = RULES.iter().find(|rule| rule.names.contains(&name)).ok_or_else(|| unknown("pre", name))?;
            (pairs(&vocabulary, metadata, rule)?, rule.begins)
        }
        "llama" => (pieces(&vocabulary, metadata), true),
        other => return Err(unknown("model", other)),
    };
    let id = |name: &str| {
        let id = metadata.integer(&format!("tokenizer.ggml.{name}_token_id"))?;
        u32::try_from(id).ok().filter(|&id| (id as usize) < vocabulary.tokens.len())
    };
    let begins = metadata.flag("tokenizer.ggml.add_bos_token").unwrap_or(begins);
    let names = [("bos_token", "bos"), ("eos_token", "eos"), ("pad_token", "padding"), ("unk_token", "unknown")];
    let text = |(key, name)| Some((key, (*vocabulary.tokens.get(id(name)? as usize)?).to_owned()));
    Ok(Said {
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

/// Byte-level pieces, merged in the order that the file has.
fn pairs(vocabulary: &Vocabulary<'_>, metadata: &Metadata, rule: &Rule) -> Result<Value> {
    let list = metadata.list("tokenizer.ggml.merges").ok_or_else(|| broken("merges"))?;
    let pair = |value| match value {
        Stored::Text(text) => text.split_once(' ').map(|(a, b)| json!([a, b])),
        _ => None,
    };
    let merges: Option<Vec<Value>> = list.iter().map(pair).collect();
    let merges = merges.filter(|merges| merges.len() == list.len()).ok_or_else(|| broken("merges"))?;
    let mut cuts = Vec::new();
    if rule.digits {
        cuts.push(json!({ "type": "Digits", "individual_digits": true }));
    }
    if let Some(pattern) = rule.pattern {
        cuts.push(json!({ "type": "Split", "pattern": { "Regex": pattern }, "behavior": "Isolated", "invert": false }));
    }
    let bytes = json!({ "type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true, "use_regex": rule.pattern.is_none() });
    cuts.push(bytes.clone());
    let normalizer = if rule.composes { json!({ "type": "NFC" }) } else { Value::Null };
    let model = json!({ "type": "BPE", "dropout": null, "unk_token": null, "continuing_subword_prefix": null,
                        "end_of_word_suffix": null, "fuse_unk": false, "byte_fallback": false,
                        "ignore_merges": rule.takes_whole, "vocab": vocabulary.ids(), "merges": merges });
    Ok(vocabulary.document([normalizer, json!({ "type": "Sequence", "pretokenizers": cuts }), bytes], model))
}

/// SentencePiece's pieces: of two that can be merged, that first whose whole has the higher score.
fn pieces(vocabulary: &Vocabulary<'_>, metadata: &Metadata) -> Value {
    let ids: HashMap<&str, usize> = (0..vocabulary.tokens.len()).rev().map(|id| (vocabulary.tokens[id], id)).collect();
    let mut merges: Vec<(f64, &str, &str)> = Vec::new();
    for (id, whole) in vocabulary.tokens.iter().enumerate().filter(|(id, _)| vocabulary.kind(*id) == NORMAL) {
        let score = vocabulary.scores.get(id).copied().unwrap_or(0.0);
        let cut = |(at, _): (usize, char)| {
            let (left, right) = whole.split_at(at);
            let known = |part: &str| ids.get(part).filter(|&&id| vocabulary.kind(id) != BYTE).copied();
            Some((known(left)?, known(right)?, left, right))
        };
        let mut own: Vec<_> = whole.char_indices().skip(1).filter_map(cut).collect();
        own.sort_by_key(|(left, right, ..)| (*left, *right));
        merges.extend(own.into_iter().map(|(.., left, right)| (score, left, right)));
    }
    let length = |text: &str| text.chars().count();
    merges.sort_by(|a, b| {
        b.0.total_cmp(&a.0).then_with(|| length(b.1).cmp(&length(a.1))).then_with(|| length(b.2).cmp(&length(a.2)))
    });
    let merges: Vec<Value> = merges.into_iter().map(|(_, left, right)| json!([left, right])).collect();
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

#[cfg(test)]
mod tests {
    use qmerge::open::Checkpoint;

    use crate::text::Tokenizer;

    const TEXTS: &[&str] = &[
        "Hello, world!",
        " The quick  brown fox\tjumps over 12345 lazy dogs.\n\n\nIt's what we're told; they'll've gone. ",
        "def f(x):\n    return x ** 2  # squares\n",
        "Größe, naïve café, Ελληνικά, русский текст, 中文文本, 日本語テキスト, 한국어, हिन्दी, עברית",
        "emoji 👩‍👩‍👧‍👦🏳️‍🌈, maths ∑∫√≠, \u{200b}zero width, \u{feff}mark",
        "<bos>special</s> tokens <|im_start|>user\nhi<|im_end|>\n",
        "   leading and trailing   ",
        "",
        "a",
        "\r\nwindows\r\nlines\r\n",
        "1 22 333 4444 55555 3.14159e-10 0xdeadbeef",
        "ALLCAPS camelCase snake_case kebab-case 'quoted' \"double\" (paren) [br] {cu}",
    ];

    /// Against the `tokenizer.json` of the same model, which transformers made of the file without Qwen's composing of characters: `QMERGE_GGUF` names the file, `QMERGE_FOLDER` the folder.
    #[test]
    #[ignore = "needs a model in both forms"]
    fn tokens_are_those_of_the_folder() {
        let place = |name: &str| std::path::PathBuf::from(std::env::var(name).unwrap());
        let (file, folder) = (Checkpoint::open(&place("QMERGE_GGUF")), Checkpoint::open(&place("QMERGE_FOLDER")));
        let (file, folder) = (file.unwrap(), folder.unwrap());
        let own = Tokenizer::of_gguf(file.gguf.as_deref().unwrap(), &file.path).unwrap();
        let other = Tokenizer::open(&[&*folder.store]).unwrap();
        for text in TEXTS {
            let (own_tokens, tokens) = (own.encode(text).unwrap(), other.encode(text).unwrap());
            assert_eq!(own_tokens, tokens, "{text:?}");
            assert_eq!(own.decode(&tokens).unwrap(), other.decode(&tokens).unwrap(), "{text:?}");
        }
        assert_eq!(own.begin(), other.begin());
        assert_eq!(own.stop().first(), other.stop().first());
    }
}
