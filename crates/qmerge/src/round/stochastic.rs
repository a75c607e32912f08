//! Stochastic: on the base's scales each value goes up or down at random, so that the mean is right and a small delta survives as a small number of moves.
//!
//! Needs no data. The chances come from the seed, the weight's name and the element's number, so the result depends on nothing else.

use super::{Position, Rounding};
use crate::formats::Grid;
use crate::linalg::hash;

/// Values that are bracketed together.
const BATCH: usize = 1024;

pub(super) struct Stochastic;

impl Rounding for Stochastic {
    fn id(&self) -> &'static str {
        "stochastic"
    }

    fn about(&self) -> &'static str {
        "the base's scales stay, each value goes up or down at random with the right mean; needs no data"
    }

    fn keeps_scales(&self) -> bool {
        true
    }

    fn round(&self, grid: &Grid, values: &mut [f32], position: Position<'_>) {
        let (mut low, mut high) = ([0.0; BATCH], [0.0; BATCH]);
        for (number, values) in values.chunks_mut(BATCH).enumerate() {
            let first = number * BATCH;
            let (low, high) = (&mut low[..values.len()], &mut high[..values.len()]);
            grid.around_all(first, values, low, high);
            for (k, value) in values.iter_mut().enumerate() {
                let (low, high) = (low[k], high[k]);
                let drawn = hash(position.seed ^ hash(position.first + (first + k) as u64));
                let chance = (drawn >> 40) as f32 / (1_u32 << 24) as f32;
                // What is out of the range of a 16-bit type stays what it is, for the check to find.
                if (high - low).is_finite() {
                    *value = if *value - low > chance * (high - low) { high } else { low };
                }
            }
        }
    }

    fn moves_values(&self) -> bool {
        true
    }

    fn is_random(&self) -> bool {
        true
    }
}
