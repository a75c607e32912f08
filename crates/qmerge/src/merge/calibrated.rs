//! Weights that are rounded as a whole, in the order in which the moments of their inputs become known.
//!
//! They are written to their places before the other steps begin; those find them done.

use std::collections::{BTreeMap, HashMap};
use std::sync::{Arc, OnceLock};

use super::Run;
use super::memory::{moments_bytes, turned_bytes, weight_bytes};
use super::queue::{self, LayerJobs, Limits, Queue};
use crate::edited::Edited;
use crate::error::{Result, mismatch};
use crate::measure::Sums;
use crate::parallel::{Budget, attempts, pool};
use crate::plan::{Action, Recode, Step};
use crate::progress::stopped;
use crate::round::{Calibration, InputMoments, Known, LayerInputs, Metric, OutputKept, Take, Whole, weight_of};
use crate::write::Finished;

/// The weights to be rounded, by name: step and what it does.
type Open<'a> = HashMap<&'a str, (usize, &'a Step, &'a Recode)>;

/// A weight to be rounded, or one matrix of a stack.
pub(super) struct Job<'a> {
    number: usize,
    step: &'a Step,
    recode: &'a Recode,
    method: &'static dyn Whole,
    metric: Arc<Metric>,
    /// Inputs that the moments were taken of.
    tokens: usize,
    stacked: Option<Stacked<'a>>,
}

/// Which matrix of a stack it is, and the stack, which is loaded once for all of them.
struct Stacked<'a> {
    matrix: usize,
    edited: Arc<Loaded<'a>>,
}

/// A stack with its edits, once a job needs them.
type Loaded<'a> = OnceLock<Edited<'a>>;

/// What became of a weight, or of one matrix of a stack.
pub(super) struct Rounded {
    finished: Finished,
    /// Which matrix, and of how many.
    matrix: Option<(usize, usize)>,
    /// Weight of what was kept among the matrices: the energy of the adapter's output.
    energy: f64,
}

/// The steps that are complete: matrices of a stack become one, in their order, so that sums do not depend on who was first.
fn complete(rounded: &[Rounded]) -> Vec<Finished> {
    let mut finished = Vec::new();
    let mut stacks: BTreeMap<usize, Vec<(usize, usize, &Rounded)>> = BTreeMap::new();
    for one in rounded {
        match one.matrix {
            None => finished.push(one.finished.clone()),
            Some((matrix, of)) => stacks.entry(one.finished.step).or_default().push((matrix, of, one)),
        }
    }
    for (step, mut matrices) in stacks {
        matrices.sort_by_key(|(matrix, ..)| *matrix);
        if matrices.first().is_none_or(|(_, of, _)| *of != matrices.len()) {
            continue;
        }
        let (mut sums, mut output, mut noise, mut energy) = (Sums::zero(), 0.0, 0.0, 0.0);
        for (_, _, one) in &matrices {
            one.finished.sums.iter().for_each(|own| sums.add(own));
            if let Some(kept) = one.finished.kept {
                output += one.energy * kept.output;
                noise += one.energy * kept.noise;
                energy += one.energy;
            }
        }
        let kept =
            if energy > 0.0 { OutputKept { output: output / energy, noise: noise / energy } } else { OutputKept::ALL };
        finished.push(Finished { step, sums: Some(sums), kept: Some(kept), late: Vec::new() });
    }
    finished
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
            .filter(|(number, _)| self.steps.contains(number) && !done.contains_key(number))
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
        let wanted = |name: &str| find(&open, name).is_some();
        let is_open =
            |layer: &&Vec<_>| layer.iter().flat_map(|inputs: &LayerInputs| &inputs.weights).any(|name| wanted(name));
        let layers = demand.layers.iter().filter(is_open).count() as u64;
        self.progress.phase("rounding", "layers");
        let memory = &self.schedule.memory;
        let limits = Limits { threads: memory.threads, ahead: memory.ahead, bytes: memory.whole };
        let queue = Queue::new(self, self.progress, limits);
        let passed = pool(memory.threads)?.scope(|scope| {
            let (run, open, queue) = (self, &open, &queue);
            let mut round = Round { run, open, queue, scope, layers, number: 0, stacks: HashMap::new() };
            let passed = calibration.each(&wanted, &mut round);
            queue.end(scope);
            passed
        });
        let (finished, rest, error) = queue.results();
        if self.progress.cancelled() {
            // What is finished is kept for --resume.
            self.output.record(&complete(&rest))?;
        }
        // A weight comes before what the pass found later.
        error.map_or(passed, Err)?;
        done.extend(complete(&finished).into_iter().chain(complete(&rest)).map(|step| (step.step, step)));
        Ok(())
    }

    /// Stores the weights whose rows become columns, each as a whole.
    pub(super) fn turned(&self, done: &mut HashMap<usize, Finished>) -> Result<()> {
        let open: Vec<(usize, &Step, &Recode)> = self
            .plan
            .steps
            .iter()
            .enumerate()
            .filter(|(number, _)| self.steps.contains(number))
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
                let finished = self.whole(number, step, recode);
                self.progress.advance(self.schedule.work.steps[number]);
                finished
            });
        let named = |(at, result): (usize, Result<_>)| result.map_err(|error| error.in_tensor(&open[at].1.name));
        let finished = results.into_iter().map(named).collect::<Result<Vec<Finished>>>()?;
        if !finished.is_empty() {
            self.output.record(&finished)?;
        }
        if self.progress.cancelled() {
            return Err(stopped());
        }
        done.extend(finished.into_iter().map(|step| (step.step, step)));
        Ok(())
    }
}

