//! What a merge is calibrated on, and what it is judged by, if anything.

use std::collections::HashSet;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use qmerge::adapters::{Adapter, BESIDE_ADAPTER, Names};
use qmerge::dtype::Dtype;
use qmerge::error::{self, Error, Kind};
use qmerge::merge::{self, Estimate, FromAdapter, Judge};
use qmerge::plan::{Data, Inputs, Method, Options, Plan};
use qmerge::progress::Progress;
use qmerge::round::{self, AddedCalibration, Calibration, Demand, Imatrix, StoredCalibration};
use qmerge_run::Model;
use qmerge_run::behaviour::{self, AgainstApart};
use qmerge_run::calibrate::Amount;
use qmerge_run::memory::Needs;
use qmerge_run::tensors::Tensors;
use qmerge_run::text::Beginnings;

use super::calibrate::{self, Text, beginnings};
use crate::args::{Calibrating, Measure};

/// The method of that name.
pub(super) fn method(asked: &str) -> error::Result<Method> {
    Ok(if asked == "auto" { Method::Auto } else { Method::Named(round::by_id(asked)?) })
}

/// True if the way weights are rounded can go by the inputs of layers.
fn matters(inputs: &Inputs, options: &Options) -> bool {
    match options.rounding {
        Method::Named(method) => method.whole().is_some(),
        Method::Auto => {
            options.to.is_some_and(|to| to.quantizes())
                || options.export.is_some_and(|export| export.quantizes())
                || inputs.inventory.weights.iter().any(|claim| !claim.weight.is_plain())
        }
    }
}

/// Where nothing else was asked for, takes the calibration that lies in the adapter's folder. Returns what is to be said of one that is not taken.
pub(super) fn look_beside(inputs: &Inputs, options: &Options, calibrating: &mut Calibrating) -> Option<String> {
    let is_asked = calibrating.fast
        || calibrating.calibrate.is_some()
        || calibrating.calibration.is_some()
        || calibrating.imatrix.is_some()
        || calibrating.original.is_some();
    if is_asked || !matters(inputs, options) {
        return None;
    }
    let place = |adapter: &Adapter| Some(adapter.path.join(BESIDE_ADAPTER)).filter(|path| path.is_file());
    let path = inputs.adapters.iter().find_map(place)?;
    let [adapter] = inputs.adapters.as_slice() else {
        return Some(format!(
            "{} is not used: it was taken with one of {} adapters alone",
            path.display(),
            inputs.adapters.len()
        ));
    };
    let names = Names::new(&inputs.base, &inputs.inventory.weights, &options.maps);
    let fits = names.and_then(|names| StoredCalibration::open(&path, &names)?.check_adapter(adapter));
    match fits {
        Ok(()) => {
            calibrating.calibration = Some(path);
            None
        }
        Err(error) => Some(format!("the moments that lie beside the adapter are not used: {error}")),
    }
}

pub(super) fn stored(path: &Path, inputs: &Inputs, maps: &[String]) -> error::Result<AddedCalibration> {
    qmerge_store::moments(path, &Names::new(&inputs.base, &inputs.inventory.weights, maps)?)
}

fn imatrix(path: &Path, inputs: &Inputs, maps: &[String]) -> error::Result<Imatrix> {
    Imatrix::open(path, &Names::new(&inputs.base, &inputs.inventory.weights, maps)?)
}

/// What will be known of the inputs of layers, and what is to be said of it. The model is looked at only where that can matter.
pub(super) fn data(
    inputs: &Inputs,
    options: &Options,
    calibrating: &Calibrating,
) -> error::Result<(Data, Option<String>)> {
    let matters = matters(inputs, options);
    if calibrating.fast {
        if let (true, Method::Named(method)) = (matters, options.rounding) {
            let problem = format!("--fast chooses the method, and --rounding {} goes by more data", method.id());
            return Err(Error::new(Kind::Usage, problem).with_hint("leave out one of them"));
        }
        let data = by_adapter(inputs, options, "--fast was given".into());
        let told = match &data {
            _ if !matters => Some("--fast is of no use: nothing here is rounded by the inputs of layers"),
            Data::Unknown(_) if options.to.is_some() || options.export.is_some() => {
                Some("--fast goes by nothing where --to is given: leave it out")
            }
            _ => None,
        };
        return Ok((data, told.map(str::to_owned)));
    }
    if let Some(path) = &calibrating.calibration {
        let stored = stored(path, inputs, &options.maps)?;
        return Ok((Data::Known(Arc::new(stored.weights().map(str::to_owned).collect())), None));
    }
    if let Some(path) = &calibrating.imatrix {
        let imatrix = imatrix(path, inputs, &options.maps)?;
        let told = imatrix.unknown().first().map(|first| {
            let number = imatrix.unknown().len();
            format!("the importance matrix: {number} of its tensors match no weight of the base; first `{first}`")
        });
        return Ok((Data::Known(Arc::new(imatrix.weights().map(str::to_owned).collect())), told));
    }
    if !matters {
        return Ok((Data::Unknown("the model is not run".into()), None));
    }
    let data = match weights(inputs) {
        Ok(weights) => Data::Known(Arc::new(weights)),
        Err(reason) => {
            let reason = format!(
                "the model cannot be run: {reason}; qmerge.torch.calibrate takes what is needed from the model in torch"
            );
            if calibrating.calibrate.is_some() {
                return Ok((Data::Unknown(reason), None));
            }
            by_adapter(inputs, options, reason)
        }
    };
    Ok((data, None))
}

