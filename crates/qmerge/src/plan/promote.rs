//! Weights that take a wider type than the one they have, since their own loses most of an adapter, or cannot be written.
//!
//! Which those are is no matter of names and shapes: a first run of the plan without them, whose output goes nowhere, says what each weight loses. The choice is then an option of the plan, so
//! that a plan stays a function of what it is given, and the second run is like any other.
//!
//! A tensor has one type, so what lies in one goes together: the experts of a layer, also those that no adapter changes.

use std::collections::{HashMap, HashSet};
use std::fmt;
use std::sync::Arc;

use super::{Action, Inputs, Options, Plan, Recode, Step};
use crate::arch::Role;
use crate::dtype::Dtype;
use crate::error::{Result, usage};
use crate::formats::{self, Format, Settings, Weight};
use crate::open::gguf::expert;
use crate::report::WeightReport;

/// What weights go to a wider type.
#[derive(Clone, Default)]
pub struct Promotion {
    /// The type; `None` for the next wider one of each weight's own.
    pub to: Option<&'static dyn Format>,
    /// The tensors of the output, by name, beside those that cannot be written as they are stored.
    pub tensors: Arc<HashSet<String>>,
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

/// Bytes that a tensor of such dimensions takes.
fn bytes_in(format: &dyn Format, shape: &[usize]) -> Option<u64> {
    let made = format.create("", shape, Dtype::F32, &Settings::default()).ok()?;
    Some(made.parts().iter().map(|part| part.bytes).sum())
}

/// A tensor as it would be stored: the only one of a weight, or one of several.
pub(super) struct Stored {
    shape: Vec<usize>,
    format: &'static dyn Format,
    bytes: u64,
}

impl Stored {
    /// As an encoder makes it.
    pub(super) fn made(shape: &[usize], format: &'static dyn Format) -> Self {
        Self { shape: shape.to_vec(), format, bytes: bytes_in(format, shape).unwrap_or(0) }
    }

    /// The tensors that a weight lies in. Empty for a format that is none of these.
    pub(super) fn of(weight: &dyn Weight) -> Vec<Self> {
        let parts = weight.parts();
        let weave = weight.view().and_then(|view| view.weave.as_ref());
        match weave.map(|weave| weave.pieces()).filter(|pieces| pieces.len() == parts.len()) {
            Some(pieces) => pieces
                .iter()
                .zip(parts)
                .map(|(piece, part)| {
                    let format = formats::of_dtype(part.dtype).ok()?;
                    Some(Self { shape: piece.shape.clone(), format, bytes: part.bytes })
                })
                .collect::<Option<_>>()
                .unwrap_or_default(),
            None => {
                let bytes = parts.iter().map(|part| part.bytes).sum();
                let format = formats::by_id(weight.format()).ok();
                format.map(|format| Self { shape: weight.shape().to_vec(), format, bytes }).into_iter().collect()
            }
        }
    }
}

impl fmt::Debug for Promotion {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} to {}", self.tensors.len(), self.to.map_or("auto", Format::id))
    }
}

/// The tensor of a file that a part of a weight lies in, which experts share.
pub(super) fn tensor_of(part: &str) -> String {
    expert(part).map_or_else(|| part.to_owned(), |(stack, _)| stack)
}

/// The tensors that a step writes.
fn tensors_of(step: &Step) -> HashSet<String> {
    match &step.action {
        Action::Copy { entry } => HashSet::from([tensor_of(&entry.name)]),
        Action::Recode(recode) => recode.to.parts().iter().map(|part| tensor_of(&part.name)).collect(),
        Action::Constant(constant) => HashSet::from([constant.name.clone()]),
    }
}

/// How many weights have something in each tensor.
fn sharing(plan: &Plan) -> HashMap<String, u64> {
    let mut sharing = HashMap::new();
    plan.steps.iter().flat_map(tensors_of).for_each(|tensor| *sharing.entry(tensor).or_default() += 1);
    sharing
}

/// A tensor that may take a wider type.
#[derive(Default)]
struct Candidate {
    /// What its weights lose, where that is known.
    losses: Vec<f64>,
    /// Bytes that it takes more.
    more: u64,
}

impl Candidate {
    fn loss(&self) -> f64 {
        self.losses.iter().sum::<f64>() / self.losses.len().max(1) as f64
    }
}

impl Promotion {
    /// True if nothing goes to another type that need not.
    pub(super) fn is_idle(&self) -> bool {
        self.to.is_none() && self.tensors.is_empty()
    }

