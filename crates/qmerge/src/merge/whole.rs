//! Weights that are rounded as a whole, in the order in which the moments of their inputs become known.
//!
//! They are written to their places before the other steps begin; those find them done.

use std::collections::HashMap;
use std::sync::Arc;

use super::Run;
use super::memory::{moments_bytes, turned_bytes, weight_bytes};
use super::places::Places;
use super::queue::{self, Limits, Queue, Work};
use super::residual::is_coarse;
use super::step::explain;
use super::target::{Target, on_grid, writer};
use crate::edited::Edited;
use crate::error::{Result, mismatch};
use crate::formats::{Weight, transposed};
use crate::measure::Sums;
use crate::parallel::{Budget, attempts, pool};
use crate::plan::{Action, Recode, Step};
use crate::progress::stopped;
use crate::round::{Calibration, InputMoments, Inputs, Known, Matrix, Metric, Take, Whole};
use crate::simd::moments::{Moments, moments};
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
    pub(super) fn whole(&self, calibration: &mut dyn Calibration, done: &mut HashMap<usize, Finished>) -> Result<()> {
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
            |layer: &&Vec<_>| layer.iter().flat_map(|inputs: &Inputs| &inputs.weights).any(|name| wanted(name));
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
            self.output.checkpoint(&rest)?;
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
                let finished = self.turn(number, step, recode);
                self.progress.advance(self.schedule.work.steps[number]);
                finished
            });
        let named = |(at, result): (usize, Result<_>)| result.map_err(|error| error.in_tensor(&open[at].1.name));
        let finished = results.into_iter().map(named).collect::<Result<Vec<Finished>>>()?;
        if !finished.is_empty() {
            self.output.checkpoint(&finished)?;
        }
        if self.progress.cancelled() {
            return Err(stopped().with_hint("run the same command with --resume to go on"));
        }
        done.extend(finished.into_iter().map(|step| (step.step, step)));
        Ok(())
    }

    fn turn(&self, number: usize, step: &Step, recode: &Recode) -> Result<Finished> {
        let geometry = recode.from.weight.geometry();
        let (mut base, mut target) = (Vec::new(), Vec::new());
        Edited::new(self.inputs, recode)?.rows(&(0..geometry.rows), &mut base, &mut target)?;
        let base = transposed(&base, geometry.cols);
        let target = transposed(&target, geometry.cols);
        let Start { parts, values, .. } = self.start(recode, &[], &base, &target)?;
        let moments = sound(step, recode, &base, &target, &values)?;
        let late = self.put_parts(step, parts)?;
        let sums = Sums { elements: geometry.elements() as u64, moments };
        Ok(Finished { step: number, sums: Some(sums), kept: None, late })
    }

    /// Writes all parts of a weight to their places. Returns those whose place depends on lengths not known yet.
    fn put_parts(&self, step: &Step, parts: Vec<Vec<u8>>) -> Result<Vec<(usize, Vec<u8>)>> {
        Places { plan: self.plan, output: self.output }.put_whole(step, parts.into_iter().enumerate())
    }

    fn rounded(&self, job: &Job<'_>) -> Result<Finished> {
        let Job { step, recode, method, .. } = job;
        let geometry = recode.from.weight.geometry();
        let all = 0..geometry.rows;
        let edited = Edited::new(self.inputs, recode)?;
        let (mut base, mut target) = (Vec::new(), Vec::new());
        edited.rows(&all, &mut base, &mut target)?;
        let Start { weight, parts, values } = self.start(recode, edited.base().whole(), &base, &target)?;
        let on_grid = on_grid(weight.as_ref())?;
        let views: Vec<&[u8]> = parts.iter().map(Vec::as_slice).collect();
        let mut matrix = Matrix {
            rows: geometry.rows,
            cols: geometry.cols,
            base: &base,
            target: &target,
            values,
            grid: on_grid.grid(&views, all.clone()),
            metric: &job.metric,
        };
        let judged = method.round(&mut matrix);
        let Matrix { values, grid, .. } = matrix;
        let mut written = vec![Vec::new(); parts.len()];
        on_grid.store(&views, all.clone(), &values, Some(&grid), &mut written);
        // What belongs to the weight as a whole and did not change.
        for ((part, written), own) in written.iter_mut().enumerate().zip(parts) {
            if written.is_empty() && weight.part_rows(part, &all).is_none() {
                *written = own;
            }
        }
        let mut output = values;
        weight.decode(&written.iter().map(Vec::as_slice).collect::<Vec<_>>(), all.clone(), &mut output);
        let moments = sound(step, recode, &base, &target, &output)?;
        if is_coarse(recode) {
            self.keep_residual(job.number, (&target, &output), &job.metric, judged.error())?;
        }
        let late = self.put_parts(step, written)?;
        let sums = Sums { elements: geometry.elements() as u64, moments };
        Ok(Finished { step: job.number, sums: Some(sums), kept: Some(judged.kept), late })
    }

    /// Where rounding begins: the codes of the base, or what a format makes of the target afresh.
    fn start(&self, recode: &Recode, whole: &[Option<Vec<u8>>], base: &[f32], target: &[f32]) -> Result<Start> {
        let all = 0..recode.to.geometry().rows;
        if recode.keep && !recode.to.is_plain() {
            let read = |entry| self.inputs.base.read_small(entry, entry.bytes);
            let parts = recode.from.entries.iter().map(read).collect::<Result<_>>()?;
            return Ok(Start { weight: Arc::clone(&recode.to), parts, values: base.to_vec() });
        }
        let fresh = writer(recode.to.as_ref())?;
        let mut held = Vec::new();
        if fresh.needs_survey() {
            fresh.survey(all.clone(), target, &mut held);
        }
        let Target { weight, parts: settled } = Target::settled(recode, &held, whole)?;
        let mut encoded = vec![Vec::new(); settled.len()];
        writer(weight.as_ref())?.encode(&settled, all.clone(), target, &mut encoded);
        let parts: Vec<Vec<u8>> =
            settled.into_iter().zip(encoded).map(|(settled, encoded)| settled.unwrap_or(encoded)).collect();
        let views: Vec<&[u8]> = parts.iter().map(Vec::as_slice).collect();
        let mut values = vec![0.0; target.len()];
        weight.decode(&views, all, &mut values);
        Ok(Start { weight, parts, values })
    }
}

