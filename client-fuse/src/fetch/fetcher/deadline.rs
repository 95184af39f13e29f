//! Keeps the deadline: whoever waits is told at that time, whatever is under way then.
//!
//! The time is that for which a server fails, not that which a fetch takes: a try from which bytes come
//! is never cut off, however long it takes, and neither does it count that others were served first.

use std::future::pending;
use std::pin::pin;

use tokio::time::{Instant, sleep_until};

use super::race::{Terms, Try};
use super::{Attempts, Fetcher};
use crate::fetch::lanes::{Hurry, Priority, Slot};
use crate::fetch::{FetchError, Source};

impl<S: Source> Fetcher<S> {
    /// Waits until a request for `path` may go, as long as whoever waits for it does.
    pub(super) async fn enter_in_time(
        &self,
        attempts: &mut Attempts<'_>,
        path: &str,
        priority: Priority,
        bytes: u64,
        hurry: &Hurry,
    ) -> Result<Slot<'_>, FetchError> {
        let mut entering = pin!(self.enter(priority, bytes, hurry));
        let mut since = Instant::now();
        loop {
            let slot = tokio::select! {
                biased;
                slot = &mut entering => Some(slot),
                () = passed(attempts.until()) => None,
            };
            let heard = self.mirrors.last_heard();
            let was_busy = attempts.excuse(since, heard);
            since = since.max(heard);
            match slot {
                Some(slot) => return Ok(slot),
                // Somebody may have come to wait for it meanwhile.
                None if was_busy || !attempts.is_over() => {}
                None => return Err(attempts.in_vain(self.overdue(path))),
            }
        }
    }

    /// Waits until nothing is to be hoped for from `tries`, which began at `began`: the time is over, and
    /// nothing comes. One that began behind the deadline, because bytes came until then, has the time of a
    /// stall.
    pub(super) async fn cut(&self, terms: &Terms<'_>, tries: &[&Try], began: Instant) {
        loop {
            // It may be later by now, if somebody came to wait for it meanwhile.
            let until = match terms.attempts.and_then(Attempts::until) {
                Some(until) if until > began => until,
                Some(_) => self.mirrors.stalls_at(terms.first, began),
                None => return pending().await,
            };
            let wake = if until > Instant::now() {
                until
            } else if tries.iter().any(|tried| tried.progress.has_ended()) {
                // What takes longer yet is ours.
                return pending().await;
            } else {
                match self.stall(tries) {
                    Some(stall) if stall > Instant::now() => stall,
                    _ => return,
                }
            };
            sleep_until(wake).await;
        }
    }

    /// Until when something more has to come from one of those that were answered.
    fn stall(&self, tries: &[&Try]) -> Option<Instant> {
        let coming = tries.iter().filter(|tried| tried.progress.has_head());
        let stalls = coming.map(|tried| {
            self.mirrors
                .dries_up_at(tried.mirror, tried.progress.heard())
        });
        stalls.max()
    }

    /// The error of whoever has waited for `path` until the deadline.
    pub(super) fn overdue(&self, path: &str) -> FetchError {
        let seconds = self.policy.deadline.unwrap_or_default().as_secs();
        FetchError::Overdue {
            path: path.to_owned(),
            seconds,
        }
    }
}

/// Waits until then; for ever, if that is never.
async fn passed(until: Option<Instant>) {
    match until {
        Some(until) => sleep_until(until).await,
        None => pending().await,
    }
}
