//! Faults without a plan: so many answers fail, so many places of objects are damaged on their way.
//!
//! Which ones depends on a seed and on what was asked for before, so that a run can be had again as far as
//! its requests come in the same order. A place is damaged the first time that it passes and right from
//! then on: whoever asks again gets the truth, however much is damaged.

use std::collections::HashSet;
use std::fmt;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};

use bytes::{Bytes, BytesMut};

use super::faults::Fault;
use crate::random::{Random, mix};

/// An object is damaged in one byte of a stretch of this length, if in any.
const STRETCH: u64 = 4096;

/// Bytes a second of an answer that is slow: half of the time-outs of readers for a megabyte.
const SLOW: u64 = 300_000;

/// How much goes wrong.
#[derive(Clone, Copy, Debug)]
pub struct Odds {
    /// One of so many answers fails.
    pub fault_one_in: u64,
    /// One of so many stretches of 4096 bytes of objects is damaged.
    pub damage_one_in: u64,
}

/// What went wrong so far.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Injected {
    /// Answers of 500, 502 and 503.
    pub statuses: u64,
    /// Connections reset in the middle of a body.
    pub resets: u64,
    /// Connections closed in the middle of a body.
    pub truncations: u64,
    /// Bodies that stopped coming.
    pub stalls: u64,
    /// Bodies that came slowly.
    pub slow: u64,
    /// Bits that flipped.
    pub flips: u64,
}

impl Injected {
    /// Returns all of it together.
    pub const fn total(&self) -> u64 {
        self.statuses + self.resets + self.truncations + self.stalls + self.slow + self.flips
    }

    /// Adds what went wrong elsewhere.
    pub const fn add(&mut self, other: Self) {
        self.statuses += other.statuses;
        self.resets += other.resets;
        self.truncations += other.truncations;
        self.stalls += other.stalls;
        self.slow += other.slow;
        self.flips += other.flips;
    }
}

impl fmt::Display for Injected {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self {
            statuses,
            resets,
            truncations,
            stalls,
            slow,
            flips,
        } = self;
        write!(
            f,
            "{statuses} answers of 5xx, {resets} resets, {truncations} truncations, {stalls} stalls, \
             {slow} slow answers, {flips} flipped bits"
        )
    }
}

/// A source of faults; it does nothing until it is let loose.
#[derive(Debug)]
pub struct Chaos {
    seed: u64,
    odds: Odds,
    loose: AtomicBool,
    asked: AtomicU64,
    damaged: Mutex<HashSet<(u64, u64)>>,
    injected: Mutex<Injected>,
}

/// What an answer meets; where, is known when its length is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fate {
    /// This status instead of an answer.
    Status(u16),
    /// Something of its body, at a place that this number tells.
    Body(u64),
}

impl Chaos {
    /// Makes one that is quiet.
    pub fn new(seed: u64, odds: Odds) -> Self {
        Self {
            seed: mix(seed),
            odds,
            loose: AtomicBool::new(false),
            asked: AtomicU64::new(0),
            damaged: Mutex::default(),
            injected: Mutex::default(),
        }
    }

    /// Begins, or ends.
    pub fn set_loose(&self, loose: bool) {
        self.loose.store(loose, Ordering::Relaxed);
    }

    /// Returns what went wrong so far.
    pub fn injected(&self) -> Injected {
        *self.count()
    }

    /// Decides about the next request.
    pub fn fate(&self) -> Option<Fate> {
        let number = self.asked.fetch_add(1, Ordering::Relaxed);
        let mut random = Random::new(self.seed ^ number);
        if !self.is_loose() || !random.once_in(self.odds.fault_one_in) {
            return None;
        }
        Some(match random.below(5) {
            0 => {
                self.count().statuses += 1;
                Fate::Status(random.pick(&[500, 502, 503]))
            }
            _ => Fate::Body(random.next()),
        })
    }

