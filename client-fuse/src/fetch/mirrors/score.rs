//! How fast one mirror is: what one more request would cost whoever waits for it; knows no clock.
//!
//! Both the wait for an answer and the time of its body are those of single requests, under whatever
//! else is on its way: where the guest's own line is what is full, all mirrors look alike, and
//! nothing is gained by going elsewhere.

use std::time::Duration;

use super::waits::Waits;

/// A usual answer: a run of chunks.
const ANSWER_BYTES: u64 = 64 << 10;

/// The time of a shorter body says nothing about a rate.
const BODY_BYTES_MIN: u64 = 16 << 10;

/// The mean is that of about so many samples, so that a change is noticed soon, and one odd answer
/// does not count for much.
const SAMPLES: u32 = 8;

/// A silence this long is a stall, beside [`STALL_TRIPS`].
const STALL: Duration = Duration::from_secs(1);

/// A silence of as many waits is a stall: a new connection and its TLS take four of them.
const STALL_TRIPS: u32 = 8;

/// The same while it is not known how long an answer takes.
const STALL_UNKNOWN: Duration = Duration::from_secs(3);

/// No stall is waited for longer than this, whatever was seen before.
const STALL_MAX: Duration = Duration::from_secs(20);

/// A server that is busy with others of our requests may let one wait for so many times longer.
const BUSY: u32 = 4;

/// A mean in which old samples count less and less.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Mean {
    value: u64,
    n: u32,
}

impl Mean {
    fn add(&mut self, sample: u64) {
        self.n = (self.n + 1).min(SAMPLES);
        let weight = u64::from(self.n);
        self.value = if sample > self.value {
            self.value + (sample - self.value) / weight
        } else {
            self.value - (self.value - sample) / weight
        };
    }

    fn get(self) -> Option<u64> {
        (self.n > 0).then_some(self.value)
    }
}

/// What is known of the speed of a mirror.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Score {
    /// Microseconds from a request to the head of its answer, or until nobody waited any more.
    wait: Mean,
    /// The same of those that were answered.
    answer: Mean,
    /// Picoseconds that a byte of a body takes.
    pace: Mean,
    waits: Waits,
    /// How often in a row a stall went over by itself.
    patience: u32,
}

impl Score {
    /// Notes the head of an answer, which was waited for this long.
    pub fn answered(&mut self, waited: Duration) {
        self.waits.add(waited);
        self.wait.add(micros(waited));
        self.answer.add(micros(waited));
    }

    /// Notes that an answer was waited for this long in vain: it would have taken longer yet. What is a
    /// stall does not follow it, or each reader would wait longer for a dead server than the one before.
    pub fn given_up(&mut self, waited: Duration) {
        self.wait.add(micros(waited));
    }

    /// Notes that a body of `bytes` took `time` behind its head.
    pub fn received(&mut self, bytes: u64, time: Duration) {
        if bytes >= BODY_BYTES_MIN {
            let picos = time.as_nanos() * 1000 / u128::from(bytes);
            self.pace.add(u64::try_from(picos).unwrap_or(u64::MAX));
        }
    }

    /// How many answers came, up to a few.
    #[must_use]
    pub const fn answers(&self) -> u32 {
        self.wait.n
    }

    /// Picoseconds that a byte takes; `None`: not known.
    #[must_use]
    pub fn pace(&self) -> Option<u64> {
        self.pace.get()
    }

    /// What one more usual request would take; `None`: not known. Where only the pace is not known, it
    /// is taken to be `pace`.
    #[must_use]
    pub fn cost(&self, pace: u64) -> Option<Duration> {
        let wait = self.wait.get()?;
        let pace = self.pace.get().unwrap_or(pace);
        let body = u128::from(pace) * u128::from(ANSWER_BYTES) / 1_000_000;
        let body = u64::try_from(body).unwrap_or(u64::MAX);
        Some(Duration::from_micros(wait.saturating_add(body)))
    }

    /// From when on an answer takes far longer than usual; `None`: not known.
    #[must_use]
    pub fn late(&self) -> Option<Duration> {
        self.waits.late()
    }

    /// From when on silence is a stall; `busy`: the mirror answers others of our requests meanwhile.
    #[must_use]
    pub fn stall(&self, busy: bool) -> Duration {
        let usual = match self.answer.get() {
            Some(wait) => STALL + Duration::from_micros(wait).saturating_mul(STALL_TRIPS),
            None => STALL_UNKNOWN,
        };
        let usual = usual.saturating_mul(1 << self.patience);
        let limit = if busy {
            usual.saturating_mul(BUSY)
        } else {
            usual
        };
        limit.min(STALL_MAX)
    }

    /// Notes how a stall ended: if by itself, the next one is waited for twice as long, up to eight
    /// times.
    pub fn stalled(&mut self, by_itself: bool) {
        self.patience = if by_itself {
            (self.patience + 1).min(3)
        } else {
            0
        };
    }
}

fn micros(time: Duration) -> u64 {
    u64::try_from(time.as_micros()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    const fn ms(ms: u64) -> Duration {
        Duration::from_millis(ms)
    }

    #[test]
    fn what_a_request_costs_is_the_wait_and_the_body() {
        let mut score = Score::default();
        assert_eq!(score.cost(0), None);
        score.answered(ms(20));
        assert_eq!(score.cost(0), Some(ms(20)));
        // 64 KiB in 50 ms.
        score.received(64 << 10, ms(50));
        let cost = score.cost(0).unwrap();
        assert!(cost > ms(69) && cost <= ms(70), "{cost:?}");
        score.received(100, ms(50));
        assert_eq!(score.cost(0), Some(cost), "too short to tell");
    }

    #[test]
    fn one_odd_answer_counts_little_and_many_count_soon() {
        let mut score = Score::default();
        for _ in 0..20 {
            score.answered(ms(10));
        }
        score.answered(ms(100));
        assert!(score.cost(0).unwrap() < ms(25));
        for _ in 0..20 {
            score.answered(ms(100));
        }
        assert!(score.cost(0).unwrap() > ms(80));
    }

    #[test]
    fn a_stall_is_told_by_round_trips_and_patience_grows_while_it_helps() {
        let mut score = Score::default();
        assert_eq!(score.stall(false), STALL_UNKNOWN);
        score.answered(ms(50));
        assert_eq!(score.stall(false), ms(1400));
        assert_eq!(score.stall(true), ms(5600));
        score.given_up(ms(1400));
        assert_eq!(score.stall(false), ms(1400));
        score.stalled(true);
        assert_eq!(score.stall(false), ms(2800));
        for _ in 0..9 {
            score.stalled(true);
        }
        assert_eq!(score.stall(false), ms(11_200));
        assert_eq!(score.stall(true), STALL_MAX);
        score.stalled(false);
        assert_eq!(score.stall(false), ms(1400));
    }
}
