//! How a weight of the output is stored: its type, under whose scales, and where in the file.

#![cfg_attr(not(test), deny(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing, clippy::panic))]

use std::sync::Arc;

use super::target::{TargetFormat, Targets};
use crate::arch::gguf::{Piece, View};
use crate::dtype::Dtype;
use crate::error::{Error, Result, unsupported};
use crate::formats::plain::PlainWeight;
use crate::formats::{self, Claim, Padded, Settings, Viewed, Weight, Woven};

/// A weight of which it is not decided yet how it is stored.
pub(super) struct Unstored<'w> {
    pub(super) name: &'w str,
    /// The base's weight in whose place it comes.
    pub(super) claim: &'w Claim,
    /// Its dimensions in the model.
    pub(super) shape: &'w [usize],
    /// Edits add to it.
    pub(super) additive: bool,
    /// The type that an edit stores it in.
    pub(super) stores_as: Option<Dtype>,
    /// The base's scales stay.
    pub(super) keeps_scales: bool,
    /// What the file has in another way than the model.
    pub(super) view: Option<View>,
}

impl Unstored<'_> {
    /// The weight of the output, in the format that it takes in place of its own if there is one.
    pub(super) fn stored(self, target: Option<&TargetFormat>, targets: &Targets<'_, '_>) -> Result<Arc<dyn Weight>> {
        let settings = &targets.options.settings;
        let woven = self.view.as_ref().and_then(|view| Some((view.weave.clone()?, view.clone())));
        let to: Arc<dyn Weight> = match (target, self.stores_as, woven) {
            (Some(target), _, Some(woven)) => target.woven(woven, self.dtype(), settings)?,
            (None, Some(dtype), Some((weave, view))) => {
                let piece = |piece: &Piece| Arc::new(PlainWeight::new(&piece.stored, &piece.shape, dtype)) as _;
                Arc::new(Woven::new(weave.pieces().iter().map(piece).collect(), view, weave))
            }
            (_, Some(dtype), None) if targets.exported.is_none() => self.plain(dtype),
            (Some(target), _, None) => self.of_format(target, settings)?,
            (None, ..) => self.of_own_format(settings)?,
        };
        let importance = target.and_then(|target| target.importance.as_ref()).filter(|_| to.view().is_none());
        let to = importance.and_then(|importance| to.writer()?.weighted(importance)).unwrap_or(to);
        let to = match self.view.as_ref().map_or(0, |view| view.padding) {
            0 => to,
            padding => Arc::new(Padded::new(to, padding)),
        };
        Ok(match self.view {
            Some(view) if to.view().is_none() => Arc::new(Viewed::new(to, view)),
            _ => to,
        })
    }

    /// The type of values that a format takes: f32 of a sum that is quantized, else the base's.
    fn dtype(&self) -> Dtype {
        let base = &self.claim.weight;
        if self.additive && !base.is_plain() { Dtype::F32 } else { base.value_dtype() }
    }

    /// Its name in the file.
    fn stored_name(&self) -> &str {
        self.view.as_ref().map_or(self.name, |view| view.stored.as_str())
    }

    fn plain(&self, dtype: Dtype) -> Arc<dyn Weight> {
        Arc::new(PlainWeight::new(self.stored_name(), self.shape, dtype))
    }

    fn of_format(&self, target: &TargetFormat, settings: &Settings) -> Result<Arc<dyn Weight>> {
        let mut shape = self.shape.to_vec();
        if let (true, [.., rows, cols]) = (target.reversed, shape.as_mut_slice()) {
            std::mem::swap(rows, cols);
        }
        if let (Some(view), Some(rows)) = (&self.view, shape.first_mut()) {
            *rows = rows.saturating_add(view.padding);
        }
        target.format.create(self.stored_name(), &shape, self.dtype(), settings)
    }

    /// In the base's format: under its scales, or under fresh ones.
    fn of_own_format(&self, settings: &Settings) -> Result<Arc<dyn Weight>> {
        let base = &self.claim.weight;
        let is_renamed = self.name != base.name();
        let is_woven = self.view.as_ref().is_some_and(|view| view.weave.is_some());
        if self.keeps_scales {
            Ok(Arc::clone(base))
        } else if base.is_plain() && (is_renamed || !is_woven) {
            Ok(self.plain(self.dtype()))
        } else if self.view.is_some() && is_renamed {
            formats::by_id(base.format())?.create(self.stored_name(), self.shape, self.dtype(), settings)
        } else {
            let writer = base.writer().ok_or_else(|| only_read(base.as_ref()))?;
            writer.renewed(self.dtype(), settings)
        }
    }
}

/// Some types can be read, and nobody has said how to write them.
fn only_read(weight: &dyn Weight) -> Error {
    unsupported(format!("stored as {}, which can be read but not written", weight.format()))
        .in_tensor(weight.name())
        .with_hint(if formats::by_id(weight.format()).is_ok_and(|format| format.is_of_gguf()) {
            formats::OTHER_TYPES
        } else {
            "--to names another format for the output"
        })
}