/// What the adapter alone says of the inputs, where weights stay in a format coarser than 16 bits and nothing better is at hand; else why nothing is known.
fn by_adapter(inputs: &Inputs, options: &Options, reason: String) -> Data {
    let weights = FromAdapter::weights(inputs);
    let is_best = match options.rounding {
        Method::Auto => true,
        Method::Named(method) => method.id() == round::BEST.id(),
    };
    // What a tuned model changes says nothing of inputs: it is no product whose rows read them.
    let reads = inputs.adapters.iter().any(|adapter| !adapter.is_tuned());
    if !is_best
        || !reads
        || options.to.is_some()
        || options.export.is_some()
        || inputs.original.is_some()
        || weights.is_empty()
    {
        return Data::Unknown(reason);
    }
    Data::Guessed(Arc::new(weights), reason)
}

/// The weights whose inputs a run of the model shows, or why it cannot be run.
pub(crate) fn weights(inputs: &Inputs) -> Result<std::collections::HashSet<String>, String> {
    if inputs.base.config.is_none() {
        return Err("the base has no config.json".into());
    }
    qmerge_run::calibrate::weights(inputs).map_err(|error| error.to_string())
}

/// What a merge is calibrated on, whether it is measured, and what all of it takes.
pub(super) struct Prepared<'p> {
    source: MomentsFrom<'p>,
    is_measured: bool,
    /// How text begins that the model writes to be measured on.
    beginnings: Beginnings,
    pub(super) estimate: Estimate,
    /// What the calibration takes.
    pub(super) demand: Demand,
    /// Work before the merge begins, in nanoseconds of one thread.
    before: u64,
    /// About the work of measuring the merge.
    judging: u64,
}

/// Where a merge's moments come from.
enum MomentsFrom<'p> {
    /// The method needs none.
    None,
    /// A file of them.
    Taken(Box<dyn Calibration + 'p>),
    Run(Text, Needs),
    /// The adapter alone.
    Adapter,
}

impl Prepared<'_> {
    /// True if the model is run for the moments that weights are rounded by, more than on few tokens.
    pub(super) fn runs_model(&self) -> bool {
        matches!(&self.source, MomentsFrom::Run(text, _) if !text.is_of_few())
    }

    /// All work, in nanoseconds of one thread.
    pub(super) fn work(&self) -> u64 {
        self.before + self.estimate.work + self.judging
    }
}

/// Moments for which no model is run.
fn taken<'p>(
    inputs: &'p Inputs,
    plan: &'p Plan,
    calibrating: &Calibrating,
) -> error::Result<Option<Box<dyn Calibration + 'p>>> {
    Ok(match calibrating {
        Calibrating { calibration: Some(path), .. } => Some(Box::new(stored(path, inputs, &plan.maps)?)),
        Calibrating { imatrix: Some(path), .. } => Some(Box::new(imatrix(path, inputs, &plan.maps)?)),
        _ => None,
    })
}

/// True where the model is run on few tokens for a merge that goes by little: where that shows inputs of weights that are rounded by them, and it can be run, with the adapter too,
/// which may be one that can be merged and not run.
fn is_run_on_few(inputs: &Inputs, plan: &Plan, calibrating: &Calibrating) -> error::Result<bool> {
    if calibrating.no_run {
        return Ok(false);
    }
    let Ok(weights) = weights(inputs) else { return Ok(false) };
    if !plan.calibrated().any(|name| weights.contains(name)) {
        return Ok(false);
    }
    let bare = qmerge_run::Options { threads: 1, held: Some(0), progress: None };
    let model = Tensors::new(inputs, Some(plan));
    Ok(without(Model::new(&model, bare))?.is_some() && without(beginnings(inputs))?.is_some())
}

