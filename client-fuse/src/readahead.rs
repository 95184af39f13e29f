//! Decides how far to read ahead of sequential readers; fetches nothing itself.
//!
//! A stream is a reader that continues where it stopped. Its window doubles each time it is used
//! up, so that a long run costs few requests, and never reaches further ahead than the reader has read,
//! so that a short one wastes little. Who jumps is trusted half as far: the window shrinks. A random
//! reader never becomes a stream and gets nothing. Several streams are followed at once; the one unused for
//! longest is forgotten first.
//!
//! The kernel splits and reorders the requests of one reader a little (asynchronous reads, several
//! FUSE threads), so an established stream forgives a read that arrives early or late.

use std::ops::Range;

/// Streams followed at once: more parallel sequential readers than a boot was ever seen to have.
const STREAMS_MAX: usize = 16;

/// A run this long, in at least two reads, is a stream. Below it are the neighbouring blocks that a
/// file system reads by chance.
const RUN_BYTES_MIN: u64 = 64 << 10;

/// The first window: two of the kernel's ordinary read-ahead requests.
const WINDOW_BYTES_FIRST: u64 = 256 << 10;

/// How far out of order a read of an established stream may arrive: 2 of the largest FUSE reads.
const REORDER_BYTES: u64 = 2 << 20;

/// A longer jump than this is no reordering of the kernel's usual requests, but a seek.
const JUMP_BYTES: u64 = 256 << 10;

/// Follows readers and says what to fetch before they ask.
#[derive(Debug)]
pub struct ReadAhead {
    /// Most recently used last.
    streams: Vec<Stream>,
    window_bytes_max: u64,
}

#[derive(Clone, Copy, Debug)]
struct Stream {
    /// How far its reader is trusted: the bytes that it has read, halved with each jump.
    read: u64,
    /// Where the next read is expected.
    next: u64,
    /// Up to where has been asked for ahead; never less than `next` once established.
    ahead: u64,
    /// How far to go ahead the next time; 0: not yet a stream.
    window: u64,
}

impl ReadAhead {
    /// Far enough ahead to hold 1 Gbit/s over 60 ms, or 100 Mbit/s over 600 ms.
    pub const WINDOW_BYTES_MAX: u64 = 8 << 20;

    /// Follows readers with windows of at most `window_bytes_max`; 0 switches read-ahead off.
    #[must_use]
    pub const fn new(window_bytes_max: u64) -> Self {
        Self {
            streams: Vec::new(),
            window_bytes_max,
        }
    }

    /// Notes a read and returns the range to fetch ahead of its reader, if any.
    ///
    /// The range may reach past the end of the disk. No stream gets a byte twice.
    pub fn note(&mut self, offset: u64, len: u64) -> Option<Range<u64>> {
        let end = offset.checked_add(len)?;
        if len == 0 || self.window_bytes_max == 0 {
            return None;
        }
        // Whoever stopped exactly there, rather than somebody near.
        let exactly = |stream: &Stream| stream.next == offset;
        let found = self.streams.iter().rposition(exactly).or_else(|| {
            let near = |stream: &Stream| stream.continues_at(offset);
            self.streams.iter().rposition(near)
        });
        let mut stream = match found {
            Some(index) => self.streams.remove(index),
            None => Stream::from(offset),
        };
        if stream.next > offset.saturating_add(JUMP_BYTES.max(len)) {
            // Late, or another reader's: if it goes on from there, it is.
            self.remember(Stream::from(end));
        } else if offset > stream.next.saturating_add(JUMP_BYTES.max(len)) {
            stream.jump();
        }
        stream.read = stream.read.saturating_add(len);
        stream.next = stream.next.max(end);
        let ahead = stream.extend(found.is_some(), self.window_bytes_max);
        self.remember(stream);
        ahead
    }

    /// What a stream was told to fetch up to `end` has more holes than bytes, and what follows was fetched up to
    /// `reached` in their place.
    pub fn skip(&mut self, end: u64, reached: u64) {
        let is_it = |stream: &&mut Stream| stream.window > 0 && stream.ahead == end;
        if let Some(stream) = self.streams.iter_mut().rev().find(is_it) {
            stream.ahead = reached.max(end);
        }
    }

    fn remember(&mut self, stream: Stream) {
        if self.streams.len() == STREAMS_MAX {
            self.streams.remove(0);
        }
        self.streams.push(stream);
    }
}

impl Stream {
    /// A reader that has read nothing yet, and may go on at `offset`.
    const fn from(offset: u64) -> Self {
        Self {
            read: 0,
            next: offset,
            ahead: offset,
            window: 0,
        }
    }

    /// Whether a read at `offset` belongs to this stream.
    const fn continues_at(&self, offset: u64) -> bool {
        if self.window == 0 {
            return offset == self.next;
        }
        offset >= self.next.saturating_sub(REORDER_BYTES)
            && offset <= self.next.saturating_add(REORDER_BYTES)
    }

    /// Its reader went elsewhere, though not far.
    const fn jump(&mut self) {
        self.read /= 2;
        self.window = if self.window / 2 > WINDOW_BYTES_FIRST {
            self.window / 2
        } else {
            self.window
        };
    }

    /// Moves the window on when less than half of it is left, so that requests stay large.
    fn extend(&mut self, continued: bool, window_max: u64) -> Option<Range<u64>> {
        if self.window == 0 {
            if !continued || self.read < RUN_BYTES_MIN {
                return None;
            }
            self.window = WINDOW_BYTES_FIRST.min(window_max);
        } else if self.ahead.saturating_sub(self.next) > self.window / 2 {
            return None;
        } else {
            let trusted = self.read.max(WINDOW_BYTES_FIRST).min(window_max);
            self.window = self.window.saturating_mul(2).min(trusted);
        }
        let start = self.ahead.max(self.next);
        let end = self.next.saturating_add(self.window);
        self.ahead = end.max(start);
        (start < end).then_some(start..end)
    }
}

