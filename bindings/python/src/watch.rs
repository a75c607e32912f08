//! Long work beside Python: the work runs on a thread of its own without the interpreter, while the calling thread waits, reports
//! progress and looks for signals, which Python delivers to the main thread alone.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use pyo3::prelude::*;
use qmerge::error::{Error, Kind, Result};
use qmerge::progress::Progress;

use crate::errors::raised;

/// Time between two looks at signals and progress.
const TICK: Duration = Duration::from_millis(50);

/// Numbers and a flag that both threads see.
#[derive(Default)]
pub(crate) struct Watch {
    done: AtomicU64,
    total: AtomicU64,
    phase: Mutex<Phase>,
    stop: AtomicBool,
    finished: Mutex<bool>,
    changed: Condvar,
}

/// What is being done: its name, what is counted, how many are done and how many there are.
#[derive(Clone, Default, PartialEq)]
struct Phase {
    name: String,
    unit: String,
    part: (u64, u64),
}

/// What a callback is told: work done, work in all, and the phase.
type State = (u64, u64, Phase);

impl Progress for Watch {
    fn start(&self, total: u64) {
        self.total.store(total, Ordering::Relaxed);
    }

    fn advance(&self, work: u64) {
        self.done.fetch_add(work, Ordering::Relaxed);
    }

    fn skip(&self, work: u64) {
        let _ = self.total.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |total| Some(total.saturating_sub(work)));
    }

    fn phase(&self, name: &str, unit: &str) {
        *lock(&self.phase) = Phase { name: name.to_owned(), unit: unit.to_owned(), part: (0, 0) };
    }

    fn part(&self, done: u64, total: u64) {
        lock(&self.phase).part = (done, total);
    }

    fn cancelled(&self) -> bool {
        self.stop.load(Ordering::Relaxed)
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Watch {
    fn state(&self) -> State {
        (self.done.load(Ordering::Relaxed), self.total.load(Ordering::Relaxed), lock(&self.phase).clone())
    }

    /// Waits for a tick or for the end of the work; true at the end.
    fn wait(&self) -> bool {
        let finished = lock(&self.finished);
        let waited = self.changed.wait_timeout_while(finished, TICK, |finished| !*finished);
        *waited.unwrap_or_else(PoisonError::into_inner).0
    }

    fn finish(&self) {
        *lock(&self.finished) = true;
        self.changed.notify_all();
    }
}

/// Does `work`. A signal handler or a callback that raises stops it, and is raised once it has stopped.
pub(crate) fn watched<T: Send>(
    py: Python<'_>,
    progress: Option<&Bound<'_, PyAny>>,
    work: impl FnOnce(&Watch) -> Result<T> + Send,
) -> PyResult<T> {
    let watch = Watch::default();
    let (result, exception) = std::thread::scope(|scope| {
        let worker = scope.spawn(|| {
            let result = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| work(&watch)));
            watch.finish();
            result
        });
        let mut exception: Option<PyErr> = None;
        let mut told = None;
        while !py.detach(|| watch.wait()) {
            if exception.is_none()
                && let Err(error) = py.check_signals().and_then(|()| tell(&watch, progress, &mut told))
            {
                watch.stop.store(true, Ordering::Relaxed);
                exception = Some(error);
            }
        }
        let result = worker.join().unwrap_or_else(Err);
        if exception.is_none() && matches!(result, Ok(Ok(_))) {
            exception = py.check_signals().and_then(|()| tell(&watch, progress, &mut told)).err();
        }
        (result, exception)
    });
    match (exception, result) {
        (Some(exception), _) => Err(exception),
        (None, Ok(result)) => result.map_err(|error| raised(py, &error)),
        (None, Err(_)) => Err(raised(
            py,
            &Error::new(Kind::Bug, "internal error").with_hint("this is a defect of qmerge: please report it"),
        )),
    }
}

/// Calls the callback if something changed since the last call.
fn tell(watch: &Watch, progress: Option<&Bound<'_, PyAny>>, told: &mut Option<State>) -> PyResult<()> {
    let Some(callback) = progress else { return Ok(()) };
    let now = watch.state();
    if now.1 > 0 && told.as_ref() != Some(&now) {
        let (done, total, Phase { name, unit, part }) = now.clone();
        *told = Some(now);
        callback.call1((done, total, name, unit, part.0, part.1))?;
    }
    Ok(())
}
