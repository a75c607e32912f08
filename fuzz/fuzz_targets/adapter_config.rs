#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| qmerge::internals::adapter_config(data));