    /// The type that a tensor takes in place of its own: a wider one, or where its own cannot be written any.
    fn next(&self, own: &Stored) -> Option<&'static dyn Format> {
        let to = self.to.filter(|to| takes(*to, &own.shape)).or_else(|| wider(own.format.id(), &own.shape))?;
        let is_wider = !own.format.is_written() || bytes_in(to, &own.shape)? > own.bytes;
        (is_wider && to.id() != own.format.id()).then_some(to)
    }

    /// The types of a weight's tensors, those that none is wider than among them; `None` where that are all.
    pub(super) fn types(&self, tensors: &[Stored]) -> Option<Vec<&'static dyn Format>> {
        let next: Vec<_> = tensors.iter().map(|own| self.next(own)).collect();
        let all = next.iter().zip(tensors).map(|(next, own)| next.unwrap_or(own.format));
        next.iter().any(Option::is_some).then(|| all.collect())
    }

    /// By how many bytes a weight grows.
    fn growth(&self, weight: &dyn Weight) -> Option<u64> {
        let tensors = Stored::of(weight);
        let have: u64 = tensors.iter().map(|own| own.bytes).sum();
        let types = self.types(&tensors)?;
        let bytes = types.iter().zip(&tensors).map(|(format, own)| {
            if format.id() == own.format.id() { Some(own.bytes) } else { bytes_in(*format, &own.shape) }
        });
        bytes.sum::<Option<u64>>()?.checked_sub(have).filter(|more| *more > 0)
    }

    /// The tensor that a weight lies in, and by how many bytes it grows with all that it holds.
    fn grown(&self, recode: &Recode, sharing: &HashMap<String, u64>) -> Option<(String, u64)> {
        let tensor = tensor_of(&recode.to.parts().first()?.name);
        let count = sharing.get(&tensor).copied().unwrap_or(1);
        Some((tensor, self.growth(recode.to.as_ref())?.saturating_mul(count)))
    }

    /// The fewest bytes that a tensor of a plan takes more; `None` where there is no wider type for any.
    pub fn least(&self, plan: &Plan) -> Option<u64> {
        let sharing = sharing(plan);
        let edited = plan.recodes().filter(|recode| !recode.edits.is_empty() && !recode.promoted);
        edited.filter_map(|recode| self.grown(recode, &sharing)).map(|(_, more)| more).min()
    }

    /// Of the tensors of a plan that was run, those that lose most, as far as the bytes that they take more do not exceed that share of the output's.
    ///
    /// A weight's loss is what rounding leaves of ‖E‖² for each ‖D‖², in the metric of its inputs where they are known; that of a tensor of several the mean of theirs. The worst comes first; one
    /// that does not fit is passed over. Ties are broken by the order of the plan, so the choice is a function of the plan and its figures.
    pub fn chosen(&self, plan: &Plan, figures: &[WeightReport], budget: f64) -> Self {
        let squared = |noise: f64| noise * noise;
        let losses: HashMap<&str, f64> = figures
            .iter()
            .filter_map(|weight| Some((&*weight.name, weight.noise_output.or(weight.noise_to_delta.map(squared))?)))
            .collect();
        let sharing = sharing(plan);
        let mut order = Vec::new();
        let mut candidates: HashMap<String, Candidate> = HashMap::new();
        for recode in plan.recodes().filter(|recode| !recode.edits.is_empty() && !recode.promoted) {
            if let (Some((tensor, more)), Some(loss)) = (self.grown(recode, &sharing), losses.get(recode.to.name())) {
                let candidate = candidates.entry(tensor.clone()).or_default();
                candidate.losses.push(*loss);
                candidate.more = more;
                if candidate.losses.len() == 1 {
                    order.push(tensor);
                }
            }
        }
        let loss = |tensor: &String| candidates.get(tensor).map_or(0.0, Candidate::loss);
        // Sorting is stable.
        order.sort_by(|a, b| loss(b).total_cmp(&loss(a)));
        let mut left = (budget * plan.output_bytes() as f64) as u64;
        let mut tensors = HashSet::new();
        for tensor in order {
            if let Some(rest) = candidates.get(&tensor).and_then(|candidate| left.checked_sub(candidate.more)) {
                left = rest;
                tensors.insert(tensor);
            }
        }
        Self { tensors: Arc::new(tensors), ..self.clone() }
    }
}

/// Only where a file says of each tensor how it is stored can one tensor have another type than its neighbours. Errors where the output is no such file.
#[doc(hidden)]
pub fn refuse_promotion(inputs: &Inputs, options: &Options) -> Result<()> {
    let into_gguf = options.export.map_or(options.to.is_none() && inputs.base.is_self_contained(), |export| {
        export.ending() == ".gguf" && export.quantizes()
    });
    if into_gguf {
        return Ok(());
    }
    Err(usage("--promote gives single tensors another type, which GGUF files of quantized types alone have room for")
        .with_hint("merge into a GGUF file: with a base in GGUF, or with --to and one of its types, as --to q4_k_m"))
}
