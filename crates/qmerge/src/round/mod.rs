//! How codes are chosen. One file per method and one line in [`ROUNDINGS`].
//!
//! A method either has the format fit fresh scales and take the nearest code (that is the format's own reference quantizer), or
//! keeps the base's scales and chooses values on their grid. Methods see grids, never formats, so any method works on any format.

mod keep;
mod nearest;

use crate::error::{Result, usage};
use crate::formats::Grid;

/// Every method, the default first.
pub static ROUNDINGS: &[&dyn Rounding] = &[&nearest::Nearest, &keep::Keep];

/// A rounding method.
pub trait Rounding: Sync {
    /// Its name in `--rounding` and in the report.
    fn id(&self) -> &'static str;

    /// One line for the help and the documentation.
    fn about(&self) -> &'static str;

    /// True if the base's scales stay as they are. Needs an output in the base's own format.
    fn keeps_scales(&self) -> bool;

    /// Moves the values of some whole rows to values near them; what is not on the grid afterwards takes the nearest level.
    /// Called only if [`Rounding::keeps_scales`].
    fn round(&self, _grid: &Grid, _values: &mut [f32]) {}

    /// True if [`Rounding::round`] does anything, so that grids must be built.
    fn moves_values(&self) -> bool {
        false
    }
}

/// The method of that name.
pub fn by_id(id: &str) -> Result<&'static dyn Rounding> {
    ROUNDINGS.iter().copied().find(|method| method.id() == id).ok_or_else(|| {
        let known: Vec<_> = ROUNDINGS.iter().map(|method| method.id()).collect();
        usage(format!("there is no rounding method `{id}`")).with_hint(format!("methods: {}", known.join(", ")))
    })
}
