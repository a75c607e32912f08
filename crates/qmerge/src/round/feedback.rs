//! Feedback: along a row each value goes up or down so that what is left of the row cancels in the directions of the inputs that the adapter reads.
//!
//! Needs no data and no seed. Nearest rounding of a weight that lies on the grid already loses of the delta what is smaller than half a step, everywhere with
//! the same sign; here the errors of a row make up for each other in the adapter's own input directions, so that what it adds to the layer's output stays, and
//! what is left elsewhere is little more than the least. This is the error feedback of sigma-delta converters, with the adapter's rows as the signal band.

use super::{Position, Rounding};
use crate::formats::{Grid, Levels};
use crate::simd::feedback::{Around, LANES, feed_back};

pub(super) struct Feedback;

/// Weight of an error in any direction, where one in the adapter's counts 1: what is left of the gain and of the KL is best from 0.03 to 0.1.
const RIDGE: f32 = 0.03;

impl Rounding for Feedback {
    fn id(&self) -> &'static str {
        "feedback"
    }

    fn about(&self) -> &'static str {
        "values go up or down so that a row's errors cancel in the inputs that the adapter reads; needs no data"
    }

    fn keeps_scales(&self) -> bool {
        true
    }

    fn round(&self, grid: &Grid, values: &mut [f32], position: Position<'_>) {
        // An A of nothing but zeros reads nothing, and adds nothing.
        let Some(directions) = position.directions else { return };
        let cols = directions.inputs();
        let (mut low, mut high) = (Vec::new(), Vec::new());
        for (number, values) in values.chunks_mut(LANES * cols.max(1)).enumerate() {
            let around = match grid.levels {
                Levels::Floats(dtype) => Around::Floats(dtype),
                _ => {
                    [&mut low, &mut high].into_iter().for_each(|bound| bound.resize(values.len(), 0.0));
                    grid.around_all(number * LANES * cols, values, &mut low, &mut high);
                    Around::Given { low: &low, high: &high }
                }
            };
            feed_back(values, &directions.band, RIDGE, around);
        }
    }

    fn moves_values(&self) -> bool {
        true
    }

    fn goes_by_directions(&self) -> bool {
        true
    }

    fn rows_together(&self) -> usize {
        LANES
    }
}
