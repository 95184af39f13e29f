//! How long things took: counts in buckets whose width grows with the time. Pure but for its atomics.
//!
//! Four buckets for each doubling, so that a quantile is known to within a quarter of itself, from one
//! microsecond to 71 minutes; what takes longer counts as that. Nothing is ever allocated, and to
//! record is three additions. A bucket holds what took longer than the bound of the one before it, and
//! no longer than its own bound, as Prometheus wants it.
//!
//! Read without a lock, like all counters: a snapshot taken under load is not exact to the last event.

use std::array;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use serde::ser::SerializeMap;
use serde::{Serialize, Serializer};

/// Buckets for each doubling.
const STEPS: u32 = 4;

/// The longest time that is told apart: 2^32 microseconds.
const OCTAVES: u32 = 32;

/// How many buckets there are: one for each of the first [`STEPS`] microseconds, then [`STEPS`] for
/// each doubling.
pub const N_BUCKETS: usize = (STEPS * (OCTAVES - 1)) as usize;

/// Counts of events by how long they took.
#[derive(Debug)]
pub struct Histogram {
    buckets: [AtomicU64; N_BUCKETS],
    sum_us: AtomicU64,
    max_us: AtomicU64,
}

/// What a [`Histogram`] had counted at one time.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Counts {
    buckets: [u64; N_BUCKETS],
    sum_us: u64,
    max_us: u64,
}

impl Histogram {
    /// Nothing was counted.
    #[must_use]
    pub fn new() -> Self {
        Self {
            buckets: array::from_fn(|_| AtomicU64::new(0)),
            sum_us: AtomicU64::new(0),
            max_us: AtomicU64::new(0),
        }
    }

    /// Counts one event that took `time`.
    pub fn record(&self, time: Duration) {
        // Rounded up, so that what is in a bucket took no longer than its bound.
        let us = u64::try_from(time.as_nanos().div_ceil(1000)).unwrap_or(u64::MAX);
        self.buckets[bucket_of(us)].fetch_add(1, Ordering::Relaxed);
        self.sum_us.fetch_add(us, Ordering::Relaxed);
        self.max_us.fetch_max(us, Ordering::Relaxed);
    }

    /// What is counted so far.
    #[must_use]
    pub fn counts(&self) -> Counts {
        Counts {
            buckets: array::from_fn(|bucket| self.buckets[bucket].load(Ordering::Relaxed)),
            sum_us: self.sum_us.load(Ordering::Relaxed),
            max_us: self.max_us.load(Ordering::Relaxed),
        }
    }
}

impl Default for Histogram {
    fn default() -> Self {
        Self::new()
    }
}

impl Serialize for Histogram {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        self.counts().serialize(serializer)
    }
}

impl Counts {
    /// Nothing.
    pub const NONE: Self = Self {
        buckets: [0; N_BUCKETS],
        sum_us: 0,
        max_us: 0,
    };

    /// How many events there were.
    #[must_use]
    pub fn count(&self) -> u64 {
        self.buckets.iter().sum()
    }

    /// How long all of them took together, in microseconds.
    #[must_use]
    pub const fn sum_us(&self) -> u64 {
        self.sum_us
    }

    /// How long the longest took, in microseconds.
    #[must_use]
    pub const fn max_us(&self) -> u64 {
        self.max_us
    }

    /// How many took no longer than `bound_us`, which must be the bound of a bucket to be exact; else
    /// those of the bucket that it is in are left out.
    #[must_use]
    pub fn count_within(&self, bound_us: u64) -> u64 {
        let buckets = self.buckets.iter().enumerate();
        let within = buckets.take_while(|(bucket, _)| bound_of(*bucket) <= bound_us);
        within.map(|(_, count)| count).sum()
    }

    /// The time within which `thousandths` of the events ended, in microseconds: the bound of the
    /// bucket that the last of them is in, or the longest time if that is shorter. 0: there were none.
    #[must_use]
    pub fn quantile_us(&self, thousandths: u32) -> u64 {
        let count = self.count();
        let rank = u128::from(count) * u128::from(thousandths.min(1000));
        let rank = u64::try_from(rank.div_ceil(1000)).unwrap_or(count).max(1);
        let mut seen = 0;
        for (bucket, n) in self.buckets.iter().enumerate() {
            seen += n;
            if seen >= rank {
                return bound_of(bucket).min(self.max_us);
            }
        }
        0
    }

    /// Adds what `other` has counted.
    pub fn merge(&mut self, other: &Self) {
        for (count, more) in self.buckets.iter_mut().zip(&other.buckets) {
            *count += more;
        }
        self.sum_us = self.sum_us.saturating_add(other.sum_us);
        self.max_us = self.max_us.max(other.max_us);
    }

    /// The buckets that have counted something: the bound in microseconds, and the count.
    pub fn buckets(&self) -> impl Iterator<Item = (u64, u64)> {
        let buckets = self.buckets.iter().enumerate();
        buckets
            .filter(|(_, count)| **count > 0)
            .map(|(bucket, count)| (bound_of(bucket), *count))
    }

    /// Counts anew what [`Self::buckets`] said; what is no bound counts where it belongs.
    #[must_use]
    pub fn of_buckets(buckets: impl IntoIterator<Item = (u64, u64)>) -> Self {
        let mut counts = Self::NONE;
        for (bound, count) in buckets {
            let bucket = &mut counts.buckets[bucket_of(bound)];
            *bucket = bucket.saturating_add(count);
            counts.max_us = counts.max_us.max(bound);
        }
        counts
    }
}

