//! Jobs that come layer by layer and are done beside whoever brings them, all on one pool of threads.
//!
//! Whoever brings them (a pass over a model) is a task of the pool like each job, so that there are never more threads at work than the pool has: while it goes on, one
//! job fewer is begun, and where a bound makes it wait, its thread does jobs. A thread without a job takes a share of another's, or of the pass.

use std::cmp::Reverse;
use std::collections::BTreeMap;
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use rayon::{Scope, Yield};

use crate::error::{Error, Result};
use crate::parallel::{bug, lock};
use crate::progress::{Progress, stopped};

/// How long a thread that waits sleeps before it looks for a share of somebody's work again.
const NAP: Duration = Duration::from_millis(2);

/// A job of a layer.
pub(super) struct Queued<J> {
    /// How long it takes, in any unit: the longest of a layer begins first, so that no thread waits for one at the end.
    pub(super) size: u64,
    /// Its place in the plan: of a layer's errors the first in the plan counts, whichever was found first.
    pub(super) number: usize,
    /// Bytes that it takes.
    pub(super) bytes: u64,
    pub(super) job: J,
}

/// What becomes of jobs and layers.
pub(super) trait LayerJobs: Sync {
    type Job: Send;
    type Done: Send;
    /// Does a job.
    fn job(&self, job: &Self::Job) -> Result<Self::Done>;
    /// All jobs of a layer are done.
    fn layer(&self, done: &[Self::Done]) -> Result<()>;
}

/// How many jobs may be there at a time.
#[derive(Clone, Copy, Debug)]
pub(super) struct Limits {
    /// Threads of the pool.
    pub(super) threads: usize,
    /// Layers that may have jobs left while the next one's are brought; 0 if jobs are done only where the pass waits.
    pub(super) ahead: usize,
    /// Bytes that jobs, and what their layers hold for them, may take together.
    pub(super) bytes: Option<u64>,
}

pub(super) struct Queue<'q, W: LayerJobs> {
    work: &'q W,
    progress: &'q dyn Progress,
    limits: Limits,
    state: Mutex<State<W>>,
    changed: Condvar,
}

struct State<W: LayerJobs> {
    /// Not begun, the first last.
    waiting: Vec<(usize, Queued<W::Job>)>,
    working: usize,
    /// Bytes of those at work.
    bytes: u64,
    /// Layers with jobs left, or that more may come of.
    open: BTreeMap<usize, Layer<W::Done>>,
    /// Layers so far.
    layers: usize,
    /// True while the pass goes on.
    passing: bool,
    finished: Vec<W::Done>,
    /// The first error, by layer and place in the plan.
    failure: Option<(At, Error)>,
    stopped: bool,
}

/// A layer, and the place of a job in the plan.
type At = (usize, usize);

struct Layer<D> {
    left: usize,
    /// Bytes that it holds for its jobs.
    held: u64,
    done: Vec<D>,
}

impl<'q, W: LayerJobs> Queue<'q, W> {
    pub(super) fn new(work: &'q W, progress: &'q dyn Progress, limits: Limits) -> Self {
        let state = State {
            waiting: Vec::new(),
            working: 0,
            bytes: 0,
            open: BTreeMap::new(),
            layers: 0,
            passing: true,
            finished: Vec::new(),
            failure: None,
            stopped: false,
        };
        Self { work, progress, limits, state: Mutex::new(state), changed: Condvar::new() }
    }