    /// Decides what a body of `length` bytes meets.
    pub fn fault(&self, fate: Fate, length: u64) -> Option<Fault> {
        let number = match fate {
            Fate::Status(status) => return Some(Fault::Status(status)),
            Fate::Body(number) => number,
        };
        let mut random = Random::new(number);
        let after = random.below(length.max(1));
        let mut count = self.count();
        match random.below(7) {
            // An empty body cannot break off.
            _ if length == 0 => None,
            0 | 1 => {
                count.resets += 1;
                Some(Fault::Reset(after))
            }
            2 | 3 => {
                count.truncations += 1;
                Some(Fault::Truncate(after))
            }
            4 => {
                count.stalls += 1;
                Some(Fault::Stall(after))
            }
            _ => {
                count.slow += 1;
                Some(Fault::Slow(SLOW))
            }
        }
    }

    /// Damages what is to be damaged of the `piece` that begins at byte `at` of the object at `path`.
    pub fn damage(&self, path: &str, at: u64, piece: Bytes) -> Bytes {
        // Metadata is tiny and always asked for anew; objects are where everything is.
        if !self.is_loose() || !path.starts_with("/objects/") {
            return piece;
        }
        let object = path
            .bytes()
            .fold(self.seed, |hash, byte| mix(hash ^ u64::from(byte)));
        let end = at + piece.len() as u64;
        let mut damaged: Option<BytesMut> = None;
        for stretch in at / STRETCH..end.div_ceil(STRETCH) {
            let mut random = Random::new(object ^ mix(stretch));
            let place = stretch * STRETCH + random.below(STRETCH);
            let is_bad = random.once_in(self.odds.damage_one_in) && (at..end).contains(&place);
            if !is_bad || !self.lock_damaged().insert((object, stretch)) {
                continue;
            }
            let bytes = damaged.get_or_insert_with(|| BytesMut::from(piece.as_ref()));
            let index = usize::try_from(place - at).unwrap_or_default();
            bytes[index] ^= 1 << random.below(8);
            self.count().flips += 1;
        }
        damaged.map_or(piece, BytesMut::freeze)
    }

    fn is_loose(&self) -> bool {
        self.loose.load(Ordering::Relaxed)
    }

    fn count(&self) -> MutexGuard<'_, Injected> {
        self.injected.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn lock_damaged(&self) -> MutexGuard<'_, HashSet<(u64, u64)>> {
        self.damaged.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::{Bytes, Chaos, Odds};

    const ODDS: Odds = Odds {
        fault_one_in: 2,
        damage_one_in: 3,
    };

    #[test]
    fn one_seed_is_one_row_of_faults() {
        let row = |seed| {
            let chaos = Chaos::new(seed, ODDS);
            assert!((0..100).all(|_| chaos.fate().is_none()), "it is quiet");
            chaos.set_loose(true);
            let fates: Vec<_> = (0..100).map(|_| chaos.fate()).collect();
            let faults = fates.iter().map(|fate| chaos.fault((*fate)?, 1000));
            (faults.collect::<Vec<_>>(), chaos.injected())
        };
        assert_eq!(row(1), row(1));
        assert_ne!(row(1), row(2));
        assert!((20..80).contains(&row(1).1.total()));
    }

    #[test]
    fn a_place_is_damaged_once_however_the_body_is_cut() {
        let whole = Bytes::from(vec![0; 100_000]);
        for step in [1000, 4096, 7777, 100_000] {
            let chaos = Chaos::new(3, ODDS);
            chaos.set_loose(true);
            let pass = || {
                let pieces = (0..whole.len()).step_by(step).map(|at| {
                    let piece = whole.slice(at..(at + step).min(whole.len()));
                    chaos.damage("/objects/ab/cd", at as u64, piece)
                });
                let bits = pieces.flat_map(|piece| piece.to_vec());
                bits.map(u8::count_ones).sum::<u32>()
            };
            let flipped = pass();
            assert!((2..20).contains(&flipped), "{flipped} bits");
            assert_eq!(u64::from(flipped), chaos.injected().flips);
            assert_eq!(pass(), 0, "the second time it is right");
        }
    }
}