impl<'a> Work for Run<'a> {
    type Job = Job<'a>;
    type Done = Finished;

    fn job(&self, job: &Job<'a>) -> Result<Finished> {
        let finished = self.rounded(job).map_err(|error| error.in_tensor(&job.step.name));
        self.progress.advance(self.schedule.work.steps[job.number]);
        finished
    }

    fn layer(&self, done: &[Finished]) -> Result<()> {
        self.output.checkpoint(done)
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
        let job = |&&(number, step, recode): &&(usize, &'a Step, &'a Recode)| {
            let geometry = recode.from.weight.geometry();
            // The longest first, so that no thread waits for one at the end.
            let size = (geometry.elements() * geometry.cols) as u64;
            queue::Job {
                order: (u64::MAX - size, number),
                bytes: weight_bytes(recode, self.run.plan.residual_rank),
                job: Job { number, step, recode, method, metric: Arc::clone(&metric) },
            }
        };
        self.queue.add(self.scope, weights.iter().map(job).collect(), held)
    }

    fn layer(&mut self) -> Result<()> {
        self.number += 1;
        self.run.progress.part(self.number, self.layers.max(self.number));
        self.queue.layer(self.scope)
    }
}

/// The figures of a weight, or what in it is not finite.
fn sound(step: &Step, recode: &Recode, base: &[f32], target: &[f32], output: &[f32]) -> Result<Moments> {
    let moments = moments(base, target, output);
    if moments.sound() {
        return Ok(moments);
    }
    Err(explain(recode, step, 0, base, target, output))
}

/// A weight before it is rounded.
struct Start {
    weight: Arc<dyn Weight>,
    /// Its stored bytes.
    parts: Vec<Vec<u8>>,
    /// What they decode to.
    values: Vec<f32>,
}

/// The moments must be those of this model's inputs.
fn fit(moments: &InputMoments, weights: &[&(usize, &Step, &Recode)]) -> Result<()> {
    for (_, step, recode) in weights {
        let cols = recode.from.weight.geometry().cols;
        if cols != moments.features {
            return Err(mismatch(format!("takes {cols} inputs, but the calibration saw {}", moments.features))
                .in_tensor(&step.name)
                .with_hint("the calibration belongs to another model"));
        }
    }
    Ok(())
}
