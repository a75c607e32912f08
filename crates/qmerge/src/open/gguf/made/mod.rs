//! What a GGUF file that is made says of itself: keys and values from the files of a model's folder.

mod document;
mod keys;
mod sentencepiece;
mod special;
mod table;
mod vocabulary;

pub(crate) use keys::{Field, Keys};
pub(crate) use vocabulary::{Ways, keys as vocabulary};