/// What can be done without, if it is to be had: an error only where a second try may have it.
fn without<T>(found: error::Result<T>) -> error::Result<Option<T>> {
    match found {
        Err(error) if error.kind().is_passing() => Err(error),
        found => Ok(found.ok()),
    }
}

/// Looks at what a merge will take, and fits it into the memory that it may use, before any of it is done.
pub(super) fn prepare<'p>(
    inputs: &'p Inputs,
    plan: &'p Plan,
    (data, calibrating): (&Data, &'p Calibrating),
    measure: Measure,
    options: &merge::RunOptions<'_>,
    progress: &dyn Progress,
) -> error::Result<Prepared<'p>> {
    let is_measured = is_measured(inputs, plan, data, measure)?;
    let estimate = |demand: &Demand| merge::estimate(plan, options, demand);
    let is_guessed = matches!(data, Data::Guessed(..));
    let (source, demand, before) = if !plan.is_calibrated() {
        (MomentsFrom::None, Demand::default(), 0)
    } else if is_guessed && !is_run_on_few(inputs, plan, calibrating)? {
        (MomentsFrom::Adapter, FromAdapter::new(inputs, plan).demand(), 0)
    } else if let Some(taken) = taken(inputs, plan, calibrating)? {
        let demand = taken.demand();
        (MomentsFrom::Taken(taken), demand, 0)
    } else {
        let amount = if is_guessed { Amount::Few } else { calibrating.amount.amount() };
        let text = Text::read(inputs, calibrating.calibrate.as_deref(), amount, progress)?;
        let peak = |demand: &Demand| estimate(demand).map(|estimate| estimate.memory.peak_bytes);
        let needs = text.needs(inputs, plan, (options.threads, options.max_memory), peak)?;
        let (demand, before) = (needs.demand.clone(), needs.before);
        (MomentsFrom::Run(text, needs), demand, before)
    };
    let estimate = estimate(&demand)?;
    let beginnings = match &source {
        MomentsFrom::Run(text, _) => text.beginnings().clone(),
        _ if is_measured => beginnings(inputs)?,
        _ => Beginnings::default(),
    };
    let judging = if is_measured {
        let bare = qmerge_run::Options { threads: 1, held: Some(0), progress: None };
        let model = Model::new(&Tensors::new(inputs, None), bare)?;
        behaviour::work(&model, &beginnings, calibrating.calibrate.is_none())
    } else {
        0
    };
    Ok(Prepared { source, is_measured, beginnings, estimate, demand, before, judging })
}

/// Only takes the moments that this plan is rounded by, and stores them; `None` where no model is run for them, or on few tokens only.
pub(super) fn store(
    inputs: &Inputs,
    plan: &Plan,
    prepared: Prepared<'_>,
    path: &Path,
    options: &merge::RunOptions<'_>,
    progress: &dyn Progress,
) -> error::Result<Option<calibrate::Found>> {
    let MomentsFrom::Run(text, needs) = prepared.source else { return Ok(None) };
    // A file does not say that they are rough, and rough ones cost little to take again.
    if text.is_of_few() {
        return Ok(None);
    }
    progress.start(prepared.before + needs.demand.work);
    let engine = qmerge_run::Options { threads: options.threads, held: Some(needs.weights), progress: Some(progress) };
    let model = Model::new(&Tensors::new(inputs, Some(plan)), engine)?;
    let calibration = text.calibration(&model, plan.seed, false, needs)?;
    progress.phase("taking moments", "layers");
    let own: HashSet<&str> = plan.calibrated().collect();
    let wanted = |name: &str| own.contains(round::weight_of(name).0);
    calibrate::stored(inputs, calibration, (Dtype::F32, path), &wanted, progress).map(Some)
}

