//! All steps that are done row by row, on all threads.
//!
//! Workers take tasks in plan order from one counter. A thread of its own syncs what is written and keeps the journal, so that the disk works while the
//! processor does.

use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Mutex, mpsc};
use std::time::{Duration, Instant};

use super::Run;
use super::step::{Buffers, Steps};
use crate::error::{Error, Result};
use crate::parallel::{bug, lock};
use crate::progress::stopped;
use crate::round::Calibration;
use crate::write::Finished;

/// Unsynced bytes from which the disk is set to work.
const SYNC_EVERY: u64 = 96 << 20;
/// Shortest and longest time that finished steps wait for the journal.
const JOURNAL_EVERY: [Duration; 2] = [Duration::from_millis(50), Duration::from_secs(2)];
/// Between these, as many times as long as the disk took before: so syncing takes a small share of its time.
const JOURNAL_SHARE: u32 = 20;

/// The first error in plan order, and the flag that stops everyone.
#[derive(Default)]
struct Failure {
    stop: AtomicBool,
    first: Mutex<Option<(u64, Error)>>,
}

impl Failure {
    fn report(&self, at: u64, error: Error) {
        let mut first = lock(&self.first);
        if first.as_ref().is_none_or(|(before, _)| at < *before) {
            *first = Some((at, error));
        }
        self.stop.store(true, Ordering::Release);
    }
}

impl Run<'_> {
    /// Does all of its steps that are not done. Returns all of them that are finished, in plan order.
    pub(super) fn all(
        &self,
        finished: Vec<Finished>,
        calibration: Option<&mut dyn Calibration>,
    ) -> Result<Vec<Finished>> {
        let mut done: HashMap<usize, Finished> = finished.into_iter().map(|step| (step.step, step)).collect();
        if let Some(calibration) = calibration {
            self.calibrated(calibration, &mut done)?;
        }
        self.turned(&mut done)?;
        self.progress.phase("writing", "tensors");
        let before = done.len();
        let steps = Steps::new(self.inputs, (self.plan, &self.steps), self.schedule, self.output, &done);
        let failure = Failure::default();
        let next = AtomicU64::new(0);
        let (sender, receiver) = mpsc::channel();
        let fresh = std::thread::scope(|scope| {
            for _ in 0..self.schedule.threads {
                let sender = sender.clone();
                let (steps, failure, next) = (&steps, &failure, &next);
                scope.spawn(move || self.work(steps, failure, next, &sender));
            }
            drop(sender);
            self.write_journal(&receiver, &failure, before)
        });
        if let Some((_, error)) = failure.first.into_inner().unwrap_or_else(std::sync::PoisonError::into_inner) {
            return Err(error);
        }
        if self.progress.cancelled() {
            return Err(stopped());
        }
        let mut all: Vec<Finished> = done.into_values().chain(fresh).collect();
        all.sort_by_key(|step| step.step);
        Ok(all)
    }

    fn work(&self, steps: &Steps<'_>, failure: &Failure, next: &AtomicU64, sender: &mpsc::Sender<Finished>) {
        let mut buffers = Buffers::default();
        loop {
            if self.progress.cancelled() {
                failure.stop.store(true, Ordering::Release);
            }
            if failure.stop.load(Ordering::Acquire) {
                steps.wake();
                return;
            }
            let at = next.fetch_add(1, Ordering::Relaxed);
            let Some(task) = self.schedule.task(at) else { return };
            let attempt = std::panic::AssertUnwindSafe(|| steps.run(&task, &mut buffers, &failure.stop));
            let name = &self.plan.steps[task.step].name;
            match std::panic::catch_unwind(attempt) {
                Ok(Ok(done)) => {
                    // What others do, and what was done before, is counted already.
                    if steps.is_open(task.step) {
                        self.progress.advance(task.work);
                    }
                    if let Some(finished) = done {
                        // The receiver outlives the workers.
                        let _ = sender.send(finished);
                    }
                }
                Ok(Err(error)) => failure.report(at, error.in_tensor(name)),
                Err(panic) => failure.report(at, bug(panic.as_ref()).in_tensor(name)),
            }
            if failure.stop.load(Ordering::Acquire) {
                steps.wake();
            }
        }
    }

    /// Syncs and journals until all workers are gone; returns what they finished. `before` steps were done when they began.
    fn write_journal(&self, receiver: &mpsc::Receiver<Finished>, failure: &Failure, before: usize) -> Vec<Finished> {
        let mut all = Vec::new();
        let mut listed = 0;
        let (mut last, mut every) = (Instant::now(), JOURNAL_EVERY[0]);
        loop {
            let gone = match receiver.recv_timeout(Duration::from_millis(20)) {
                Ok(finished) => {
                    all.push(finished);
                    all.extend(receiver.try_iter());
                    self.progress.part((before + all.len()) as u64, self.steps.len() as u64);
                    false
                }
                Err(mpsc::RecvTimeoutError::Timeout) => false,
                Err(mpsc::RecvTimeoutError::Disconnected) => true,
            };
            let due = self.output.unsynced() >= SYNC_EVERY || listed < all.len() && last.elapsed() >= every;
            if due && !gone {
                let upto = all.len();
                last = Instant::now();
                if let Err(error) = self.output.record(&all[listed..upto]) {
                    failure.report(u64::MAX, error);
                }
                listed = upto;
                every = (JOURNAL_SHARE * last.elapsed()).clamp(JOURNAL_EVERY[0], JOURNAL_EVERY[1]);
                last = Instant::now();
            }
            if gone {
                // An interrupted run keeps what it finished, and so does a part; a complete one is synced as a whole at the end.
                if (self.is_part || failure.stop.load(Ordering::Acquire))
                    && let Err(error) = self.output.record(&all[listed..])
                {
                    failure.report(u64::MAX, error);
                }
                return all;
            }
        }
    }
}
