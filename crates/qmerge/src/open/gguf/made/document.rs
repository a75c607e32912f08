//! A `tokenizer.json`, as far as a GGUF file says the same.
//!
//! Vocabularies have hundreds of thousands of entries, so they are read into lists of their own and not into JSON values.

use std::fmt;

use serde::Deserialize;
use serde::de::{Deserializer, IgnoredAny, MapAccess, SeqAccess, Visitor};
use serde_json::Value;

/// The document.
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub(super) struct Document {
    pub(super) added_tokens: Vec<Added>,
    pub(super) normalizer: Value,
    pub(super) pre_tokenizer: Value,
    pub(super) post_processor: Value,
    pub(super) decoder: Value,
    pub(super) model: Model,
}

/// A token that is looked for in a text before anything else is done with it.
#[derive(Clone, Debug, Deserialize)]
pub(super) struct Added {
    pub(super) id: u32,
    pub(super) content: String,
    #[serde(default)]
    pub(super) special: bool,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub(super) struct Model {
    #[serde(rename = "type")]
    pub(super) kind: Option<String>,
    pub(super) unk_token: Option<String>,
    pub(super) byte_fallback: bool,
    pub(super) ignore_merges: bool,
    pub(super) vocab: Vocabulary,
    pub(super) merges: Merges,
}

/// Texts with their numbers; none where the model has another kind of vocabulary.
#[derive(Debug, Default)]
pub(super) struct Vocabulary(pub(super) Vec<(String, u32)>);

/// Pairs, in the order in which they are merged.
#[derive(Debug, Default)]
pub(super) struct Merges(pub(super) Vec<[String; 2]>);

impl<'de> Deserialize<'de> for Vocabulary {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        struct Pairs;
        impl<'de> Visitor<'de> for Pairs {
            type Value = Vocabulary;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a vocabulary")
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Vocabulary, A::Error> {
                let mut all = Vec::new();
                while let Some(entry) = map.next_entry()? {
                    all.push(entry);
                }
                Ok(Vocabulary(all))
            }

            /// That of a unigram model, which is of no use here.
            fn visit_seq<A: SeqAccess<'de>>(self, mut list: A) -> Result<Vocabulary, A::Error> {
                while list.next_element::<IgnoredAny>()?.is_some() {}
                Ok(Vocabulary::default())
            }
        }
        from.deserialize_any(Pairs)
    }
}

impl<'de> Deserialize<'de> for Merges {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        /// Older files have the two in one text.
        #[derive(Deserialize)]
        #[serde(untagged)]
        enum Pair {
            Two([String; 2]),
            One(String),
        }
        let pairs = Vec::<Pair>::deserialize(from)?;
        let two = |pair| match pair {
            Pair::Two(two) => Ok(two),
            Pair::One(text) => match text.split_once(' ') {
                Some((left, right)) => Ok([left.to_owned(), right.to_owned()]),
                None => Err(serde::de::Error::custom("a merge of one token")),
            },
        };
        pairs.into_iter().map(two).collect::<Result<_, _>>().map(Merges)
    }
}
