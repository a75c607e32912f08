//! What rounding cost, from sums over elements.
//!
//! With W0 the decoded base, D the delta, Wq the decoded output and E = Wq − (W0 + D): `survival = ⟨Wq − W0, D⟩ / ⟨D, D⟩` (1: kept
//! on average, 0: erased), `noise_to_delta = ‖E‖ / ‖D‖`. Figures over many weights come from the summed inner products.

use crate::simd::differences::Differences;

/// Figures of one weight or of many.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Loss {
    /// Number of elements.
    pub elements: u64,
    /// ⟨Wq − W0, D⟩ / ⟨D, D⟩; `None` where D = 0.
    pub survival: Option<f64>,
    /// ‖E‖ / ‖D‖; `None` where D = 0.
    pub noise_to_delta: Option<f64>,
    /// √(‖D‖² / n).
    pub delta_rms: f64,
    /// √(‖W0‖² / n).
    pub weight_rms: f64,
    /// √(‖E‖² / n).
    pub error_rms: f64,
    /// Share of elements with Wq ≠ W0.
    pub changed_fraction: f64,
    /// max |E|.
    pub max_abs_error: f64,
}

/// Sums that can be added: chunks to a weight, weights to a model.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct Sums {
    pub(crate) elements: u64,
    pub(crate) differences: Differences,
}

impl Sums {
    pub(crate) fn zero() -> Self {
        Self { elements: 0, differences: Differences::zero() }
    }

    pub(crate) fn add(&mut self, other: &Self) {
        self.elements += other.elements;
        self.differences.add(&other.differences);
    }

    pub(crate) fn loss(&self) -> Loss {
        let m = &self.differences;
        let n = self.elements.max(1) as f64;
        let of_delta = |x: f64| (m.delta2 > 0.0).then(|| x / m.delta2);
        Loss {
            elements: self.elements,
            survival: of_delta(m.change_delta),
            noise_to_delta: of_delta(m.error2).map(f64::sqrt),
            delta_rms: (m.delta2 / n).sqrt(),
            weight_rms: (m.weight2 / n).sqrt(),
            error_rms: (m.error2 / n).sqrt(),
            changed_fraction: m.changed as f64 / n,
            max_abs_error: f64::from(m.max_error),
        }
    }
}
