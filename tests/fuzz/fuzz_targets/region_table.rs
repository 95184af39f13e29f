//! Any bytes as a region table, and as a leaf of one.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| image_format::fuzzing::region_table(data));
