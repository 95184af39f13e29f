//! Any text as the value of a Range header, after a length.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| server::fuzzing::range_header(data));
