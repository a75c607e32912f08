//! Changes that are one product of factors, whatever a method makes the factors of.

use std::fmt;

use super::{ChangePlan, Loader};
use crate::dtype::Dtype;
use crate::edit::{Change, Product};
use crate::error::Result;

/// The factors (outputs, rank) and (rank, inputs).
pub(super) type Pair = (Vec<f32>, Vec<f32>);

/// A planned product `scale · left · right`.
pub(super) struct Factored<F> {
    pub(super) rank: usize,
    pub(super) outputs: usize,
    pub(super) inputs: usize,
    pub(super) scale: f64,
    /// Rounds the product before it is added, where PEFT does.
    pub(super) round: Option<Dtype>,
    /// Bytes of what `make` reads beside the factors.
    pub(super) beside: u64,
    /// True if they are made of the base's values too.
    pub(super) of_base: bool,
    /// Reads the factors.
    pub(super) make: F,
}

impl<F> fmt::Debug for Factored<F> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Factored").field("rank", &self.rank).field("scale", &self.scale).finish_non_exhaustive()
    }
}

impl<F: Fn(&Loader<'_>) -> Result<Pair> + Send + Sync> ChangePlan for Factored<F> {
    fn load(&self, loader: &Loader<'_>) -> Result<Change> {
        if self.rank == 0 {
            return Ok(Change::Add(Vec::new()));
        }
        let (left, right) = (self.make)(loader)?;
        Ok(Change::Product(vec![Product::new(self.rank, left, right, self.scale as f32, self.round)]))
    }

    fn memory(&self) -> u64 {
        // While the factors are rearranged, both forms stand.
        8 * self.rank as u64 * (self.inputs as u64 + self.outputs as u64) + self.beside
    }

    fn scale(&self) -> Option<f64> {
        Some(self.scale)
    }

    fn is_of_base(&self) -> bool {
        self.of_base
    }

    fn rank(&self) -> Option<usize> {
        Some(self.rank)
    }
}
