//! Weights that take a wider type than the one they have, since their own loses most of an adapter, or cannot be written.
//!
//! Which those are is no matter of names and shapes: a first run of the plan without them, whose output goes nowhere, says what each weight loses. The choice is then an option of the plan, so
//! that a plan stays a function of what it is given, and the second run is like any other.

use std::collections::{HashMap, HashSet};
use std::fmt;
use std::sync::Arc;

use super::{Inputs, Options, Plan};
use crate::arch::{self, Role};
use crate::error::{Result, unsupported, usage};
use crate::formats::{self, Claim, Format, Settings, Weight};
use crate::report::WeightReport;

/// What weights go to a wider type.
#[derive(Clone, Default)]
pub struct Promotion {
    /// The type; `None` for the next wider one of each weight's own.
    pub to: Option<&'static dyn Format>,
    /// The weights, by name, beside those that cannot be written as they are stored.
    pub weights: Arc<HashSet<String>>,
}

/// Types by what follows them: for rows of whole blocks of 256, and for others.
static WIDER: &[(&[&str], [&str; 2])] = &[
    (
        &[
            "iq1_s", "iq1_m", "iq2_xxs", "iq2_xs", "iq2_s", "iq3_xxs", "iq3_s", "q2_k", "q3_k", "tq1_0", "tq2_0",
            "q1_0", "q2_0",
        ],
        ["q4_k", "q4_1"],
    ),
    (&["q4_0", "q4_1", "q4_k", "iq4_nl", "iq4_xs", "gguf-mxfp4", "gguf-nvfp4"], ["q6_k", "q8_0"]),
    (&["q5_0", "q5_1", "q5_k", "q6_k"], ["q8_0", "q8_0"]),
    (&["q8_0"], ["f16", "f16"]),
];

/// The type that follows a weight's, if there is one that takes it.
fn wider(format: &str, shape: &[usize]) -> Option<&'static dyn Format> {
    let (_, next) = WIDER.iter().find(|(types, _)| types.contains(&format))?;
    next.iter().filter_map(|id| formats::by_id(id).ok()).find(|format| takes(*format, shape))
}

fn takes(format: &dyn Format, shape: &[usize]) -> bool {
    !format.quantizes() || format.takes(Role::Linear, shape)
}

/// Bytes that a weight of such dimensions takes.
fn bytes_in(format: &dyn Format, weight: &dyn Weight) -> Option<u64> {
    let made = format.create(weight.name(), weight.shape(), weight.value_dtype(), &Settings::default()).ok()?;
    Some(made.parts().iter().map(|part| part.bytes).sum())
}

impl fmt::Debug for Promotion {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} to {}", self.weights.len(), self.to.map_or("auto", Format::id))
    }
}

impl Promotion {
    /// True if nothing goes to another type that need not.
    pub(super) fn is_idle(&self) -> bool {
        self.to.is_none() && self.weights.is_empty()
    }

    /// The format of a weight that an adapter changes, and that would else be stored in `format`, if it takes another.
    pub(super) fn of(&self, claim: &Claim, format: &str, is_moved: bool) -> Option<&'static dyn Format> {
        let weight = claim.weight.as_ref();
        let must = !is_moved && weight.writer().is_none();
        if !must && !self.weights.contains(weight.name()) {
            return None;
        }
        self.to.filter(|to| takes(*to, weight.shape())).or_else(|| wider(format, weight.shape()))
    }

    /// Of the weights of a plan that was run, those that lose most, as far as the bytes that they take more do not exceed that share of the output's.
    ///
    /// A weight's loss is what rounding leaves of ‖E‖² for each ‖D‖², in the metric of its inputs where they are known. The worst comes first; one that does not fit is passed over. Ties are broken
    /// by the order of the plan, so the choice is a function of the plan and its figures.
    pub fn chosen(&self, plan: &Plan, figures: &[WeightReport], budget: f64) -> Self {
        let squared = |noise: f64| noise * noise;
        let losses: HashMap<&str, f64> = figures
            .iter()
            .filter_map(|weight| Some((&*weight.name, weight.noise_output.or(weight.noise_to_delta.map(squared))?)))
            .collect();
        let mut candidates: Vec<(f64, usize, &str, u64)> = Vec::new();
        for (number, recode) in plan.recodes().filter(|recode| !recode.edits.is_empty()).enumerate() {
            let (weight, own) = (recode.to.as_ref(), recode.to.format());
            let to = self.to.filter(|to| takes(*to, weight.shape())).or_else(|| wider(own, weight.shape()));
            let have: u64 = weight.parts().iter().map(|part| part.bytes).sum();
            let more = to.filter(|to| to.id() != own).and_then(|to| bytes_in(to, weight)?.checked_sub(have));
            if let (Some(more), Some(loss)) = (more.filter(|more| *more > 0), losses.get(weight.name())) {
                candidates.push((*loss, number, weight.name(), more));
            }
        }
        candidates.sort_by(|a, b| b.0.total_cmp(&a.0).then(a.1.cmp(&b.1)));
        let mut left = (budget * plan.output_bytes() as f64) as u64;
        let mut weights = HashSet::new();
        for (.., name, more) in candidates {
            if let Some(rest) = left.checked_sub(more) {
                left = rest;
                weights.insert(name.to_owned());
            }
        }
        Self { weights: Arc::new(weights), ..self.clone() }
    }
}

/// Only where a file says of each tensor how it is stored can one weight have another type than its neighbours. Errors where the output is no such file.
#[doc(hidden)]
pub fn refuse_promotion(inputs: &Inputs, options: &Options) -> Result<()> {
    let into_gguf = options.export.map_or(options.to.is_none() && inputs.base.is_self_contained(), |export| {
        export.ending() == ".gguf" && export.quantizes()
    });
    if into_gguf {
        return refuse_mixture(inputs);
    }
    Err(usage("--promote gives single weights another type, which GGUF files of quantized types alone have room for")
        .with_hint("merge into a GGUF file: with a base in GGUF, or with --to and one of its types, as --to q4_k_m"))
}

/// The experts of a layer lie in one tensor of a GGUF file, of which no part can take another type.
fn refuse_mixture(inputs: &Inputs) -> Result<()> {
    let is_of_experts = |claim: &&Claim| {
        let name = claim.weight.name();
        let is_stack = claim.weight.shape().len() == 3 && !name.contains("conv");
        is_stack || name.split('.').any(|part| part == "experts" || part == arch::SWITCH)
    };
    let Some(claim) = inputs.inventory.weights.iter().find(is_of_experts) else { return Ok(()) };
    Err(unsupported("--promote of a mixture of experts: those of a layer lie in one tensor of a GGUF file")
        .in_file(&inputs.base.path)
        .in_tensor(claim.weight.name())
        .with_hint("leave it out, or give all weights more bits: --to q5_k_m, --to q6_k"))
}
