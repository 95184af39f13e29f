//! What the line is like, learnt from what came over it: its round trip and its rate.
//!
//! [`Gauge`] decides and is pure: moments are arguments. [`Meter`] keeps one beside a clock.
//!
//! The round trip is the shortest wait for the head of an answer; the time a server needs to look is
//! part of it, and so it should be: it is what one more request costs whoever waits for it. The rate
//! is the highest of late at which bodies came, all together, while at least one was on its way: a
//! lower one says only that not more was asked for. Both are the best of two generations of samples,
//! so that a line that gets worse is noticed.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::time::Instant;

/// Answers, and spans of receiving, in a generation.
const GENERATION: u32 = 64;

/// A span of receiving is as long at least: below it, what is measured are the buffers on the way.
const SPAN_MIN: Duration = Duration::from_millis(5);

/// A longer span is cut, so that the rate is known while a long body is on its way.
const SPAN_MAX: Duration = Duration::from_millis(50);

/// The first few spans are those of small files on new connections, and say too little.
const YOUNG: u32 = 8;

/// Less than this says nothing about a rate: the head of a connection's slow start.
const SPAN_BYTES_MIN: u64 = 32 << 10;

/// What is known of the line.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Estimate {
    /// From the request to the head of its answer; zero: not known.
    pub round_trip: Duration,
    /// Bytes a second, all connections together.
    pub rate: u64,
}

impl Estimate {
    /// What is assumed before anything came: a line of 100 Mbit/s, and no round trip, so that nothing
    /// is done for the sake of one.
    pub const UNKNOWN: Self = Self {
        round_trip: Duration::ZERO,
        rate: 100_000_000 / 8,
    };

    /// Bytes that the line carries in `time`.
    #[must_use]
    pub fn bytes_in(&self, time: Duration) -> u64 {
        let bytes = u128::from(self.rate) * time.as_nanos() / 1_000_000_000;
        u64::try_from(bytes).unwrap_or(u64::MAX)
    }

    /// Bytes that must be asked for at once for the line never to fall idle.
    #[must_use]
    pub fn bytes_per_round_trip(&self) -> u64 {
        self.bytes_in(self.round_trip)
    }
}

/// The best of the last [`GENERATION`] samples or more, at most twice as many.
#[derive(Clone, Copy, Debug)]
struct Best<T> {
    old: Option<T>,
    new: Option<T>,
    n: u32,
}

impl<T: Copy + Ord> Best<T> {
    const NONE: Self = Self {
        old: None,
        new: None,
        n: 0,
    };

    fn add(&mut self, sample: T) {
        if self.n == GENERATION {
            (self.old, self.new, self.n) = (self.new, None, 0);
        }
        self.new = self.new.max(Some(sample));
        self.n += 1;
    }

    fn get(&self) -> Option<T> {
        self.old.max(self.new)
    }
}

/// Learns what the line is like. Moments are times since any beginning, and never go back.
#[derive(Clone, Copy, Debug)]
pub struct Gauge {
    round_trip: Best<std::cmp::Reverse<Duration>>,
    rate: Best<u64>,
    bodies: u32,
    /// When the span began: with the first bytes, which do not count.
    span: Option<Duration>,
    bytes: u64,
}

impl Gauge {
    /// Knows nothing.
    #[must_use]
    pub const fn new() -> Self {
        Self {
            round_trip: Best::NONE,
            rate: Best::NONE,
            bodies: 0,
            span: None,
            bytes: 0,
        }
    }

    /// Notes the head of an answer, which was waited for this long; its body is on its way.
    pub fn answered(&mut self, waited: Duration) {
        self.round_trip.add(std::cmp::Reverse(waited));
        self.bodies += 1;
    }

    /// Notes bytes of a body.
    pub fn received(&mut self, now: Duration, bytes: u64) {
        let Some(began) = self.span else {
            (self.span, self.bytes) = (Some(now), 0);
            return;
        };
        self.bytes += bytes;
        let length = now.saturating_sub(began);
        if length >= SPAN_MAX {
            self.close(length);
            self.span = Some(now);
        }
    }

    /// Notes that a body has ended, however it did.
    pub fn ended(&mut self, now: Duration) {
        self.bodies = self.bodies.saturating_sub(1);
        if self.bodies == 0
            && let Some(began) = self.span.take()
        {
            self.close(now.saturating_sub(began));
        }
    }

    fn close(&mut self, length: Duration) {
        let bytes = std::mem::take(&mut self.bytes);
        if bytes >= SPAN_BYTES_MIN {
            let nanoseconds = length.max(SPAN_MIN).as_nanos();
            let rate = u128::from(bytes) * 1_000_000_000 / nanoseconds;
            self.rate.add(u64::try_from(rate).unwrap_or(u64::MAX));
        }
    }

