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
        for part in parts(message) {
            self.say_part(level, part);
        }
    }

    fn say_part(&self, level: u8, message: &str) {
        // One call is one record.
        let kernel = self.kernel.as_ref().map(|mut kernel| {
            kernel.write_all(format!("<{level}>circular: {message}\n").as_bytes())
        });
        let unseen = !matches!(kernel, Some(Ok(()))) || level >= self.console_level;
        // Nobody is left to tell if this fails.
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

/// Longest message in one record, in bytes. The kernel refuses one that is longer than 1 KB or so, all of it.
const RECORD_BYTES_MAX: usize = 900;

/// Cuts a message into parts that are short enough, between characters.
fn parts(message: &str) -> impl Iterator<Item = &str> {
    let mut rest = Some(message);
    std::iter::from_fn(move || {
        let text = rest?;
        let (part, left) = text.split_at(text.floor_char_boundary(RECORD_BYTES_MAX));
        rest = (!left.is_empty()).then_some(left);
        Some(part)
    })
}

fn open_for_writing(path: &str) -> Option<File> {
    OpenOptions::new().write(true).open(path).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_long_message_is_said_in_parts_and_a_short_one_at_once() {
        assert_eq!(parts("").collect::<Vec<_>>(), [""]);
        assert_eq!(parts("short").collect::<Vec<_>>(), ["short"]);
        let long = "ä".repeat(2000);
        let cut: Vec<_> = parts(&long).collect();
        assert!(cut.len() > 4 && cut.iter().all(|part| part.len() <= RECORD_BYTES_MAX));
        assert_eq!(cut.concat(), long);
    }
}
