//! Says once that readers wait for the server, and once that they do not any more: for how long it was,
//! who answered, and what helped.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::sync::Notify;
use tokio::sync::futures::Notified;
use tokio::time::Instant;

use crate::fetch::retry::Fault;
use crate::stats::mirrors::FaultStats;

/// Whether an outage is on: odd while it is. Counts beginnings and ends.
#[derive(Debug)]
pub(super) struct Outage {
    step: AtomicU64,
    began: Mutex<Option<Instant>>,
    /// Rings when one is over.
    over: Notify,
}

/// What was known of outages when a try began.
#[derive(Clone, Copy, Debug)]
pub(super) struct Seen(u64);

/// What ended an outage.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Helped {
    /// The same request went on by itself.
    Waiting,
    /// The server was asked again.
    Retry,
    /// A new connection to the same server.
    Connection,
    /// Another server.
    Mirror,
}

impl Helped {
    const fn as_str(self) -> &'static str {
        match self {
            Self::Waiting => "waiting",
            Self::Retry => "asking again",
            Self::Connection => "a new connection",
            Self::Mirror => "another mirror",
        }
    }
}

impl Outage {
    /// No outage.
    pub(super) const fn new() -> Self {
        Self {
            step: AtomicU64::new(0),
            began: Mutex::new(None),
            over: Notify::const_new(),
        }
    }

    /// To be asked before a try.
    pub(super) fn seen(&self) -> Seen {
        Seen(self.step.load(Ordering::Relaxed))
    }

    /// Notes a failed try. Only a server that does not answer makes an outage.
    pub(super) fn began(
        &self,
        fault: Fault,
        error: &(dyn std::error::Error + Sync + 'static),
        stats: &FaultStats,
    ) {
        if fault == Fault::Transient && self.begin(stats) {
            let error: &dyn std::error::Error = error;
            tracing::warn!(
                error,
                "the server fails; readers wait while it is tried again"
            );
        }
    }

    /// Notes that nothing has come from `server` for so long.
    pub(super) fn silent(&self, server: &str, silent: Duration, stats: &FaultStats) {
        if self.begin(stats) {
            let silent_ms = silent.as_millis();
            tracing::warn!(
                server,
                silent_ms,
                "nothing comes from the server; readers wait while it is asked again"
            );
        }
    }

    /// Notes a success at `server`. One that began before the outage says nothing about its end.
    pub(super) fn ended(&self, seen: Seen, server: &str, helped: Helped, stats: &FaultStats) {
        if seen.0.is_multiple_of(2) {
            return;
        }
        let mut began = self.lock();
        if !self.step(seen.0) {
            return;
        }
        let lasted = began.take().map_or(Duration::ZERO, |began| began.elapsed());
        drop(began);
        self.over.notify_waiters();
        let ms = u64::try_from(lasted.as_millis()).unwrap_or(u64::MAX);
        stats.stalled_ms.add(ms);
        let (seconds, helped) = (lasted.as_secs_f32(), helped.as_str());
        tracing::info!(server, seconds, helped, "the server answers again");
    }

    /// Comes to an end when the next outage does that ends from now on.
    pub(super) fn over(&self) -> Notified<'_> {
        self.over.notified()
    }

    /// Begins an outage, if none is on.
    fn begin(&self, stats: &FaultStats) -> bool {
        let now = self.seen().0;
        if !now.is_multiple_of(2) {
            return false;
        }
        let mut began = self.lock();
        let first = self.step(now);
        if first {
            *began = Some(Instant::now());
            stats.stalls.increment();
        }
        first
    }

    /// Whether this caller is the one that takes the step.
    fn step(&self, from: u64) -> bool {
        self.step
            .compare_exchange(from, from + 1, Ordering::Relaxed, Ordering::Relaxed)
            .is_ok()
    }

    fn lock(&self) -> MutexGuard<'_, Option<Instant>> {
        self.began.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_outage_ends_with_a_try_that_began_in_it() {
        let (outage, stats) = (Outage::new(), FaultStats::default());
        let before = outage.seen();
        outage.began(Fault::Transient, &std::fmt::Error, &stats);
        outage.ended(before, "a", Helped::Retry, &stats);
        assert_eq!(outage.seen().0, 1, "a try from before says nothing");
        outage.ended(outage.seen(), "a", Helped::Retry, &stats);
        assert_eq!(outage.seen().0, 2);
        assert_eq!(stats.stalls.count(), 1);
    }

    #[test]
    fn a_wrong_answer_is_no_outage() {
        let (outage, stats) = (Outage::new(), FaultStats::default());
        outage.began(Fault::Wrong, &std::fmt::Error, &stats);
        assert_eq!(outage.seen().0, 0);
    }

    #[tokio::test(start_paused = true)]
    async fn one_outage_is_told_and_timed_once_whoever_meets_it() {
        let (outage, stats) = (Outage::new(), FaultStats::default());
        for _ in 0..9 {
            outage.silent("a", Duration::from_secs(1), &stats);
            outage.began(Fault::Transient, &std::fmt::Error, &stats);
        }
        tokio::time::advance(Duration::from_millis(2500)).await;
        let seen = outage.seen();
        for _ in 0..9 {
            outage.ended(seen, "b", Helped::Mirror, &stats);
        }
        assert_eq!(stats.stalls.count(), 1);
        assert_eq!(stats.stalled_ms.count(), 2500);
    }
}
