//! Descent: each value and scale moves to where the layer's output on real inputs comes closest to that of the adapter kept apart.

use super::descend::{PLAIN, descend};
use super::matrix::{Judged, Matrix};
use super::{Detail, Rounding, Whole};

pub(super) struct Descent;

impl Rounding for Descent {
    fn id(&self) -> &'static str {
        "descent"
    }

    fn about(&self) -> &'static str {
        "coordinate descent on the error of each layer's output; needs calibration"
    }

    fn whole(&self) -> Option<&dyn Whole> {
        Some(self)
    }
}

impl Whole for Descent {
    fn nanoseconds(&self, inputs: usize, _: bool, _: Detail) -> f64 {
        super::descend::nanoseconds(inputs)
    }

    fn round(&self, matrix: &mut Matrix<'_>) -> Judged {
        descend(matrix, PLAIN)
    }
}
