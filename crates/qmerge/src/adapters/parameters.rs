//! Tensors under the base's own names: modules trained whole, biases, and what an adapter's file merely brings along.

use std::ops::Range;
use std::sync::Arc;

use super::keys::Key;
use super::{Adapter, Addition, ChangePlan, Changes, Loader, Names, Placed, PlannedEdit, Replacement};
use crate::edit::{Change, Reach, ReplaceRows};
use crate::error::{Result, mismatch, unsupported};
use crate::open::Entry;

/// Parts of a weight packed by bitsandbytes, behind the module's path.
const PACKED_PARTS: &[&str] = &["absmax", "quant_map", "nested_absmax", "nested_quant_map", "SCB", "weight_format"];

/// Plans what becomes of one tensor: it replaces the base's, is new, or is ignored for a reason; else it is left to the accounting.
pub(super) fn read(
    adapter: &Adapter,
    names: &Names<'_>,
    key: &Key,
    parameter: &str,
    entry: &Entry,
    changes: &mut Changes,
) -> Result<()> {
    let name = &entry.name;
    let target = format!("{}.{parameter}", key.module);
    let first_copy = name.replace(".modules_to_save", "");
    if first_copy != *name && adapter.tensors.has(&first_copy) {
        changes.ignored.push((name.clone(), "a second copy of a parameter trained whole"));
        return Ok(());
    }
    if parameter == "num_batches_tracked" {
        changes.ignored.push((name.clone(), "how many batches a norm saw in training, which it does not compute with"));
        return Ok(());
    }
    if is_packed(adapter, name, parameter) {
        changes.ignored.push((name.clone(), "the base's own packed weight, which came along"));
        return Ok(());
    }
    let listed = adapter.config.modules_to_save.iter().any(|module| key.module.ends_with(module.as_str()));
    // Files beside the adapter's own hold nothing but what was trained.
    let trained = key.whole || entry.file > 0 || parameter != "weight" || !key.wrapped && listed;
    if adapter.is_undone && !trained {
        changes.ignored.push((name.clone(), "the base's own tensor, which came along"));
        return Ok(());
    }
    let found = match names.find(&target)? {
        Some(claim) => Some(claim.weight.name().to_owned()),
        // A tied embedding that is not stored; one that was trained whole will be.
        None if parameter == "weight" => names.tied_to(&key.module).map(|(name, _)| name),
        None => names.tied_bias(&target).map(|_| target.clone()),
    };
    match found {
        Some(target) => changes.replacements.push(Replacement { target, tensor: name.clone(), trained }),
        None if adapter.config.task().is_some_and(|task| listed || task.is_head(&key.module)) => {
            changes.additions.push(Addition { target, tensor: name.clone() });
        }
        None if trained || first_copy != *name => changes.edits.extend(some_rows(names, &target, entry)?),
        None => {}
    }
    Ok(())
}

/// Plans that a parameter that was trained whole takes the place of its rows, where the base has it within a tensor of several.
fn some_rows(names: &Names<'_>, target: &str, entry: &Entry) -> Result<Option<PlannedEdit>> {
    let Some((claim, rows)) = names.within(target)? else { return Ok(None) };
    let (weight, geometry) = (&claim.weight, claim.weight.geometry());
    let want = [&[rows.len()], weight.shape().get(1..).unwrap_or_default()].concat();
    if weight.is_transposed() {
        let problem = format!("rows of a weight that is stored turned, as {}", weight.format());
        return Err(unsupported(problem).in_tensor(&entry.name));
    }
    if entry.shape != want {
        let problem = format!("shape {:?}, but of `{}` it is {want:?}", entry.shape, weight.name());
        return Err(mismatch(problem).in_tensor(&entry.name).with_hint("this adapter was trained on another base"));
    }
    let start = rows.start;
    let change = Arc::new(RowsPlan { tensor: entry.name.clone(), rows, elements: entry.elements() });
    Ok(Some(PlannedEdit {
        target: weight.name().to_owned(),
        plan: Placed { part: Some((0, start)), ..Placed::on_matrix(change, geometry.rows, geometry.cols, false) },
        tensors: vec![entry.name.clone()],
        layer: None,
    }))
}

/// Rows that take the values of a tensor.
#[derive(Debug)]
struct RowsPlan {
    tensor: String,
    rows: Range<usize>,
    elements: u64,
}

impl ChangePlan for RowsPlan {
    fn load(&self, loader: &Loader<'_>) -> Result<Change> {
        Ok(Change::map(ReplaceRows { indices: self.rows.clone().collect(), values: loader.floats(&self.tensor)? }))
    }

    fn memory(&self) -> u64 {
        4 * self.elements + 8 * self.rows.len() as u64
    }

    fn reach(&self) -> Reach {
        Reach::Block { outputs: 1, inputs: 1 }
    }
}

/// True for the codes and scales of a bitsandbytes weight. Training changes neither, so they can only have come along with an adapter on
/// the same layer or on an embedding.
fn is_packed(adapter: &Adapter, name: &str, parameter: &str) -> bool {
    let path = |part: &str| name.strip_suffix(part).and_then(|path| path.strip_suffix('.'));
    if parameter == "weight" {
        let stem = path("weight").unwrap_or_default();
        let of_four_bits = adapter.tensors.has(&format!("{name}.absmax"));
        let of_eight_bits = adapter.tensors.has(&format!("{stem}.SCB"));
        return of_four_bits || of_eight_bits;
    }
    // The state's name ends in a format's: `weight.quant_state.bitsandbytes__nf4`.
    if let Some((weight, _)) = name.split_once(".quant_state.bitsandbytes__") {
        return adapter.tensors.has(weight);
    }
    PACKED_PARTS.contains(&parameter)
        && path(parameter)
            .is_some_and(|stem| adapter.tensors.has(stem) || adapter.tensors.has(&format!("{stem}.weight")))
}
