//! Any text as the path of a request.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| server::fuzzing::request_path(data));
