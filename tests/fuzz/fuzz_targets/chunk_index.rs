//! Any bytes as a chunk index.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| image_format::fuzzing::chunk_index(data));
