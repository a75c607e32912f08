//! What a run tells of itself while it goes on.

use crate::error::{Error, Kind};

/// Told of the work done, and asked whether to go on.
///
/// Work is counted in nanoseconds of one thread, as they are predicted: what is copied counts for little, what is multiplied or searched for much. So the share
/// that is done is about the share of the time, and whoever watches need not know what the work consists of.
pub trait Progress: Sync {
    /// The work of the whole run. Told once, by whoever knows all of it.
    fn start(&self, _work: u64) {}
    /// Work done since the last call.
    fn advance(&self, _work: u64) {}
    /// Work of the whole that need not be done: an earlier run did it, or a text ended early.
    fn skip(&self, _work: u64) {}
    /// What is being done from now on, and what [`Progress::part`] counts: "rounding", "layers".
    fn phase(&self, _name: &str, _unit: &str) {}
    /// How much of that is done.
    fn part(&self, _done: u64, _total: u64) {}
    /// True to stop; the output stays unfinished.
    fn cancelled(&self) -> bool {
        false
    }
}

impl std::fmt::Debug for dyn Progress + '_ {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Progress")
    }
}

/// What is returned to a caller who asked to stop.
#[doc(hidden)]
pub fn stopped() -> Error {
    Error::new(Kind::Cancelled, "stopped")
}

/// Nobody watches.
pub struct Silent;

impl Progress for Silent {}
