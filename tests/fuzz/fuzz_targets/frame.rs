//! Any bytes as the stored form of a chunk.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| image_format::fuzzing::frame(data));
