//! Any bytes as an index delta.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| image_format::fuzzing::index_delta(data));
