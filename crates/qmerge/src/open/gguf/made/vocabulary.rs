//! The keys of a tokenizer, from the files of a model's folder.
//!
//! llama.cpp has three kinds of tokenizers that matter here: `gpt2`, byte-level pieces that are merged in an order, behind a rule that cuts text (`pre.rs`); `llama`, SentencePiece's pieces with
//! scores; and `gemma4`, such pieces with merges in an order. The second lies in a `tokenizer.model`, or in a `tokenizer.json` that has the pieces as merges: then scores are made of the order of the merges, which is what scores are used for.
//! (llama.cpp's converter gives all of them one score in that case, and text is cut otherwise than by the model's own tokenizer.) Sources: llama.cpp, `conversion/base.py`.

use serde_json::Value;

use super::document::{Added, Document};
use super::keys::{Field, Keys};
use super::sentencepiece::{self, Piece};
use super::special::{self, Beside};
use super::table::{Table, Tokenizer};
use crate::error::{Error, Result, malformed, mismatch, unsupported};
use crate::open::gguf::pre;
use crate::open::{MAX_CONFIG, MAX_TOKENIZER, ModelConfig, Store, json, small_text};

const TAKE_16_BITS: &str =
    "write it into a folder with --to bf16, and see whether llama.cpp's convert_hf_to_gguf.py knows the tokenizer";

/// What a family does in its own way.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Ways {
    /// Pieces have no space put before a text, whatever the files say (Gemma).
    pub(crate) no_space_before: bool,
    /// Llama's: says so of a space before a text where `tokenizer_config.json` does, and knows models by the number of their tokens.
    pub(crate) is_llama: bool,
    /// Kinds of tokens whose numbers no file says, or another than llama.cpp takes (Gemma 1, Nemotron).
    pub(crate) fixed: &'static [(&'static str, u32)],
    /// Kinds of tokens that are known by their texts where no file says which they are (GLM).
    pub(crate) named: &'static [(&'static str, &'static str)],
    /// The rule that text is cut by, among those of one expression.
    pub(crate) pre: Option<&'static str>,
    /// Says of a space before a text where `tokenizer_config.json` does, behind all else (ERNIE).
    pub(crate) says_space_last: bool,
    /// What ends a text is said by a field of `config.json`, and what ends a turn by the first of several in `generation_config.json` (HunYuan).
    pub(crate) ends_by_eod: bool,
    /// Tokens that were added are what the files say, however they look (Phi 3).
    pub(crate) by_flags_alone: bool,
    /// Pieces are merged in the order of a list, which the file has, and not by scores (Gemma 4).
    pub(crate) merges_pieces: bool,
}

