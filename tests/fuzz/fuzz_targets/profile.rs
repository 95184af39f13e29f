//! Any bytes as the trace of a boot, and as a profile of several.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| image_format::fuzzing::profile(data));
