//! A weight of a GGUF file as the model has it.

use std::sync::Arc;

use super::{HEAD, Heads, RowOrder, Weave};
use crate::open::gguf::TABLE;

/// How the model sees a tensor of a GGUF file.
#[derive(Clone, Debug, PartialEq)]
pub struct View {
    /// The name that the model has for it.
    pub(crate) name: String,
    /// The name in the file; of several tensors the first's.
    pub(crate) stored: String,
    /// Between the orders of rows, where they differ.
    pub(crate) order: Option<RowOrder>,
    /// What was added to all values.
    pub(crate) added: f32,
    /// A matrix of one row, which a file may have as a list.
    pub(crate) is_row: bool,
    /// Rows of zeros that the file has behind the model's.
    pub(crate) padding: usize,
    /// How it lies there, where that is not as one tensor, row by row.
    pub(crate) weave: Option<Arc<Weave>>,
}

/// Where the model has a weight of a GGUF file.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct NamedModule {
    /// Path of its module.
    pub(crate) module: String,
    /// The heads whose rows have another order in the file, if they have.
    pub(crate) heads: Option<Heads>,
    /// True for the input embedding.
    pub(crate) is_table: bool,
}

impl View {
    /// A stack of matrices, (matrices, outputs, inputs), of which the tensor has inputs as rows; `None` for what is no stack.
    pub(crate) fn of_turned_stack(name: &str, shape: &[usize]) -> Option<Self> {
        let weave = Weave::turned_stack(name, shape)?;
        Some(Self::woven(name, name.to_owned(), weave))
    }

    /// A weight that lies in several tensors, or turned.
    pub(super) fn woven(name: &str, stored: String, weave: Weave) -> Self {
        let (order, weave) = (None, Some(Arc::new(weave)));
        Self { name: name.to_owned(), stored, order, added: 0.0, is_row: false, padding: 0, weave }
    }

    /// True for the table of embeddings.
    pub(crate) fn is_table(&self) -> bool {
        self.stored == TABLE
    }

    /// The tensors that it lies in, with their dimensions; `shape` are the model's.
    pub(crate) fn tensors(&self, shape: &[usize]) -> Vec<(String, Vec<usize>)> {
        match &self.weave {
            Some(weave) => weave.pieces().iter().map(|piece| (piece.stored.clone(), piece.shape.clone())).collect(),
            None => {
                let mut shape = shape.to_vec();
                if let Some(rows) = shape.first_mut() {
                    *rows = rows.saturating_add(self.padding);
                }
                vec![(self.stored.clone(), shape)]
            }
        }
    }

    /// The same tensor as one of another name in the model: the head that parts from an embedding.
    pub(crate) fn named(&self, name: &str) -> Self {
        let stored = if name == "lm_head.weight" { format!("{HEAD}.weight") } else { name.to_owned() };
        if name == self.name { self.clone() } else { Self { name: name.to_owned(), stored, ..self.clone() } }
    }
}
