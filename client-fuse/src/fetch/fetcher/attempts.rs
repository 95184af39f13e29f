//! The tries of one fetch: when they began, how many there were, and which mirrors were asked.

use std::hash::{BuildHasher, RandomState};

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

    /// What to do after a try that failed.
    pub(super) fn failed(&mut self, fault: Fault) -> Next {
        self.tries = self.tries.saturating_add(1);
        // The seed of a hasher is random; back-off needs no better chance than that.
        let random =
            u32::try_from(RandomState::new().hash_one(self.tries) >> 32).unwrap_or_default();
        self.policy
            .next(self.tries, fault, self.began.elapsed(), random)
    }
}