    /// What is known so far.
    #[must_use]
    pub fn estimate(&self) -> Estimate {
        let unknown = Estimate::UNKNOWN;
        Estimate {
            round_trip: self
                .round_trip
                .get()
                .map_or(unknown.round_trip, |shortest| shortest.0),
            rate: self.rate.get().map_or(unknown.rate, |rate| {
                let young = self.rate.old.is_none() && self.rate.n < YOUNG;
                if young { rate.max(unknown.rate) } else { rate }
            }),
        }
    }
}

impl Default for Gauge {
    fn default() -> Self {
        Self::new()
    }
}

/// A gauge and its clock, shared by all requests.
#[derive(Clone, Debug)]
pub(crate) struct Meter(Arc<(Instant, Mutex<Gauge>)>);

impl Meter {
    pub(crate) fn new() -> Self {
        Self(Arc::new((Instant::now(), Mutex::new(Gauge::new()))))
    }

    /// What is known so far.
    pub(crate) fn estimate(&self) -> Estimate {
        self.gauge().estimate()
    }

    /// Notes the head of an answer, which was waited for this long.
    pub(crate) fn answered(&self, waited: Duration) -> Body {
        self.gauge().answered(waited);
        Body(self.clone())
    }

    fn gauge(&self) -> MutexGuard<'_, Gauge> {
        self.0.1.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A body on its way, until it is dropped.
#[derive(Debug)]
pub(crate) struct Body(Meter);

impl Body {
    /// Notes bytes of it.
    pub(crate) fn received(&self, bytes: u64) {
        let now = self.0.0.0.elapsed();
        self.0.gauge().received(now, bytes);
    }
}

impl Drop for Body {
    fn drop(&mut self) {
        let now = self.0.0.0.elapsed();
        self.0.gauge().ended(now);
    }
}

#[cfg(test)]
mod tests {
    use proptest::collection::vec;
    use proptest::prelude::*;

    use super::*;

    const fn ms(ms: u64) -> Duration {
        Duration::from_millis(ms)
    }

    #[test]
    fn a_line_is_known_by_its_shortest_wait_and_its_highest_rate() {
        let mut gauge = Gauge::new();
        assert_eq!(gauge.estimate(), Estimate::UNKNOWN);
        for waited in [120, 50, 70] {
            gauge.answered(ms(waited));
        }
        // 16 KiB at once, then as much each millisecond: 16 MiB/s.
        for at in 0..=20 {
            gauge.received(ms(100 + at), 16 << 10);
        }
        for _ in 0..3 {
            gauge.ended(ms(120));
        }
        let rate = (16 << 10) * 1000;
        assert_eq!(
            gauge.estimate(),
            Estimate {
                round_trip: ms(50),
                rate
            }
        );
        assert_eq!(gauge.estimate().bytes_per_round_trip(), rate / 20);
    }

    #[test]
    fn a_line_that_gets_worse_is_noticed() {
        let mut gauge = Gauge::new();
        gauge.answered(ms(1));
        for _ in 0..2 * GENERATION {
            gauge.answered(ms(80));
        }
        assert_eq!(gauge.estimate().round_trip, ms(80));
    }

    #[test]
    fn a_pause_between_bodies_makes_no_line_slower() {
        let mut gauge = Gauge::new();
        for begin in [0, 10_000, 20_000] {
            gauge.answered(ms(10));
            for at in 0..=10 {
                gauge.received(ms(begin + at), 10_000);
            }
            gauge.ended(ms(begin + 10));
        }
        assert_eq!(gauge.rate.get(), Some(10_000_000));
    }

    #[derive(Clone, Debug)]
    enum Event {
        Answered(u64),
        Received(u64),
        Ended,
    }

    proptest! {
        /// Whatever happens, no rate is higher than all bytes in the shortest span, and the round
        /// trip is one that was seen.
        #[test]
        fn estimates_are_of_what_was_seen(events in vec((0..30_u64, prop_oneof![
            (1..200_u64).prop_map(Event::Answered),
            (1..1_000_000_u64).prop_map(Event::Received),
            Just(Event::Ended),
        ]), 0..300)) {
            let (mut gauge, mut now, mut bytes, mut waits) = (Gauge::new(), 0, 0, Vec::new());
            for (step, event) in events {
                now += step;
                match event {
                    Event::Answered(waited) => { waits.push(ms(waited)); gauge.answered(ms(waited)); }
                    Event::Received(part) => { bytes += part; gauge.received(ms(now), part); }
                    Event::Ended => gauge.ended(ms(now)),
                }
                let Estimate { round_trip, rate } = gauge.estimate();
                prop_assert!(round_trip.is_zero() == waits.is_empty());
                prop_assert!(round_trip.is_zero() || waits.contains(&round_trip));
                let most = u128::from(bytes) * 1000 / SPAN_MIN.as_millis();
                prop_assert!(rate == Estimate::UNKNOWN.rate || u128::from(rate) <= most);
            }
        }
    }
}
