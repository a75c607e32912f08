//! What is found of each tensor, one after the other.

use super::compare::{Run, counterpart};
use super::experts::{Experts, Matrix, Twin};
use super::gone::Gone;
use super::judge::{Measured, judge};
use super::{State, VerifiedWeight, VerifyOptions};
use crate::adapters::Names;
use crate::error::{Error, Result};
use crate::measure::Sums;
use crate::open::Entry;
use crate::plan::{Recode, Source};

pub(super) struct Findings<'v, 'm> {
    run: Run<'v>,
    options: &'v VerifyOptions,
    /// The merge's weights.
    found: &'v Names<'m>,
    experts: Experts<'v, 'm>,
    pub(super) weights: Vec<VerifiedWeight>,
    /// Of all weights that adapters edit.
    pub(super) total: Sums,
    /// Tensors that no adapter touches, and that differ.
    pub(super) altered: Vec<String>,
    pub(super) gone: Gone<'v, 'm>,
}

impl<'v, 'm> Findings<'v, 'm> {
    /// Nothing yet.
    pub(super) fn new(
        run: Run<'v>,
        options: &'v VerifyOptions,
        found: &'v Names<'m>,
        experts: Experts<'v, 'm>,
    ) -> Self {
        let gone = Gone::new(run.inputs, run.merged, found);
        Self { run, options, found, experts, weights: Vec::new(), total: Sums::zero(), altered: Vec::new(), gone }
    }

    /// Takes a weight that adapters edit or replace, or that is written in another format.
    pub(super) fn take_edited(&mut self, name: &str, recode: &Recode) -> Result<()> {
        let (claim, matrices) = match counterpart(self.found, name)? {
            Some(claim) => (claim, None),
            None => match self.experts.twin(name) {
                Twin::Found(matrices) => match matrices.first().and_then(Matrix::claim) {
                    Some(claim) => (claim, Some(matrices)),
                    None => return Ok(()),
                },
                twin => {
                    self.gone.take(name, &twin);
                    return Ok(());
                }
            },
        };
        let run = &self.run;
        let in_tensor = |error: Error| error.in_tensor(name);
        let measured = match matrices {
            Some(matrices) => run.measure_experts(recode, matrices, claim),
            None => run.measure(recode, claim),
        };
        let (sums, rounded) = measured.map_err(in_tensor)?;
        if !recode.edits.is_empty() {
            self.total.add(&sums);
        }
        let chosen = || match matrices {
            Some(matrices) => run.chosen_experts(recode, matrices).map_err(in_tensor),
            None => run.chosen(recode, claim).map_err(in_tensor),
        };
        let is_replaced = recode.edits.is_empty() && recode.source != Source::Base && matrices.is_none();
        let of_base = || run.inputs.inventory.weights.iter().find(|own| own.weight.name() == name);
        let from_base = match is_replaced.then(of_base).flatten() {
            Some(base) => run.against_base(base, claim).map_err(in_tensor)?,
            None => None,
        };
        let measured = Measured { sums, rounded, from_base };
        let judged = judge(name, claim.weight.as_ref(), recode, &measured, self.options, chosen)?;
        if !recode.edits.is_empty() || recode.source != Source::Base {
            self.weights.push(judged);
        } else if judged.state != State::Replaced {
            // What only takes another type, with the tensor that it shares, holds the base's values.
            self.altered.push(name.to_owned());
        }
        Ok(())
    }

    /// Takes a tensor that no adapter touches.
    pub(super) fn take_copied(&mut self, entry: &Entry) -> Result<()> {
        if self.run.unchanged(entry, self.found)? {
            return Ok(());
        }
        if self.run.find_entry(self.found, entry)?.is_some() {
            self.altered.push(entry.name.clone());
            return Ok(());
        }
        let own = self.run.stored.get(entry.name.as_str()).copied();
        let twin = own.map_or(Twin::Unknown, |own| self.experts.twin(own.weight.name()));
        let is_same = match (own, &twin) {
            (Some(own), Twin::Found(matrices)) => match matrices.first().and_then(Matrix::claim) {
                Some(claim) => Some(self.run.unchanged_experts(own, matrices, claim)?),
                None => None,
            },
            _ => None,
        };
        match is_same {
            Some(true) => {}
            Some(false) => self.altered.push(entry.name.clone()),
            None => self.gone.take(&entry.name, &twin),
        }
        Ok(())
    }
}
