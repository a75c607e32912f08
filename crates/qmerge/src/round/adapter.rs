//! Adapter: descent that has all of the adapter's output come out.
//!
//! What costs a model its fine-tune is not noise but the adapter's own outputs coming out too weak. G = I + mu·U Uᵀ, U a basis of the columns of B, stands for
//! the curvature of the loss there, in the manner of K-FAC (Martens and Grosse 2015) and of two-sided rounding (Tseng et al. 2025, YAQA), with nothing but the
//! adapter to take it from; what is lacking all the same is asked for (`descend/asked.rs`), so that mu can be small, and with it the noise.

use super::descend::{PLAIN, Stage, TOGETHER, descend};
use super::gptq::Feedback;
use super::matrix::{Judged, Matrix};
use super::{Detail, Metric, Preparing, Rounding, Whole};

pub(super) struct Adapter;

/// A weight that grows by steps, so that first moves serve the adapter's directions best; what is lacking of its output is asked for all along. It begins with errors carried from
/// column to column (`descend/carried.rs`). (A last mu of 4 or 12 does as well on one model or another, and 4 better on Gemma 3; 8 loses least on the worst of all that were tried: the book's research notes.)
const STAGES: &[Stage] = &[
    Stage { mu: 0.5, asks: true, passes: 1 },
    Stage { mu: 2.0, asks: true, passes: 1 },
    Stage { mu: 8.0, asks: true, passes: 2 },
    Stage { mu: 8.0, asks: true, passes: 1 },
];

/// Where the rank of the delta is not known, and it may be more than its directions hold: mu does not keep the rest, and counts less the more that is, so it takes more passes until all
/// of that comes out.
const DENSE: &[Stage] = &[
    Stage { mu: 0.5, asks: true, passes: 1 },
    Stage { mu: 2.0, asks: true, passes: 1 },
    Stage { mu: 8.0, asks: true, passes: 2 },
    Stage { mu: 8.0, asks: true, passes: 2 },
    Stage { mu: 8.0, asks: true, passes: 2 },
    Stage { mu: 8.0, asks: true, passes: 1 },
];

/// Where moments are those of few tokens, more passes would follow what these happen to say.
const ROUGH: &[Stage] = &[Stage { mu: 4.0, asks: true, passes: 2 }];

/// Where moments do not say which inputs go with each other, they do not tell which errors go with the adapter's output: then all along its directions are dear.
const UNSEEN: &[Stage] = &[
    Stage { mu: 0.5, asks: false, passes: 1 },
    Stage { mu: 2.0, asks: false, passes: 1 },
    Stage { mu: 8.0, asks: false, passes: 2 },
    Stage { mu: 24.0, asks: false, passes: 2 },
    Stage { mu: 48.0, asks: false, passes: 2 },
    Stage { mu: 96.0, asks: false, passes: 2 },
];

impl Rounding for Adapter {
    fn id(&self) -> &'static str {
        "adapter"
    }

    fn about(&self) -> &'static str {
        "descent that keeps the adapter's own outputs in full strength; calibrates on text, or on text the model writes itself"
    }

    fn whole(&self) -> Option<&dyn Whole> {
        Some(self)
    }
}

impl Whole for Adapter {
    // The moments are those of some thousand tokens; more weight on what they did not see does better on other text. Of some hundred it has to be more.
    fn damping(&self, detail: Detail) -> f32 {
        if detail == Detail::Rough { 0.1 } else { 0.03 }
    }

    fn prepare(&self, metric: &mut Metric, from_base: bool) {
        if from_base && metric.detail.relates_inputs() {
            metric.feedback = Some(Feedback::new(metric, TOGETHER));
        }
    }

    fn preparing(&self, inputs: usize, from_base: bool, detail: Detail) -> Preparing {
        if from_base && detail.relates_inputs() { Feedback::preparing(inputs, TOGETHER) } else { Preparing::default() }
    }

    fn nanoseconds(&self, inputs: usize, from_base: bool, detail: Detail) -> f64 {
        // Of wider weights fewer values move.
        let passes = if detail == Detail::Rough { 0.6 } else { 1.0 };
        if from_base { passes * (100.0 + 0.05 * inputs.min(4096) as f64) } else { super::descend::nanoseconds(inputs) }
    }

    fn round(&self, matrix: &mut Matrix<'_>) -> Judged {
        let stages = match (matrix.at_base(), matrix.metric.detail) {
            // In another format the adapter's outputs are kept from the start, since values lie anywhere between their levels; what is left to lower is the error.
            (false, _) => PLAIN,
            (true, Detail::Sizes) => UNSEEN,
            (true, Detail::Rough) => ROUGH,
            (true, Detail::Full) if matrix.rank.is_none() => DENSE,
            (true, Detail::Full) => STAGES,
        };
        descend(matrix, stages)
    }
}
