//! What adapters do to rows of a weight.
//!
//! An edit is a [`Change`], which knows nothing of storage, put in a [`Place`], which knows nothing of methods. A change is added, or it is a map that turns
//! the values so far into others (DoRA rescales them, trained tokens replace some). Deltas of several adapters are summed in f32 before they meet the
//! weight, so the result is rounded once. Edits know rows and columns, and nothing of formats, files or rounding.

mod change;
mod factors;
mod low_rank;
mod operators;
mod place;
#[cfg(test)]
mod tests;

use std::ops::Range;

pub use change::{ALL, Change, Delta, FeatureScales, Map, Product, Reach, ReplaceRows, Side, Tile, Vector};
pub use factors::{factors, rank};
pub use low_rank::Applied;
use low_rank::LowRank;
pub use operators::{Joining, Kept, Majority, OPERATORS, Operator, join};
pub use place::{Place, Spot, Stride};

/// A loaded edit of one weight.
#[derive(Debug)]
pub struct Edit {
    kind: Kind,
    /// Stored rows that have to be edited together.
    row_step: usize,
    needs_survey: bool,
}

#[derive(Debug)]
enum Kind {
    Product(LowRank),
    Add(Vec<(Spot, Box<dyn Delta>)>),
    Map(Vec<Mapped>),
}

