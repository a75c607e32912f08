//! Puts a planned change where its module's matrix lies.

use std::ops::Range;
use std::sync::Arc;

use super::keys::Role;
use super::site::{Kind, Site, Turned, flattened, turned};
use super::{Adapter, ChangePlan, Module, Names, On, Placed, Planned, PlannedEdit};
use crate::arch::Experts;
use crate::edit::{Place, Spot, Stride};
use crate::error::{Error, Result, mismatch, unsupported};
use crate::formats::Claim;
use crate::open::Entry;

/// Ranks up to here are those of a matrix of any size.
const MOST_RANK: usize = 1 << 16;

impl Site<'_> {
    /// Puts a change where the matrix is: an edit of each weight that holds a part of it.
    pub(super) fn place(&self, module: &Module<'_>, names: &Names<'_>, planned: Planned) -> Result<Vec<PlannedEdit>> {
        // Of two factors, the one that has the outputs.
        let tensor = planned.tensors.get(1).or(planned.tensors.first()).cloned().unwrap_or_default();
        let (outputs, reach) = (planned.outputs, planned.change.reach());
        if planned.on != On::Bias && planned.change.matrices() != self.matrices() {
            let (have, want) = (planned.change.matrices(), self.matrices());
            return Err(unsupported(format!("it changes {have} matrix, but `{}` stacks {want}", module.name()))
                .in_tensor(&tensor));
        }
        // Factors that are made of less may be larger than memory.
        let most = outputs.max(planned.inputs).saturating_mul(4).max(MOST_RANK);
        if let Some(rank) = planned.change.rank().filter(|rank| *rank > most) {
            return Err(mismatch(format!("factors of rank {rank} for a matrix of {outputs} × {}", planned.inputs))
                .in_tensor(&tensor));
        }
        let edits = match &self.kind {
            _ if planned.on == On::Bias => self.on_bias(module, names, planned),
            Kind::Layer { target, .. } => self.on_layer(module, names, target, planned),
            Kind::Stack { experts } => self.on_stack(names, *experts, planned),
            Kind::Stacks { experts, stacks } => self.on_stacks(*experts, stacks, &planned),
            Kind::Split(pieces) => self.on_pieces(pieces, &planned),
            Kind::Each { weights, interleaved } => self.on_each(weights, *interleaved, &planned),
            Kind::Within { outputs } => self.on_rows(module, outputs, planned),
            Kind::InStack { expert, half, family } => self.one_of_stack(family, *expert, *half, planned),
        };
        let edits = edits.map_err(|error| error.in_tensor(&tensor))?;
        if edits.iter().any(|edit| edit.plan.place.parts(reach, outputs)) {
            return Err(unsupported(format!("it mixes outputs of `{}`, which lie in several weights", module.path()))
                .in_tensor(&tensor));
        }
        Ok(edits)
    }

    fn on_bias(&self, module: &Module<'_>, names: &Names<'_>, planned: Planned) -> Result<Vec<PlannedEdit>> {
        let path = module.path();
        if let Kind::Within { .. } | Kind::Split(_) = self.kind {
            return Err(unsupported(format!(
                "it changes the bias of `{path}`, whose weight is not a tensor of its own (`{}`): of such layers this version changes the weight alone",
                self.claim.weight.name()
            )));
        }
        let claim = self
            .bias
            .ok_or_else(|| unsupported(format!("it changes the bias of `{path}`, which the base has none of")))?;
        let Planned { outputs, change, tensors, .. } = planned;
        if claim.weight.geometry().elements() != outputs {
            return Err(mismatch(format!(
                "{outputs} biases, but `{}` has shape {:?}",
                claim.weight.name(),
                claim.weight.shape()
            )));
        }
        let matrix = change.beside().map(|inputs| {
            let (change, tensors) = (Arc::clone(&change), Vec::new());
            let own = Planned { on: On::Matrix, outputs, inputs, change, tensors };
            let edits = self.on_layer(module, names, "", own)?;
            let place = edits.into_iter().next().map(|edit| edit.plan.place);
            Ok(place.map(|place| Arc::new((self.claim.clone(), place))))
        });
        let matrix = matrix.transpose()?.flatten();
        let plan = Placed { shape: None, matrix, ..Placed::on_matrix(change, outputs, 1, false) };
        Ok(vec![PlannedEdit { target: claim.weight.name().to_owned(), plan, tensors, layer: None }])
    }

    fn on_layer(
        &self,
        module: &Module<'_>,
        names: &Names<'_>,
        target: &str,
        planned: Planned,
    ) -> Result<Vec<PlannedEdit>> {
        let Planned { on, outputs, inputs, change, tensors } = planned;
        let (adapter, path, shape) = (module.adapter(), module.path(), self.claim.weight.shape());
        let embedding = on == On::Embedding;
        let misfit = || self.misfit(path, if embedding { [inputs, outputs] } else { [outputs, inputs] });
        let transposed = if embedding {
            // Tokens may have been added; then the adapter brings all rows along.
            let fits = matches!(shape, [tokens, width] if *width == outputs && (*tokens == inputs || ships_base(adapter, path)));
            fits.then_some(true)
        } else {
            orientation(adapter, names, path, self.claim, (outputs, inputs))
        };
        let plan = Placed::on_matrix(change, outputs, inputs, transposed.ok_or_else(misfit)?);
        // A parameter beside others is no layer's weight.
        let is_layer = self.name.strip_prefix(path).is_some_and(|rest| rest.is_empty() || rest == ".weight");
        let layer = (!embedding && is_layer && module.depth == 0).then(|| path.to_owned());
        Ok(vec![PlannedEdit { target: target.to_owned(), plan, tensors, layer }])
    }

    fn on_stack(&self, names: &Names<'_>, experts: usize, planned: Planned) -> Result<Vec<PlannedEdit>> {
        let Planned { outputs, inputs, change, tensors, .. } = planned;
        let &[_, rows, cols] = self.claim.weight.shape() else { return Ok(Vec::new()) };
        // PEFT reads the module's `is_transposed`; where the matrices are square only the family's row can say.
        let flagged = names.experts.is_some_and(|experts| match self.claim.weight.has_family_order() {
            true => experts.is_transposed,
            false => experts.is_mistaken,
        });
        let transposed = match ((rows, cols) == (outputs, inputs), (rows, cols) == (inputs, outputs)) {
            (true, true) => flagged,
            (true, false) => false,
            (false, true) => true,
            (false, false) => return Err(self.misfit_of_one([outputs, inputs], self.claim)),
        };
        let all = Stride::first(outputs);
        let spot = |e: usize| Spot { rows: e * rows..(e + 1) * rows, transposed, width: outputs, take: all, put: all };
        let plan = Placed {
            change,
            place: Place { spots: (0..experts).map(spot).collect() },
            matrices: 0..experts,
            shape: Some((experts * rows, cols)),
            part: None,
            matrix: None,
        };
        Ok(vec![self.edit(self.claim, plan, tensors)])
    }

    fn on_stacks(&self, experts: usize, stacks: &[&Claim], planned: &Planned) -> Result<Vec<PlannedEdit>> {
        let Planned { outputs, inputs, change, tensors, .. } = planned;
        let len = outputs / stacks.len().max(1);
        let mut edits = Vec::new();
        for (part, claim) in stacks.iter().enumerate() {
            if claim.weight.shape() != [experts, len, *inputs] || len * stacks.len() != *outputs {
                return Err(self.misfit_of_one([*outputs, *inputs], claim));
            }
            let (take, put) = (part_of(false, part, len, stacks.len()), Stride::first(len));
            let spot = |e: usize| Spot { rows: e * len..(e + 1) * len, transposed: false, width: len, take, put };
            let plan = Placed {
                change: Arc::clone(change),
                place: Place { spots: (0..experts).map(spot).collect() },
                matrices: 0..experts,
                shape: Some((experts * len, *inputs)),
                part: None,
                matrix: None,
            };
            edits.push(self.edit(claim, plan, tensors.clone()));
        }
        Ok(edits)
    }

    fn on_pieces(&self, pieces: &[(String, &Claim)], planned: &Planned) -> Result<Vec<PlannedEdit>> {
        let Planned { outputs, inputs, change, tensors, .. } = planned;
        if self.shape != (*outputs, *inputs) {
            let ((have, of), module) = (self.shape, &self.name);
            return Err(mismatch(format!(
                "a delta of [{outputs}, {inputs}], but the pieces of `{module}` in the base are [{have}, {of}]"
            )));
        }
        let (mut edits, mut start) = (Vec::new(), 0);
        for (path, claim) in pieces {
            let len = claim.weight.shape().first().copied().unwrap_or(0);
            let transposed = claim.weight.is_transposed();
            let (rows, shape) = if transposed { (0..*inputs, (*inputs, len)) } else { (0..len, (len, *inputs)) };
            let spot =
                Spot { rows, transposed, width: len, take: Stride { start, step: 1, len }, put: Stride::first(len) };
            let plan = placed(change, spot, 0..1, Some(shape), None);
            edits.push(PlannedEdit { layer: Some(path.clone()), ..self.edit(claim, plan, tensors.clone()) });
            start += len;
        }
        Ok(edits)
    }

    fn on_each(&self, weights: &[Vec<&Claim>], interleaved: bool, planned: &Planned) -> Result<Vec<PlannedEdit>> {
        let Planned { outputs, inputs, change, tensors, .. } = planned;
        let mut edits = Vec::new();
        for (expert, parts) in weights.iter().enumerate() {
            for (part, claim) in parts.iter().enumerate() {
                let len = outputs / parts.len();
                if claim.weight.shape() != [len, *inputs] || len * parts.len() != *outputs {
                    return Err(self.misfit_of_one([*outputs, *inputs], claim));
                }
                let take = part_of(interleaved, part, len, parts.len());
                let transposed = claim.weight.is_transposed();
                let (rows, shape) = if transposed { (0..*inputs, (*inputs, len)) } else { (0..len, (len, *inputs)) };
                let spot = Spot { rows, transposed, width: len, take, put: Stride::first(len) };
                let plan = placed(change, spot, expert..expert + 1, Some(shape), None);
                edits.push(self.edit(claim, plan, tensors.clone()));
            }
        }
        Ok(edits)
    }

    fn on_rows(&self, module: &Module<'_>, range: &Range<usize>, planned: Planned) -> Result<Vec<PlannedEdit>> {
        let Planned { outputs, inputs, change, tensors, .. } = planned;
        if self.shape != (outputs, inputs) {
            return Err(self.misfit(module.path(), [outputs, inputs]));
        }
        let all = self.claim.weight.shape().first().copied().unwrap_or(0);
        let transposed = self.claim.weight.is_transposed();
        let (rows, shape) = if transposed { (0..inputs, (inputs, all)) } else { (0..all, (all, inputs)) };
        let put = Stride { start: range.start, step: 1, len: outputs };
        let spot = Spot { rows, transposed, width: all, take: Stride::first(outputs), put };
        let plan = placed(&change, spot, 0..1, Some(shape), Some((0, range.start)));
        Ok(vec![self.edit(self.claim, plan, tensors)])
    }

    fn one_of_stack(
        &self,
        family: &Experts,
        expert: usize,
        half: Option<usize>,
        planned: Planned,
    ) -> Result<Vec<PlannedEdit>> {
        let Planned { outputs, inputs, change, tensors, .. } = planned;
        let &[experts, rows, cols] = self.claim.weight.shape() else { return Ok(Vec::new()) };
        let (width, have) = if family.in_out { (cols, rows) } else { (rows, cols) };
        let halves = if half.is_some() { 2 } else { 1 };
        if expert >= experts || inputs != have || outputs * halves != width {
            return Err(mismatch(format!(
                "a delta of [{outputs}, {inputs}] does not fit expert {expert} of `{}`, {:?}",
                self.claim.weight.name(),
                self.claim.weight.shape()
            )));
        }
        let put = part_of(family.interleaved, half.unwrap_or(0), outputs, halves);
        let rows = expert * rows..(expert + 1) * rows;
        let spot = Spot { rows, transposed: family.in_out, width, take: Stride::first(outputs), put };
        // The stack's own shape was checked here.
        let plan = placed(&change, spot, 0..1, None, Some((expert, put.start)));
        Ok(vec![self.edit(self.claim, plan, tensors)])
    }

    fn edit(&self, claim: &Claim, plan: Placed, tensors: Vec<String>) -> PlannedEdit {
        PlannedEdit { target: claim.weight.name().to_owned(), plan, tensors, layer: None }
    }

    fn misfit(&self, path: &str, delta: [usize; 2]) -> Error {
        let (name, shape) = (self.claim.weight.name(), self.claim.weight.shape());
        mismatch(format!("the adapter's delta for `{path}` is {delta:?}, but `{name}` is {shape:?}"))
            .with_hint("this adapter was trained on another base")
    }

    fn misfit_of_one(&self, delta: [usize; 2], claim: &Claim) -> Error {
        let (name, shape) = (claim.weight.name(), claim.weight.shape());
        mismatch(format!("the adapter's delta for one expert is {delta:?}, but `{name}` is {shape:?}"))
    }
}

