//! Any bytes as an index page.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| image_format::fuzzing::page(data));
