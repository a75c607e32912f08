//! Memory that jobs share.

use std::sync::{Condvar, Mutex, PoisonError};

use super::lock;

/// A number of bytes, of which each job takes its share while it runs; one that finds too little left waits for others to end.
#[derive(Debug)]
pub(crate) struct Budget {
    total: u64,
    free: Mutex<u64>,
    freed: Condvar,
}

/// A job's share, given back when it is dropped.
pub(crate) struct Share<'b> {
    budget: &'b Budget,
    bytes: u64,
}

impl Budget {
    pub(crate) fn new(total: u64) -> Self {
        Self { total, free: Mutex::new(total), freed: Condvar::new() }
    }

    /// As much as anyone asks for.
    pub(crate) fn unlimited() -> Self {
        Self::new(u64::MAX)
    }

    /// Waits until there is room. What is larger than the whole has it to itself.
    pub(crate) fn take(&self, bytes: u64) -> Share<'_> {
        let bytes = bytes.min(self.total);
        let free = lock(&self.free);
        let free = self.freed.wait_while(free, |free| *free < bytes);
        *free.unwrap_or_else(PoisonError::into_inner) -= bytes;
        Share { budget: self, bytes }
    }
}

impl Drop for Share<'_> {
    fn drop(&mut self) {
        *lock(&self.budget.free) += self.bytes;
        self.budget.freed.notify_all();
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicU64, Ordering};
    use std::time::Duration;

    use super::*;

    #[test]
    fn jobs_together_take_no_more_than_there_is() {
        let (budget, taken, most) = (Budget::new(10), AtomicU64::new(0), AtomicU64::new(0));
        std::thread::scope(|scope| {
            for bytes in [3, 4, 5, 6, 7, 10, 100, 1] {
                let (budget, taken, most) = (&budget, &taken, &most);
                scope.spawn(move || {
                    for _ in 0..20 {
                        let share = budget.take(bytes);
                        let now = taken.fetch_add(bytes.min(10), Ordering::AcqRel) + bytes.min(10);
                        most.fetch_max(now, Ordering::AcqRel);
                        std::thread::sleep(Duration::from_micros(200));
                        taken.fetch_sub(bytes.min(10), Ordering::AcqRel);
                        drop(share);
                    }
                });
            }
        });
        assert_eq!(taken.into_inner(), 0);
        assert!((8..=10).contains(&most.into_inner()));
    }
}
