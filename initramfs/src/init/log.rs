//! Says what happens: to the kernel log always, to the console where the kernel would not.

use std::{
    fs::{File, OpenOptions},
    io::Write as _,
    process::Stdio,
};

/// Where init's messages go.
#[derive(Debug)]
pub(super) struct Log {
    kernel: Option<File>,
    console: Option<File>,
    /// Messages of this level and above do not reach the console through the kernel log.
    console_level: u8,
}

const KERNEL_LOG: &str = "/dev/kmsg";

const ERROR: u8 = 3;
const WARNING: u8 = 4;
const INFO: u8 = 6;

impl Log {
    /// Opens the kernel log and the console; either may be missing.
    pub(super) fn open() -> Self {
        let levels = std::fs::read_to_string("/proc/sys/kernel/printk").unwrap_or_default();
        let first = levels.split_whitespace().next();
        Self {
            kernel: open_for_writing(KERNEL_LOG),
            console: open_for_writing("/dev/console"),
            console_level: first.and_then(|level| level.parse().ok()).unwrap_or(0),
        }
    }

    /// Says what is being done.
    pub(super) fn info(&self, message: &str) {
        self.say(INFO, message);
    }

    /// Says what went wrong and is lived with.
    pub(super) fn warn(&self, message: &str) {
        self.say(WARNING, message);
    }

    /// Says what ended the boot.
    pub(super) fn error(&self, message: &str) {
        self.say(ERROR, message);
    }

    fn say(&self, level: u8, message: &str) {
        // One call is one record. Nobody is left to tell if it fails.
        if let Some(mut kernel) = self.kernel.as_ref() {
            let _ = kernel.write_all(format!("<{level}>circular: {message}\n").as_bytes());
        }
        let unseen = self.kernel.is_none() || level >= self.console_level;
        if let Some(mut console) = self.console.as_ref().filter(|_| unseen) {
            let _ = console.write_all(format!("circular: {message}\r\n").as_bytes());
        }
    }

    /// Opens the kernel log for a child. The kernel counts messages by open file and drops those
    /// beyond ten in five seconds: a child with much to say must not use up our share.
    pub(super) fn for_child() -> Stdio {
        open_for_writing(KERNEL_LOG).map_or_else(Stdio::null, Into::into)
    }
}

fn open_for_writing(path: &str) -> Option<File> {
    OpenOptions::new().write(true).open(path).ok()
}