/// The keys of the tokenizer in the first of the folders that has one, for a table of so many tokens. Errors if there is none, or one that llama.cpp has no name for.
pub(crate) fn keys(folders: &[&dyn Store], config: &ModelConfig, tokens: usize, ways: Ways) -> Result<Keys> {
    let has = |folder: &&dyn Store| folder.has("tokenizer.json") || folder.has("tokenizer.model");
    let Some(folder) = folders.iter().copied().find(has) else {
        let place = folders.last().map_or(config.path.as_path(), |folder| folder.path());
        return Err(mismatch("no tokenizer.json and no tokenizer.model, which a GGUF file has to hold")
            .in_file(place)
            .with_hint("copy them from where the model was published"));
    };
    let files = Files::read(folder, config)?;
    let mut keys = Keys::default();
    let own = |key: &str| files.beside.config.as_ref().and_then(|config| config.get(key)?.as_bool());
    if let Some(says) = own("add_prefix_space").filter(|_| ways.is_llama) {
        keys.set(SPACE, Field::Flag(says));
    }
    if let Some(pieces) = files.pieces.as_ref().filter(|_| !ways.merges_pieces) {
        scored(&mut keys, Table::of_pieces(pieces, &files.added(), tokens, ways), &files, tokens);
    } else {
        let path = folder.path_of("tokenizer.json");
        let document = files.document.as_ref().ok_or_else(|| malformed("not a SentencePiece model"));
        let document = document.map_err(|error| error.in_file(&folder.path_of("tokenizer.model")))?;
        refuse_empty(document).and_then(|()| refuse_more(document, tokens)).map_err(|error| error.in_file(&path))?;
        if document.model.byte_fallback && ways.merges_pieces {
            merged_pieces(&mut keys, document, &files, tokens);
        } else if document.model.byte_fallback {
            scored(&mut keys, Table::of_merges(document, tokens, ways), &files, tokens);
            if !ways.no_space_before && !puts_space_before(document) {
                keys.set(SPACE, Field::Flag(false));
            }
        } else {
            pairs(&mut keys, document, &files, tokens, ways).map_err(|error| error.in_file(&path))?;
        }
    }
    if ways.is_llama && tokens == CODE_LLAMA.0 {
        keys.set("tokenizer.ggml.eot_token_id", Field::Count(CODE_LLAMA.1));
    }
    for (kind, id) in ways.fixed {
        keys.set(format!("tokenizer.ggml.{kind}_token_id"), Field::Count(*id));
    }
    if ways.ends_by_eod {
        for (kind, id) in ends(folder, config)? {
            keys.set(format!("tokenizer.ggml.{kind}_token_id"), Field::Count(id));
        }
    }
    if let Some(says) = own("add_prefix_space").filter(|_| ways.says_space_last) {
        keys.set(SPACE, Field::Flag(says));
    }
    if ways.no_space_before && keys.text("tokenizer.ggml.model") == Some("llama") {
        keys.set(SPACE, Field::Flag(false));
    }
    if ways.is_llama && tokens == WITHOUT_BOS {
        keys.set("tokenizer.ggml.add_bos_token", Field::Flag(false));
    }
    Ok(keys)
}

/// The numbers of what ends a text and a turn, where they have places of their own.
fn ends(folder: &dyn Store, config: &ModelConfig) -> Result<Vec<(&'static str, u32)>> {
    let number = |id: &Value| id.as_u64().and_then(|id| u32::try_from(id).ok());
    let eos = config.json.get("eod_token_id").and_then(number);
    let generation = small_text(folder, "generation_config.json", MAX_CONFIG)?;
    let generation = generation.and_then(|text| json::parse_object(&text).ok());
    let list =
        generation.as_ref().and_then(|config| config.get("eos_token_id")?.as_array()).filter(|list| list.len() > 1);
    let eot = list.and_then(|list| number(list.first()?));
    Ok([("eos", eos), ("eot", eot)].into_iter().filter_map(|(kind, id)| Some((kind, id?))).collect())
}

/// Code Llama's number of tokens, and the token that ends a turn of it.
const CODE_LLAMA: (usize, u32) = (32_016, 32_010);
/// The number of tokens of models whose texts do not begin with BOS, whatever their files say (Granite, SmolLM).
const WITHOUT_BOS: usize = 49_152;

const SPACE: &str = "tokenizer.ggml.add_space_prefix";

/// The files of a tokenizer.
struct Files {
    document: Option<Document>,
    pieces: Option<Vec<Piece>>,
    beside: Beside,
}

impl Files {
    fn read(folder: &dyn Store, config: &ModelConfig) -> Result<Self> {
        let broken = |name: &str, error: &dyn std::fmt::Display| -> Error {
            malformed(format!("not what it should be: {error}"))
                .in_file(&folder.path_of(name))
                .with_hint("copy it again from where the model was published")
        };
        let object = |name: &str| -> Result<_> {
            let text = small_text(folder, name, MAX_CONFIG)?;
            text.map(|text| json::parse_object(&text).map_err(|error| broken(name, &error))).transpose()
        };
        let document = small_text(folder, "tokenizer.json", MAX_TOKENIZER)?;
        let document = document.map(|text| json::parse_as(&text).map_err(|error| broken("tokenizer.json", &error)));
        let tokenizer = object("tokenizer_config.json")?;
        // transformers' class for byte-level pieces: a `tokenizer.model` beside it is of no use.
        let class = tokenizer.as_ref().and_then(|config| config.get("tokenizer_class")?.as_str());
        let model = folder.small("tokenizer.model", MAX_TOKENIZER)?.filter(|_| class != Some("GPT2Tokenizer"));
        let template = match small_text(folder, "chat_template.jinja", MAX_CONFIG)? {
            Some(text) => Some(Value::String(text)),
            None => object("chat_template.json")?.and_then(|mut object| object.shift_remove("chat_template")),
        };
        Ok(Self {
            document: document.transpose()?,
            // Llama 3 has tiktoken's list under that name, and its pieces in a tokenizer.json.
            pieces: model.as_deref().and_then(sentencepiece::pieces),
            beside: Beside { config: tokenizer, template, model: config.json.clone() },
        })
    }