fn placed(
    change: &Arc<dyn ChangePlan>,
    spot: Spot,
    matrices: Range<usize>,
    shape: Option<(usize, usize)>,
    part: Option<(usize, usize)>,
) -> Placed {
    let place = Place { spots: vec![spot] };
    Placed { change: Arc::clone(change), place, matrices, shape, part, matrix: None }
}

/// True if the adapter brings the base of this module along (a targeted or resized embedding).
fn ships_base(adapter: &Adapter, module: &str) -> bool {
    shipped_base(adapter, module).is_some()
}

/// The base of this module, if the adapter brings it along.
pub(super) fn shipped_base<'a>(adapter: &'a Adapter, module: &str) -> Option<&'a Entry> {
    adapter.tensors.entries.iter().find(|entry| {
        let key = adapter.key(&entry.name);
        key.module == module && key.role == Role::Parameter("weight".into())
    })
}

/// True if a matrix (out, in) is stored as its transpose; `None` if it does not fit.
fn orientation(
    adapter: &Adapter,
    names: &Names<'_>,
    module: &str,
    claim: &Claim,
    (outputs, inputs): (usize, usize),
) -> Option<bool> {
    let shape = claim.weight.shape();
    let (rows, cols) = flattened(claim)?;
    let straight = (rows, cols) == (outputs, inputs);
    let fits_turned = shape.len() == 2 && (rows, cols) == (inputs, outputs);
    let turned = match turned(adapter, names, module, claim) {
        Turned::Known => true,
        // Of a square matrix the shape does not tell, and the adapter's word alone is not enough.
        Turned::Said => !straight,
        Turned::No => false,
    };
    match (straight, fits_turned) {
        (_, true) if turned => Some(true),
        (true, _) if !claim.weight.is_transposed() => Some(false),
        // A head that grows with the vocabulary is checked against the tensor that replaces it.
        _ if names.is_head(module) && cols == inputs && ships_base(adapter, module) => Some(false),
        _ => None,
    }
}

/// Where the gate (0) or the up projection (1) lies among the outputs of both.
pub(super) fn part_of(interleaved: bool, half: usize, len: usize, halves: usize) -> Stride {
    if interleaved && halves == 2 {
        Stride { start: half, step: 2, len }
    } else {
        Stride { start: half * len, step: 1, len }
    }
}
