//! Any bytes as the head of a disk: partition table and file system.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| initramfs::fuzzing::disk_head(data));
