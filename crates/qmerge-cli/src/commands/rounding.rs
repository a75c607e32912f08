//! What a merge is calibrated on, if anything.

use std::path::Path;
use std::sync::Arc;

use qmerge::error::{self, Error, Kind};
use qmerge::merge::{self, Progress};
use qmerge::plan::{Data, Inputs, Method, Options, Plan};
use qmerge::report::Report;
use qmerge::round::{self, Calibration, Stored};
use qmerge_run::Model;
use qmerge_run::tensors::Tensors;

use super::calibrate;
use crate::args::Calibrating;

/// The method of that name.
pub(super) fn method(asked: &str) -> error::Result<Method> {
    Ok(if asked == "auto" { Method::Auto } else { Method::Named(round::by_id(asked)?) })
}

/// What will be known of the inputs of layers. The model is looked at only where that can matter.
pub(super) fn data(inputs: &Inputs, options: &Options, calibrating: &Calibrating) -> error::Result<Data> {
    let matters = match options.rounding {
        Method::Named(method) => method.whole().is_some(),
        Method::Auto => {
            options.to.is_some_and(|to| to.quantizes())
                || inputs.inventory.weights.iter().any(|claim| !claim.weight.is_plain())
        }
    };
    if calibrating.fast {
        if let (true, Method::Named(method)) = (matters, options.rounding) {
            let problem = format!("--fast rounds without data, and --rounding {} goes by data", method.id());
            return Err(Error::new(Kind::Usage, problem).with_hint("leave out one of them"));
        }
        return Ok(Data::Unknown("--fast was given, so the model is not run".into()));
    }
    if let Some(path) = &calibrating.calibration {
        let stored = Stored::open(path, &inputs.base)?;
        return Ok(Data::Known(Arc::new(stored.weights().map(str::to_owned).collect())));
    }
    if !matters {
        return Ok(Data::Unknown("the model is not run".into()));
    }
    Ok(match weights(inputs) {
        Ok(weights) => Data::Known(Arc::new(weights)),
        Err(reason) => Data::Unknown(format!("the model cannot be run: {reason}")),
    })
}

/// The weights whose inputs a run of the model shows, or why it cannot be run.
pub(super) fn weights(inputs: &Inputs) -> Result<std::collections::HashSet<String>, String> {
    if inputs.base.config.is_none() {
        return Err("the base has no config.json".into());
    }
    qmerge_run::calibrate::weights(inputs).map_err(|error| error.to_string())
}

/// Runs the merge, with a calibration if the method needs one.
pub(super) fn run(
    inputs: &Inputs,
    plan: &Plan,
    calibrating: &Calibrating,
    output: &Path,
    options: &merge::RunOptions,
    progress: &dyn Progress,
) -> error::Result<Report> {
    let merge =
        |calibration: Option<&mut dyn Calibration>| merge::run(inputs, plan, calibration, output, options, progress);
    if !plan.is_calibrated() {
        return merge(None);
    }
    merge::refuse_existing(output, options)?;
    if let Some(path) = &calibrating.calibration {
        let mut stored = Stored::open(path, &inputs.base)?;
        progress.phase("rounding");
        return merge(Some(&mut stored));
    }
    // Only what this plan changes is run with its adapter: the plan itself is the model with the adapter kept apart.
    let held = options.max_memory.map(|limit| limit / 4);
    let engine = qmerge_run::Options { threads: options.threads, held, progress: Some(progress) };
    let model = Model::new(&Tensors::new(inputs, Some(plan)), engine)?;
    let mut calibration = calibrate::from_model(
        inputs,
        &model,
        calibrating.calibrate.as_deref(),
        plan.seed,
        options.max_memory,
        progress,
    )?;
    progress.phase("rounding");
    merge(Some(&mut calibration))
}

/// Options that this plan has no use for are refused, not ignored.
pub(super) fn refuse_useless(plan: &Plan, asked: Method, calibrating: &Calibrating) -> error::Result<()> {
    // Left to itself the plan says what it does with the original.
    let is_named = matches!(asked, Method::Named(_));
    let given = match calibrating {
        Calibrating { calibrate: Some(_), .. } if !plan.is_calibrated() => "--calibrate",
        Calibrating { calibration: Some(_), .. } if !plan.is_calibrated() => "--calibration",
        Calibrating { original: Some(_), .. } if is_named && plan.recodes().all(|recode| recode.original.is_none()) => {
            "--original"
        }
        _ => return Ok(()),
    };
    Err(Error::new(Kind::Usage, format!("{given} is of no use to rounding {}", plan.rounding.id()))
        .with_hint(plan.reason.clone().unwrap_or_else(|| "leave out --rounding".into())))
}
