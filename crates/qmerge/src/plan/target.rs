//! What a weight becomes: a format in place of its own.

#![cfg_attr(not(test), deny(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing, clippy::panic))]

use std::collections::HashSet;
use std::sync::Arc;

use super::Options;
use super::export::{self, Destination, Exported};
use super::promote::{Stored, tensor_of};
use super::quantized::{Quantized, is_reversed};
use crate::adapters::Names;
use crate::arch::gguf::{View, Weave};
use crate::dtype::Dtype;
use crate::error::Result;
use crate::formats::{self, Claim, Settings, Weight, Woven};

/// True if a weight ends in a format coarser than 16 bits.
pub(super) fn is_coarse(target: Option<&TargetFormat>, claim: &Claim) -> bool {
    target.map_or(!claim.weight.is_plain(), |target| target.format.quantizes())
}

/// A format that a weight takes in place of its own.
#[derive(Clone)]
pub(super) struct TargetFormat {
    pub(super) format: &'static dyn formats::Format,
    /// Its dimensions change places.
    pub(super) reversed: bool,
    /// How another container has it, where it has it otherwise than the model.
    pub(super) view: Option<View>,
    /// How large its inputs are, for an encoder that goes by it.
    pub(super) importance: Option<Arc<[f32]>>,
    /// The same of the other tensors, where it lies in several.
    pub(super) others: Vec<export::Kind>,
    /// It is wider than what it would be else.
    pub(super) promoted: bool,
}

impl TargetFormat {
    /// The tensors of a weight of such dimensions.
    fn stored(&self, shape: &[usize]) -> Vec<Stored> {
        let Some(weave) = self.view.as_ref().and_then(|view| view.weave.as_ref()) else {
            return vec![Stored::made(shape, self.format)];
        };
        let format = |number: usize| match number.checked_sub(1) {
            Some(other) => self.others.get(other).map_or(self.format, |(format, _)| *format),
            None => self.format,
        };
        weave.pieces().iter().enumerate().map(|(number, piece)| Stored::made(&piece.shape, format(number))).collect()
    }

    /// A weight in several tensors, or turned.
    pub(super) fn woven(
        &self,
        (weave, view): (Arc<Weave>, View),
        dtype: Dtype,
        settings: &Settings,
    ) -> Result<Arc<dyn Weight>> {
        let first = || (self.format, self.importance.clone());
        let mut pieces = Vec::new();
        for (number, piece) in weave.pieces().iter().enumerate() {
            let (format, importance) = match number.checked_sub(1) {
                Some(other) => self.others.get(other).cloned().unwrap_or_else(first),
                None => first(),
            };
            let weight = format.create(&piece.stored, &piece.shape, dtype, settings)?;
            let weighted = importance.and_then(|importance| weight.writer()?.weighted(&importance));
            pieces.push(weighted.unwrap_or(weight));
        }
        Ok(Arc::new(Woven::new(pieces, view, weave)))
    }
}

/// What weights become.
pub(super) struct Targets<'a, 'n> {
    pub(super) options: &'a Options,
    pub(super) names: &'a Names<'n>,
    pub(super) quantized: &'a Quantized<'n>,
    pub(super) exported: Option<&'a Exported>,
    /// Tensors that hold what an adapter changes and nobody can write as it is stored.
    unwritten: HashSet<String>,
}

impl<'a, 'n> Targets<'a, 'n> {
    /// `touched` says whether an adapter changes the weight of a name.
    pub(super) fn new(
        (options, names): (&'a Options, &'a Names<'n>),
        quantized: &'a Quantized<'n>,
        exported: Option<&'a Exported>,
        touched: impl Fn(&str) -> bool,
    ) -> Self {
        let mut all = Self { options, names, quantized, exported, unwritten: HashSet::new() };
        if options.promote.is_some() {
            let is_unwritten = |claim: &&Claim| {
                let name = claim.weight.name();
                claim.weight.writer().is_none() && touched(name) && all.unpromoted(name, claim).is_none()
            };
            let tensors = names.weights.iter().filter(is_unwritten).map(|claim| all.tensor(claim.weight.name(), claim));
            all.unwritten = tensors.collect();
        }
        all
    }

    /// The tensor of the output that the weight of that name lies in, or the first of several.
    fn tensor(&self, name: &str, claim: &Claim) -> String {
        let stored = match self.exported.and_then(|exported| exported.places.get(name)) {
            Some(Destination::Tensor { view, .. }) => view.as_ref().map_or(name, |view| &view.stored).to_owned(),
            _ => match claim.weight.view() {
                Some(view) => view.named(name).stored,
                None => claim.weight.parts().first().map_or(name, |part| &part.name).to_owned(),
            },
        };
        tensor_of(&stored)
    }

    /// What the weight of that name becomes, whose values a base weight has; `None` where it stays in that one's format.
    pub(super) fn of(&self, name: &str, claim: &Claim) -> Option<TargetFormat> {
        let target = self.unpromoted(name, claim);
        self.promoted(name, claim, target.as_ref()).or(target)
    }

    /// A wider type, for what is to have one.
    fn promoted(&self, name: &str, claim: &Claim, target: Option<&TargetFormat>) -> Option<TargetFormat> {
        let promotion = self.options.promote.as_ref()?;
        let tensor = self.tensor(name, claim);
        if !promotion.tensors.contains(&tensor) && !self.unwritten.contains(&tensor) {
            return None;
        }
        let view = target.map_or_else(|| claim.weight.view().cloned(), |target| target.view.clone());
        let own = match target {
            Some(target) => target.stored(claim.weight.shape()),
            None => Stored::of(claim.weight.as_ref()),
        };
        let mut types = promotion.types(&own)?.into_iter();
        let format = types.next()?;
        let importance = |number: usize| target?.others.get(number)?.1.clone();
        Some(TargetFormat {
            format,
            reversed: target.is_some_and(|target| target.reversed),
            others: types.enumerate().map(|(number, format)| (format, importance(number))).collect(),
            importance: target.and_then(|target| target.importance.clone()),
            view,
            promoted: true,
        })
    }

    fn unpromoted(&self, name: &str, claim: &Claim) -> Option<TargetFormat> {
        if let Some(exported) = self.exported {
            return match exported.places.get(name)? {
                Destination::Tensor { view, format, importance, others } => Some(TargetFormat {
                    format: *format,
                    reversed: is_reversed(self.names, claim.weight.as_ref(), view.is_none() && !format.quantizes()),
                    view: view.clone(),
                    importance: importance.clone(),
                    others: others.clone(),
                    promoted: false,
                }),
                Destination::Nowhere | Destination::Same => None,
            };
        }
        let format = self.options.to?;
        let weight = claim.weight.as_ref();
        if format.id() == weight.format() {
            return None;
        }
        let takes = !format.quantizes() || !weight.is_plain() || self.quantized.takes(weight);
        let reversed = is_reversed(self.names, weight, !format.quantizes());
        takes.then_some(TargetFormat {
            format,
            reversed,
            view: None,
            importance: None,
            others: Vec::new(),
            promoted: false,
        })
    }
}