    /// Tokens that were added to a SentencePiece model, in the order in which files say so.
    fn added(&self) -> Vec<Added> {
        let decoder = |config: &serde_json::Map<String, Value>| {
            let all = config.get("added_tokens_decoder")?.as_object()?;
            let one = |(id, token): (&String, &Value)| {
                Some(Added {
                    id: id.parse().ok()?,
                    content: token.get("content")?.as_str()?.to_owned(),
                    special: token.get("special").and_then(Value::as_bool).unwrap_or(false),
                })
            };
            Some(all.iter().filter_map(one).collect::<Vec<_>>())
        };
        // transformers 5 writes them into tokenizer.json alone.
        let own = self.beside.config.as_ref().and_then(decoder).filter(|all| !all.is_empty());
        own.or_else(|| Some(self.document.as_ref()?.added_tokens.clone())).unwrap_or_default()
    }
}

/// True if a tokenizer of pieces puts a space before a text.
fn puts_space_before(document: &Document) -> bool {
    fn any(stage: &Value, is: &dyn Fn(&Value) -> bool) -> bool {
        let inner = ["normalizers", "pretokenizers"].iter().find_map(|key| stage.get(key)?.as_array());
        is(stage) || inner.is_some_and(|all| all.iter().any(|stage| any(stage, is)))
    }
    let kind = |stage: &Value, wanted: &str| stage.get("type").and_then(Value::as_str) == Some(wanted);
    let is_metaspace = |stage: &Value| {
        let scheme = stage.get("prepend_scheme").and_then(Value::as_str);
        let older = stage.get("add_prefix_space").and_then(Value::as_bool).unwrap_or(true);
        kind(stage, "Metaspace") && scheme.map_or(older, |scheme| scheme != "never")
    };
    any(&document.normalizer, &|stage| kind(stage, "Prepend")) || any(&document.pre_tokenizer, &is_metaspace)
}

/// A vocabulary of another kind, or none at all.
fn refuse_empty(document: &Document) -> Result<()> {
    let model = &document.model;
    let kind = model.kind.as_deref();
    if let Some(other) = kind.filter(|kind| *kind != "BPE") {
        return Err(unsupported(format!("a tokenizer of the type `{other}`, which is not known in GGUF"))
            .with_hint(TAKE_16_BITS));
    }
    if !model.vocab.0.is_empty() {
        return Ok(());
    }
    let added = match document.added_tokens.len() {
        0 => "",
        _ => ", and what it adds to it cuts no text",
    };
    Err(malformed(format!("`model.vocab` has no tokens{added}"))
        .with_hint("copy it again from where the model was published, with all files of the tokenizer"))
}

/// The table of embeddings must have a row for each token.
fn refuse_more(document: &Document, tokens: usize) -> Result<()> {
    let ids = document.model.vocab.0.iter().map(|(_, id)| *id);
    let largest = ids.chain(document.added_tokens.iter().map(|token| token.id)).max();
    match largest {
        Some(largest) if largest as usize >= tokens => {
            Err(mismatch(format!("it has a token of number {largest}, and the model has embeddings of {tokens}"))
                .with_hint("the tokenizer belongs to another model"))
        }
        _ => Ok(()),
    }
}

/// Pieces that are merged by scores.
fn scored(keys: &mut Keys, table: Table, files: &Files, tokens: usize) {
    table.add(keys, Tokenizer { model: "llama", pre: Some("default"), has_scores: true, merges: None });
    special::add(keys, &files.beside, files.document.as_ref(), Some(tokens), &[]);
}

