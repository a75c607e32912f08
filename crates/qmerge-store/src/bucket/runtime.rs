//! The store's client waits for many things at once; whoever calls waits for one.

use std::future::Future;
use std::sync::OnceLock;

use tokio::runtime::{Builder, Handle, Runtime};

/// Waits for what a future comes to.
pub(crate) fn wait<F: Future>(future: F) -> F::Output {
    handle().block_on(future)
}

pub(super) fn handle() -> &'static Handle {
    static RUNTIME: OnceLock<Runtime> = OnceLock::new();
    // Requests are made on threads of their own: these two only pass them on.
    #[allow(clippy::expect_used)] // A process that can start no thread can do nothing.
    let start = || Builder::new_multi_thread().worker_threads(2).enable_time().build().expect("threads can be started");
    RUNTIME.get_or_init(start).handle()
}
