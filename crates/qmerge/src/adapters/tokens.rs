//! Trained tokens: some rows of an embedding are replaced.
//!
//! PEFT calls the tensor `trainable_tokens_delta`, but its rows are the new values themselves. Which rows they are stands in the
//! configuration only. Source: PEFT 0.21, `tuners/trainable_tokens/layer.py`.

use std::sync::Arc;

use serde_json::Value;

use super::module::matrix_shape;
use super::{
    Adapter, AdapterConfig, ChangePlan, Layers, Loader, Markers, Module, Names, PeftMethod, Placed, Planned,
    PlannedEdit,
};
use crate::edit::{Change, Reach, ReplaceRows};
use crate::error::{Result, malformed, mismatch};

/// Adapters that train tokens and nothing else.
pub(super) struct TrainableTokens;

impl PeftMethod for TrainableTokens {
    fn peft_type(&self) -> &'static str {
        "TRAINABLE_TOKENS"
    }

    fn markers(&self) -> Markers {
        Markers::default()
    }

    fn configure(&self, _: &AdapterConfig) -> Result<Box<dyn Layers>> {
        Ok(Box::new(NoLayers))
    }

    fn token_indices(&self) -> &'static str {
        "token_indices"
    }
}

/// Nothing but tokens, which are everyone's.
#[derive(Debug)]
struct NoLayers;

impl Layers for NoLayers {
    fn layer(&self, _: &Module<'_>) -> Result<Vec<Planned>> {
        Ok(Vec::new())
    }
}

/// The tokens of a module's rows, out of a list for all or an object from module suffixes to lists.
pub(super) fn list<'v>(indices: Option<&'v Value>, module: &str) -> Option<&'v Value> {
    match indices {
        Some(Value::Object(map)) => {
            let is_of = |suffix: &str| module == suffix || module.ends_with(&format!(".{suffix}"));
            map.iter().find(|(suffix, _)| is_of(suffix)).map(|(_, list)| list)
        }
        other => other,
    }
}

/// Plans the replacement of rows of `module`'s embedding. `indices` is a list, or an object from module suffixes to lists.
pub(super) fn plan(
    adapter: &Adapter,
    names: &Names<'_>,
    tensor: &str,
    module: &str,
    indices: Option<&Value>,
) -> Result<PlannedEdit> {
    let indices: Vec<usize> = list(indices, module)
        .and_then(Value::as_array)
        .and_then(|items| items.iter().map(|item| item.as_u64().map(|n| n as usize)).collect())
        .ok_or_else(|| malformed("the configuration does not say which tokens its rows are").in_tensor(tensor))?;
    let (rows, cols) = matrix_shape(&adapter.tensors, tensor)?;
    if rows != indices.len() {
        return Err(
            mismatch(format!("{rows} rows, but the configuration lists {} tokens", indices.len())).in_tensor(tensor)
        );
    }
    let found = names.find(&format!("{module}.weight"))?;
    // Of an embedding that is tied and not stored: the tensor that it is, under the name that it would have.
    let tied = if found.is_none() { names.tied_to(module) } else { None };
    let (name, target) = match (found, tied) {
        (Some(target), _) => (target.weight.name().to_owned(), target),
        (None, Some(tied)) => tied,
        (None, None) => return Err(mismatch(format!("the base has no `{module}.weight`")).in_tensor(tensor)),
    };
    let geometry = target.weight.geometry();
    if geometry.cols != cols {
        return Err(mismatch(format!("rows of {cols}, but `{}` has rows of {}", target.weight.name(), geometry.cols))
            .in_tensor(tensor));
    }
    // A base to which tokens were added stands beside them.
    let resized = adapter.tensors.get(&tensor.replace("trainable_tokens_delta", "base_layer.weight"));
    let tokens = resized.and_then(|entry| entry.shape.first().copied()).unwrap_or(geometry.rows);
    if let Some(index) = indices.iter().find(|&&index| index >= tokens) {
        return Err(mismatch(format!("token {index}, but `{}` has {tokens} rows", target.weight.name()))
            .in_tensor(tensor)
            .with_hint("the adapter was trained on a base with a larger vocabulary"));
    }
    let change = Arc::new(TokensPlan { tensor: tensor.to_owned(), indices, cols });
    Ok(PlannedEdit {
        target: name,
        // Rows may be added to the embedding, so it fits any number.
        plan: Placed { shape: None, ..Placed::on_matrix(change, tokens, cols, false) },
        tensors: vec![tensor.to_owned()],
        layer: None,
    })
}

#[derive(Debug)]
struct TokensPlan {
    tensor: String,
    indices: Vec<usize>,
    cols: usize,
}

impl ChangePlan for TokensPlan {
    fn load(&self, loader: &Loader<'_>) -> Result<Change> {
        Ok(Change::map(ReplaceRows { indices: self.indices.clone(), values: loader.floats(&self.tensor)? }))
    }

    fn memory(&self) -> u64 {
        4 * (self.indices.len() * self.cols) as u64
    }

    fn reach(&self) -> Reach {
        Reach::Block { outputs: 1, inputs: 1 }
    }

    fn is_tokens(&self) -> bool {
        true
    }
}
