//! Decides whether a failed fetch is tried again, and when; never waits and never fetches itself.
//!
//! Time and chance are arguments, so that a test reaches every decision. Waiting is full-jitter
//! exponential back-off: a random time between nothing and a ceiling that doubles, so that a
//! thousand machines that lost the same server do not come back in step. Where the server says when to
//! come back, that time comes first.

use std::time::Duration;

/// What kind of failure a fetch met; all that the policy looks at. The more hopeful comes first.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Fault {
    /// The line or the server failed: nobody answered, the answer broke off, 5xx. Time may heal it.
    Transient,
    /// The server answered with something wrong or not at all known to it. Asking again, past every
    /// HTTP cache, may heal it; waiting for long will not.
    Wrong,
    /// The request itself cannot succeed.
    Permanent,
}

/// What a failure says about the server that it came from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Blame {
    /// It could not answer, or has not what was asked for.
    Unable,
    /// It sent other bytes than it should have.
    Lying,
}

/// What to do after a failure.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Next {
    /// Try again after this time.
    Wait(Duration),
    /// Report the failure.
    Stop,
}

/// When failed fetches are tried again.
#[derive(Clone, Copy, Debug)]
pub struct RetryPolicy {
    /// How long a reader may wait for a server that fails before it gets an error; `None`: for ever, which
    /// is right for a root disk (a machine whose root answers EIO is lost, one that waits is not).
    pub deadline: Option<Duration>,
    /// The ceiling of the first wait.
    pub first: Duration,
    /// The highest ceiling: how late, at most, a server that came back is noticed.
    pub last: Duration,
}

impl RetryPolicy {
    /// A plain mount reports an error after a minute, like most network tools.
    pub const DEFAULT: Self = Self::until(Some(Duration::from_secs(60)));

    /// Tries for an answer that is wrong: once more by chance, once more past every HTTP cache.
    pub const WRONG_TRIES: u32 = 3;

    /// A server is left alone for as long as it says (Retry-After), up to this: what says more means
    /// robots, not disks.
    pub const TOLD_MAX: Duration = Duration::from_secs(60);

    /// The last try goes out this part of the deadline before it, so that there is time for an answer:
    /// two seconds before a minute is over.
    const LAST_TRY: u32 = 30;

    /// Gives up after `deadline`. The first wait is at most a round trip across a continent, the
    /// last at most 10 s.
    #[must_use]
    pub const fn until(deadline: Option<Duration>) -> Self {
        Self {
            deadline,
            first: Duration::from_millis(100),
            last: Duration::from_secs(10),
        }
    }

    /// Decides after try number `tries` (from 1) failed with `fault`, `elapsed` after the start, and the
    /// server `told` for how long to leave it alone. Where the answer was wrong, only tries that ended
    /// so are counted. Who has waited until the deadline tries no more.
    ///
    /// `random` is any number; the same number gives the same wait.
    #[must_use]
    pub fn next(
        &self,
        tries: u32,
        fault: Fault,
        elapsed: Duration,
        told: Option<Duration>,
        random: u32,
    ) -> Next {
        match fault {
            Fault::Permanent => return Next::Stop,
            Fault::Wrong if tries >= Self::WRONG_TRIES => return Next::Stop,
            Fault::Wrong | Fault::Transient => {}
        }
        let ceiling = self
            .first
            .saturating_mul(1 << tries.saturating_sub(1).min(16))
            .min(self.last);
        // A tenth at least, so that a refusing server is not asked in a tight loop.
        let wait = ceiling
            .mul_f64(f64::from(random) / f64::from(u32::MAX))
            .max(self.first / 10);
        // Behind what was told, not instead of it: all were told the same.
        let wait = told.unwrap_or_default().min(Self::TOLD_MAX) + wait;
        match self.deadline {
            Some(deadline) if elapsed >= deadline => Next::Stop,
            Some(deadline) => {
                let left = deadline.saturating_sub(elapsed);
                let last = deadline / Self::LAST_TRY;
                // Behind the last try there is only the deadline.
                let most = if left > last { left - last } else { left };
                Next::Wait(wait.min(most))
            }
            None => Next::Wait(wait),
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const FOREVER: RetryPolicy = RetryPolicy::until(None);

    #[test]
    fn permanent_failures_are_not_tried_again() {
        assert_eq!(
            FOREVER.next(1, Fault::Permanent, Duration::ZERO, None, 0),
            Next::Stop
        );
    }

    #[test]
    fn wrong_answers_are_tried_a_bounded_number_of_times() {
        let decide = |tries| FOREVER.next(tries, Fault::Wrong, Duration::ZERO, None, 7);
        assert!(matches!(
            decide(RetryPolicy::WRONG_TRIES - 1),
            Next::Wait(_)
        ));
        assert_eq!(decide(RetryPolicy::WRONG_TRIES), Next::Stop);
    }

    #[test]
    fn a_root_disk_never_gives_up_on_a_silent_server() {
        let year = Duration::from_secs(365 * 86_400);
        assert!(matches!(
            FOREVER.next(u32::MAX, Fault::Transient, year, None, 3),
            Next::Wait(_)
        ));
    }

    #[test]
    fn the_last_try_has_time_for_an_answer_and_none_comes_at_the_deadline() {
        let policy = RetryPolicy::DEFAULT;
        let decide = |elapsed| {
            let elapsed = Duration::from_secs(elapsed);
            policy.next(20, Fault::Transient, elapsed, None, u32::MAX)
        };
        assert_eq!(decide(55), Next::Wait(Duration::from_secs(3)));
        assert_eq!(decide(58), Next::Wait(Duration::from_secs(2)));
        assert_eq!(decide(60), Next::Stop);
    }

    proptest! {
        /// No wait is outside its bounds, and none reaches past the deadline.
        #[test]
        fn waits_are_bounded(
            tries in 1..200_u32,
            elapsed in 0..120_000_u64,
            told in proptest::option::of(0..1000_u64),
            random: u32,
        ) {
            let elapsed = Duration::from_millis(elapsed);
            let policy = RetryPolicy::DEFAULT;
            let deadline = policy.deadline.unwrap();
            let told = told.map(Duration::from_secs);
            match policy.next(tries, Fault::Transient, elapsed, told, random) {
                Next::Stop => prop_assert!(elapsed >= deadline),
                Next::Wait(wait) => {
                    let told = told.unwrap_or_default().min(RetryPolicy::TOLD_MAX);
                    prop_assert!(wait <= told + policy.last);
                    prop_assert!(wait >= told || elapsed + wait >= deadline - deadline / RetryPolicy::LAST_TRY);
                    prop_assert!(elapsed + wait <= deadline);
                }
            }
        }
    }
}
