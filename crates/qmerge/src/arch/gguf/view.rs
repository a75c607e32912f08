//! A weight of a GGUF file as the model has it.

use super::HEAD;
use crate::error::{Result, malformed, mismatch};
use crate::open::ModelConfig;
use crate::open::gguf::TABLE;

/// How the model sees a tensor of a GGUF file.
#[derive(Clone, Debug, PartialEq)]
pub struct View {
    /// The name that the model has for it.
    pub(crate) name: String,
    /// The name in the file.
    pub(crate) stored: String,
    /// Rows of a head, where those are paired by neighbours: row 2i + h in the file is row i + h · (rows / 2) of the head in the model.
    pub(crate) head: Option<usize>,
    /// What was added to all values.
    pub(crate) added: f32,
    /// A matrix of one row, which a file may have as a list.
    pub(crate) is_row: bool,
}

/// Where the model has a weight of a GGUF file.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct NamedModule {
    /// Path of its module.
    pub(crate) module: String,
    /// The heads whose rows are paired by neighbours, if they are.
    pub(crate) heads: Option<Heads>,
    /// True for the input embedding.
    pub(crate) is_table: bool,
}

/// Heads of attention, of which a model may have fewer for keys.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Heads {
    Queries,
    Keys,
}

impl Heads {
    /// Rows of one head among those of a matrix, by the model's configuration. Errors if they are no pairs of rows.
    pub(crate) fn rows_of_one(self, config: Option<&ModelConfig>, rows: usize) -> Result<usize> {
        let count = |key: &str| config.and_then(|config| config.json.get(key)).and_then(|count| count.as_u64());
        let own = if self == Self::Keys { count("num_key_value_heads") } else { None };
        let heads = own.or_else(|| count("num_attention_heads")).and_then(|heads| usize::try_from(heads).ok());
        let heads = heads.filter(|&heads| heads > 0).ok_or_else(|| {
            malformed("the base's configuration does not say how many heads its attention has, by which the rows of this adapter are ordered")
        })?;
        let head = rows / heads;
        if head == 0 || !head.is_multiple_of(2) || head * heads != rows {
            return Err(mismatch(format!("{rows} rows, which are not {heads} heads of pairs of rows as in the base")));
        }
        Ok(head)
    }
}

impl View {
    /// True for the table of embeddings.
    pub(crate) fn is_table(&self) -> bool {
        self.stored == TABLE
    }

    /// The same tensor as one of another name in the model: the head that parts from an embedding.
    pub(crate) fn named(&self, name: &str) -> Self {
        let stored = if name == "lm_head.weight" { format!("{HEAD}.weight") } else { name.to_owned() };
        if name == self.name { self.clone() } else { Self { name: name.to_owned(), stored, ..self.clone() } }
    }
}
