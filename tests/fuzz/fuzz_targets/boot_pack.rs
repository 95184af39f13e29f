//! Any bytes as the head of a boot pack and its first frame.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| image_format::fuzzing::boot_pack(data));
