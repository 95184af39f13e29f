//! Any bytes as what a publisher sends.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| server::fuzzing::upload(data));
