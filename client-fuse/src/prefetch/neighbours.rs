//! Decides how much to fetch around what a guest lacks; fetches nothing itself.
//!
//! A reader that lacks one block of a file will want more of it, and of those beside it: while it
//! waits a round trip, the line can bring them for little. So a miss brings its *neighbourhood*: the
//! aligned stretch of the disk around it, as wide as what the line carries in a share of a round trip
//! and in the time that a request costs. Where a round trip is next to nothing, so is the stretch.
//!
//! How much of it is read is watched. Where little is, the reader is a random one and the stretch
//! narrows, down to nothing; then one miss in [`PROBE`] tries again. So what comes in vain is bounded,
//! whoever reads.

use std::ops::Range;
use std::time::Duration;

use crate::fetch::line::Estimate;

/// Several readers wait at once, and each of them has neighbours: a part of what the line carries in a
/// round trip, for each.
const READERS: u32 = 8;

/// What a request costs a server and us, kernel and threads included.
const REQUEST_TIME: Duration = Duration::from_micros(300);

/// A shorter round trip is that of this machine or of its switch: a miss costs no more than a hit.
const ROUND_TRIP_MIN: Duration = Duration::from_micros(500);

/// Bytes of a disk for each byte of a pack, about.
const RATIO: u64 = 3;

/// Narrower than this it saves nobody a round trip: the kernel reads as much ahead by itself.
const BYTES_MIN: u64 = 64 << 10;

/// Wider than this, what lies around belongs to other files. Where much of it is read, twice as much.
const BYTES_MAX: u64 = 256 << 10;

/// One miss in as many tries again where nothing was of use.
const PROBE: u32 = 16;

/// What counts before anything is known: half of this many bytes are taken to be of use.
const PRIOR_BYTES: u64 = 4 << 20;

/// Older bytes count half.
const MEMORY_BYTES: u64 = 32 << 20;

/// How wide a neighbourhood is worth fetching.
#[derive(Clone, Copy, Debug)]
pub struct Neighbours {
    brought: u64,
    used: u64,
    misses: u32,
}

impl Neighbours {
    /// Nothing is known of the readers.
    #[must_use]
    pub const fn new() -> Self {
        Self {
            brought: PRIOR_BYTES,
            used: PRIOR_BYTES / 2,
            misses: 0,
        }
    }

    /// Notes that `bytes` are fetched before anybody asked for them.
    pub const fn brought(&mut self, bytes: u64) {
        self.brought = self.brought.saturating_add(bytes);
        if self.brought > MEMORY_BYTES {
            self.brought /= 2;
            self.used /= 2;
        }
    }

    /// Notes that `bytes` of these were read.
    pub const fn used(&mut self, bytes: u64) {
        self.used = self.used.saturating_add(bytes);
    }

    /// The stretch of the disk to fetch around `missing`, which a guest lacks; `None`: nothing more.
    ///
    /// It contains all of `missing`, is aligned, and so lies in the regions of `missing`.
    pub fn around(&mut self, missing: &Range<u64>, line: Estimate) -> Option<Range<u64>> {
        let width = self.width(line)?;
        let (start, end) = (missing.start / width * width, missing.end.div_ceil(width));
        Some(start..end.saturating_mul(width))
    }

    fn width(&mut self, line: Estimate) -> Option<u64> {
        let time = line.round_trip / READERS + REQUEST_TIME;
        let full = (line.bytes_in(time) * RATIO).min(BYTES_MAX);
        if full < BYTES_MIN || line.round_trip < ROUND_TRIP_MIN {
            return None;
        }
        // The power of two that is nearest, by ratio.
        let full = (full * 3 / 4).next_power_of_two();
        self.misses = self.misses.wrapping_add(1);
        let share = self.used.saturating_mul(100) / self.brought.max(1);
        let width = match share {
            45.. => full * 2,
            20.. => full,
            10.. => full / 2,
            _ if self.misses.is_multiple_of(PROBE) => full / 2,
            _ => return None,
        };
        Some(width.max(BYTES_MIN))
    }
}

