//! A server of buckets in memory on the loopback address, for benchmarks: what the tests ask, without their faults.
//!
//! `cargo run --release -p qmerge-cli --example bucket_server -- [PORT]` prints its address.

#![allow(clippy::unwrap_used, clippy::print_stdout)]

#[path = "../tests/it/bucket/mod.rs"]
mod bucket;

fn main() {
    let port = std::env::args().nth(1).unwrap_or_else(|| "0".into());
    let server = bucket::Buckets::new(&format!("127.0.0.1:{port}"));
    println!("http://{}", server.host);
    loop {
        std::thread::park();
    }
}
