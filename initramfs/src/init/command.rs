//! Runs busybox and waits for it.

use std::{
    io,
    process::{Command, Stdio},
};

use crate::layout;

/// Why a command did not do what it should.
#[derive(Debug, thiserror::Error)]
#[error("`{line}` failed: {reason}")]
pub struct CommandError {
    line: String,
    reason: String,
}

/// Runs busybox with `arguments`.
///
/// # Errors
/// Fails if it cannot be started or says that it failed; the error has what it printed.
pub(super) fn busybox<S: AsRef<str>>(arguments: &[S]) -> Result<(), CommandError> {
    let words: Vec<&str> = arguments.iter().map(AsRef::as_ref).collect();
    let failed = |reason: String| CommandError {
        line: words.join(" "),
        reason,
    };
    let output = Command::new(layout::BUSYBOX)
        .args(&words)
        .stdin(Stdio::null())
        .output()
        .map_err(|error: io::Error| failed(error.to_string()))?;
    if output.status.success() {
        return Ok(());
    }
    let printed = String::from_utf8_lossy(&output.stderr);
    let last = printed.lines().next_back().map(str::to_owned);
    Err(failed(last.unwrap_or_else(|| output.status.to_string())))
}
