//! Which rounding method each weight takes, and why.
//!
//! A method is asked for, or left to the plan. What can be had depends on the weight: a method that goes by the inputs of layers needs to know them, one
//! that keeps the base's scales needs the base's own codes. So the method stands with each step, and the plan names the one that most rests on.

use std::collections::HashSet;
use std::sync::Arc;

use super::recode::{Recode, Source};
use super::steps::{Action, Step};
use crate::dtype::Dtype;
use crate::error::{Result, usage};
use crate::formats::Weight;
use crate::round::{self, Directions, MAX_FEATURES, Rounding, matrix_name};

/// What was asked for.
#[derive(Clone, Copy, Debug)]
pub enum Method {
    /// The best that each weight can have.
    Auto,
    /// This one, where a weight can have it.
    Named(&'static dyn Rounding),
}

impl Method {
    /// What goes by the outputs of layers has nothing to go by where there is no delta: values stay what they are.
    pub(super) fn without_delta(self) -> Self {
        match self {
            Self::Auto => Self::Named(round::WITHOUT_DELTA),
            Self::Named(method) if method.whole().is_some() => Self::Named(round::WITHOUT_DELTA),
            named => named,
        }
    }

    /// True if a plain weight whose inputs are not known, as an embedding, is rounded by a method that draws.
    pub(super) fn draws_plain(&self, data: &Data) -> bool {
        match self {
            Self::Auto => false,
            Self::Named(method) if method.whole().is_some() => matches!(data, Data::Unknown(_)),
            Self::Named(method) => method.is_random() || method.goes_by_directions(),
        }
    }
}

/// What will be known of the inputs of layers when the plan is run.
#[derive(Clone, Debug)]
pub enum Data {
    /// The moments of the inputs of these weights.
    Known(Arc<HashSet<String>>),
    /// Little of these weights' inputs: what few tokens show where the model can be run, else what their adapters read; and why nothing better.
    Guessed(Arc<HashSet<String>>, String),
    /// Nothing, and why.
    Unknown(String),
}

impl Data {
    fn knows(&self, weight: &str) -> bool {
        matches!(self, Self::Known(weights) | Self::Guessed(weights, _) if weights.contains(weight))
    }

    /// True if it knows all matrices of a stack.
    fn knows_stack(&self, weight: &str, matrices: usize) -> bool {
        matrices > 0 && (0..matrices).all(|number| self.knows(&matrix_name(weight, number)))
    }
}

/// The method that a plan rests on.
pub(super) struct Main {
    pub(super) rounding: &'static dyn Rounding,
    pub(super) reason: Option<String>,
    pub(super) warning: Option<String>,
}

/// Chooses for one weight after another.
pub(super) struct Chooser<'a> {
    asked: Method,
    data: &'a Data,
    /// The base's original is at hand.
    original: bool,
    /// Left to the plan, and some weight is to be calibrated: then all are that can be.
    calibrated: bool,
}

