//! Any text as a kernel command line.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| initramfs::fuzzing::kernel_command_line(data));
