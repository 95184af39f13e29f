//! The terminal of `circular-mount top`: keys without Enter, signals as events, a screen drawn anew.

use std::io::{self, Read as _};
use std::sync::mpsc::Sender;

use nix::sys::signal::{SigSet, Signal};
use nix::sys::termios::{LocalFlags, SetArg, Termios, tcgetattr, tcsetattr};

/// A terminal that hands over each key; as it was when this is dropped.
#[derive(Debug)]
pub(super) struct Raw(Termios);

impl Raw {
    /// Takes the terminal of the standard input, if it lets us.
    pub(super) fn take() -> Option<Self> {
        let before = tcgetattr(io::stdin()).ok()?;
        let mut raw = before.clone();
        raw.local_flags
            .remove(LocalFlags::ICANON | LocalFlags::ECHO);
        tcsetattr(io::stdin(), SetArg::TCSANOW, &raw).ok()?;
        Some(Self(before))
    }
}

impl Drop for Raw {
    fn drop(&mut self) {
        // There is nothing else that could be done about it.
        let _ = tcsetattr(io::stdin(), SetArg::TCSANOW, &self.0);
    }
}

/// Sends `end` when somebody types q. Ctrl-C is a signal, as everywhere.
pub(super) fn end_on_keys<E: Send + 'static>(sender: Sender<E>, end: fn() -> E) {
    std::thread::spawn(move || {
        let keys = io::stdin().lock().bytes().map_while(Result::ok);
        if { keys }.any(|key| matches!(key, b'q' | b'Q')) {
            // Nobody listens any more only when this ends.
            let _ = sender.send(end());
        }
    });
}

/// Sends `end` instead of being ended by a signal, so that the terminal is given back. To be called
/// before other threads start.
pub(super) fn end_on_signals<E: Send + 'static>(
    sender: Sender<E>,
    end: fn() -> E,
) -> nix::Result<()> {
    let signals: SigSet = [Signal::SIGINT, Signal::SIGTERM, Signal::SIGHUP]
        .into_iter()
        .collect();
    signals.thread_block()?;
    std::thread::spawn(move || {
        if signals.wait().is_ok() {
            let _ = sender.send(end());
        }
    });
    Ok(())
}

/// `text` drawn over what the screen had: from the top, each line cut where the screen ends.
pub(super) fn screen(text: &str) -> String {
    let lines = text.replace('\n', "\x1b[K\n");
    format!("\x1b[?7l\x1b[H{lines}\x1b[J\x1b[?7h")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_screen_keeps_nothing_of_before() {
        assert_eq!(screen("a\n"), "\x1b[?7l\x1b[Ha\x1b[K\n\x1b[J\x1b[?7h");
    }
}
