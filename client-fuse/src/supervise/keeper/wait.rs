//! Waits for whatever comes next.

use std::os::fd::AsFd;
use std::time::{Duration, Instant};

use anyhow::Context;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::signal::Signal;

use super::Keeper;
use crate::supervise::worker::Worker;

/// What goes on in one round of waiting.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Events {
    pub(super) signals: bool,
    pub(super) current: bool,
    pub(super) next: bool,
    pub(super) kernel: bool,
    pub(super) requests: bool,
}

impl Keeper {
    pub(super) fn wait(&self) -> anyhow::Result<Events> {
        let look = self.watch.due().map(|due| self.began + due);
        let timers = [self.due, self.farewell, self.limit, look]
            .into_iter()
            .flatten()
            .min();
        let timeout = timers.map(|at| {
            // Rounded up, so that the time has come when the wait is over.
            let wait = at.saturating_duration_since(Instant::now()) + Duration::from_millis(1);
            PollTimeout::try_from(wait).unwrap_or(PollTimeout::MAX)
        });
        let held = self.held.as_ref();
        let watch_kernel = match (&self.relay, &self.current) {
            // Is it over? Nobody else would notice.
            (_, None) => Some(PollFlags::empty()),
            (Some(relay), Some(_)) => relay.is_open().then_some(PollFlags::POLLIN),
            (None, Some(_)) => None,
        };
        let kernel = held.zip(watch_kernel);
        let requests = self.relay.as_ref().and_then(|relay| {
            let room = match relay.is_behind() {
                true => PollFlags::POLLOUT,
                false => PollFlags::empty(),
            };
            relay
                .worker()
                .map(|worker| (worker, room | PollFlags::POLLIN))
        });
        let watched = [
            Some((self.signals.as_fd(), PollFlags::POLLIN)),
            self.current.as_ref().and_then(Worker::line_to_hear),
            self.next.as_ref().and_then(Worker::line_to_hear),
            kernel.map(|(held, flags)| (held.device(), flags)),
            requests,
        ];
        let mut fds: Vec<_> = watched
            .iter()
            .flatten()
            .map(|(fd, flags)| PollFd::new(*fd, *flags))
            .collect();
        match poll(&mut fds, timeout) {
            Ok(_) | Err(nix::errno::Errno::EINTR) => {}
            Err(error) => return Err(error).context("cannot wait"),
        }
        let mut polled = fds.iter();
        let mut happened = watched.iter().map(|watched| {
            let polled = watched.and_then(|_| polled.next());
            polled.and_then(PollFd::any).unwrap_or(false)
        });
        let mut next = || happened.next().unwrap_or(false);
        Ok(Events {
            signals: next(),
            current: next(),
            next: next(),
            kernel: next(),
            requests: next(),
        })
    }
}

impl Keeper {
    /// Ends the worker that has the mount if it hangs.
    pub(super) fn look(&mut self) {
        let now = self.began.elapsed();
        if self.watch.due().is_none_or(|due| due > now) {
            return;
        }
        let (Some(silent), Some(current)) = (self.watch.look(now), &self.current) else {
            return;
        };
        let worker = current.pid();
        if current.is_traced() {
            tracing::warn!(
                worker,
                ?silent,
                "the worker hangs in a debugger; leaving it"
            );
            self.watch.heard(now);
            return;
        }
        tracing::error!(
            worker,
            ?silent,
            "the worker hangs: it gives no sign of life; killing it"
        );
        current.signal(Signal::SIGKILL);
        self.watch.end();
    }
}