/// An edit that acts on activations in place of the weight.
#[derive(Debug)]
pub enum Aside<'e> {
    /// Adds `scale · left · right · x` to the outputs.
    Product(Applied<'e>),
    /// Adds to the outputs, see [`Delta::forward`].
    Delta(&'e dyn Delta),
    /// Turns inputs or outputs, see [`Map::forward`].
    Map(&'e dyn Map, Side),
}

/// A map of one matrix, and what a survey has summed for it so far.
#[derive(Debug)]
struct Mapped {
    spot: Spot,
    map: Box<dyn Map>,
    sums: Vec<f32>,
}

impl Edit {
    /// Puts a change in its place. It holds the matrices that the place speaks of, from the first one on.
    pub fn new(change: Change, place: &Place, reach: Reach) -> Self {
        let spots = place.spots.iter().cloned();
        let kind = match change {
            Change::Product(products) => Kind::Product(LowRank::new(products, spots)),
            Change::Add(deltas) => Kind::Add(spots.zip(deltas).collect()),
            Change::Map(maps) => {
                Kind::Map(spots.zip(maps).map(|(spot, map)| Mapped { spot, map, sums: Vec::new() }).collect())
            }
        };
        Self { kind, row_step: place.row_step(reach), needs_survey: place.needs_survey(reach) }
    }

    /// True if it is a sum.
    pub fn is_additive(&self) -> bool {
        !matches!(self.kind, Kind::Map(_))
    }

    /// Stored rows that have to be edited together: a chunk begins at a multiple, and ends at one or with the weight.
    pub fn row_step(&self) -> usize {
        self.row_step
    }

    /// True if it needs sums over the whole weight first.
    pub fn needs_survey(&self) -> bool {
        self.needs_survey
    }

    /// Adds these rows of the base to the sums. Called for all rows in order, from one thread.
    pub fn survey(&mut self, rows: &Range<usize>, cols: usize, base: &[f32]) {
        let Kind::Map(maps) = &mut self.kind else { return };
        for Mapped { spot, map, sums } in maps {
            for run in spot.runs(rows, cols) {
                map.survey(&run.tile, &run.gather(base), sums);
            }
        }
    }

    /// Ends the survey; called once, before any [`apply`].
    pub fn settle(&mut self) {
        let Kind::Map(maps) = &mut self.kind else { return };
        for Mapped { map, sums, .. } in maps {
            map.settle(std::mem::take(sums));
        }
    }

    /// How it acts on activations beside a layer whose weight, of `rows` rows, stays as it is; a product's own rounding is left out. None if it cannot.
    pub fn aside(&self, rows: usize) -> Option<Aside<'_>> {
        match &self.kind {
            Kind::Product(low_rank) => low_rank.over(rows).map(Aside::Product),
            Kind::Add(deltas) => match &deltas[..] {
                [(spot, delta)] if spot.covers(rows) && delta.has_forward() => Some(Aside::Delta(delta.as_ref())),
                _ => None,
            },
            Kind::Map(maps) => match &maps[..] {
                [Mapped { spot, map, .. }] if spot.covers(rows) => Some(Aside::Map(map.as_ref(), map.side()?)),
                _ => None,
            },
        }
    }

    /// The side of the layer that it acts on, wherever it lies; none if it is no product with W from one side.
    pub fn side(&self) -> Option<Side> {
        let Kind::Map(maps) = &self.kind else { return None };
        let side = maps.first()?.map.side()?;
        maps.iter().all(|own| own.map.side() == Some(side)).then_some(side)
    }

    /// `delta (rows, cols) += D[rows]`, or `=` where `fresh`.
    fn add(&self, rows: &Range<usize>, cols: usize, fresh: bool, delta: &mut [f32]) {
        match &self.kind {
            Kind::Product(low_rank) => low_rank.add(rows, cols, fresh, delta),
            Kind::Add(deltas) => {
                if fresh {
                    delta.fill(0.0);
                }
                let mut own = Vec::new();
                for (run, source) in
                    deltas.iter().flat_map(|(spot, source)| spot.runs(rows, cols).map(move |run| (run, source)))
                {
                    match run.contiguous().filter(|_| fresh) {
                        Some(range) => source.tile(&run.tile, &mut delta[range]),
                        None => {
                            own.clear();
                            own.resize(run.tile.len(), 0.0);
                            source.tile(&run.tile, &mut own);
                            run.add(&own, delta);
                        }
                    }
                }
            }
            Kind::Map(_) => {}
        }
    }

    /// Turns `values (rows, cols)` into others.
    fn map(&self, rows: &Range<usize>, cols: usize, base: &[f32], values: &mut [f32]) {
        let Kind::Map(maps) = &self.kind else { return };
        for Mapped { spot, map, .. } in maps {
            for run in spot.runs(rows, cols) {
                match run.contiguous() {
                    Some(range) => map.apply(&run.tile, &base[range.clone()], &mut values[range]),
                    None => {
                        let mut own = run.gather(values);
                        map.apply(&run.tile, &run.gather(base), &mut own);
                        run.scatter(&own, values);
                    }
                }
            }
        }
    }
}

/// Applies edits in order to a chunk of rows: `base (rows, cols)` becomes `values`.
pub fn apply(edits: &[Edit], rows: &Range<usize>, cols: usize, base: &[f32], values: &mut [f32]) {
    if let [Edit { kind: Kind::Product(edit), .. }] = edits
        && edit.add_onto(rows, base, values)
    {
        return;
    }
    values.copy_from_slice(base);
    let mut delta = vec![0.0; base.len()];
    // True while `delta` holds a sum that `values` lacks.
    let mut pending = false;
    for edit in edits {
        if edit.is_additive() {
            edit.add(rows, cols, !pending, &mut delta);
            pending = true;
        } else {
            if std::mem::take(&mut pending) {
                add_to(values, &delta);
            }
            edit.map(rows, cols, base, values);
        }
    }
    if pending {
        add_to(values, &delta);
    }
}

/// The number of rows that all of them, and chunks of `step` rows, can be cut by.
pub(crate) fn common_step(step: usize, other: usize) -> usize {
    let (mut a, mut b) = (step.max(1), other.max(1));
    while b != 0 {
        (a, b) = (b, a % b);
    }
    (step.max(1) / a).saturating_mul(other.max(1))
}

fn add_to(values: &mut [f32], delta: &[f32]) {
    for (value, delta) in values.iter_mut().zip(delta) {
        *value += delta;
    }
}
