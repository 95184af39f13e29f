//! Decides when a packet comes out of a line, if it does. Has no clock: time is an argument.
//!
//! A packet waits until the line is free, takes the line for its length at the rate, then travels for the
//! delay. It is dropped if the queue has no room for it; a packet that is lost on the way has taken its
//! time on the line.

use std::time::Duration;

/// Bits in a second.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Rate(u64);

impl Rate {
    /// Returns so many bits in a second; none is a line of one bit in a second.
    pub const fn from_bits(bits: u64) -> Self {
        Self(if bits == 0 { 1 } else { bits })
    }

    /// Returns so many million bits in a second.
    pub const fn from_mbit(mbit: u64) -> Self {
        Self::from_bits(mbit.saturating_mul(1_000_000))
    }

    /// Returns bits in a second.
    pub fn bits(self) -> u64 {
        self.0
    }

    /// Returns how long `bytes` take, rounded up to a nanosecond.
    pub fn time_of(self, bytes: u64) -> Duration {
        let nanos = (u128::from(bytes) * 8 * 1_000_000_000).div_ceil(u128::from(self.0));
        Duration::from_nanos(u64::try_from(nanos).unwrap_or(u64::MAX))
    }

    /// Returns how many whole bytes `time` is enough for.
    pub fn bytes_in(self, time: Duration) -> u64 {
        let bytes = time.as_nanos() * u128::from(self.0) / (8 * 1_000_000_000);
        u64::try_from(bytes).unwrap_or(u64::MAX)
    }
}

/// Which packets are lost: each with the same probability, the same ones for the same seed.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Loss {
    /// Of all packets, from 0 to 1.
    pub share: f64,
    /// Decides which.
    pub seed: u64,
}

/// What becomes of a packet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// It comes out then.
    Arrives(Duration),
    /// It is lost on the line.
    Lost,
    /// The queue has no room.
    Dropped,
}

/// One direction of a line.
#[derive(Clone, Debug)]
pub struct Shaper {
    delay: Duration,
    rate: Option<Rate>,
    queue: u64,
    loss: Option<Loss>,
    drawn: u64,
    free_at: Duration,
}

impl Shaper {
    /// Makes an idle line with a `delay` in one direction and room for `queue` waiting bytes.
    pub fn new(delay: Duration, rate: Option<Rate>, queue: u64, loss: Option<Loss>) -> Self {
        Self {
            delay,
            rate,
            queue,
            loss,
            drawn: loss.map_or(0, |loss| loss.seed),
            free_at: Duration::ZERO,
        }
    }

    /// Takes a packet of `bytes` at `now`, which never goes back. One that finds the line free is never too long.
    pub fn offer(&mut self, now: Duration, bytes: u64) -> Verdict {
        let Some(rate) = self.rate else {
            return match self.loses() {
                true => Verdict::Lost,
                false => Verdict::Arrives(now + self.delay),
            };
        };
        let wait = self.free_at.saturating_sub(now);
        if !wait.is_zero() && rate.bytes_in(wait).saturating_add(bytes) > self.queue {
            return Verdict::Dropped;
        }
        self.free_at = self.free_at.max(now) + rate.time_of(bytes);
        match self.loses() {
            true => Verdict::Lost,
            false => Verdict::Arrives(self.free_at + self.delay),
        }
    }

    /// Draws the next packet's lot (splitmix64).
    fn loses(&mut self) -> bool {
        let Some(Loss { share, .. }) = self.loss else {
            return false;
        };
        self.drawn = self.drawn.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut word = self.drawn;
        word = (word ^ (word >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        word = (word ^ (word >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        word ^= word >> 31;
        // 32 bits are exact in a float.
        let drawn = u32::try_from(word >> 32).unwrap_or(u32::MAX);
        f64::from(drawn) < share * f64::from(u32::MAX)
    }
}

#[cfg(test)]
mod tests;
