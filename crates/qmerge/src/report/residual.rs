//! What is said of the adapter that holds what rounding left.

use std::collections::HashMap;

use serde::Serialize;

use super::Report;

/// The adapter that holds what rounding left.
#[derive(Clone, Debug, Serialize)]
pub struct ResidualReport {
    /// Its folder, in the output.
    pub path: String,
    /// Its rank.
    pub rank: usize,
    /// Bytes of its tensors.
    pub bytes: u64,
    /// Weights that it holds the rest of.
    pub weights: usize,
    /// Mean over them of `residual_kept`.
    pub kept: Option<f64>,
    /// Merged weights coarser than 16 bits that it has nothing for.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub without: Vec<Without>,
    /// `residual_kept` by weight, until the weights take it.
    #[serde(skip)]
    pub(crate) of_weights: HashMap<String, f64>,
}

/// A weight without a residual.
#[derive(Clone, Debug, Serialize)]
pub struct Without {
    /// Its name.
    pub weight: String,
    /// Why.
    pub reason: &'static str,
}

impl Report {
    /// Adds what is known of the residual adapter.
    pub(crate) fn take_residual(&mut self, mut residual: ResidualReport) {
        for weight in &mut self.weights {
            weight.residual_kept = residual.of_weights.remove(&weight.name);
        }
        self.residual = Some(residual);
    }
}
