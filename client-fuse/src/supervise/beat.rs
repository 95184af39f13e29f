//! The worker's sign of life: goes through the runtime, and stops where requests are not taken.

use std::io::ErrorKind;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;
use std::time::Duration;

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use tokio::time::MissedTickBehavior;

use super::control::Control;
use super::gate::Gate;
use super::watch::{BEATS, Pulse};

/// Where requests come from.
#[derive(Debug)]
pub(super) enum Line {
    /// The kernel.
    Kernel(Arc<OwnedFd>),
    /// The supervisor.
    Supervisor(OwnedFd),
}

impl AsFd for Line {
    fn as_fd(&self) -> BorrowedFd<'_> {
        match self {
            Self::Kernel(device) => device.as_fd(),
            Self::Supervisor(requests) => requests.as_fd(),
        }
    }
}

/// How long it is from one beat to the next, where silence of `limit` is too long.
pub(super) fn pause(limit: Duration) -> Duration {
    limit / BEATS
}

/// Beats until the supervisor is gone, to whom silence of `limit` is too long.
pub(super) async fn beat(control: Arc<Control>, gate: Arc<Gate>, line: Line, limit: Duration) {
    let mut ticks = tokio::time::interval(pause(limit));
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut pulse = Pulse::default();
    loop {
        ticks.tick().await;
        if !pulse.look(has_request(&line), gate.taken()) {
            tracing::debug!("a request of the kernel waits, and none is taken");
            continue;
        }
        if let Err(error) = control.beat() {
            match error.kind() {
                // It is gone.
                ErrorKind::BrokenPipe | ErrorKind::ConnectionReset | ErrorKind::NotConnected => {
                    return;
                }
                // It has the beats before this one to read, or the system has no memory at the moment.
                _ => tracing::debug!(%error, "a beat was not sent"),
            }
        }
    }
}

fn has_request(line: &Line) -> bool {
    let mut fds = [PollFd::new(line.as_fd(), PollFlags::POLLIN)];
    let polled = poll(&mut fds, PollTimeout::ZERO);
    let events = fds[0].revents().unwrap_or(PollFlags::empty());
    polled.is_ok() && events.contains(PollFlags::POLLIN)
}