/// Pieces that are merged in the order of their list.
fn merged_pieces(keys: &mut Keys, document: &Document, files: &Files, tokens: usize) {
    let merges = Some(document.model.merges.0.as_slice());
    let tokenizer = Tokenizer { model: "gemma4", pre: None, has_scores: true, merges };
    Table::of_listed_pieces(document, tokens, &special::named(&files.beside)).add(keys, tokenizer);
    special::add(keys, &files.beside, Some(document), None, &[]);
    keys.set(SPACE, Field::Flag(false));
    keys.set("tokenizer.ggml.add_bos_token", Field::Flag(true));
}

/// Byte-level pieces.
fn pairs(keys: &mut Keys, document: &Document, files: &Files, tokens: usize, ways: Ways) -> Result<()> {
    let model = &document.model;
    let composes = |normalizer: &Value| matches!(normalizer.get("type").and_then(Value::as_str), Some("NFC"));
    let is_nothing = |normalizer: &Value| {
        let steps = normalizer.get("normalizers").and_then(Value::as_array);
        normalizer.is_null() || steps.is_some_and(Vec::is_empty)
    };
    let normalizer = &document.normalizer;
    let name = pre::of_document(&document.pre_tokenizer, model.ignore_merges, ways.pre)
        .filter(|_| is_nothing(normalizer) || composes(normalizer))
        .ok_or_else(|| {
            unsupported("the way in which its tokenizer cuts text has no name in GGUF that is known")
                .with_hint(TAKE_16_BITS)
        })?;
    let merges = Some(model.merges.0.as_slice()).filter(|merges| !merges.is_empty());
    let tokenizer = Tokenizer { model: "gpt2", pre: Some(name), has_scores: false, merges };
    Table::of_bytes(document, tokens, ways).add(keys, tokenizer);
    special::add(keys, &files.beside, Some(document), None, ways.named);
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn document(text: &str) -> Document {
        json::parse_as(text).unwrap()
    }

    #[test]
    fn a_token_needs_an_embedding() {
        let document = document(r#"{"added_tokens": [{"id": 9, "content": "b"}], "model": {"vocab": {"a": 0}}}"#);
        assert!(refuse_more(&document, 9).is_err() && refuse_more(&document, 10).is_ok());
        assert!(!puts_space_before(&document));
    }

    #[test]
    fn what_no_file_names_is_refused() {
        let text = |pre: &str, normalizer: &str| {
            format!(
                r#"{{"normalizer": {normalizer}, "pre_tokenizer": {pre}, "model": {{"type": "BPE", "vocab": {{"a": 0}}, "merges": []}}}}"#
            )
        };
        let files = Files { document: None, pieces: None, beside: Beside::default() };
        let bytes = r#"{"type": "ByteLevel", "add_prefix_space": false}"#;
        let read = |pre: &str, normalizer: &str| {
            let mut keys = Keys::default();
            pairs(&mut keys, &document(&text(pre, normalizer)), &files, 2, Ways::default()).map(|()| keys)
        };
        assert_eq!(read(bytes, "null").unwrap().text("tokenizer.ggml.pre"), Some("gpt-2"));
        assert!(read(bytes, r#"{"type": "Lowercase"}"#).is_err());
        assert!(read(r#"{"type": "Whitespace"}"#, "null").is_err());
        let unigram = document(r#"{"model": {"type": "Unigram", "vocab": [["a", 0.5]]}}"#);
        assert!(refuse_empty(&unigram).unwrap_err().to_string().contains("type `Unigram`"));
        for emptied in [
            "{}",
            r#"{"model": {}}"#,
            r#"{"model": {"type": "BPE", "vocab": {}, "merges": []}}"#,
            r#"{"model": {"type": "BPE", "vocab": [], "merges": []}}"#,
            r#"{"model": {"type": "BPE", "byte_fallback": true, "vocab": {}}, "added_tokens": [{"id": 0, "content": "<s>"}]}"#,
        ] {
            let error = refuse_empty(&document(emptied)).unwrap_err();
            assert!(error.to_string().contains("`model.vocab` has no tokens") && error.hint().is_some(), "{error}");
        }
        for broken in [r#"{"model": {"merges": ["a"]}}"#, r#"{"model": {"vocab": {"a": -1}}}"#, r#"{"model": 3}"#] {
            assert!(json::parse_as::<Document>(broken).is_err(), "{broken}");
        }
    }
}