impl<'a> Chooser<'a> {
    /// `coarse` are the weights that change and end in a format coarser than 16 bits.
    pub(super) fn new<'n>(
        asked: Method,
        data: &'a Data,
        original: bool,
        mut coarse: impl Iterator<Item = &'n dyn Weight>,
    ) -> Self {
        let mut chooser = Self { asked, data, original, calibrated: false };
        let is_known = |weight: &dyn Weight| data.knows(weight.name()) || chooser.stack(weight).is_some();
        chooser.calibrated = matches!(asked, Method::Auto) && coarse.any(is_known);
        chooser
    }

    /// What a weight should have. `own` is true where it stays in the base's own format and there are scales to keep; `coarse` where what it ends in is
    /// coarser than 16 bits.
    pub(super) fn wanted(&self, own: bool, coarse: bool) -> &'static dyn Rounding {
        match self.asked {
            Method::Auto if self.calibrated => round::BEST,
            Method::Auto if own && coarse && self.original => round::ORIGINAL,
            Method::Auto if own && coarse => round::WITHOUT_DATA,
            Method::Auto => round::NEAREST,
            Method::Named(method) if method.whole().is_some() && matches!(self.data, Data::Unknown(_)) => {
                if own {
                    round::WITHOUT_DATA
                } else {
                    round::NEAREST
                }
            }
            Method::Named(method) if !own && method.whole().is_none() && method.keeps_scales() => {
                if coarse || !method.moves_values() { round::NEAREST } else { method }
            }
            Method::Named(method) => method,
        }
    }

    /// The number of matrices of a stack of which the inputs of each are known.
    pub(super) fn stack(&self, weight: &dyn Weight) -> Option<usize> {
        match *weight.shape() {
            [matrices, _, _] if self.data.knows_stack(weight.name(), matrices) => Some(matrices),
            _ => None,
        }
    }

    /// What it has in the end: a method that goes by a weight's inputs needs to know them, and something to choose.
    pub(super) fn settled(&self, recode: &Recode) -> &'static dyn Rounding {
        let whole = recode.rounding.whole().is_some();
        let is_left_open = match self.asked {
            Method::Auto => true,
            Method::Named(method) => method.whole().is_some(),
        };
        if whole && (recode.stack.is_some() || self.data.knows(recode.to.name())) && is_whole(recode) {
            recode.rounding
        } else if recode.turned {
            // It does not go by in rows, which other methods draw for or carry errors along.
            round::NEAREST
        } else if whole {
            recode.streamed()
        } else if recode.to.is_plain() && is_left_open {
            recode.fine()
        } else if recode.to.is_plain() && recode.edits.is_empty() && recode.rounding.moves_values() {
            round::NEAREST
        } else if recode.rounding.goes_by_directions() && !recode.has_directions() {
            round::WITHOUT_DATA
        } else {
            recode.rounding
        }
    }

    /// The method that was asked for or that stands for most, and what the user should know of the others.
    pub(super) fn main(&self, steps: &[Step]) -> Main {
        let recodes: Vec<(&str, &Recode)> = steps
            .iter()
            .filter_map(|step| match &step.action {
                Action::Recode(recode) => Some((step.name.as_str(), recode.as_ref())),
                Action::Copy { .. } | Action::Constant(_) => None,
            })
            .collect();
        let has = |method: &dyn Rounding| recodes.iter().any(|(_, recode)| recode.rounding.id() == method.id());
        let ranked = [round::BEST, round::ORIGINAL, round::FOR_16_BITS, round::WITHOUT_DATA];
        let most = ranked.into_iter().find(|method| has(*method));
        let most = most.unwrap_or(round::NEAREST);
        let unknown = match self.data {
            Data::Unknown(reason) => Some(reason.as_str()),
            Data::Known(_) | Data::Guessed(..) => None,
        };
        match self.asked {
            Method::Named(method) if recodes.is_empty() || has(method) => {
                let mut others = recodes.iter().filter(|(_, recode)| recode.rounding.id() != method.id());
                let warning = others.next().map(|(name, recode)| {
                    let number = 1 + others.count();
                    let cause = if method.whole().is_some() {
                        "nothing is known of their inputs, or there is nothing to choose"
                    } else {
                        "they have none of the base's scales"
                    };
                    format!(
                        "rounding {}: {number} of {} weights take another method, since {cause}; first `{name}`: {}",
                        method.id(),
                        recodes.len(),
                        recode.rounding.id()
                    )
                });
                Main { rounding: method, reason: None, warning }
            }
            Method::Named(method) => {
                let cause = unknown.unwrap_or("no weight of this merge can have it");
                Main {
                    rounding: most,
                    reason: Some(format!("{} was asked for, but {cause}", method.id())),
                    warning: None,
                }
            }
            Method::Auto => {
                let coarse = recodes.iter().any(|(_, recode)| !recode.to.is_plain());
                let reason = match unknown {
                    _ if self.calibrated => match self.data {
                        Data::Guessed(_, reason) => reason.clone(),
                        _ => "goes by what comes out of the layers".to_owned(),
                    },
                    _ if most.id() == round::ORIGINAL.id() => "rounded once, from the base's original".to_owned(),
                    Some(reason) if coarse => reason.to_owned(),
                    None if coarse => "nothing is known of the inputs of these weights".to_owned(),
                    _ if most.id() == round::FOR_16_BITS.id() => {
                        "a row's errors cancel in what the adapter reads; --rounding nearest rounds as PEFT does"
                            .to_owned()
                    }
                    _ if most.id() == round::WITHOUT_DATA.id() => {
                        "values are right on average; --rounding nearest rounds as PEFT does".to_owned()
                    }
                    _ => "no weight of this merge has a better method".to_owned(),
                };
                let cause = if self.calibrated {
                    "this merge is calibrated in its place; --rounding original rounds from it"
                } else {
                    "no weight keeps the base's scales"
                };
                let unused = self.original && !has(round::ORIGINAL);
                let warning = unused.then(|| format!("the original is not used: {cause}"));
                Main { rounding: most, reason: Some(reason), warning }
            }
        }
    }
}