#[cfg(test)]
mod tests {
    use proptest::collection::vec;
    use proptest::prelude::*;

    use super::*;

    fn read_ahead() -> ReadAhead {
        ReadAhead::new(ReadAhead::WINDOW_BYTES_MAX)
    }

    #[test]
    fn a_single_small_read_fetches_nothing_more() {
        assert_eq!(read_ahead().note(0, 4096), None);
    }

    #[test]
    fn neighbouring_blocks_are_not_yet_a_stream() {
        let mut ahead = read_ahead();
        assert_eq!(ahead.note(8192, 4096), None);
        assert_eq!(ahead.note(12_288, 4096), None);
    }

    #[test]
    fn a_long_run_takes_few_steps_and_covers_all() {
        let mut ahead = read_ahead();
        let steps: Vec<_> = (0..512)
            .filter_map(|i| ahead.note(i * 131_072, 131_072))
            .collect();
        assert!(steps.len() <= 24, "{} steps", steps.len());
        for pair in steps.windows(2) {
            assert_eq!(
                pair[0].end, pair[1].start,
                "windows leave no gap and do not overlap"
            );
        }
        assert!(steps[steps.len() - 1].end >= 64 << 20);
    }

    #[test]
    fn what_was_fetched_behind_a_hole_is_not_asked_for_again() {
        const MIB: u64 = 1 << 20;
        let mut ahead = read_ahead();
        let mut end = 0;
        for offset in (0..16 * MIB).step_by(1 << 20) {
            end = ahead.note(offset, MIB).map_or(end, |range| range.end);
        }
        ahead.skip(end, 500 * MIB);
        ahead.skip(end, 900 * MIB);
        let quiet = (16 * MIB..495 * MIB).step_by(1 << 20);
        assert!(
            quiet
                .map(|at| ahead.note(at, MIB))
                .all(|range| range.is_none())
        );
        let next = ahead.note(495 * MIB, MIB).unwrap();
        assert_eq!(next.start, 500 * MIB);
        assert_eq!(next.end, 504 * MIB);
    }

    #[test]
    fn reads_out_of_order_stay_one_stream() {
        let mut ahead = read_ahead();
        let kib128 = |i: u64| (i * 131_072, 131_072);
        for i in [0, 1, 2, 4, 3, 6, 5, 7, 9, 8] {
            let (offset, len) = kib128(i);
            ahead.note(offset, len);
        }
        assert_eq!(ahead.streams.len(), 1);
    }

    #[test]
    fn a_new_reader_does_not_disturb_a_stream() {
        let mut ahead = read_ahead();
        let mut windows = 0;
        for i in 0..64 {
            windows += usize::from(ahead.note(i * 131_072, 131_072).is_some());
            assert_eq!(ahead.note((1 << 40) + i * 7_777_777, 4096), None);
        }
        assert!(windows > 3);
    }

    #[test]
    fn readers_that_follow_each_other_closely_have_a_window_each() {
        let mut ahead = read_ahead();
        let (first, second) = (64_u64, 52_u64);
        for i in 0..first {
            ahead.note(i * 131_072, 131_072);
        }
        for i in 0..128 {
            ahead.note((first + i) * 131_072, 131_072);
            ahead.note((second + i) * 131_072, 131_072);
        }
        let windows: Vec<u64> = ahead.streams.iter().map(|stream| stream.window).collect();
        assert_eq!(windows, [ReadAhead::WINDOW_BYTES_MAX; 2]);
    }

    #[test]
    fn the_window_shrinks_when_the_reader_jumps() {
        let mut ahead = read_ahead();
        let far = |ahead: &ReadAhead| ahead.streams[0].window;
        for i in 0..64 {
            ahead.note(i * 131_072, 131_072);
        }
        let before = far(&ahead);
        ahead.note(64 * 131_072 + (1 << 20), 131_072);
        assert_eq!(ahead.streams.len(), 1);
        assert_eq!(far(&ahead), before / 2);
    }

    #[test]
    fn nobody_is_followed_further_than_he_has_read() {
        let mut ahead = read_ahead();
        for i in 0..64 {
            let range = ahead.note(i * 131_072, 131_072);
            let read = (i + 1) * 131_072;
            assert!(range.is_none_or(|range| range.end <= read + read.max(WINDOW_BYTES_FIRST)));
        }
    }

    proptest! {
        /// Reads that never touch each other are never followed by read-ahead.
        #[test]
        fn random_readers_get_nothing(blocks in vec(0..1_000_000_u64, 1..200)) {
            let mut ahead = read_ahead();
            for block in blocks {
                prop_assert_eq!(ahead.note(block * (3 << 20), 4096), None);
            }
        }

        /// What is asked for lies ahead of the reader, within its window, for any reads at all.
        #[test]
        fn windows_are_bounded(reads in vec((0..64_u64, 1..9_u64), 1..200)) {
            let mut ahead = read_ahead();
            for (block, blocks) in reads {
                if let Some(range) = ahead.note(block * 65_536, blocks * 65_536) {
                    prop_assert!(range.end - range.start <= ReadAhead::WINDOW_BYTES_MAX);
                    prop_assert!(ahead.streams.len() <= STREAMS_MAX);
                }
            }
        }
    }
}
