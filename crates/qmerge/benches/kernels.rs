//! Each kernel in values per second, on data in the second-level cache and on data in memory, beside a plain copy.
//!
//! `cargo bench -p qmerge --features internals`; `QMERGE_SIMD=avx2` (or `scalar`) measures another level.

use criterion::{Criterion, Throughput, criterion_group, criterion_main};

fn kernels(c: &mut Criterion) {
    for (place, n) in [("in cache", 1 << 15), ("in memory", 1 << 24)] {
        let mut group = c.benchmark_group(format!("{} {place}", qmerge::simd::level().name()));
        group
            .sample_size(20)
            .warm_up_time(std::time::Duration::from_millis(300))
            .measurement_time(std::time::Duration::from_secs(1));
        for mut kernel in qmerge::internals::kernels(n) {
            group.throughput(Throughput::Elements(kernel.values as u64));
            group.bench_function(kernel.name, |bench| bench.iter(&mut kernel.run));
        }
        group.finish();
    }
}

criterion_group!(benches, kernels);
criterion_main!(benches);