impl<'a> LayerJobs for Run<'a> {
    type Job = Job<'a>;
    type Done = Rounded;

    fn job(&self, job: &Job<'a>) -> Result<Rounded> {
        let rounded = self.one(job).map_err(|error| error.in_tensor(&job.step.name));
        let work = self.schedule.work.steps[job.number];
        self.progress.advance(match (&job.stacked, job.recode.stack) {
            (Some(Stacked { matrix, .. }), Some(of)) => {
                let until = |matrix: usize| (u128::from(work) * matrix as u128 / of as u128) as u64;
                until(matrix + 1) - until(*matrix)
            }
            _ => work,
        });
        rounded
    }

    fn layer(&self, done: &[Rounded]) -> Result<()> {
        self.output.record(&complete(done))
    }
}

impl<'a> Run<'a> {
    fn one(&self, job: &Job<'a>) -> Result<Rounded> {
        let (step, by) = ((job.number, job.step, job.recode), (job.method, job.metric.as_ref()));
        let own;
        let (edited, matrix) = match &job.stacked {
            None => {
                own = Edited::new(self.inputs, job.recode)?;
                (&own, None)
            }
            Some(Stacked { matrix, edited }) => match edited.get() {
                Some(edited) => (edited, Some(*matrix)),
                None => {
                    let loaded = Edited::new(self.inputs, job.recode)?;
                    // Another thread may have been faster.
                    (edited.get_or_init(|| loaded), Some(*matrix))
                }
            },
        };
        let (finished, delta) = self.rounded(step, edited, matrix, by)?;
        Ok(Rounded { finished, matrix: matrix.zip(job.recode.stack), energy: delta * job.tokens as f64 })
    }
}

/// The step of a name, and which matrix it means where the step's weight is a stack.
fn find<'a>(open: &Open<'a>, name: &str) -> Option<(usize, &'a Step, &'a Recode, Option<usize>)> {
    if let Some(&(number, step, recode)) = open.get(name).filter(|(_, _, recode)| recode.stack.is_none()) {
        return Some((number, step, recode, None));
    }
    let (stack, matrix) = weight_of(name);
    let &(number, step, recode) = open.get(stack)?;
    let matrix = matrix.filter(|matrix| recode.stack.is_some_and(|of| *matrix < of))?;
    Some((number, step, recode, Some(matrix)))
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
    /// The layer's stacks, by step.
    stacks: HashMap<usize, Arc<Loaded<'a>>>,
}

impl<'q: 's, 's, 'a> Take for Round<'_, 'q, 's, 'a> {
    fn known(&mut self, known: Known) -> Result<()> {
        let weights: Vec<_> = known.weights.iter().filter_map(|name| find(self.open, name)).collect();
        let Some((_, first, recode, _)) = weights.first() else { return Ok(()) };
        let Some(method) = recode.rounding.whole() else { return Ok(()) };
        fit(&known.moments, &weights).map_err(|error| error.in_tensor(&first.name))?;
        let from_base = weights.iter().any(|(_, _, recode, _)| recode.begins_at_base());
        let held = moments_bytes(method, known.moments.features, from_base, known.detail);
        let tokens = known.moments.tokens;
        let mut metric = Metric::damped(known.moments, method.damping(known.detail))
            .map_err(|error| error.in_tensor(&first.name))?;
        metric.detail = known.detail;
        method.prepare(&mut metric, from_base);
        let metric = Arc::new(metric);
        let mut job = |(number, step, recode, matrix): (usize, &'a Step, &'a Recode, Option<usize>)| {
            let stacked =
                matrix.map(|matrix| Stacked { matrix, edited: Arc::clone(self.stacks.entry(number).or_default()) });
            queue::Queued {
                size: (recode.outputs() * recode.inputs() * recode.inputs()) as u64,
                number,
                bytes: weight_bytes(recode, self.run.plan.residual_rank),
                job: Job { number, step, recode, method, metric: Arc::clone(&metric), tokens, stacked },
            }
        };
        let jobs = weights.into_iter().map(&mut job).collect();
        self.queue.add(self.scope, jobs, held)
    }

    fn layer(&mut self) -> Result<()> {
        self.number += 1;
        self.stacks.clear();
        self.run.progress.part(self.number, self.layers.max(self.number));
        self.queue.layer(self.scope)
    }
}

/// The moments must be those of this model's inputs.
fn fit(moments: &InputMoments, weights: &[(usize, &Step, &Recode, Option<usize>)]) -> Result<()> {
    for (_, step, recode, _) in weights {
        let inputs = recode.inputs();
        if inputs != moments.features {
            return Err(mismatch(format!("takes {inputs} inputs, but the calibration saw {}", moments.features))
                .in_tensor(&step.name)
                .with_hint("the calibration belongs to another model"));
        }
    }
    Ok(())
}