    fn state(&self) -> MutexGuard<'_, State<W>> {
        lock(&self.state)
    }

    /// Takes jobs of the present layer, which holds so many bytes for them until the last is done.
    pub(super) fn add<'s>(&'s self, scope: &Scope<'s>, jobs: Vec<Queued<W::Job>>, held: u64) -> Result<()>
    where
        'q: 's,
    {
        let mut state = self.state();
        let at = state.layers;
        // A job that failed may have one of the same layer before it in the plan, which is yet to come.
        if state.failure.as_ref().is_none_or(|((layer, _), _)| *layer < at) {
            self.go_on(&state)?;
        }
        let layer = state.open.entry(at).or_insert_with(|| Layer { left: 0, held: 0, done: Vec::new() });
        layer.left += jobs.len();
        layer.held += held;
        state.waiting.extend(jobs.into_iter().map(|job| (at, job)));
        state.waiting.sort_by_key(|(layer, job)| (Reverse(*layer), job.size, Reverse(job.number)));
        drop(state);
        self.begin(scope);
        Ok(())
    }

    /// Ends the present layer, and waits until there is room for the next.
    pub(super) fn layer<'s>(&'s self, scope: &Scope<'s>) -> Result<()>
    where
        'q: 's,
    {
        self.end(scope);
        loop {
            let state = self.state();
            self.go_on(&state)?;
            if state.open.len() <= self.limits.ahead {
                break;
            }
            drop(state);
            if !matches!(rayon::yield_now(), Some(Yield::Executed)) {
                let state = self.state();
                if state.open.len() > self.limits.ahead && state.failure.is_none() {
                    drop(self.changed.wait_timeout(state, NAP));
                }
            }
        }
        self.state().passing = true;
        Ok(())
    }

    /// Ends the present layer: while no more jobs come, those that are there may have all threads.
    pub(super) fn end<'s>(&'s self, scope: &Scope<'s>)
    where
        'q: 's,
    {
        let mut state = self.state();
        state.layers += 1;
        state.passing = false;
        drop(state);
        self.close();
        self.begin(scope);
    }

    /// What was done, in layers that are complete and in others, and the first error.
    pub(super) fn results(self) -> (Vec<W::Done>, Vec<W::Done>, Option<Error>) {
        let state = self.state.into_inner().unwrap_or_else(PoisonError::into_inner);
        let rest = state.open.into_values().flat_map(|layer| layer.done).collect();
        let error = state.failure.map(|(_, error)| error);
        (state.finished, rest, error.or_else(|| (state.stopped || self.progress.cancelled()).then(stopped)))
    }

    /// Errors if there is no use in going on.
    fn go_on(&self, state: &State<W>) -> Result<()> {
        if state.failure.is_some() || state.stopped || self.progress.cancelled() { Err(stopped()) } else { Ok(()) }
    }

    /// Begins as many jobs as there may be.
    fn begin<'s>(&'s self, scope: &Scope<'s>)
    where
        'q: 's,
    {
        let Limits { threads, ahead, bytes } = self.limits;
        let mut state = self.state();
        loop {
            if self.progress.cancelled() {
                state.stopped = true;
            }
            let most = match state.passing {
                true if ahead == 0 => 0,
                true => threads.saturating_sub(1).max(1),
                false => threads,
            };
            if state.stopped {
                state.waiting.clear();
            } else if let Some(first) = state.failure.as_ref().map(|(first, _)| *first) {
                state.waiting.retain(|(layer, job)| (*layer, job.number) < first);
            }
            let Some((_, job)) = state.waiting.last() else { return };
            let held: u64 = state.open.values().map(|layer| layer.held).sum();
            let fits = bytes.is_none_or(|bytes| held + state.bytes + job.bytes <= bytes);
            // What is larger than the whole has it to itself.
            if state.working >= most || !fits && state.working > 0 {
                return;
            }
            let Some((layer, job)) = state.waiting.pop() else { return };
            state.working += 1;
            state.bytes += job.bytes;
            scope.spawn(move |scope| self.run(scope, layer, job));
        }
    }

    fn run<'s>(&'s self, scope: &Scope<'s>, layer: usize, job: Queued<W::Job>)
    where
        'q: 's,
    {
        let Queued { number, bytes, job, .. } = job;
        let attempt = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| self.work.job(&job)));
        let result = attempt.unwrap_or_else(|panic| Err(bug(panic.as_ref())));
        // What it holds is free before the next begins.
        drop(job);
        let mut state = self.state();
        state.working -= 1;
        state.bytes -= bytes;
        match (result, state.open.get_mut(&layer)) {
            (Ok(done), Some(open)) => {
                open.left -= 1;
                open.done.push(done);
            }
            (Ok(_), None) => {}
            (Err(error), _) => state.fail((layer, number), error),
        }
        drop(state);
        self.close();
        self.changed.notify_all();
        self.begin(scope);
    }

    /// Closes layers that are complete.
    fn close(&self) {
        loop {
            let mut state = self.state();
            let layers = state.layers;
            let complete = |(at, layer): (&usize, &Layer<W::Done>)| (*at < layers && layer.left == 0).then_some(*at);
            let Some(at) = state.open.iter().find_map(complete) else { return };
            let Some(layer) = state.open.remove(&at) else { return };
            drop(state);
            let recorded = self.work.layer(&layer.done);
            let mut state = self.state();
            state.finished.extend(layer.done);
            if let Err(error) = recorded {
                state.fail((at, usize::MAX), error);
            }
        }
    }
}

impl<W: LayerJobs> State<W> {
    fn fail(&mut self, at: At, error: Error) {
        if self.failure.as_ref().is_none_or(|(first, _)| at < *first) {
            self.failure = Some((at, error));
        }
    }
}

#[cfg(test)]
mod tests;
