//! Any bytes as manifest, catalogue, list of chunk indexes and store marker.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| image_format::fuzzing::documents(data));
