//! Says once that the server fails, and once that it answers again.

use std::sync::atomic::{AtomicU64, Ordering};

use crate::fetch::retry::Fault;

/// Whether an outage is on: odd while it is. Counts beginnings and ends.
#[derive(Debug)]
pub(super) struct Outage(AtomicU64);

/// What was known of outages when a try began.
#[derive(Clone, Copy, Debug)]
pub(super) struct Seen(u64);

impl Outage {
    /// No outage.
    pub(super) const fn new() -> Self {
        Self(AtomicU64::new(0))
    }

    /// To be asked before a try.
    pub(super) fn seen(&self) -> Seen {
        Seen(self.0.load(Ordering::Relaxed))
    }

    /// Notes a failed try. Only a server that does not answer makes an outage.
    pub(super) fn began(&self, fault: Fault, error: &(dyn std::error::Error + Sync + 'static)) {
        let now = self.seen().0;
        if fault == Fault::Transient && now.is_multiple_of(2) && self.step(now) {
            let error: &dyn std::error::Error = error;
            tracing::warn!(
                error,
                "the server fails; readers wait while it is tried again"
            );
        }
    }

    /// Notes a success. One that began before the outage says nothing about its end.
    pub(super) fn ended(&self, seen: Seen) {
        if !seen.0.is_multiple_of(2) && self.step(seen.0) {
            tracing::info!("the server answers again");
        }
    }

    /// Whether this caller is the one that takes the step.
    fn step(&self, from: u64) -> bool {
        self.0
            .compare_exchange(from, from + 1, Ordering::Relaxed, Ordering::Relaxed)
            .is_ok()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_outage_ends_with_a_try_that_began_in_it() {
        let outage = Outage::new();
        let before = outage.seen();
        outage.began(Fault::Transient, &std::fmt::Error);
        outage.ended(before);
        assert_eq!(outage.seen().0, 1, "a try from before says nothing");
        outage.ended(outage.seen());
        assert_eq!(outage.seen().0, 2);
    }

    #[test]
    fn a_wrong_answer_is_no_outage() {
        let outage = Outage::new();
        outage.began(Fault::Wrong, &std::fmt::Error);
        assert_eq!(outage.seen().0, 0);
    }
}
