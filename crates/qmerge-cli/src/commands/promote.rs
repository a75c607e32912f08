//! `--promote`: what a first run of a merge loses decides which tensors take a wider type in the second.

use qmerge::error;
use qmerge::formats;
use qmerge::merge::{self, RunOptions};
use qmerge::plan::{Inputs, Options, Plan, Promotion};
use qmerge::progress::Progress;

use super::rounding;
use crate::args::{Calibrating, Measure, MergeArgs};

/// The share of the output's bytes that wider types may add where nothing is said.
const BUDGET: f64 = 0.02;

/// What takes a wider type before any weight was measured: what must.
pub(super) fn promotion(to: &str) -> error::Result<Promotion> {
    let to = if to == "auto" { None } else { Some(formats::by_id(to)?) };
    Ok(Promotion { to, ..Promotion::default() })
}

/// True if weights are to be measured first.
fn is_measured(args: &MergeArgs, plan: &Plan) -> bool {
    args.promote.is_some() && args.budget.unwrap_or(BUDGET) > 0.0 && !plan.untrained
}

/// Says of a plan that is not run that it does not know what will take a wider type.
pub(super) fn warn(args: &MergeArgs, plan: &mut Plan) {
    if is_measured(args, plan) {
        plan.warnings.push("--promote: what takes a wider type is known once weights were rounded, so the merge is done twice, in about twice the time, and what is said here is without it, but for types that cannot be written".into());
    }
}

/// The plan with the types that weights take by what a run without them loses of each.
pub(super) fn widened(
    inputs: &Inputs,
    mut plan: Plan,
    options: &mut Options,
    (args, calibrating): (&MergeArgs, &Calibrating),
    run: &RunOptions<'_>,
    progress: &dyn Progress,
) -> error::Result<Plan> {
    let Some(promotion) = options.promote.clone().filter(|_| is_measured(args, &plan)) else { return Ok(plan) };
    plan.residual_rank = None;
    let prepared = rounding::prepare(inputs, &plan, (&options.data, calibrating), Measure::Never, run, progress)?;
    let report = rounding::run(inputs, &plan, prepared, run, progress, |run, calibration, progress| {
        merge::rehearse(inputs, &plan, calibration, &args.output, run, progress)
    })?;
    let budget = args.budget.unwrap_or(BUDGET);
    let chosen = promotion.chosen(&plan, &report.weights, budget);
    let mut warnings = std::mem::take(&mut plan.warnings);
    if chosen.tensors.is_empty() && !plan.recodes().any(|recode| recode.promoted) {
        warnings.push(unpromoted(promotion.least(&plan), plan.output_bytes(), budget));
    }
    options.promote = Some(chosen);
    plan = Plan::new(inputs, options)?;
    plan.warnings = warnings;
    Ok(plan)
}

/// That no weight took a wider type, and why. `least` is what one would take at the least.
fn unpromoted(least: Option<u64>, all: u64, budget: f64) -> String {
    match least {
        None => {
            "--promote: no weight took another type, since that is wider for none of those that the adapter changes"
                .into()
        }
        Some(least) if least as f64 <= budget * all as f64 => {
            "--promote: no weight took a wider type: of none it is known that it loses something".into()
        }
        Some(least) => format!(
            "--promote: no weight took a wider type: the least that one takes is {:.2} % of the output, and --budget is {:.2} %",
            100.0 * least as f64 / all.max(1) as f64,
            100.0 * budget
        ),
    }
}
