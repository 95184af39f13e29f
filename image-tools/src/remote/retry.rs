//! Decides whether a failed request is tried again, and when; never waits itself.
//!
//! Waiting is full-jitter exponential back-off: a random time below a ceiling that doubles, so that
//! publishers that met the same fault do not come back in step.

use std::hash::{BuildHasher as _, RandomState};
use std::time::Duration;

/// When failed requests are tried again.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RetryPolicy {
    /// How often a request is tried.
    pub tries: u32,
    /// The ceiling of the first wait.
    pub first: Duration,
    /// The highest ceiling.
    pub last: Duration,
}

impl RetryPolicy {
    /// Ten tries wait half a minute on average, one minute at most: longer than a server takes to
    /// start again. A publish that gave up is resumed by running it again.
    pub const DEFAULT: Self = Self {
        tries: 10,
        first: Duration::from_millis(250),
        last: Duration::from_secs(15),
    };

    /// Decides after try number `tries` (from 1) failed: how long to wait, or `None` to give up.
    /// `random` is any number; the same number gives the same wait.
    pub fn wait(&self, tries: u32, random: u32) -> Option<Duration> {
        if tries >= self.tries {
            return None;
        }
        let ceiling = self
            .first
            .saturating_mul(1 << tries.saturating_sub(1).min(16))
            .min(self.last);
        // A tenth at least, so that a refusing server is not asked in a tight loop.
        let wait = ceiling.mul_f64(f64::from(random) / f64::from(u32::MAX));
        Some(wait.max(self.first / 10))
    }
}

/// Returns any number: the seed of a hasher is random, and back-off needs no better chance.
pub fn random() -> u32 {
    u32::try_from(RandomState::new().hash_one(0) >> 32).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        /// Waits stay in their bounds, and tries come to an end.
        #[test]
        fn waits_are_bounded(tries in 1..50_u32, random: u32) {
            let policy = RetryPolicy::DEFAULT;
            match policy.wait(tries, random) {
                None => prop_assert!(tries >= policy.tries),
                Some(wait) => prop_assert!(wait <= policy.last && wait >= policy.first / 10),
            }
        }
    }
}
