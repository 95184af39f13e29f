//! Bounds second requests for what the first lets wait for too long; knows no clock and no network.
//!
//! A hedge buys a guest a short wait with somebody else's line and server. So few requests are hedged
//! ([`HEDGES_PERCENT`]), and what they may bring twice is bounded beforehand ([`TWICE_PERCENT`]).

/// Of so many percent of the requests of guests a second one may be made.
pub const HEDGES_PERCENT: u64 = 3;

/// So many percent of all bytes may come twice because of that.
pub const TWICE_PERCENT: u64 = 2;

/// Unused hedges are kept up to this many: a bad moment hits several requests.
const KEPT_MAX: u64 = 4;

/// What is left to spend on hedges.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Budget {
    /// Hundredths of a hedge.
    credit: u64,
    /// Bytes that came twice.
    twice: u64,
    /// Bytes that hedges under way may bring twice.
    stake: u64,
}

impl Budget {
    /// Nothing to spend yet.
    #[must_use]
    pub const fn new() -> Self {
        Self {
            credit: 0,
            twice: 0,
            stake: 0,
        }
    }

    /// Notes a request of a guest.
    pub fn asked(&mut self) {
        self.credit = (self.credit + HEDGES_PERCENT).min(KEPT_MAX * 100);
    }

    /// Whether a second request for `bytes` may be made, after `fetched` bytes of all. If so, it must
    /// be [settled](Self::settle).
    #[must_use]
    pub fn take(&mut self, bytes: u64, fetched: u64) -> bool {
        let twice = self.twice + self.stake + bytes;
        if self.credit < 100 || twice * 100 > fetched * TWICE_PERCENT {
            return false;
        }
        self.credit -= 100;
        self.stake += bytes;
        true
    }

    /// Notes that a hedge for `bytes` is over, and that `twice` of them came twice.
    pub const fn settle(&mut self, bytes: u64, twice: u64) {
        self.stake = self.stake.saturating_sub(bytes);
        self.twice = self.twice.saturating_add(twice);
    }
}

#[cfg(test)]
mod tests {
    use proptest::collection::vec;
    use proptest::prelude::*;

    use super::*;

    proptest! {
        /// Whatever is asked for, few requests are hedged and few bytes come twice.
        #[test]
        fn hedges_are_few(events in vec((1..200_000_u64, any::<bool>(), 0..=100_u64), 1..500)) {
            let mut budget = Budget::new();
            let (mut asked, mut hedges, mut fetched, mut twice) = (0, 0, 0, 0);
            for (bytes, late, part) in events {
                asked += 1;
                budget.asked();
                if late && budget.take(bytes, fetched) {
                    hedges += 1;
                    let again = bytes * part / 100;
                    twice += again;
                    budget.settle(bytes, again);
                }
                fetched += bytes;
                prop_assert!(hedges * 100 <= asked * HEDGES_PERCENT);
                prop_assert!(twice * 100 <= fetched * TWICE_PERCENT);
            }
        }
    }

    #[test]
    fn hedges_under_way_count() {
        let mut budget = Budget::new();
        for _ in 0..200 {
            budget.asked();
        }
        assert!(budget.take(1000, 100_000));
        assert!(budget.take(1000, 100_000));
        assert!(!budget.take(1, 100_000));
        budget.settle(1000, 0);
        assert!(budget.take(1000, 100_000));
    }
}
