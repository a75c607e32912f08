//! One weight's work on the threads of the pool that its caller belongs to.
//!
//! A caller outside of every pool does all of it by itself, so that no work goes to threads that nobody asked for. What is computed must not depend on who does it.

use rayon::prelude::*;

use crate::error::{Error, Kind, Result};

/// A pool of so many threads.
pub(crate) fn pool(threads: usize) -> Result<rayon::ThreadPool> {
    rayon::ThreadPoolBuilder::new()
        .num_threads(threads)
        .build()
        .map_err(|error| Error::new(Kind::Io, format!("cannot start threads: {error}")))
}

/// Threads that work is shared with, the caller's own among them.
pub(crate) fn sharing() -> usize {
    if rayon::current_thread_index().is_some() { rayon::current_num_threads() } else { 1 }
}

/// True if there is somebody to share work with.
fn shared() -> bool {
    sharing() > 1
}

/// Does all items, each by one thread.
pub(crate) fn spread<I: Send>(items: impl IntoIterator<Item = I>, work: impl Fn(I) + Send + Sync) {
    if shared() {
        let items: Vec<I> = items.into_iter().collect();
        items.into_par_iter().with_max_len(1).for_each(work);
    } else {
        items.into_iter().for_each(work);
    }
}

/// Does both; in turn where there is nobody to share with.
pub(crate) fn both<A: Send, B: Send>(one: impl FnOnce() -> A + Send, other: impl FnOnce() -> B + Send) -> (A, B) {
    if shared() { rayon::join(one, other) } else { (one(), other()) }
}
