//! Jobs on threads, whose results stay in order.

mod budget;
mod spread;

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};

pub(crate) use budget::Budget;
pub(crate) use spread::{both, pool, sharing, spread};

use crate::error::{Error, Kind, Result};
use crate::progress::{Progress, stopped};

/// What a mutex guards: whoever panicked with it left no half of a change.
pub(crate) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Does all jobs, on at most `threads` threads. The first job in order that failed gives the error.
pub(crate) fn parallel<J: Sync, T: Send>(
    jobs: &[J],
    threads: usize,
    progress: &dyn Progress,
    job: impl Fn(&J) -> Result<T> + Sync,
) -> Result<Vec<T>> {
    within(&Budget::unlimited(), |_| 0, jobs, threads, progress, job)
}

/// The same where each job takes as many bytes of a budget as `weigh` says.
pub(crate) fn within<J: Sync, T: Send>(
    budget: &Budget,
    weigh: impl Fn(&J) -> u64 + Sync,
    jobs: &[J],
    threads: usize,
    progress: &dyn Progress,
    job: impl Fn(&J) -> Result<T> + Sync,
) -> Result<Vec<T>> {
    let results = attempts(budget, weigh, jobs, threads, progress, job);
    if progress.cancelled() {
        return Err(stopped());
    }
    results.into_iter().map(|(_, result)| result).collect()
}

/// Does jobs until one fails or the run is cancelled. Returns what has ended, by number; a panic becomes an error.
pub(crate) fn attempts<J: Sync, T: Send>(
    budget: &Budget,
    weigh: impl Fn(&J) -> u64 + Sync,
    jobs: &[J],
    threads: usize,
    progress: &dyn Progress,
    job: impl Fn(&J) -> Result<T> + Sync,
) -> Vec<(usize, Result<T>)> {
    let next = AtomicUsize::new(0);
    let results = Mutex::new(Vec::with_capacity(jobs.len()));
    std::thread::scope(|scope| {
        for _ in 0..threads.min(jobs.len()) {
            scope.spawn(|| {
                loop {
                    let at = next.fetch_add(1, Ordering::Relaxed);
                    let Some(own) = jobs.get(at) else { return };
                    let _share = budget.take(weigh(own));
                    if progress.cancelled() {
                        return;
                    }
                    let attempt = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| job(own)));
                    let result = attempt.unwrap_or_else(|panic| Err(bug(panic.as_ref())));
                    if result.is_err() {
                        next.store(jobs.len(), Ordering::Relaxed);
                    }
                    lock(&results).push((at, result));
                }
            });
        }
    });
    let mut results = results.into_inner().unwrap_or_else(PoisonError::into_inner);
    results.sort_by_key(|(at, _)| *at);
    results
}

/// Worker threads for a choice of them: 0 means one per processor.
pub(crate) fn threads(chosen: usize) -> usize {
    match chosen {
        0 => std::thread::available_parallelism().map_or(1, std::num::NonZero::get),
        n => n,
    }
}

/// What a job that panicked gives in place of a result.
pub(crate) fn bug(panic: &(dyn std::any::Any + Send)) -> Error {
    let text = panic
        .downcast_ref::<&str>()
        .map(|text| (*text).to_owned())
        .or_else(|| panic.downcast_ref::<String>().cloned())
        .unwrap_or_default();
    Error::new(Kind::Bug, format!("internal error: {text}")).with_hint("this is a defect of qmerge: please report it")
}
