//! An importance matrix as llama-quantize takes it: by the names of a GGUF file's tensors.

use std::collections::HashMap;
use std::path::Path;
use std::sync::Arc;

use crate::error::{Result, malformed, mismatch};
use crate::open::gguf::{TABLE, expert};
use crate::open::imatrix;

/// How large the inputs of a model's layers are, by tensor and column.
#[derive(Clone, Debug)]
pub struct Importance {
    by_name: HashMap<String, Arc<[f32]>>,
    /// Name of the file.
    pub(super) file: String,
    /// The text that it was taken from, as the file says.
    pub(super) text: Option<String>,
}

impl Importance {
    /// Reads a file of llama-imatrix, in GGUF or the older form. Errors if it is none, or holds what is no number.
    pub fn open(path: &Path) -> Result<Self> {
        let found = imatrix::read(path)?;
        let mut by_name = HashMap::new();
        for importance in &found.all {
            let columns = importance.columns();
            if columns.iter().any(|x| !x.is_finite()) {
                return Err(malformed("the importance matrix holds what is no number")
                    .in_file(path)
                    .in_tensor(&importance.name));
            }
            by_name.insert(importance.name.clone(), columns.into());
        }
        let file = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
        Ok(Self { by_name, file, text: found.text })
    }

    /// Tensors that it knows.
    pub(super) fn len(&self) -> usize {
        self.by_name.len()
    }

    /// Errors if it knows none of these tensors.
    pub(super) fn refuse_other<'n>(&self, mut names: impl Iterator<Item = &'n str>) -> Result<()> {
        let knows = |name: &str| {
            self.by_name.contains_key(name) || expert(name).is_some_and(|(stack, _)| self.by_name.contains_key(&stack))
        };
        if names.any(knows) {
            return Ok(());
        }
        let first = self.by_name.keys().min().map_or("", String::as_str);
        Err(mismatch(format!("the importance matrix has none of the model's tensors; one of its own is `{first}`"))
            .with_hint("it belongs to another model"))
    }

    /// The columns of a tensor of these dimensions; `None` where it is not known, or has columns for each of its matrices. Errors if it has another width, unless it is
    /// the table of embeddings.
    pub(super) fn of(&self, name: &str, shape: &[usize]) -> Result<Option<Arc<[f32]>>> {
        let width = shape.last().copied().unwrap_or(0);
        if let Some((stack, number)) = expert(name) {
            let Some(columns) = self.by_name.get(&stack) else { return Ok(None) };
            let start = number.saturating_mul(width);
            let own =
                columns.get(start..start.saturating_add(width)).filter(|_| columns.len().is_multiple_of(width.max(1)));
            let own = own.ok_or_else(|| {
                mismatch(format!(
                    "expert {number} of rows of {width} values, and the importance matrix has {} inputs",
                    columns.len()
                ))
                .in_tensor(&stack)
                .with_hint("the importance matrix belongs to another model")
            })?;
            return Ok(Some(own.into()));
        }
        match self.by_name.get(name) {
            Some(columns) if columns.len() == width => Ok(Some(Arc::clone(columns))),
            // Of heads that lie apart (DeepSeek's keys and values), each has columns of its own.
            Some(columns) if matches!(shape, [heads, _, _] if heads.checked_mul(width) == Some(columns.len())) => {
                Ok(None)
            }
            Some(columns) if name != TABLE => {
                Err(mismatch(format!("rows of {width} values, and the importance matrix has {} inputs", columns.len()))
                    .in_tensor(name)
                    .with_hint("the importance matrix belongs to another model"))
            }
            _ => Ok(None),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_are_those_of_the_tensor_or_of_its_heads() {
        let by_name = HashMap::from([("a.weight".to_owned(), Arc::from(vec![1.0; 12]))]);
        let importance = Importance { by_name, file: String::new(), text: None };
        assert_eq!(importance.of("a.weight", &[5, 12]).unwrap().unwrap().len(), 12);
        assert!(importance.of("a.weight", &[3, 7, 4]).unwrap().is_none());
        assert!(importance.of("b.weight", &[5, 4]).unwrap().is_none());
        for other in [&[5, 4][..], &[2, 7, 4], &[12, 6]] {
            assert!(importance.of("a.weight", other).is_err(), "{other:?}");
        }
    }
}
