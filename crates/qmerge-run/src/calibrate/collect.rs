//! Watches a pass over the text, and hands on what layers are given.

use std::ops::ControlFlow;

use qmerge::error::{Error, Kind, Result};
use qmerge::progress::Progress;
use qmerge::round::{Detail, Known, Take};

use super::moments::second_moments;
use super::overflow::OVERFLOWS;
use super::{PRECISION, SHOWN};
use crate::linear::{Input, Manner, Watch};
use crate::model::weight_name;
use crate::work;

/// Computes moments and hands them on.
pub(super) struct Collector<'c> {
    pub(super) wanted: &'c (dyn Fn(&str) -> bool + Sync),
    pub(super) take: &'c mut dyn Take,
    /// True if anything of the layer was wanted.
    pub(super) is_wanted: bool,
    /// Layers up to the last of which anything is wanted.
    pub(super) left: usize,
    /// The first weight whose inputs are not finite.
    pub(super) overflows: Option<String>,
    pub(super) progress: Option<&'c dyn Progress>,
    /// Done for moments so far.
    pub(super) work: u64,
    pub(super) detail: Detail,
    pub(super) served: Vec<usize>,
}

impl Watch for Collector<'_> {
    fn input(&mut self, paths: &[&str], input: &Input<'_>) -> Result<()> {
        let weights = paths.iter().map(|path| weight_name(path)).filter(|name| (self.wanted)(name));
        let weights: Vec<String> = weights.collect();
        let Some(first) = weights.first() else { return Ok(()) };
        let moments = second_moments(input.values(), input.tokens());
        let done = PRECISION.work(work::moments(moments.features, moments.tokens) as u64);
        self.work += done;
        if let Some(progress) = self.progress {
            progress.advance(done);
        }
        if moments.values.iter().any(|x| !x.is_finite()) {
            self.overflows = Some(first.clone());
            return Err(Error::new(Kind::NotFinite, OVERFLOWS));
        }
        self.is_wanted = true;
        self.take.known(Known { weights, moments, detail: self.detail })
    }

    fn weighs(&self) -> bool {
        true
    }

    fn manner(&self) -> Manner {
        PRECISION.into()
    }

    fn least(&self) -> usize {
        SHOWN
    }

    fn served(&mut self, tokens: &[usize]) {
        self.served.extend_from_slice(tokens);
    }

    fn layer(&mut self) -> Result<ControlFlow<()>> {
        if std::mem::take(&mut self.is_wanted) {
            self.take.layer()?;
        }
        self.left = self.left.saturating_sub(1);
        Ok(if self.left == 0 { ControlFlow::Break(()) } else { ControlFlow::Continue(()) })
    }
}
