//! Tensors that are added to parameters of the base as they are: what LyCORIS trains whole, and what extracts of diffusion models hold beside factors.

use std::sync::Arc;

use super::site::flattened;
use super::{Adapter, ChangePlan, Changes, Loader, Names, Placed, PlannedEdit, ReadOptions};
use crate::edit::{Change, Delta, Tile};
use crate::error::{Result, mismatch, unsupported};
use crate::open::Entry;

/// Plans the addition of one tensor to a module's parameter. What the base lacks is left to the accounting.
pub(super) fn plan(
    adapter: &Adapter,
    names: &Names<'_>,
    options: &ReadOptions,
    (module, parameter): (&str, &str),
    entry: &Entry,
    changes: &mut Changes,
) -> Result<()> {
    let Some(claim) = names.find(&format!("{module}.{parameter}"))? else { return Ok(()) };
    let (weight, geometry) = (&claim.weight, claim.weight.geometry());
    if entry.shape != weight.shape() {
        let problem = format!("shape {:?}, but `{}` is {:?}", entry.shape, weight.name(), weight.shape());
        return Err(mismatch(problem).in_tensor(&entry.name).with_hint("this adapter was trained on another base"));
    }
    if weight.is_transposed() {
        let problem = format!("added to a weight that is stored turned, as {}", weight.format());
        return Err(unsupported(problem).in_tensor(&entry.name));
    }
    let rule = options.scales.find(module)?;
    changes.scales.extend(rule.map(|(number, _)| number));
    let scale = adapter.weight * rule.map_or(1.0, |(_, factor)| factor);
    // A convolution is the matrix that its other changes are of, too: all that is behind the outputs taken together.
    let shape = flattened(claim);
    let (outputs, inputs) = shape.unwrap_or((geometry.rows, geometry.cols));
    let change = Arc::new(AddedPlan { tensor: entry.name.clone(), elements: entry.elements(), inputs, scale });
    let is_layer = parameter == "weight" && weight.shape().len() == 2;
    changes.edits.push(PlannedEdit {
        target: weight.name().to_owned(),
        plan: Placed { shape, ..Placed::on_matrix(change, outputs, inputs, false) },
        tensors: vec![entry.name.clone()],
        layer: is_layer.then(|| module.to_owned()),
    });
    Ok(())
}

#[derive(Debug)]
struct AddedPlan {
    tensor: String,
    elements: u64,
    inputs: usize,
    scale: f64,
}

impl ChangePlan for AddedPlan {
    fn load(&self, loader: &Loader<'_>) -> Result<Change> {
        let Self { inputs, scale, .. } = *self;
        Ok(Change::add(Added { values: loader.floats(&self.tensor)?, inputs, scale: scale as f32 }))
    }

    fn memory(&self) -> u64 {
        // Its values, and meanwhile the bytes that they are read from.
        8 * self.elements
    }

    fn scale(&self) -> Option<f64> {
        Some(self.scale)
    }
}

/// A matrix (outputs, inputs).
#[derive(Debug)]
struct Added {
    values: Vec<f32>,
    inputs: usize,
    scale: f32,
}

impl Delta for Added {
    fn tile(&self, tile: &Tile, out: &mut [f32]) {
        for (output, out) in tile.outputs.clone().zip(out.chunks_exact_mut(tile.inputs.len().max(1))) {
            let row = self.values.get(output * self.inputs..).unwrap_or_default();
            let own = row.get(tile.inputs.clone()).unwrap_or_default();
            out.iter_mut().zip(own).for_each(|(out, x)| *out = self.scale * x);
        }
    }
}
