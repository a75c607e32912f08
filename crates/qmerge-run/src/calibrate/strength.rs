//! How strong an adapter is while the model writes what a merge is calibrated on.
//!
//! What a model writes may hardly show what its adapter is for: of a model that writes code by itself, an adapter that was trained on verses changes little.
//! Moments of such text say little of the inputs for which the adapter is there. So the adapter is made stronger while the model writes, until it shows as much as adapters do that
//! were trained for longer; too strong, it makes no text any more. The moments are taken with the adapter as it is.

use std::ops::Range;

use qmerge::error::Result;

use super::PRECISION;
use super::written::Writing;
use crate::behaviour::judged_from;
use crate::compare::divergence;
use crate::linear::{Input, Manner, Watch};

/// Sequences that say how much an adapter shows at some strength.
pub(super) const LOOKED_AT: usize = 8;
/// Nats per token between the model with its adapter and without, on the text that it writes with it, from which the adapter shows there.
const SHOWS: f64 = 0.5;
/// Least and most that an adapter is made stronger; twice, where no stronger one was looked at.
const LEAST: f64 = 1.5;
const MOST: f64 = 8.0;
const UNSEEN: f64 = 2.0;
/// An adapter that does less does nothing.
const NOTHING: f64 = 1e-6;

/// By how many nats per token an adapter shows in these sequences, which the model wrote with the adapter so strong: KL between the model with it and without, in layers' linear layers.
pub(super) fn nats(writing: &Writing<'_, '_, '_>, sequences: &[Vec<u32>], strength: f64) -> Result<f64> {
    let model = writing.model;
    if model.linears().all(|linear| !linear.weight().is_edited()) {
        model.progress().iter().for_each(|progress| progress.skip(work(writing, sequences.len())));
        return Ok(0.0);
    }
    let sequences: Vec<&[u32]> = sequences.iter().map(Vec::as_slice).collect();
    // One that does nothing is to come to 0, so both are run alike.
    let pass = |strength| model.hidden(&sequences, &mut Quiet(Manner { precision: PRECISION, strength }));
    let hidden = [pass(strength as f32)?, pass(0.0)?];
    // A model of no positions at all has one token in each.
    let length = writing.length.max(1);
    let (from, all) = (judged_from(length, writing.beginnings), sequences.len() * length);
    let judged: Vec<usize> = (0..all).filter(|column| column % length >= from).collect();
    let hidden = hidden.map(|hidden| -> Vec<f32> {
        hidden.chunks_exact(all).flat_map(|row| judged.iter().map(|&column| row[column])).collect()
    });
    let mut logits = [Vec::new(), Vec::new()];
    let mut sum = 0.0;
    for columns in chunks(writing, judged.len()) {
        for (hidden, logits) in hidden.iter().zip(&mut logits) {
            model.logits_at(PRECISION, hidden, columns.clone(), logits)?;
        }
        sum += divergence(&logits, columns.len());
    }
    Ok(sum / judged.len().max(1) as f64)
}

/// Columns of logits at a time: no more than while the text was written.
fn chunks(writing: &Writing<'_, '_, '_>, judged: usize) -> impl Iterator<Item = Range<usize>> {
    let columns = (writing.together / 2).max(1);
    (0..judged).step_by(columns).map(move |start| start..judged.min(start + columns))
}

/// The strength to look at next, where an adapter as it is shows by so many nats: 1 where that is enough, and where it does nothing.
pub(super) fn second(nats: f64) -> f64 {
    if nats < NOTHING || !nats.is_finite() { 1.0 } else { halves((SHOWS / nats).sqrt().min(UNSEEN)) }
}

/// The strength at which an adapter shows, from what it is like at two: nats grow with the square of the strength, or faster.
pub(super) fn third(first: f64, (strength, nats): (f64, f64)) -> f64 {
    if !nats.is_finite() {
        return 1.0;
    }
    let nats = nats.max(1e-9);
    let power = (libm::log(nats / first) / libm::log(strength)).max(2.0);
    halves((strength * libm::pow(SHOWS / nats, 1.0 / power)).min(MOST))
}

/// In steps of a half, which say no more than a few sequences do; as it is where that is below the least.
fn halves(strength: f64) -> f64 {
    let strength = (2.0 * strength).round() / 2.0;
    if strength < LEAST { 1.0 } else { strength }
}

/// Work of looking at so many sequences at one strength.
pub(super) fn work(writing: &Writing<'_, '_, '_>, sequences: usize) -> u64 {
    let Writing { model, beginnings, length, .. } = *writing;
    let judged = sequences * length.saturating_sub(judged_from(length, beginnings));
    let logits: u64 = chunks(writing, judged).map(|columns| model.logits_work(PRECISION, columns.len())).sum();
    2 * (model.pass_work(PRECISION, sequences * length, length.div_ceil(2)) + logits)
}

/// A pass that nobody watches, in some manner.
struct Quiet(Manner);

impl Watch for Quiet {
    fn input(&mut self, _: &[&str], _: &Input<'_>) -> Result<()> {
        Ok(())
    }

    fn manner(&self) -> Manner {
        self.0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_adapter_that_shows_or_does_nothing_is_as_it_is() {
        for (nats, strength) in
            [(0.7, 1.0), (0.35, 1.0), (0.25, 1.5), (0.1, 2.0), (1e-4, 2.0), (1e-9, 1.0), (0.0, 1.0), (f64::NAN, 1.0)]
        {
            assert_eq!(second(nats), strength, "{nats}");
        }
    }

    #[test]
    fn one_that_hardly_shows_is_made_as_strong_as_it_takes() {
        // Nats by the square of the strength, by its cube; enough at the second look; far too much; never enough; overflowing.
        for (first, shown, strength) in [
            (0.02, (2.0, 0.08), 5.0),
            (0.0625, (2.0, 0.5), 2.0),
            (0.01, (2.0, 0.08), 3.5),
            (0.2, (1.5, 0.5), 1.5),
            (0.05, (2.0, 5.0), 1.5),
            (0.2, (1.5, 20.0), 1.0),
            (1e-4, (2.0, 4e-4), 8.0),
            (0.1, (2.0, f64::NAN), 1.0),
        ] {
            assert_eq!(third(first, shown), strength, "{first} {shown:?}");
        }
    }
}