/// Has `merge` done, with a calibration if the method needs one, and measured where the model is run.
pub(super) fn run<T>(
    inputs: &Inputs,
    plan: &Plan,
    prepared: Prepared<'_>,
    options: &merge::RunOptions<'_>,
    progress: &dyn Progress,
    merge: impl Fn(&merge::RunOptions<'_>, Option<&mut dyn Calibration>, &dyn Progress) -> error::Result<T>,
) -> error::Result<T> {
    let work = prepared.work();
    let counted = Counted { progress, left: AtomicU64::new(work) };
    let progress: &dyn Progress = &counted;
    let engine = |held| qmerge_run::Options { threads: options.threads, held, progress: Some(progress) };
    let few = options.max_memory.map(|limit| limit / 4);
    let is_measured = prepared.is_measured;
    let judge = AgainstApart {
        inputs,
        plan,
        apart: None,
        held: None,
        beginnings: prepared.beginnings,
        options: engine(few),
        max_memory: options.max_memory,
    };
    let merge = |calibration: Option<&mut dyn Calibration>, judge: &AgainstApart<'_>| {
        let judge: Option<&dyn Judge> = if is_measured { Some(judge) } else { None };
        merge(&merge::RunOptions { judge, announced: true, ..options.clone() }, calibration, progress)
    };
    progress.start(work);
    let done = match prepared.source {
        MomentsFrom::None => merge(None, &judge),
        MomentsFrom::Taken(mut taken) => merge(Some(taken.as_mut()), &judge),
        MomentsFrom::Adapter => merge(Some(&mut FromAdapter::new(inputs, plan)), &judge),
        MomentsFrom::Run(text, needs) => {
            // Nothing is held back of few tokens, so that the model writes again while it is measured.
            let weights = few.filter(|_| is_measured && text.is_of_few());
            let weights = weights.map_or(needs.weights, |few| needs.weights.min(few));
            // Only what this plan changes is run with its adapter: the plan itself is the model with the adapter kept apart.
            let model = Model::new(&Tensors::new(inputs, Some(plan)), engine(Some(weights)))?;
            let mut calibration = text.calibration(&model, plan.seed, is_measured, needs)?;
            let held = calibration.held().cloned();
            merge(Some(&mut calibration), &AgainstApart { apart: Some(&model), held, ..judge })
        }
    }?;
    counted.finish();
    Ok(done)
}

/// Work that comes to what was announced: that of measuring is known about only.
struct Counted<'p> {
    progress: &'p dyn Progress,
    left: AtomicU64,
}

impl Counted<'_> {
    /// As much of `work` as is left.
    fn take(&self, work: u64) -> u64 {
        let before =
            self.left.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |left| Some(left.saturating_sub(work)));
        before.unwrap_or(0).min(work)
    }

    /// What is left was not needed.
    fn finish(&self) {
        self.progress.skip(self.take(u64::MAX));
    }
}

impl Progress for Counted<'_> {
    fn start(&self, work: u64) {
        self.progress.start(work);
    }

    fn advance(&self, work: u64) {
        self.progress.advance(self.take(work));
    }

    fn skip(&self, work: u64) {
        self.progress.skip(self.take(work));
    }

    fn phase(&self, name: &str, unit: &str) {
        self.progress.phase(name, unit);
    }

    fn part(&self, done: u64, total: u64) {
        self.progress.part(done, total);
    }

    fn cancelled(&self) -> bool {
        self.progress.cancelled()
    }
}

/// Whether the merge is measured. Errors if that was asked for and the model cannot be run.
fn is_measured(inputs: &Inputs, plan: &Plan, data: &Data, measure: Measure) -> error::Result<bool> {
    match measure {
        Measure::Never => Ok(false),
        Measure::Auto => Ok(plan.is_calibrated() && !matches!(data, Data::Guessed(..)) && weights(inputs).is_ok()),
        Measure::Always => weights(inputs).map(|_| true).map_err(|reason| {
            Error::new(Kind::Usage, format!("the merge cannot be measured: {reason}"))
                .with_hint("leave out --measure and --min-kept")
        }),
    }
}

/// Options that this plan has no use for are refused, not ignored.
pub(super) fn refuse_useless(plan: &Plan, options: &Options, calibrating: &Calibrating) -> error::Result<()> {
    // It would be, if the adapter were trained: the plan says that it is not.
    if plan.untrained {
        return Ok(());
    }
    // Left to itself the plan says what it does with the original.
    let is_named = matches!(options.rounding, Method::Named(_));
    let given = match calibrating {
        Calibrating { calibrate: Some(_), .. } if !plan.is_calibrated() => "--calibrate",
        Calibrating { calibration: Some(_), .. } if !plan.is_calibrated() => "--calibration",
        Calibrating { imatrix: Some(_), .. } if !plan.is_calibrated() && options.importance.is_none() => "--imatrix",
        Calibrating { original: Some(_), .. } if is_named && plan.recodes().all(|recode| recode.original.is_none()) => {
            "--original"
        }
        // Without a run of the model there are no tokens to count.
        Calibrating { amount, .. } if !plan.is_calibrated() || matches!(options.data, Data::Guessed(..)) => {
            match amount.option() {
                Some(option) => option,
                None => return Ok(()),
            }
        }
        _ => return Ok(()),
    };
    Err(Error::new(Kind::Usage, format!("{given} is of no use to rounding {}", plan.rounding.id()))
        .with_hint(plan.reason.clone().unwrap_or_else(|| "leave out --rounding".into())))
}
