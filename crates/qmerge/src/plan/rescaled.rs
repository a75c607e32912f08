//! Models whose quantizer moved factors between layers (AWQ): what does not fit them.

use super::Inputs;
use crate::adapters::{Adapter, Changes, PlannedEdit};
use crate::error::{Result, mismatch};
use crate::formats::{self, Inventory};

/// True if whoever quantized moved factors between layers.
fn is_rescaled(inventory: &Inventory) -> bool {
    inventory.weights.iter().any(|claim| formats::moves_factors(claim.weight.format()))
}

/// AWQ moves factors between layers. Of the difference to a model in which they have not moved the whole leads from the one to the other; a part of it, or more than
/// it, is no model, since products of the two are not what their sum was.
pub(super) fn refuse_parts_of_rescaled(inputs: &Inputs, changes: &[Changes]) -> Result<()> {
    let base = is_rescaled(&inputs.inventory);
    let moved = |adapter: &&Adapter| adapter.tuned_weights().is_some_and(|tuned| is_rescaled(tuned) != base);
    let Some(tuned) = inputs.adapters.iter().find(moved) else { return Ok(()) };
    let is_whole =
        |edit: &PlannedEdit| edit.plan.task_vector().is_some_and(|vector| vector.weight == 1.0 && !vector.drops());
    if inputs.adapters.len() == 1 && changes.iter().flat_map(|changes| &changes.edits).all(is_whole) {
        return Ok(());
    }
    let (has, other) = if base { ("base", "tuned model") } else { ("tuned model", "base") };
    Err(mismatch(format!(
        "the {has} is stored as AWQ, which moves factors between layers, and the {other} is not: of their difference no other share than the whole, alone, leads to a model"
    ))
    .in_file(&tuned.path)
    .with_hint(if base {
        "take the model that was quantized as --base, and --to for the format of the result; or the tuned model alone, with weight 1"
    } else {
        "take the tuned model before it was quantized; or this one alone, with weight 1"
    }))
}

/// AWQ moves factors between layers: an adapter of the original model is one of another function.
pub(super) fn rescaled_warning(adapter: &Adapter, inputs: &Inputs) -> Option<String> {
    if !is_rescaled(&inputs.inventory) || adapter.is_tuned() {
        return None;
    }
    let last = |path: &str| path.trim_end_matches('/').rsplit('/').next().unwrap_or_default().to_lowercase();
    let is_own = |name: &str| last(name).contains("awq") || last(name) == last(&inputs.base.path.to_string_lossy());
    let said = match adapter.config.base_model.as_deref() {
        Some(name) if is_own(name) => return None,
        Some(name) => format!("this one was trained on `{name}`"),
        None => "this one does not say what it was trained on".to_owned(),
    };
    Some(format!(
        "{}: the base is stored as AWQ, which rescales the inputs of layers, so an adapter that was trained on the model before that does not fit it; {said}",
        adapter.path.display()
    ))
}