impl Serialize for Counts {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        /// The buckets, by their bounds.
        struct Buckets<'a>(&'a Counts);

        impl Serialize for Buckets<'_> {
            fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
                serializer.collect_map(self.0.buckets())
            }
        }

        let mut map = serializer.serialize_map(None)?;
        map.serialize_entry("count", &self.count())?;
        map.serialize_entry("sum_us", &self.sum_us)?;
        map.serialize_entry("p50_us", &self.quantile_us(500))?;
        map.serialize_entry("p90_us", &self.quantile_us(900))?;
        map.serialize_entry("p99_us", &self.quantile_us(990))?;
        map.serialize_entry("max_us", &self.max_us)?;
        map.serialize_entry("buckets_us", &Buckets(self))?;
        map.end()
    }
}

/// The bucket of what took `us` microseconds.
fn bucket_of(us: u64) -> usize {
    // What takes just as long as the bound belongs below it.
    let at = us.saturating_sub(1).min((1 << OCTAVES) - 1);
    let steps = u64::from(STEPS);
    let bucket = if at < steps {
        at
    } else {
        let octave = at.ilog2();
        let step = (at >> (octave - 2)) - steps;
        u64::from(octave - 1) * steps + step
    };
    usize::try_from(bucket).unwrap_or(N_BUCKETS - 1)
}

/// The longest time that belongs into a bucket, in microseconds.
fn bound_of(bucket: usize) -> u64 {
    let (bucket, steps) = (bucket as u64, u64::from(STEPS));
    if bucket < steps {
        return bucket + 1;
    }
    let (octave, step) = (bucket / steps + 1, bucket % steps);
    (steps + step + 1) << (octave - 2)
}

#[cfg(test)]
mod tests {
    use proptest::collection::vec;
    use proptest::prelude::*;

    use super::*;

    fn of(times: &[u64]) -> Counts {
        let histogram = Histogram::new();
        for us in times {
            histogram.record(Duration::from_micros(*us));
        }
        histogram.counts()
    }

    /// Times of all sizes.
    fn times() -> impl Strategy<Value = Vec<u64>> {
        vec(
            (0..40_u32, 0.0..1.0_f64).prop_map(|(octave, part)| {
                let whole = 1_u64 << octave;
                #[expect(
                    clippy::cast_possible_truncation,
                    clippy::cast_sign_loss,
                    clippy::cast_precision_loss,
                    reason = "any number of that size will do"
                )]
                let more = (whole as f64 * part) as u64;
                whole + more
            }),
            1..200,
        )
    }

    #[test]
    fn buckets_follow_each_other_without_a_gap() {
        let mut before = 0;
        for bucket in 0..N_BUCKETS {
            let bound = bound_of(bucket);
            assert!(bound > before, "bucket {bucket} ends at {bound}");
            assert_eq!((bucket_of(before + 1), bucket_of(bound)), (bucket, bucket));
            before = bound;
        }
        assert_eq!(before, 1 << OCTAVES);
        assert_eq!(bucket_of(u64::MAX), N_BUCKETS - 1);
        assert_eq!(bucket_of(0), 0);
    }

    #[test]
    fn powers_of_two_are_bounds() {
        for octave in 0..=OCTAVES {
            assert_eq!(bound_of(bucket_of(1 << octave)), 1 << octave);
        }
    }

    #[test]
    fn what_was_never_recorded_has_no_quantile() {
        assert_eq!(Counts::NONE.quantile_us(500), 0);
        assert_eq!(Counts::NONE.count(), 0);
    }

    proptest! {
        /// A quantile is in the bucket of the value that a sorted list has there, so it is at most a
        /// quarter too long, and never too short.
        #[test]
        fn a_quantile_is_within_its_bucket(mut times in times(), thousandths in 0..=1000_u32) {
            let counts = of(&times);
            times.sort_unstable();
            let rank = (times.len() * thousandths as usize).div_ceil(1000).max(1);
            let (exact, found) = (times[rank - 1], counts.quantile_us(thousandths));
            prop_assert_eq!(bucket_of(found), bucket_of(exact));
            let known = exact.min(1 << OCTAVES);
            prop_assert!(found >= known && found <= known + known / u64::from(STEPS) + 1);
        }

        /// More of the events take no less time, up to the longest.
        #[test]
        fn quantiles_rise(times in times()) {
            let counts = of(&times);
            let quantiles: Vec<u64> = (0..=1000).map(|it| counts.quantile_us(it)).collect();
            prop_assert!(quantiles.is_sorted());
            prop_assert!(counts.max_us() == *times.iter().max().unwrap());
        }

        /// Counting in two and adding is counting in one.
        #[test]
        fn merging_is_counting_together(a in times(), b in times()) {
            let mut merged = of(&a);
            merged.merge(&of(&b));
            prop_assert_eq!(merged, of(&[a, b].concat()));
        }

        /// The counts within bounds never fall, and end with all of them.
        #[test]
        fn counts_within_rise_to_the_count(times in times()) {
            let counts = of(&times);
            let within: Vec<u64> = (0..=OCTAVES).map(|it| counts.count_within(1 << it)).collect();
            prop_assert!(within.is_sorted());
            prop_assert_eq!(within.last(), Some(&counts.count()));
            for octave in 0..OCTAVES {
                let exact = times.iter().filter(|us| **us <= 1 << octave).count() as u64;
                prop_assert_eq!(counts.count_within(1 << octave), exact);
            }
        }

        /// What is said of the buckets is all there is to count anew.
        #[test]
        fn buckets_can_be_read_back(times in times()) {
            let counts = of(&times);
            let again = Counts::of_buckets(counts.buckets());
            prop_assert_eq!(again.count(), counts.count());
            prop_assert!(again.buckets().eq(counts.buckets()));
        }
    }
}
