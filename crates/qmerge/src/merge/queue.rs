//! Jobs that come layer by layer and are done beside whoever brings them, all on one pool of threads.
//!
//! Whoever brings them (a pass over a model) is a task of the pool like each job, so that there are never more threads at work than the pool has: while it goes on, one
//! job fewer is begun, and where a bound makes it wait, its thread does jobs. A thread without a job takes a share of another's, or of the pass.

use std::collections::BTreeMap;
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use rayon::{Scope, Yield};

use crate::error::{Error, Result};
use crate::parallel::bug;
use crate::progress::{Progress, stopped};

/// How long a thread that waits sleeps before it looks for a share of somebody's work again.
const NAP: Duration = Duration::from_millis(2);

/// A job of a layer.
pub(super) struct Queued<J> {
    /// Its place among the layer's: the first begins first, and of errors the first counts.
    pub(super) order: (u64, usize),
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
    /// The first error, by layer and order.
    failure: Option<(At, Error)>,
    stopped: bool,
}

/// A layer, and the order of a job in it.
type At = (usize, (u64, usize));

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
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Takes jobs of the present layer, which holds so many bytes for them until the last is done.
    pub(super) fn add<'s>(&'s self, scope: &Scope<'s>, jobs: Vec<Queued<W::Job>>, held: u64) -> Result<()>
    where
        'q: 's,
    {
        let mut state = self.state();
        let at = state.layers;
        let layer = state.open.entry(at).or_insert_with(|| Layer { left: 0, held: 0, done: Vec::new() });
        layer.left += jobs.len();
        layer.held += held;
        state.waiting.extend(jobs.into_iter().map(|job| (at, job)));
        state.waiting.sort_by_key(|(layer, job)| std::cmp::Reverse((*layer, job.order)));
        self.go_on(&state)?;
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
            let Some((layer, job)) = state.waiting.last() else { return };
            let is_late = state.failure.as_ref().is_some_and(|(first, _)| *first < (*layer, job.order));
            if is_late || state.stopped {
                state.waiting.clear();
                return;
            }
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
        let Queued { order, bytes, job } = job;
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
            (Err(error), _) => state.fail((layer, order), error),
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
            let kept = self.work.layer(&layer.done);
            let mut state = self.state();
            state.finished.extend(layer.done);
            if let Err(error) = kept {
                state.fail((at, (u64::MAX, usize::MAX)), error);
            }
        }
    }
}

