#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| qmerge::internals::gguf_tokenizer(data));
