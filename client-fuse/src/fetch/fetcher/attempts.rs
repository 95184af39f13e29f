//! The tries of one fetch: when they began, how many there were, and which mirrors were asked.

use std::hash::{BuildHasher, RandomState};
use std::time::Duration;

use tokio::time::Instant;

use crate::fetch::mirrors::Round;
use crate::fetch::retry::{Fault, Next, RetryPolicy};

/// The tries of one fetch. A try is a round over all mirrors.
#[derive(Debug)]
pub(crate) struct Attempts {
    policy: RetryPolicy,
    began: Instant,
    tries: u32,
    /// How many of them ended in a wrong answer.
    wrong: u32,
    pub(super) round: Round,
}

impl Attempts {
    pub(super) fn begin(policy: RetryPolicy) -> Self {
        Self {
            policy,
            began: Instant::now(),
            tries: 0,
            wrong: 0,
            round: Round::default(),
        }
    }

    /// Notes that a try got further than those before it: it counts as the first.
    pub(crate) const fn progressed(&mut self) {
        self.tries = 0;
        self.wrong = 0;
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
        let elapsed = self.began.elapsed();
        self.policy.next(tries, fault, elapsed, told, random)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_outage_leaves_as_many_tries_for_wrong_answers_as_there_ever_were() {
        let mut attempts = Attempts::begin(RetryPolicy::until(None));
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
}