impl Default for Neighbours {
    fn default() -> Self {
        Self::new()
    }
}

#[cfg(test)]
mod tests {
    use proptest::collection::vec;
    use proptest::prelude::*;

    use super::*;

    const fn line(ms: u64, mbit: u64) -> Estimate {
        Estimate {
            round_trip: Duration::from_millis(ms),
            rate: mbit * 125_000,
        }
    }

    const FAR: Estimate = line(50, 100);

    fn width(neighbours: &mut Neighbours, line: Estimate) -> u64 {
        let around = neighbours.around(&(0..4096), line);
        around.map_or(0, |around| around.end - around.start)
    }

    #[test]
    fn the_width_is_that_of_the_line() {
        let mut neighbours = Neighbours::new();
        neighbours.brought(1 << 20);
        let widths = [
            (50, 100),
            (20, 100),
            (100, 20),
            (100, 100),
            (1, 1000),
            (0, 100),
            (0, 10_000),
        ]
        .map(|(ms, mbit)| width(&mut neighbours, line(ms, mbit)) >> 10);
        assert_eq!(widths, [256, 128, 128, 256, 128, 0, 0]);
    }

    #[test]
    fn what_is_missing_lies_inside() {
        let mut neighbours = Neighbours::new();
        neighbours.brought(1 << 20);
        let missing = (300 << 10)..(600 << 10);
        let around = neighbours.around(&missing, FAR);
        assert_eq!(around, Some((256 << 10)..(768 << 10)));
    }

    #[test]
    fn a_random_reader_gets_nothing_soon_and_a_try_now_and_then() {
        let mut neighbours = Neighbours::new();
        let mut vain = Vec::new();
        for _ in 0..1000 {
            let bytes = width(&mut neighbours, FAR);
            neighbours.brought(bytes);
            vain.push(bytes);
        }
        let (first, later) = vain.split_at(500);
        assert!(first.iter().sum::<u64>() < 24 << 20);
        assert!(later.iter().filter(|bytes| **bytes > 0).count() <= 32);
        // It is noticed when there is again something to gain.
        let mut wide = 0;
        for _ in 0..2000 {
            let bytes = width(&mut neighbours, FAR);
            neighbours.brought(bytes);
            neighbours.used(bytes);
            wide = wide.max(bytes);
        }
        assert_eq!(wide, 512 << 10);
    }

    proptest! {
        /// Whoever reads, what comes in vain is at most three times what is of use, and some.
        #[test]
        fn what_comes_in_vain_is_bounded(uses in vec(0..=10_u64, 1..2000)) {
            let mut neighbours = Neighbours::new();
            let (mut brought, mut used) = (0, 0);
            let n = uses.len() as u64;
            for tenths in uses {
                let bytes = width(&mut neighbours, FAR);
                neighbours.brought(bytes);
                neighbours.used(bytes * tenths / 10);
                brought += bytes;
                used += bytes * tenths / 10;
            }
            let tries = n / u64::from(PROBE) * (128 << 10);
            prop_assert!(brought - used <= 6 * used + (32 << 20) + tries);
        }

        /// The stretch is aligned, contains what is missing, and is bounded.
        #[test]
        fn stretches_are_sound(start in 0..1_u64 << 50, len in 1..4_u64 << 20, ms in 0..500_u64, mbit in 1..10_000_u64) {
            let missing = start..start + len;
            if let Some(around) = Neighbours::new().around(&missing, line(ms, mbit)) {
                prop_assert!(around.start <= missing.start && around.end >= missing.end);
                prop_assert!(around.end - around.start <= len + 4 * BYTES_MAX);
                prop_assert!((around.start ^ missing.start) >> 19 == 0);
            }
        }
    }
}