impl Recode {
    /// The method where the weight is rounded row by row: its own, or what takes over from one that sees a whole weight.
    pub fn streamed(&self) -> &'static dyn Rounding {
        match self.rounding.whole() {
            None => self.rounding,
            Some(_) if self.to.is_plain() => self.fine(),
            Some(_) if !self.keeps_scales => round::NEAREST,
            Some(_) => round::WITHOUT_DATA,
        }
    }

    /// The method of a weight that ends in 16 bits or more, where nothing is known of its inputs. Tables of embeddings take the nearest values, as what an
    /// adapter brings whole does: their rows are looked up one by one, and errors do not add up.
    fn fine(&self) -> &'static dyn Rounding {
        let is_exact = self.to.value_dtype() == Dtype::F32;
        if is_exact || !self.is_layer || self.edits.is_empty() || self.source != Source::Base {
            return round::NEAREST;
        }
        if self.has_directions() { round::FOR_16_BITS } else { round::WITHOUT_DATA }
    }

    /// True if what its adapters read of the inputs of a row is known by few directions.
    fn has_directions(&self) -> bool {
        let rank = self.edits.iter().map(|(_, edit)| edit.plan.rank()).sum::<Option<usize>>();
        let matrix = !self.transposed && self.to.shape().len() == 2;
        matrix && rank.is_some_and(|rank| (1..=Directions::most(self.inputs())).contains(&rank))
    }
}

/// True for a matrix of the base that an adapter changes, or that takes another format, with something to choose: in f32 there is not.
fn is_whole(recode: &Recode) -> bool {
    let exact = recode.to.is_plain() && recode.to.value_dtype() == Dtype::F32;
    !exact
        && (!recode.keeps_scales || !recode.edits.is_empty())
        && recode.source == Source::Base
        && (recode.to.shape().len() == 2 || recode.has_matrices_apart())
        && recode.to.on_grid().is_some()
        && recode.inputs() <= MAX_FEATURES
}

/// A method that does nothing but keep scales cannot go with another format. `quantizes` says of another format than the base's whether values become codes.
pub(super) fn refuse_without_scales(asked: Method, quantizes: Option<bool>) -> Result<()> {
    match (asked, quantizes) {
        (Method::Named(method), Some(quantizes))
            if method.keeps_scales() && method.whole().is_none() && (quantizes || !method.moves_values()) =>
        {
            Err(usage(format!(
                "`--rounding {}` keeps the base's scales, and another format has none of them",
                method.id()
            ))
            .with_hint("leave out --to, or --rounding"))
        }
        _ => Ok(()),
    }
}
