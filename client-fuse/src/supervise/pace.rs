//! How soon a worker follows one that died. Pure.
//!
//! A worker that dies now and then is followed at once: readers wait for it. One that dies again and
//! again must not keep the machine busy with nothing but starting: after [`BURST`] deaths in quick
//! succession there is one start in each [`PAUSE`]. Nobody gives up: a disk that is slow, and right
//! again when the cause is gone, is better than one that is lost.

use std::time::Duration;

/// Starts that follow at once, before they are spread.
pub const BURST: u32 = 64;

/// Between two starts of a worker that dies again and again; each time that passes gives one of the
/// quick starts back.
pub const PAUSE: Duration = Duration::from_secs(1);

/// Decides when the next worker starts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Pace {
    /// When all quick starts would be there again, on the clock of the caller.
    whole: Duration,
}

impl Pace {
    /// Nothing has died yet.
    #[must_use]
    pub const fn new() -> Self {
        Self {
            whole: Duration::ZERO,
        }
    }

    /// A worker died at `now`, on any clock that never goes back: returns how long to wait before the
    /// next one starts.
    pub fn died(&mut self, now: Duration) -> Duration {
        self.whole = self.whole.max(now) + PAUSE;
        (self.whole - now).saturating_sub(PAUSE * BURST)
    }
}

impl Default for Pace {
    fn default() -> Self {
        Self::new()
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn the_first_deaths_cost_no_time_and_the_others_one_pause_each() {
        let mut pace = Pace::new();
        for _ in 0..BURST {
            assert_eq!(pace.died(Duration::ZERO), Duration::ZERO);
        }
        assert_eq!(pace.died(Duration::ZERO), PAUSE);
        assert_eq!(pace.died(PAUSE), PAUSE);
        // After a quiet time it is as in the beginning.
        assert_eq!(pace.died(PAUSE * 1000), Duration::ZERO);
    }

    proptest! {
        /// Whatever dies when: in any stretch of time there are no more starts than the burst and one
        /// for each pause of it, and nobody waits longer than the deaths so far justify.
        #[test]
        fn starts_are_bounded_and_always_come(lives in prop::collection::vec(0_u64..3000, 1..200)) {
            let mut pace = Pace::new();
            let mut now = Duration::ZERO;
            let mut starts = Vec::new();
            for life in lives {
                now += Duration::from_millis(life);
                let wait = pace.died(now);
                prop_assert!(wait <= PAUSE);
                now += wait;
                starts.push(now);
            }
            for (first, begin) in starts.iter().enumerate() {
                for (last, end) in starts.iter().enumerate().skip(first) {
                    let allowed = u128::from(BURST) + 1 + (*end - *begin).as_nanos() / PAUSE.as_nanos();
                    prop_assert!((last - first) as u128 <= allowed);
                }
            }
        }
    }
}
