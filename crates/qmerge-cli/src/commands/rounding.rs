//! Which rounding method a merge takes, and what it is calibrated on.

use std::path::Path;

use qmerge::error::{self, Error, Kind};
use qmerge::merge::{self, Estimate, Progress};
use qmerge::plan::{Action, Inputs, Options, Plan};
use qmerge::report::Report;
use qmerge::round::{self, Calibration, Demand, Rounding, Stored};
use qmerge_run::memory::Needs;
use qmerge_run::tensors::Tensors;
use qmerge_run::{Model, families};

use super::calibrate::Text;
use crate::args::{Calibrating, MergeArgs};

/// A method and why it was taken.
pub(super) struct Choice {
    pub(super) rounding: &'static dyn Rounding,
    pub(super) reason: Option<String>,
}

/// Takes the method that was asked for, or the best that the inputs allow.
pub(super) fn choose(inputs: &Inputs, options: &Options, args: &MergeArgs) -> error::Result<Choice> {
    let (calibrating, asked) = (&args.calibrating, args.rounding.as_str());
    let fast = |reason: &str| Choice { rounding: round::WITHOUT_DATA, reason: Some(reason.to_owned()) };
    if let (Some(original), "auto") = (&calibrating.original, asked) {
        let reason = format!("rounded once, from {}", original.display());
        return Ok(Choice { rounding: round::ORIGINAL, reason: Some(reason) });
    }
    let nearest = |reason: &str| Choice { rounding: round::NEAREST, reason: Some(reason.to_owned()) };
    if asked != "auto" {
        let rounding = round::by_id(asked)?;
        let choice = Choice { rounding, reason: None };
        return match calibratable(inputs, calibrating) {
            Err(reason) if rounding.whole().is_some() => {
                let reason = format!("{asked} was asked for, but {reason}");
                Ok(if options.to.is_some() { nearest(&reason) } else { fast(&reason) })
            }
            _ => Ok(choice),
        };
    }
    let best = round::ROUNDINGS[0];
    let plan = Plan::new(inputs, &Options { rounding: best, ..options.clone() })?;
    let coarse = |keep: bool| {
        plan.steps.iter().any(|step| {
            matches!(&step.action, Action::Recode(recode)
                if recode.keep == keep && (!keep || !recode.edits.is_empty()) && !recode.to.is_plain())
        })
    };
    let (kept, fresh) = (coarse(true), coarse(false));
    if !kept && !fresh {
        return Ok(nearest("16 bits and more are fine enough"));
    }
    // Without data another format has nothing to go by but its own reference quantizer.
    let fast = |reason: &str| if fresh { nearest(reason) } else { fast(reason) };
    if calibrating.fast {
        return Ok(fast("--fast: no data"));
    }
    Ok(match calibratable(inputs, calibrating) {
        Err(reason) => fast(&format!("the best method needs to run the model, but {reason}")),
        Ok(()) => Choice { rounding: best, reason: Some("keeps most at the same size".into()) },
    })
}

/// Why nothing can be known of the layers' inputs, if so.
fn calibratable(inputs: &Inputs, calibrating: &Calibrating) -> Result<(), String> {
    if calibrating.calibration.is_some() {
        return Ok(());
    }
    runs(inputs)
}

/// Why a model cannot be run, if so.
pub(super) fn runs(inputs: &Inputs) -> Result<(), String> {
    let config = inputs.base.config.as_ref().ok_or("the base has no config.json")?;
    families::spec(config).map(|_| ()).map_err(|error| error.to_string())
}

/// What a merge is calibrated on, and what all of it takes.
pub(super) struct Prepared<'p> {
    source: Source<'p>,
    pub(super) estimate: Estimate,
    /// Work before the merge begins, in nanoseconds of one thread.
    before: u64,
}

/// Where a merge's moments come from.
enum Source<'p> {
    /// The method needs none.
    None,
    Stored(Stored),
    Run(Text<'p>, Needs),
}

impl Prepared<'_> {
    /// All work, in nanoseconds of one thread.
    pub(super) fn work(&self) -> u64 {
        self.before + self.estimate.work
    }
}

/// Looks at what a merge will take, and fits it into the memory that it may use, before any of it is done.
pub(super) fn prepare<'p>(
    inputs: &Inputs,
    plan: &Plan,
    rounding: &'static dyn Rounding,
    calibrating: &'p Calibrating,
    options: &merge::RunOptions,
    progress: &dyn Progress,
) -> error::Result<Prepared<'p>> {
    let estimate = |demand: &Demand| merge::estimate(plan, rounding, options, demand);
    if rounding.whole().is_none() {
        return Ok(Prepared { source: Source::None, estimate: estimate(&Demand::default())?, before: 0 });
    }
    if let Some(path) = &calibrating.calibration {
        let stored = Stored::open(path, &inputs.base)?;
        let estimate = estimate(&stored.demand())?;
        return Ok(Prepared { source: Source::Stored(stored), estimate, before: 0 });
    }
    let text = Text::read(inputs, calibrating.calibrate.as_deref(), progress)?;
    let peak = |demand: &Demand| estimate(demand).map(|estimate| estimate.memory.peak_bytes);
    let needs = text.needs(inputs, plan, (options.threads, options.max_memory), peak)?;
    let (estimate, before) = (estimate(&needs.demand)?, needs.before);
    Ok(Prepared { source: Source::Run(text, needs), estimate, before })
}

/// Runs the merge, with a calibration if the method needs one.
pub(super) fn run(
    inputs: &Inputs,
    plan: &Plan,
    rounding: &'static dyn Rounding,
    prepared: Prepared<'_>,
    output: &Path,
    options: &merge::RunOptions,
    progress: &dyn Progress,
) -> error::Result<Report> {
    let options = merge::RunOptions { announced: true, ..options.clone() };
    let merge = |calibration: Option<&mut dyn Calibration>| {
        merge::run(inputs, plan, rounding, calibration, output, &options, progress)
    };
    progress.start(prepared.work());
    match prepared.source {
        Source::None => merge(None),
        Source::Stored(mut stored) => merge(Some(&mut stored)),
        Source::Run(text, needs) => {
            // Only what this plan changes is run with its adapter: the plan itself is the model with the adapter kept apart.
            let engine =
                qmerge_run::Options { threads: options.threads, held: Some(needs.weights), progress: Some(progress) };
            let model = Model::new(&Tensors::new(inputs, Some(plan)), engine)?;
            merge(Some(&mut text.calibration(&model, plan.seed, needs)?))
        }
    }
}

/// Options that only some methods take.
pub(super) fn refuse_useless(choice: &Choice, calibrating: &Calibrating) -> error::Result<()> {
    let given = match calibrating {
        Calibrating { calibrate: Some(_), .. } => "--calibrate",
        Calibrating { calibration: Some(_), .. } => "--calibration",
        Calibrating { original: Some(_), .. } => "--original",
        _ => return Ok(()),
    };
    let useful = if calibrating.original.is_some() {
        choice.rounding.needs_original()
    } else {
        choice.rounding.whole().is_some()
    };
    if !useful {
        return Err(Error::new(Kind::Usage, format!("{given} is of no use to rounding {}", choice.rounding.id()))
            .with_hint(choice.reason.clone().unwrap_or_else(|| "leave out --rounding".into())));
    }
    Ok(())
}
