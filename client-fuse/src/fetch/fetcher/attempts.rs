//! The tries of one fetch: when they began, how many there were, and which mirrors were asked.

use std::hash::{BuildHasher, RandomState};
use std::time::Duration;

use tokio::time::Instant;

use crate::fetch::FetchError;
use crate::fetch::lanes::Hurry;
use crate::fetch::mirrors::Round;
use crate::fetch::retry::{Fault, Next, RetryPolicy};

/// The tries of one fetch. A try is a round over all mirrors.
#[derive(Debug)]
pub(crate) struct Attempts<'a> {
    policy: RetryPolicy,
    began: Instant,
    /// Where nobody waits yet: tells when somebody does.
    awaited: Option<&'a Hurry>,
    tries: u32,
    /// How many of them ended in a wrong answer.
    wrong: u32,
    pub(super) round: Round,
    /// What was wrong the last time.
    last: Option<FetchError>,
    /// Whether a wait was cut short because others were answered: once is enough, or who is refused for himself would
    /// ask all the time.
    was_woken: bool,
}

impl<'a> Attempts<'a> {
    /// The tries of what is waited for since `began`, or since somebody came to wait for it.
    pub(super) fn begin(policy: RetryPolicy, began: Instant, awaited: Option<&'a Hurry>) -> Self {
        Self {
            policy,
            began,
            awaited,
            tries: 0,
            wrong: 0,
            round: Round::default(),
            last: None,
            was_woken: false,
        }
    }

    /// When whoever waits is told that it was in vain; `None`: never.
    pub(crate) fn until(&self) -> Option<Instant> {
        let deadline = self.policy.deadline?;
        self.since().checked_add(deadline)
    }

    fn since(&self) -> Instant {
        let called = self.awaited.and_then(Hurry::called_at);
        called.map_or(self.began, |called| called.max(self.began))
    }

    /// Whether it is time for that.
    pub(super) fn is_over(&self) -> bool {
        self.until().is_some_and(|until| until <= Instant::now())
    }

    /// Leaves out of account what was waited for a turn from `since` on, as long as servers answered
    /// others, last at `heard`: a line that is busy is no server that fails. Returns whether that was so.
    pub(super) fn excuse(&mut self, since: Instant, heard: Instant) -> bool {
        let busy = heard.saturating_duration_since(since);
        self.began += busy;
        !busy.is_zero()
    }

    /// Waits until somebody waits for it, if nobody does yet.
    pub(super) async fn called(&self) {
        match self.awaited {
            Some(hurry) if !hurry.is_called() => hurry.called().await,
            _ => std::future::pending().await,
        }
    }

    /// Notes what was wrong with a round that failed.
    pub(super) fn note(&mut self, error: &FetchError) {
        self.last = Some(error.clone());
    }

    /// What to tell whoever waited until the deadline: how the server failed before, if that is known, says
    /// more than that nothing came in the end.
    pub(super) fn in_vain(&mut self, overdue: FetchError) -> FetchError {
        let last = self.last.take();
        last.filter(|last| last.fault() == Fault::Transient)
            .unwrap_or(overdue)
    }

    /// Notes that a try got further than those before it: it counts as the first.
    pub(crate) const fn progressed(&mut self) {
        self.tries = 0;
        self.wrong = 0;
        self.was_woken = false;
    }

    /// Whether a wait may be cut short, which is noted.
    pub(super) const fn may_be_woken(&mut self, fault: Fault) -> bool {
        let may = matches!(fault, Fault::Transient) && !self.was_woken;
        self.was_woken = true;
        may
    }

    /// What to do after a try that failed; `told`: how long the server wants to be left alone.
    pub(super) fn failed(&mut self, fault: Fault, told: Option<Duration>) -> Next {
        self.tries = self.tries.saturating_add(1);
        // Wrong answers are few; what went before, while there was no answer, says nothing about them.
        let tries = if fault == Fault::Wrong {
            self.wrong = self.wrong.saturating_add(1);
            self.wrong
        } else {
            self.tries
        };
        // The seed of a hasher is random; back-off needs no better chance than that.
        let random =
            u32::try_from(RandomState::new().hash_one(self.tries) >> 32).unwrap_or_default();
        let elapsed = self.since().elapsed();
        self.policy.next(tries, fault, elapsed, told, random)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_outage_leaves_as_many_tries_for_wrong_answers_as_there_ever_were() {
        let mut attempts = Attempts::begin(RetryPolicy::until(None), Instant::now(), None);
        for _ in 0..100 {
            assert!(matches!(
                attempts.failed(Fault::Transient, None),
                Next::Wait(_)
            ));
        }
        for _ in 1..RetryPolicy::WRONG_TRIES {
            assert!(matches!(attempts.failed(Fault::Wrong, None), Next::Wait(_)));
            assert!(matches!(
                attempts.failed(Fault::Transient, None),
                Next::Wait(_)
            ));
        }
        assert_eq!(attempts.failed(Fault::Wrong, None), Next::Stop);
    }

    #[tokio::test(start_paused = true)]
    async fn a_turn_that_is_waited_for_counts_only_while_no_server_answers() {
        let second = Duration::from_secs(1);
        let began = Instant::now();
        let mut attempts = Attempts::begin(RetryPolicy::DEFAULT, began, None);
        assert!(!attempts.excuse(began, began));
        assert_eq!(attempts.until(), Some(began + 60 * second));
        // A minute and a half in the queue, in the first of which others were answered.
        tokio::time::advance(90 * second).await;
        assert!(attempts.is_over());
        assert!(attempts.excuse(began, began + 60 * second));
        assert!(!attempts.is_over());
        assert_eq!(attempts.until(), Some(began + 120 * second));
        let for_ever = Attempts::begin(RetryPolicy::until(None), began, None);
        assert_eq!(for_ever.until(), None);
    }

    #[tokio::test(start_paused = true)]
    async fn who_comes_to_wait_for_read_ahead_has_all_of_the_deadline() {
        let (began, hurry) = (Instant::now(), Hurry::new());
        let attempts = Attempts::begin(RetryPolicy::DEFAULT, began, Some(&hurry));
        tokio::time::advance(Duration::from_secs(59)).await;
        hurry.call();
        tokio::time::advance(Duration::from_secs(1)).await;
        hurry.call();
        assert_eq!(attempts.until(), Some(began + Duration::from_secs(119)));
    }
}
