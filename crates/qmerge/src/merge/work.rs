//! How long the parts of a merge take, in nanoseconds of one thread.
//!
//! The figures were measured on one machine; on another all of them are larger or smaller by about the same factor, which a progress bar finds out while it runs.

use std::collections::HashMap;

use super::Plan;
use super::residual::is_cut;
use crate::plan::{Action, Recode, Step};
use crate::round::{Demand, Rounding, weight_of};

/// Per byte that is copied. A file takes one write at a time, so meanwhile the other threads wait.
const COPY: f64 = 0.8;
/// Per byte that is brought to the disk.
const SYNC: f64 = 0.7;
/// Per value that is decoded, edited and surveyed.
const SURVEY: f64 = 1.5;
/// Per value that is encoded, decoded again, measured and written besides.
const WRITE: f64 = 2.0;
/// Per value whose level is chosen by a method.
const CHOOSE: f64 = 12.0;
/// Per value of 16 bits that is chosen by what is left of its row.
const FEED_BACK: f64 = 3.0;
/// A weight that is rounded as a whole may take so many times as long where its delta's rank is not known: more products, and more passes.
const DENSE: f64 = 2.0;
/// Per product of a sketch.
const PRODUCT: f64 = 0.05;

/// Work of a plan, by step.
#[derive(Clone, Debug)]
pub(super) struct Work {
    /// Each step's, whether it is rounded as a whole or not.
    pub(super) steps: Vec<u64>,
    /// Bringing the output to the disk.
    pub(super) sync: u64,
    /// Cutting what rounding left.
    pub(super) residual: u64,
}

impl Work {
    pub(super) fn new(plan: &Plan, demand: &Demand, threads: usize) -> Self {
        let prepared = prepared(plan, demand);
        let one = |step: &Step| match &step.action {
            Action::Copy { entry } => copied(entry.bytes, threads),
            Action::Constant(constant) => copied(constant.len(), threads),
            Action::Recode(recode) => match recode.rounding.whole().zip(prepared.get(step.name.as_str())) {
                Some((method, prepared)) => {
                    let values = recode.from.weight.geometry().elements() as f64;
                    let each = method.nanoseconds(recode.inputs(), recode.begins_at_base(), demand.detail);
                    // In an order of its own, the inputs' moments are prepared once more.
                    let ordered = if recode.to.is_transposed() {
                        let (inputs, matrices) = (recode.inputs(), recode.stack.unwrap_or(1));
                        let own = method.preparing(inputs, recode.begins_at_base(), demand.detail);
                        own.nanoseconds * matrices as f64
                    } else {
                        0.0
                    };
                    (values * each * if recode.has_known_rank() { 1.0 } else { DENSE } + prepared + ordered) as u64
                }
                None => [WeightPass::EditSurvey, WeightPass::Survey, WeightPass::Write]
                    .into_iter()
                    .map(|pass| streamed(recode, recode.streamed(), pass))
                    .sum(),
            },
        };
        Self {
            steps: plan.steps.iter().map(one).collect(),
            sync: (SYNC * plan.output_bytes() as f64) as u64,
            residual: residual(plan),
        }
    }

    pub(super) fn total(&self) -> u64 {
        self.steps.iter().sum::<u64>() + self.sync + self.residual
    }
}

/// The weights whose inputs become known, each with its share of what it takes to prepare their moments.
fn prepared<'d>(plan: &Plan, demand: &'d Demand) -> HashMap<&'d str, f64> {
    let recodes: HashMap<&str, &Recode> = plan
        .steps
        .iter()
        .filter_map(|step| match &step.action {
            Action::Recode(recode) => Some((step.name.as_str(), &**recode)),
            Action::Copy { .. } | Action::Constant(_) => None,
        })
        .collect();
    let mut shares = HashMap::new();
    for inputs in demand.layers.iter().flatten() {
        let own = || inputs.weights.iter().filter_map(|name| recodes.get(weight_of(name).0));
        let from_base = own().any(|recode| recode.begins_at_base());
        let method = own().find_map(|recode| recode.rounding.whole());
        let takes = method.map(|method| method.preparing(inputs.features, from_base, demand.detail).nanoseconds);
        for name in &inputs.weights {
            *shares.entry(weight_of(name).0).or_insert(0.0) += takes.unwrap_or(0.0) / own().count().max(1) as f64;
        }
    }
    shares
}

/// A pass over a weight that goes by in chunks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum WeightPass {
    EditSurvey,
    Survey,
    Write,
}

pub(super) fn copied(bytes: u64, threads: usize) -> u64 {
    (COPY * bytes as f64 * threads as f64) as u64
}

/// One pass; zero for one that the weight does not need.
pub(super) fn streamed(recode: &Recode, method: &dyn Rounding, pass: WeightPass) -> u64 {
    let vectors = recode.task_vectors().count() as f64;
    let each = match pass {
        // Up to three times over base and tuned models.
        WeightPass::EditSurvey if recode.surveys_task_vectors() => 3.0 * SURVEY * 2.0 * vectors,
        WeightPass::EditSurvey if recode.edits.iter().any(|(_, edit)| edit.plan.needs_survey()) => SURVEY,
        WeightPass::Survey if recode.is_surveyed() => SURVEY,
        WeightPass::EditSurvey | WeightPass::Survey => 0.0,
        WeightPass::Write if method.moves_values() && !recode.to.is_plain() => SURVEY + WRITE + CHOOSE,
        WeightPass::Write if method.goes_by_directions() => SURVEY + WRITE + FEED_BACK,
        WeightPass::Write => SURVEY + WRITE,
    };
    let with_vectors = if pass != WeightPass::EditSurvey && each > 0.0 { each + SURVEY * vectors } else { each };
    (with_vectors * recode.from.weight.geometry().elements() as f64) as u64
}

fn residual(plan: &Plan) -> u64 {
    let Some(rank) = plan.residual_rank else { return 0 };
    let coarse = plan.steps.iter().filter_map(|step| match &step.action {
        Action::Recode(recode) if is_cut(recode) => Some(recode.to.geometry().elements() as f64),
        _ => None,
    });
    // A sketch multiplies with its columns ten times.
    coarse.map(|elements| elements * (SURVEY + 10.0 * (rank + 8) as f64 * PRODUCT)).sum::<f64>() as u64
}
