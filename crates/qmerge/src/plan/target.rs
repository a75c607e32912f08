//! What a weight becomes: a format in place of its own.

#![cfg_attr(not(test), deny(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing, clippy::panic))]

use std::sync::Arc;

use super::Options;
use super::export::{self, Destination, Exported};
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
}

impl Targets<'_, '_> {
    /// What the weight of that name becomes, whose values a base weight has; `None` where it stays in that one's format. `touched` by an adapter it may take a wider one.
    pub(super) fn of(&self, name: &str, claim: &Claim, touched: bool) -> Option<TargetFormat> {
        let target = self.unpromoted(name, claim);
        let promotion = self.options.promote.as_ref().filter(|_| touched);
        let own = target.as_ref().map_or(claim.weight.format(), |target| target.format.id());
        match promotion.and_then(|promotion| promotion.of(claim, own, target.is_some())) {
            Some(format) => {
                let view = || claim.weight.view().cloned();
                let unmoved = || TargetFormat {
                    format,
                    reversed: false,
                    view: view(),
                    importance: None,
                    others: Vec::new(),
                    promoted: true,
                };
                Some(TargetFormat { format, promoted: true, ..target.unwrap_or_else(unmoved) })
            }
            None => target,
        }
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
