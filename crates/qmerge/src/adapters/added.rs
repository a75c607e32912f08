//! Tensors that are added to parameters of the base as they are: what LyCORIS trains whole, and what extracts of diffusion models hold beside factors.

use std::sync::Arc;

use super::site::flattened;
use super::{Adapter, ChangePlan, Changes, Loader, Names, Placed, PlannedEdit, ReadOptions};
use crate::edit::{Change, Delta, Place, Spot, Stride, Tile};
use crate::error::{Result, mismatch, unsupported};
use crate::formats::Claim;
use crate::open::Entry;

/// Plans the addition of one tensor to a module's parameter; `pieces` are the modules that the base has in its place, whose outputs follow each other. What the base
/// lacks is left to the accounting.
pub(super) fn plan(
    adapter: &Adapter,
    names: &Names<'_>,
    options: &ReadOptions,
    (module, parameter, pieces): (&str, &str, Option<&[String]>),
    entry: &Entry,
    changes: &mut Changes,
) -> Result<()> {
    let found: Option<Vec<(&str, &Claim)>> = match pieces {
        None => names.find(&format!("{module}.{parameter}"))?.map(|claim| vec![(module, claim)]),
        Some(pieces) => {
            pieces.iter().map(|piece| Some((&**piece, names.exact(&format!("{piece}.{parameter}"))?))).collect()
        }
    };
    let found = found.unwrap_or_default();
    let Some((_, first)) = found.first() else { return Ok(()) };
    let outputs: usize = found.iter().map(|(_, claim)| matrix(claim).0).sum();
    let shape = |claim: &Claim| [&[outputs], claim.weight.shape().get(1..).unwrap_or_default()].concat();
    if let Some((_, claim)) = found.iter().find(|(_, claim)| shape(claim) != entry.shape) {
        let (name, want) = (claim.weight.name(), shape(claim));
        let which = if found.len() > 1 { "it and its neighbours are" } else { "it is" };
        let problem = format!("shape {:?}, added to `{name}`, but {which} {want:?}", entry.shape);
        return Err(mismatch(problem).in_tensor(&entry.name).with_hint("this adapter was trained on another base"));
    }
    if let Some((_, claim)) = found.iter().find(|(_, claim)| claim.weight.is_transposed()) {
        let problem = format!("added to a weight that is stored turned, as {}", claim.weight.format());
        return Err(unsupported(problem).in_tensor(&entry.name));
    }
    let rule = options.scales.find(module)?;
    changes.scales.extend(rule.map(|(number, _)| number));
    let scale = adapter.weight * rule.map_or(1.0, |(_, factor)| factor);
    let inputs = matrix(first).1;
    let change: Arc<dyn ChangePlan> =
        Arc::new(AddedPlan { tensor: entry.name.clone(), elements: entry.elements(), inputs, scale });
    let mut start = 0;
    for (path, claim) in found {
        let len = matrix(claim).0;
        let take = Stride { start, step: 1, len };
        let spot = Spot { rows: 0..len, transposed: false, width: len, take, put: Stride::first(len) };
        start += len;
        let is_layer = parameter == "weight" && claim.weight.shape().len() == 2;
        changes.edits.push(PlannedEdit {
            target: claim.weight.name().to_owned(),
            plan: Placed {
                change: Arc::clone(&change),
                place: Place { spots: vec![spot] },
                matrices: 0..1,
                shape: flattened(claim),
                part: None,
                matrix: None,
            },
            tensors: vec![entry.name.clone()],
            layer: is_layer.then(|| path.to_owned()),
        });
    }
    Ok(())
}

/// Rows and columns; of a convolution all that is behind the outputs taken together, as in its other changes.
fn matrix(claim: &Claim) -> (usize, usize) {
    let geometry = claim.weight.geometry();
    flattened(claim).unwrap_or((geometry.rows, geometry.cols))
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