impl<W: LayerJobs> State<W> {
    fn fail(&mut self, at: (usize, (u64, usize)), error: Error) {
        if self.failure.as_ref().is_none_or(|(first, _)| at < *first) {
            self.failure = Some((at, error));
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};

    use super::*;
    use crate::error::Kind;
    use crate::parallel::pool;
    use crate::progress::Silent;

    /// Jobs that take a while, and watch over what is at work.
    #[derive(Default)]
    struct Watched {
        working: AtomicUsize,
        most: AtomicUsize,
        bytes: AtomicU64,
        most_bytes: AtomicU64,
        /// Jobs that were done while the pass went on.
        beside: AtomicUsize,
        passing: AtomicBool,
        layers: Mutex<Vec<usize>>,
    }

    #[derive(Clone, Copy, Debug, PartialEq)]
    struct Item {
        number: usize,
        bytes: u64,
        milliseconds: u64,
        fails: bool,
    }

    impl LayerJobs for Watched {
        type Job = Item;
        type Done = usize;

        fn job(&self, item: &Item) -> Result<usize> {
            let enter = |now: &AtomicU64, by: u64, most: &AtomicU64| {
                most.fetch_max(now.fetch_add(by, Ordering::SeqCst) + by, Ordering::SeqCst);
            };
            enter(&self.bytes, item.bytes, &self.most_bytes);
            self.most.fetch_max(self.working.fetch_add(1, Ordering::SeqCst) + 1, Ordering::SeqCst);
            self.beside.fetch_add(usize::from(self.passing.load(Ordering::SeqCst)), Ordering::SeqCst);
            std::thread::sleep(Duration::from_millis(item.milliseconds));
            self.working.fetch_sub(1, Ordering::SeqCst);
            self.bytes.fetch_sub(item.bytes, Ordering::SeqCst);
            assert!(item.bytes != 13, "thirteen");
            if item.fails { Err(Error::new(Kind::Usage, format!("job {}", item.number))) } else { Ok(item.number) }
        }

        fn layer(&self, done: &[usize]) -> Result<()> {
            self.layers.lock().unwrap().push(done.len());
            Ok(())
        }
    }

    /// Brings layers of jobs, each job on its own. Returns what became of the pass and of the jobs.
    fn pass(work: &Watched, limits: Limits, layers: &[Vec<Item>]) -> (Result<()>, Vec<usize>, Option<Error>) {
        let queue = Queue::new(work, &Silent, limits);
        let passed = pool(limits.threads).unwrap().scope(|scope| {
            let bring = || {
                for layer in layers {
                    for &job in layer {
                        work.passing.store(true, Ordering::SeqCst);
                        std::thread::sleep(Duration::from_millis(2));
                        let order = (u64::MAX - job.milliseconds, job.number);
                        queue.add(scope, vec![Queued { order, bytes: job.bytes, job }], 1)?;
                    }
                    work.passing.store(false, Ordering::SeqCst);
                    queue.layer(scope)?;
                    assert!(queue.state().open.len() <= limits.ahead);
                }
                Ok(())
            };
            let passed = bring();
            queue.end(scope);
            passed
        });
        let (mut finished, rest, error) = queue.results();
        finished.extend(rest);
        finished.sort_unstable();
        (passed, finished, error)
    }

    fn item(number: usize) -> Item {
        Item { number, bytes: 3, milliseconds: 1 + number as u64 % 4, fails: false }
    }

    fn layers() -> Vec<Vec<Item>> {
        (0..6).map(|layer| (0..5).map(|number| item(5 * layer + number)).collect()).collect()
    }

    #[test]
    fn every_job_is_done_once_and_no_more_at_a_time_than_may_be() {
        for (threads, ahead, bytes) in [
            (1, 0, None),
            (1, 1, None),
            (2, 1, None),
            (3, 2, None),
            (4, 0, Some(11)),
            (4, 1, Some(17)),
            (2, 0, Some(1)),
        ] {
            let work = Watched::default();
            let limits = Limits { threads, ahead, bytes };
            let (passed, finished, error) = pass(&work, limits, &layers());
            passed.unwrap();
            assert!(error.is_none());
            assert_eq!(finished, (0..30).collect::<Vec<_>>(), "{limits:?}");
            assert_eq!(*work.layers.lock().unwrap(), [5; 6], "{limits:?}");
            assert!(work.most.load(Ordering::SeqCst) <= threads, "{limits:?}");
            if let Some(bytes) = bytes {
                // Five held by a layer; a job that is larger than the room has it to itself.
                assert!(work.most_bytes.load(Ordering::SeqCst) <= (bytes - 1).max(3), "{limits:?}");
            }
            if ahead == 0 {
                assert_eq!(work.beside.load(Ordering::SeqCst), 0, "{limits:?}");
            }
        }
    }

    #[test]
    fn the_pass_goes_on_while_a_layer_has_jobs_left() {
        /// Its first job ends when the next layer is there.
        struct Waiting(AtomicBool);
        impl LayerJobs for Waiting {
            type Job = usize;
            type Done = usize;
            fn job(&self, number: &usize) -> Result<usize> {
                let start = std::time::Instant::now();
                while *number == 0 && !self.0.load(Ordering::SeqCst) {
                    assert!(start.elapsed() < Duration::from_secs(60), "nothing else came");
                    std::thread::sleep(Duration::from_millis(1));
                }
                Ok(*number)
            }
            fn layer(&self, _: &[usize]) -> Result<()> {
                Ok(())
            }
        }
        let work = Waiting(AtomicBool::new(false));
        let queue = Queue::new(&work, &Silent, Limits { threads: 2, ahead: 1, bytes: None });
        pool(2).unwrap().scope(|scope| {
            for number in 0..2 {
                queue.add(scope, vec![Queued { order: (0, number), bytes: 0, job: number }], 0).unwrap();
                work.0.store(number == 1, Ordering::SeqCst);
                queue.layer(scope).unwrap();
            }
            queue.end(scope);
        });
        let (finished, rest, error) = queue.results();
        assert!(rest.is_empty() && error.is_none());
        assert_eq!(finished.len(), 2);
    }

    #[test]
    fn the_first_error_in_order_counts() {
        // The longest is first in order, and fails last.
        let mut layers = layers();
        layers[1] = vec![
            Item { milliseconds: 60, fails: true, ..item(5) },
            Item { milliseconds: 1, fails: true, ..item(6) },
            item(7),
        ];
        for threads in [2, 3] {
            let limits = Limits { threads, ahead: 1, bytes: None };
            let (passed, finished, error) = pass(&Watched::default(), limits, &layers);
            assert_eq!(error.unwrap().to_string(), "job 5");
            assert_eq!(passed.unwrap_err().kind(), Kind::Cancelled);
            assert!((0..5).all(|number| finished.contains(&number)) && finished.len() < 30);
        }
    }

    #[test]
    fn a_job_that_panics_is_a_defect() {
        let layers = [vec![item(0), Item { bytes: 13, ..item(1) }], vec![item(2)]];
        let (_, _, error) = pass(&Watched::default(), Limits { threads: 2, ahead: 1, bytes: None }, &layers);
        let error = error.unwrap();
        assert_eq!(error.kind(), Kind::Bug);
        assert!(error.to_string().contains("thirteen"), "{error}");
    }

    #[test]
    fn who_stops_keeps_what_is_done() {
        struct Stop(AtomicUsize);
        impl Progress for Stop {
            fn cancelled(&self) -> bool {
                self.0.fetch_add(1, Ordering::SeqCst) > 12
            }
        }
        let (work, stop) = (Watched::default(), Stop(AtomicUsize::new(0)));
        let queue = Queue::new(&work, &stop, Limits { threads: 2, ahead: 1, bytes: None });
        let passed = pool(2).unwrap().scope(|scope| {
            let bring = |number: usize| {
                let job = item(number);
                queue.add(scope, vec![Queued { order: (0, number), bytes: 1, job }], 1)?;
                queue.layer(scope)
            };
            let passed = (0..30).try_for_each(bring);
            queue.end(scope);
            passed
        });
        assert_eq!(passed.unwrap_err().kind(), Kind::Cancelled);
        let (finished, rest, error) = queue.results();
        assert_eq!(error.unwrap().kind(), Kind::Cancelled);
        assert!((1..30).contains(&(finished.len() + rest.len())));
    }
}
