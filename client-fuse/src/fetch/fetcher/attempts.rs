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
    pub(super) round: Round,
}

impl Attempts {
    pub(super) fn begin(policy: RetryPolicy) -> Self {
        Self {
            policy,
            began: Instant::now(),
            tries: 0,
            round: Round::default(),
        }
    }

    /// Notes that a try got further than those before it: it counts as the first.
    pub(crate) const fn progressed(&mut self) {
        self.tries = 0;
    }

    /// What to do after a try that failed; `told`: how long the server wants to be left alone.
    pub(super) fn failed(&mut self, fault: Fault, told: Option<Duration>) -> Next {
        self.tries = self.tries.saturating_add(1);
        // The seed of a hasher is random; back-off needs no better chance than that.
        let random =
            u32::try_from(RandomState::new().hash_one(self.tries) >> 32).unwrap_or_default();
        let elapsed = self.began.elapsed();
        self.policy.next(self.tries, fault, elapsed, told, random)
    }
}
