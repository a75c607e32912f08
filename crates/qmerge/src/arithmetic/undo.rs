//! Taking an adapter out of a merge again.

use crate::adapters::{Names, PlannedEdit, ReadOptions};
use crate::error::{Result, unsupported};
use crate::plan::Inputs;

/// Turns the adapters of inputs whose base is a merge into those that undo it. Errors if one of them did what no subtraction undoes.
pub fn undo(inputs: &mut Inputs, maps: &[String], options: &ReadOptions) -> Result<()> {
    let names = Names::new(&inputs.base, &inputs.inventory.weights, maps)?;
    for adapter in &inputs.adapters {
        let changes = adapter.read(&names, options)?;
        if let Some(whole) = changes.replacements.iter().find(|replacement| replacement.trained) {
            return Err(unsupported(format!(
                "it replaced `{}` of the base, and what stood there before is in neither of the two",
                whole.target
            ))
            .in_file(adapter.file())
            .in_tensor(&whole.tensor)
            .with_hint("take that tensor from the original base"));
        }
        if let Some(added) = changes.additions.first() {
            return Err(unsupported(format!(
                "it added `{}` to the model, which is no sum that could be undone",
                added.target
            ))
            .in_file(adapter.file())
            .in_tensor(&added.tensor));
        }
        let is_made_of_base = |edit: &PlannedEdit| {
            let change = &edit.plan.change;
            !edit.plan.is_additive() || change.is_of_base() || change.beside().is_some()
        };
        let Some(map) = changes.edits.iter().find(|edit| is_made_of_base(edit)) else { continue };
        let what = if map.plan.is_tokens() {
            "trained tokens replaced rows, and what stood there before is in neither of the two".to_owned()
        } else if adapter.config.is_set("use_dora") {
            "a DoRA divided by norms of the original base, which are not in the merge any more".to_owned()
        } else if map.plan.is_additive() {
            format!(
                "what a {} adapter adds is made of the original base's values, which are not in the merge any more",
                adapter.config.peft_type
            )
        } else {
            format!(
                "an adapter of type {} maps weights to others, and this version undoes sums alone",
                adapter.config.peft_type
            )
        };
        return Err(unsupported(format!("`{}`: {what}", map.target))
            .in_file(adapter.file())
            .with_hint("take the original base"));
    }
    for adapter in &mut inputs.adapters {
        adapter.weight = -adapter.weight;
        adapter.is_undone = true;
    }
    Ok(())
}
