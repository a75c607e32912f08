//! Nanoseconds that a value takes to be decoded and encoded, for each type of ggml: a line "type what nanoseconds" each. `benches/peers/ggml_types.py` puts
//! ggml's own beside them.

#![allow(clippy::print_stdout)]

use std::time::Instant;

/// Runs of which the fastest counts.
const RUNS: usize = 15;

fn main() {
    for mut kernel in qmerge::internals::ggml_kernels(1 << 16) {
        let run = |_| {
            let start = Instant::now();
            (kernel.run)();
            start.elapsed().as_nanos() as f64 / kernel.values as f64
        };
        println!("{} {:.4}", kernel.name.replacen(' ', "\t", 1), (0..RUNS).map(run).fold(f64::INFINITY, f64::min));
    }
}
