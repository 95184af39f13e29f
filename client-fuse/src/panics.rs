//! Panics: each is logged with its place and counted, and costs no more than its task.
//!
//! A panic is a mistake in this program. It unwinds the task that it is in: a read that it carried
//! out is an error, what others waited for is fetched again, and the mount serves on.

use std::panic::{self, PanicHookInfo};

use crate::stats::Counter;

/// Of this process; one process is one mount.
static PANICS: Counter = Counter::new();

/// How many panics there were.
#[must_use]
pub fn count() -> u64 {
    PANICS.count()
}

/// Begins to log and count them.
pub fn watch() {
    panic::set_hook(Box::new(note));
}

fn note(panic: &PanicHookInfo<'_>) {
    PANICS.increment();
    let place = panic.location().map(ToString::to_string);
    let place = place.as_deref().unwrap_or("an unknown place");
    let what = panic.payload_as_str().unwrap_or("no message");
    let thread = std::thread::current();
    let thread = thread.name().unwrap_or("?");
    tracing::error!(
        place,
        thread,
        what,
        "panicked, which is a mistake in this program; what this task did is given up"
    );
}
