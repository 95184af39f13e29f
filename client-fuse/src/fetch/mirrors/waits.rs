//! How long answers usually let wait, and from when on one of them is late; knows no clock.

use std::time::Duration;

/// Buckets: four for each power of two of microseconds, up to two minutes.
const BUCKETS: usize = 4 * 27;

/// With more waits than this, old ones count half: what was usual before says little.
const SAMPLES_MAX: u32 = 512;

/// Fewer say nothing about what is usual.
const SAMPLES_MIN: u32 = 32;

/// No answer is late before this: asking again would cost as much.
const LATE_MIN: Duration = Duration::from_millis(20);

/// A histogram of recent waits.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Waits {
    counts: [u32; BUCKETS],
    n: u32,
}

impl Waits {
    /// Nothing was waited for yet.
    #[must_use]
    pub const fn new() -> Self {
        Self {
            counts: [0; BUCKETS],
            n: 0,
        }
    }

    /// Notes a wait.
    pub fn add(&mut self, waited: Duration) {
        if self.n >= SAMPLES_MAX {
            for count in &mut self.counts {
                *count /= 2;
            }
            self.n = self.counts.iter().sum();
        }
        self.counts[bucket(waited)] += 1;
        self.n += 1;
    }

    /// A time that `percent` of the waits did not exceed, at most a quarter too long.
    #[must_use]
    pub fn quantile(&self, percent: u32) -> Duration {
        let rank = (u64::from(self.n) * u64::from(percent)).div_ceil(100);
        let mut below = 0;
        for (number, count) in self.counts.iter().enumerate() {
            below += u64::from(*count);
            if below >= rank && below > 0 {
                return end_of(number);
            }
        }
        Duration::ZERO
    }

    /// From when on an answer takes far longer than usual; `None`: it is not known yet.
    ///
    /// Far longer is more than 99 of 100 took, and twice as long as half of them.
    #[must_use]
    pub fn late(&self) -> Option<Duration> {
        (self.n >= SAMPLES_MIN)
            .then(|| (self.quantile(99).max(self.quantile(50) * 2)).max(LATE_MIN))
    }
}

impl Default for Waits {
    fn default() -> Self {
        Self::new()
    }
}

/// The bucket of a wait: its power of two, and the two bits behind the first.
fn bucket(waited: Duration) -> usize {
    let micros = u64::try_from(waited.as_micros()).unwrap_or(u64::MAX).max(4);
    let power = micros.ilog2();
    let quarter = (micros >> (power - 2)) & 3;
    let number = (power - 2) as usize * 4 + quarter as usize;
    number.min(BUCKETS - 1)
}

/// Where a bucket ends.
fn end_of(number: usize) -> Duration {
    let (power, quarter) = (number / 4, (number % 4) as u64);
    Duration::from_micros((5 + quarter) << power)
}

#[cfg(test)]
mod tests {
    use proptest::collection::vec;
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn what_is_late_follows_what_is_usual() {
        let mut waits = Waits::new();
        for _ in 0..SAMPLES_MIN - 1 {
            waits.add(Duration::from_millis(50));
        }
        assert_eq!(waits.late(), None, "too few to tell");
        waits.add(Duration::from_millis(50));
        let late = waits.late().unwrap();
        assert!(
            late > Duration::from_millis(99) && late < Duration::from_millis(126),
            "{late:?}"
        );
        for _ in 0..4 * SAMPLES_MAX {
            waits.add(Duration::from_millis(400));
        }
        assert!(waits.late().unwrap() >= Duration::from_millis(800));
    }

    proptest! {
        /// At most one wait in a hundred, and some, is over the quantile of 99; and it is no more than a
        /// quarter over one that was seen.
        #[test]
        fn a_quantile_is_one(waits in vec(4..100_000_000_u64, 1..300)) {
            let mut histogram = Waits::new();
            for wait in &waits {
                histogram.add(Duration::from_micros(*wait));
            }
            let quantile = histogram.quantile(99);
            let longer = waits.iter().filter(|wait| Duration::from_micros(**wait) > quantile).count();
            prop_assert!(longer * 100 <= waits.len(), "{longer}");
            let longest = Duration::from_micros(*waits.iter().max().unwrap());
            prop_assert!(quantile <= longest + longest / 4 + Duration::from_micros(2));
        }
    }
}
