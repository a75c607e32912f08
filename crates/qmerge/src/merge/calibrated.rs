//! Weights that are rounded as a whole, in the order in which the moments of their inputs become known.
//!
//! They are written to their places before the other steps begin; those find them done.

use std::collections::HashMap;
use std::sync::Arc;

use super::Run;
use super::memory::{moments_bytes, turned_bytes, weight_bytes};
use super::queue::{self, LayerJobs, Limits, Queue};
use crate::error::{Result, mismatch};
use crate::parallel::{Budget, attempts, pool};
use crate::plan::{Action, Recode, Step};
use crate::progress::stopped;
use crate::round::{Calibration, InputMoments, Known, LayerInputs, Metric, Take, Whole};
use crate::write::Finished;

/// The weights to be rounded, by name: step and what it does.
type Open<'a> = HashMap<&'a str, (usize, &'a Step, &'a Recode)>;

/// A weight to be rounded.
pub(super) struct Job<'a> {
    number: usize,
    step: &'a Step,
    recode: &'a Recode,
    method: &'static dyn Whole,
    metric: Arc<Metric>,
}

impl<'a> Run<'a> {
    /// Rounds all weights whose inputs `calibration` knows, while it goes on to the next.
    pub(super) fn calibrated(
        &self,
        calibration: &mut dyn Calibration,
        done: &mut HashMap<usize, Finished>,
    ) -> Result<()> {
        let open: Open<'a> = self
            .plan
            .steps
            .iter()
            .enumerate()
            .filter(|(number, _)| !done.contains_key(number))
            .filter_map(|(number, step)| match &step.action {
                Action::Recode(recode) if recode.rounding.whole().is_some() => {
                    Some((step.name.as_str(), (number, step, recode.as_ref())))
                }
                _ => None,
            })
            .collect();
        let demand = calibration.demand();
        if open.is_empty() {
            self.progress.skip(demand.work);
            return Ok(());
        }
        let wanted = |name: &str| open.contains_key(name);
        let is_open =
            |layer: &&Vec<_>| layer.iter().flat_map(|inputs: &LayerInputs| &inputs.weights).any(|name| wanted(name));
        let layers = demand.layers.iter().filter(is_open).count() as u64;
        self.progress.phase("rounding", "layers");
        let memory = &self.schedule.memory;
        let limits = Limits { threads: memory.threads, ahead: memory.ahead, bytes: memory.whole };
        let queue = Queue::new(self, self.progress, limits);
        let passed = pool(memory.threads)?.scope(|scope| {
            let mut round = Round { run: self, open: &open, queue: &queue, scope, layers, number: 0 };
            let passed = calibration.each(&wanted, &mut round);
            queue.end(scope);
            passed
        });
        let (finished, rest, error) = queue.results();
        if self.progress.cancelled() {
            // What is finished is kept for --resume.
            self.output.record(&rest)?;
        }
        // A weight comes before what the pass found later.
        error.map_or(passed, Err)?;
        done.extend(finished.into_iter().chain(rest).map(|step| (step.step, step)));
        Ok(())
    }

    /// Stores the weights whose rows become columns, each as a whole.
    pub(super) fn turned(&self, done: &mut HashMap<usize, Finished>) -> Result<()> {
        let open: Vec<(usize, &Step, &Recode)> = self
            .plan
            .steps
            .iter()
            .enumerate()
            .filter_map(|(number, step)| match &step.action {
                Action::Recode(recode) if recode.turned && !done.contains_key(&number) => {
                    Some((number, step, recode.as_ref()))
                }
                _ => None,
            })
            .collect();
        let budget = self.schedule.memory.whole.map_or_else(Budget::unlimited, Budget::new);
        let weigh = |&(_, _, recode): &(usize, &Step, &Recode)| turned_bytes(recode);
        let results =
            attempts(&budget, weigh, &open, self.schedule.threads, self.progress, |&(number, step, recode)| {
                let finished = self.whole(number, step, recode, None);
                self.progress.advance(self.schedule.work.steps[number]);
                finished
            });
        let named = |(at, result): (usize, Result<_>)| result.map_err(|error| error.in_tensor(&open[at].1.name));
        let finished = results.into_iter().map(named).collect::<Result<Vec<Finished>>>()?;
        if !finished.is_empty() {
            self.output.record(&finished)?;
        }
        if self.progress.cancelled() {
            return Err(stopped().with_hint("run the same command with --resume to go on"));
        }
        done.extend(finished.into_iter().map(|step| (step.step, step)));
        Ok(())
    }
}

impl<'a> LayerJobs for Run<'a> {
    type Job = Job<'a>;
    type Done = Finished;

    fn job(&self, job: &Job<'a>) -> Result<Finished> {
        let by = Some((job.method, job.metric.as_ref()));
        let finished =
            self.whole(job.number, job.step, job.recode, by).map_err(|error| error.in_tensor(&job.step.name));
        self.progress.advance(self.schedule.work.steps[job.number]);
        finished
    }

    fn layer(&self, done: &[Finished]) -> Result<()> {
        self.output.record(done)
    }
}

/// Turns moments into jobs.
struct Round<'r, 'q, 's, 'a> {
    run: &'r Run<'a>,
    open: &'r Open<'a>,
    queue: &'q Queue<'q, Run<'a>>,
    scope: &'r rayon::Scope<'s>,
    layers: u64,
    /// Layers so far.
    number: u64,
}

impl<'q: 's, 's, 'a> Take for Round<'_, 'q, 's, 'a> {
    fn known(&mut self, known: Known) -> Result<()> {
        let weights: Vec<_> = known.weights.iter().filter_map(|name| self.open.get(name.as_str())).collect();
        let Some((_, first, recode)) = weights.first() else { return Ok(()) };
        let Some(method) = recode.rounding.whole() else { return Ok(()) };
        fit(&known.moments, &weights).map_err(|error| error.in_tensor(&first.name))?;
        let held = moments_bytes(method, known.moments.features);
        let mut metric =
            Metric::damped(known.moments, method.damping()).map_err(|error| error.in_tensor(&first.name))?;
        method.prepare(&mut metric);
        let metric = Arc::new(metric);
        let job = |&&(number, step, recode): &&(usize, &'a Step, &'a Recode)| queue::Queued {
            size: (recode.outputs() * recode.inputs() * recode.inputs()) as u64,
            number,
            bytes: weight_bytes(recode, self.run.plan.residual_rank),
            job: Job { number, step, recode, method, metric: Arc::clone(&metric) },
        };
        self.queue.add(self.scope, weights.iter().map(job).collect(), held)
    }

    fn layer(&mut self) -> Result<()> {
        self.number += 1;
        self.run.progress.part(self.number, self.layers.max(self.number));
        self.queue.layer(self.scope)
    }
}

/// The moments must be those of this model's inputs.
fn fit(moments: &InputMoments, weights: &[&(usize, &Step, &Recode)]) -> Result<()> {
    for (_, step, recode) in weights {
        let inputs = recode.inputs();
        if inputs != moments.features {
            return Err(mismatch(format!("takes {inputs} inputs, but the calibration saw {}", moments.features))
                .in_tensor(&step.name)
                .with_hint("the calibration belongs to another model"));
        }
    }
    Ok(())
}
