//! A weight of the output whose scales are decided: the base's own, or fresh ones.

use std::ops::Range;
use std::sync::Arc;

use crate::error::{Error, Kind, Result};
use crate::formats::{Choices, Grid, OnGrid, Order, Settled, Weight, Writer, within};
use crate::plan::Recode;

/// The weight, and the parts of it that are complete.
pub(super) struct Target {
    pub(super) weight: Arc<dyn Weight>,
    /// Complete parts; `None` for those that each chunk fills.
    pub(super) parts: Vec<Option<Vec<u8>>>,
}

/// The plan takes weights that can be stored only.
fn unplanned(weight: &dyn Weight) -> Error {
    Error::new(Kind::Bug, format!("{} cannot be stored this way", weight.format())).in_tensor(weight.name())
}

/// How a weight takes fresh scales.
pub(super) fn writer(weight: &dyn Weight) -> Result<&dyn Writer> {
    weight.writer().ok_or_else(|| unplanned(weight))
}

/// How a weight takes values under the scales that it has.
pub(super) fn on_grid(weight: &dyn Weight) -> Result<&dyn OnGrid> {
    weight.on_grid().ok_or_else(|| unplanned(weight))
}

/// The grid of a whole weight in an order in which runs of outputs' rows share scales, and that order; `stored` is what is known of the weight's own.
pub(super) fn ordered(weight: &dyn Weight, stored: &Order, parts: &[&[u8]]) -> Result<(Order, Grid)> {
    let on_grid = on_grid(weight)?;
    if let Some((order, grid)) = on_grid.ordered(parts) {
        return Ok((order, grid));
    }
    let grid = on_grid.grid(parts, 0..weight.geometry().rows);
    // Scales that runs of inputs' rows share are no grid of the outputs.
    if stored.transposed && !grid.scales.is_empty() {
        return Err(unplanned(weight));
    }
    Ok((stored.clone(), grid))
}

/// The grid of one matrix of a stack, the stored `rows`, which `parts` are of.
pub(super) fn of_matrix(weight: &dyn Weight, stored: &Order, parts: &[&[u8]], rows: &Range<usize>) -> Result<Grid> {
    let mut grid = on_grid(weight)?.grid(parts, rows.clone());
    // What all matrices share is not one's to change.
    if (0..parts.len()).any(|part| weight.part_rows(part, rows).is_none()) {
        grid.choices = Choices::Fixed;
        grid.offset_choices = Choices::Fixed;
    }
    if stored.transposed { grid.turned(weight.geometry().cols).ok_or_else(|| unplanned(weight)) } else { Ok(grid) }
}

impl Target {
    /// With the base's scales; `uncut` are the parts of the base that are not cut by rows.
    pub(super) fn of_base(recode: &Recode, uncut: &[Option<Vec<u8>>]) -> Self {
        Self { weight: Arc::clone(&recode.to), parts: uncut.to_vec() }
    }

    /// With fresh scales, from what surveys of its rows held; `uncut` as in [`Target::of_base`].
    pub(super) fn settled(recode: &Recode, held: &[f32], uncut: &[Option<Vec<u8>>]) -> Result<Self> {
        let own = if recode.from.weight.format() == recode.to.format() { uncut } else { &[] };
        let Settled { weight, parts } = writer(recode.to.as_ref())?.settle(held, own);
        Ok(Self { weight, parts })
    }

    /// The bytes of each part that belong to `rows`, some of those that were encoded.
    pub(super) fn parts_of<'b>(
        &'b self,
        encoded: &'b [Vec<u8>],
        all: &Range<usize>,
        rows: &Range<usize>,
    ) -> Vec<&'b [u8]> {
        let weight = self.weight.as_ref();
        let bytes = |(part, complete): (usize, &'b Option<Vec<u8>>)| match complete {
            Some(bytes) => within(weight, part, Some(bytes), &(0..weight.geometry().rows), rows),
            None => within(weight, part, encoded.get(part), all, rows),
        };
        self.parts.iter().enumerate().map(bytes).collect()
    }
}
