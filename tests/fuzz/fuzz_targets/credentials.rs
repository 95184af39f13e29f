//! Any text as an Authorization header and a table of tokens.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| server::fuzzing::credentials(data));
