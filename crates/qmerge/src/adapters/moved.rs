//! Factors on a layer's inputs that become factors on the outputs of the layer before it.
//!
//! A gated feed-forward is `down(act(gate x) · up x)`: what multiplies the inputs of `down` may as well multiply the outputs of `up`. Quantized weights have scales along
//! their rows. There the one is the same codes under other scales, and the other is values that lie anywhere between the levels they have.

use std::collections::BTreeSet;
use std::sync::Arc;

use super::{Changes, InputFactors, Names, Placed, PlannedEdit};
use crate::arch;
use crate::arch::spec::{FeedForward, Matrices};
use crate::edit::{Place, Spot, Stride};

/// Moves what can be: between two weights of a gated feed-forward, of which nothing else is changed.
pub(super) fn to_outputs(changes: &mut Changes, names: &Names<'_>, to: InputFactors) {
    if to == InputFactors::InPlace || changes.edits.iter().all(|edit| edit.plan.change.before().is_none()) {
        return;
    }
    let any = to == InputFactors::Moved;
    let spec = names.checkpoint.config.as_ref().and_then(|config| arch::spec_of(config).ok());
    let layers = spec.iter().flat_map(|spec| &spec.layers);
    let gated: BTreeSet<Gated> = layers.filter_map(|layer| Gated::of(layer.feed_forward)).collect();
    for number in 0..changes.edits.len() {
        let find = |edit| {
            gated.iter().find_map(|gated| gated.moved(edit, changes, names).filter(|moved| any || moved.are_quantized))
        };
        let Some(Moved { edit, bias, .. }) = changes.edits.get(number).and_then(find) else { continue };
        if let Some(place) = changes.edits.get_mut(number) {
            *place = edit;
        }
        changes.edits.extend(bias);
    }
}

/// What does the same as an edit.
struct Moved {
    edit: PlannedEdit,
    bias: Option<PlannedEdit>,
    /// Both weights are quantized, and nothing says how large the inputs of the second may be.
    are_quantized: bool,
}

/// Names of a gated feed-forward's matrices, below a layer.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Gated {
    /// The gate, where it is a matrix of its own; else it is the first half of `up`'s.
    gate: Option<&'static str>,
    up: &'static str,
    down: &'static str,
}

impl Gated {
    fn of(feed_forward: FeedForward) -> Option<Self> {
        match feed_forward {
            FeedForward::Dense(dense) => match dense.matrices {
                Matrices::Gated { names: [gate, up, down] } => Some(Self { gate: Some(gate), up, down }),
                Matrices::FusedGated { names: [up, down] } => Some(Self { gate: None, up, down }),
                Matrices::Plain { .. } => None,
            },
            FeedForward::Routed(_) => None,
        }
    }

    /// The name of another of its matrices than `down`, if `path` speaks of that.
    fn beside(&self, path: &str, other: &str) -> Option<String> {
        let (before, behind) = path.rsplit_once(self.down)?;
        let is_whole = (before.is_empty() || before.ends_with('.')) && (behind.is_empty() || behind.starts_with('.'));
        is_whole.then(|| format!("{before}{other}{behind}"))
    }

    /// The edit that does the same to the layer before, and that of its bias.
    fn moved(&self, edit: &PlannedEdit, changes: &Changes, names: &Names<'_>) -> Option<Moved> {
        let change = edit.plan.change.before()?;
        let down = names.exact(&edit.target)?;
        let up = names.exact(&self.beside(&edit.target, self.up)?)?;
        if let Some(gate) = self.gate {
            names.exact(&self.beside(&edit.target, gate)?)?;
        }
        let (&[_, width], &[outputs, inputs]) = (down.weight.shape(), up.weight.shape()) else { return None };
        let halves = if self.gate.is_some() { 1 } else { 2 };
        let bias = names.exact(&format!("{}.bias", up.weight.name().strip_suffix(".weight")?));
        let is_free = |name: &str| {
            changes.edits.iter().all(|other| other.target != name)
                && changes.replacements.iter().all(|replacement| replacement.target != name)
        };
        let is_alone = changes.edits.iter().filter(|other| other.target == edit.target).count() == 1
            && changes.replacements.iter().all(|replacement| replacement.target != edit.target);
        let are_free = is_free(up.weight.name()) && bias.is_none_or(|bias| is_free(bias.weight.name()));
        if width * halves != outputs || !is_alone || !are_free || up.weight.is_transposed() {
            return None;
        }
        // A scale that was measured for activations holds for them as they were.
        let module = edit.target.strip_suffix("weight").unwrap_or(&edit.target);
        let is_static = names.checkpoint.entries.iter().any(|entry| {
            let leaf = entry.name.strip_prefix(module);
            leaf.is_some_and(|leaf| leaf.contains("input_") || leaf.contains("activation_"))
        });
        let put = Stride { start: outputs - width, step: 1, len: width };
        let placed = |shape| {
            let spot = Spot { rows: 0..outputs, transposed: false, width: outputs, take: Stride::first(width), put };
            let place = Place { spots: vec![spot] };
            Placed { change: Arc::clone(&change), place, matrices: 0..1, shape, part: None, matrix: None }
        };
        let tensors = || edit.tensors.clone();
        let bias = bias.map(|bias| PlannedEdit {
            target: bias.weight.name().to_owned(),
            plan: placed(None),
            tensors: tensors(),
            layer: None,
        });
        let edit = PlannedEdit {
            target: up.weight.name().to_owned(),
            plan: placed(Some((outputs, inputs))),
            tensors: tensors(),
            layer: edit.layer.as_deref().and_then(|path| self.beside(path, self.up)),
        };
        Some(Moved { edit, bias, are_quantized: !down.weight.is_plain() && !up.weight.is_plain() && !is_static })
    }
}
