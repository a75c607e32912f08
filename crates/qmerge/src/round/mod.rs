//! How codes are chosen. One file per method and one line in [`ROUNDINGS`].
//!
//! A method either has the format fit fresh scales and take the nearest code (that is the format's own reference quantizer), or
//! keeps the base's scales and chooses values on their grid. Methods see grids, never formats, so any method works on any format.

mod adapter;
mod added;
mod by_inputs;
mod descend;
mod descent;
mod directions;
mod factor;
mod feedback;
mod gptq;
mod imatrix;
mod keep;
mod matrix;
mod moments;
mod nearest;
mod origin;
mod original;
mod stochastic;
mod store;
mod stored;

use crate::error::{Result, usage};
use crate::formats::Grid;
use crate::linalg::hash;

#[doc(hidden)]
pub use crate::linalg::Factors;
pub use added::AddedCalibration;
pub(crate) use by_inputs::Pieces;
#[doc(hidden)]
pub use directions::Directions;
#[doc(hidden)]
pub use factor::{Cut, cut, sketch};
pub(crate) use factor::{products, weighted};
pub use imatrix::Imatrix;
pub(crate) use matrix::LEAST_PROBES;
#[doc(hidden)]
pub use matrix::Matrix;
#[doc(hidden)]
pub use matrix::{Judged, OutputKept};
#[doc(hidden)]
pub use moments::Metric;
pub(crate) use moments::metric_bytes;
#[doc(hidden)]
pub use moments::weight_of;
pub use moments::{Calibration, Demand, Detail, InputMoments, Known, LayerInputs, Seen, Take, matrix_name};
pub(crate) use origin::identity;
pub use store::store;
pub use stored::StoredCalibration;

/// Every method.
pub static ROUNDINGS: &[&dyn Rounding] = &[
    &adapter::Adapter,
    &descent::Descent,
    &gptq::Gptq,
    &original::Original,
    &feedback::Feedback,
    &stochastic::Stochastic,
    &keep::Keep,
    &nearest::Nearest,
];

/// The method that keeps most where the inputs of layers are known.
pub static BEST: &dyn Rounding = &adapter::Adapter;

/// The method that takes over where one needs the moments of a weight's inputs and there are none.
#[doc(hidden)]
pub(crate) static WITHOUT_DATA: &dyn Rounding = &stochastic::Stochastic;

/// The method for a layer's weight in 16 bits that an adapter changes, where nothing is known of its inputs.
#[doc(hidden)]
pub(crate) static FOR_16_BITS: &dyn Rounding = &feedback::Feedback;

/// The method where there is no delta: with the base's own scales its values stay what they are.
#[doc(hidden)]
pub(crate) static WITHOUT_DELTA: &dyn Rounding = &keep::Keep;

/// The nearest code to the weight that the base was made from.
#[doc(hidden)]
pub static ORIGINAL: &dyn Rounding = &original::Original;

/// What PEFT does.
pub static NEAREST: &dyn Rounding = &nearest::Nearest;

/// Most inputs of a weight that is rounded as a whole: beyond this the moments alone take 16 GiB, and what errors are carried by as much.
#[doc(hidden)]
pub(crate) const MAX_FEATURES: usize = 1 << 16;

/// Where some rows lie.
#[doc(hidden)]
#[derive(Clone, Copy, Debug)]
pub struct Position<'p> {
    /// Seed of the weight.
    pub seed: u64,
    /// Number of the first element.
    pub first: u64,
    /// Those of the inputs that the adapter reads, where rows are outputs and the method goes by them.
    pub directions: Option<&'p Directions>,
}

/// The seed of a weight: the same for the same name and seed of the run.
#[doc(hidden)]
pub(crate) fn seed_of(name: &str, seed: u64) -> u64 {
    name.bytes().fold(hash(seed), |state, byte| hash(state ^ u64::from(byte)))
}

/// A rounding method.
pub trait Rounding: Sync {
    /// Its name in `--rounding` and in the report.
    fn id(&self) -> &'static str;

    /// One line for the help and the documentation.
    fn about(&self) -> &'static str;

    /// True if the base's scales stay as they are. Needs an output in the base's own format.
    fn keeps_scales(&self) -> bool {
        self.whole().is_some()
    }

    /// Moves the values of some whole rows to values near them; what is not on the grid afterwards takes the nearest level.
    /// Called only if [`Rounding::keeps_scales`].
    fn round(&self, _grid: &Grid, _values: &mut [f32], _position: Position<'_>) {}

    /// True if [`Rounding::round`] does anything, so that grids must be built.
    fn moves_values(&self) -> bool {
        false
    }

    /// True if [`Rounding::round`] goes by [`Position::directions`].
    fn goes_by_directions(&self) -> bool {
        false
    }

    /// Rows that it takes in the time of one, where they come together.
    fn rows_together(&self) -> usize {
        1
    }

    /// True if it rounds the sum of the delta and the weight that the base was quantized from, in place of the base.
    fn needs_original(&self) -> bool {
        false
    }

    /// True if the result depends on a seed. A method that needs inputs leaves weights without them to one that needs none.
    fn is_random(&self) -> bool {
        self.whole().is_some() && WITHOUT_DATA.is_random()
    }

    /// The method on a whole weight, where it needs that and the moments of its inputs.
    fn whole(&self) -> Option<&dyn Whole> {
        None
    }
}

impl std::fmt::Debug for dyn Rounding {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.id())
    }
}

/// What it takes to prepare moments for a method, once for all weights with the same inputs.
#[doc(hidden)]
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Preparing {
    /// Bytes that stay as long as the moments do.
    pub bytes: u64,
    /// Nanoseconds of one thread.
    pub nanoseconds: f64,
}

/// A method that sees a whole weight at once.
#[doc(hidden)]
pub trait Whole: Sync {
    /// Share of the mean diagonal of H that is added to its diagonal.
    fn damping(&self, _detail: Detail) -> f32 {
        moments::DAMPING
    }

    /// Nanoseconds of one thread that a value of a weight with so many inputs takes, from the base's codes or afresh.
    fn nanoseconds(&self, inputs: usize, from_base: bool, detail: Detail) -> f64;

    /// Computes what all weights with the same inputs share, of which some are rounded from the base's codes or none.
    fn prepare(&self, _metric: &mut Metric, _from_base: bool) {}

    /// What that takes.
    fn preparing(&self, _inputs: usize, _from_base: bool, _detail: Detail) -> Preparing {
        Preparing::default()
    }

    /// Chooses `matrix.values`, all on its grid, and its scales.
    fn round(&self, matrix: &mut Matrix<'_>) -> Judged;
}

/// The method of that name.
pub fn by_id(id: &str) -> Result<&'static dyn Rounding> {
    ROUNDINGS.iter().copied().find(|method| method.id() == id).ok_or_else(|| {
        let known: Vec<_> = ROUNDINGS.iter().map(|method| method.id()).collect();
        usage(format!("there is no rounding method `{id}`")).with_hint(format!("methods: {}", known.join(", ")))
    })
}
