//! What a part of a disk may hold. Pure.
//!
//! While the mount lives, that is what was written last. After a crash it is what was there at one moment since the
//! last sync that ended; of the one change that was being made then, any blocks.

use std::collections::BTreeSet;
use std::ops::Range;

/// What a crash leaves whole.
const BLOCK: usize = 4096;

/// Bytes that replace others; a discard replaces them with zeros.
#[derive(Clone, Debug)]
struct Change {
    at: usize,
    bytes: Vec<u8>,
}

impl Change {
    fn range(&self) -> Range<usize> {
        self.at..self.at + self.bytes.len()
    }

    fn blocks(&self) -> Range<usize> {
        self.at / BLOCK..(self.at + self.bytes.len()).div_ceil(BLOCK)
    }

    fn apply(&self, to: &mut [u8]) {
        to[self.range()].copy_from_slice(&self.bytes);
    }
}

/// Other bytes than must be there.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("byte {at} of the part is {found:#04x}, not {expected:#04x} ({n} bytes are wrong)")]
pub struct Wrong {
    /// The first of them, counted from the start of the part.
    pub at: usize,
    /// What is there.
    pub found: u8,
    /// What should be.
    pub expected: u8,
    /// How many are wrong.
    pub n: usize,
}

/// What a part of a disk may hold.
#[derive(Clone, Debug)]
pub struct Model {
    now: Vec<u8>,
    /// What it was when the last sync ended.
    durable: Vec<u8>,
    /// What changed since.
    since: Vec<Change>,
    /// What is being changed.
    begun: Option<Change>,
}

impl Model {
    /// A part that holds `bytes`.
    pub fn new(bytes: Vec<u8>) -> Self {
        Self {
            durable: bytes.clone(),
            now: bytes,
            since: Vec::new(),
            begun: None,
        }
    }

    /// Returns how long it is.
    pub const fn len(&self) -> usize {
        self.now.len()
    }

    /// Returns whether it has no bytes.
    pub const fn is_empty(&self) -> bool {
        self.now.is_empty()
    }

    /// Notes that `bytes` are being written at `at`.
    pub fn begin(&mut self, at: usize, bytes: Vec<u8>) {
        self.begun = Some(Change { at, bytes });
    }

    /// Notes that what was begun is done.
    pub fn end(&mut self) {
        if let Some(change) = self.begun.take() {
            change.apply(&mut self.now);
            self.since.push(change);
        }
    }

    /// Notes that a sync ended, which began after the last change had ended.
    pub fn synced(&mut self) {
        for change in self.since.drain(..) {
            change.apply(&mut self.durable);
        }
    }

    /// Holds what was read at `at` against what was written last.
    ///
    /// # Errors
    /// It is something else.
    pub fn check(&self, at: usize, found: &[u8]) -> Result<(), Wrong> {
        compare(at, found, &self.now[at..at + found.len()])
    }

    /// Holds all of the part after a crash against what may be there, and goes on from that. Returns how many
    /// changes since the last sync are there.
    ///
    /// # Errors
    /// It is something else; the model goes on from what was found nevertheless.
    pub fn recover(&mut self, found: &[u8]) -> Result<usize, Wrong> {
        let outcome = self.survived(found);
        *self = Self::new(found.to_vec());
        outcome
    }

    fn survived(&self, found: &[u8]) -> Result<usize, Wrong> {
        let mut state = self.durable.clone();
        let same = |state: &[u8], block: usize| {
            let range = block * BLOCK..((block + 1) * BLOCK).min(state.len());
            state.get(range.clone()) == found.get(range)
        };
        let blocks = 0..state.len().div_ceil(BLOCK);
        let mut wrong: BTreeSet<usize> = blocks.filter(|block| !same(&state, *block)).collect();
        for (n, change) in self.since.iter().chain(&self.begun).enumerate() {
            if wrong.is_empty() {
                return Ok(n);
            }
            let elsewhere = wrong.iter().any(|block| !change.blocks().contains(block));
            let mut in_part = !elsewhere;
            change.apply(&mut state);
            for block in change.blocks() {
                let was_right = !wrong.contains(&block);
                if same(&state, block) {
                    wrong.remove(&block);
                } else {
                    wrong.insert(block);
                    in_part &= was_right;
                }
            }
            if in_part {
                return Ok(n + 1);
            }
        }
        if wrong.is_empty() {
            return Ok(self.since.len() + usize::from(self.begun.is_some()));
        }
        // It was like this at no moment: say how far it is from what was there last.
        compare(0, found, &state)?;
        Ok(self.since.len())
    }
}

fn compare(at: usize, found: &[u8], expected: &[u8]) -> Result<(), Wrong> {
    if found == expected {
        return Ok(());
    }
    let pairs = || found.iter().zip(expected).enumerate();
    let differ = |(_, (found, expected)): &(usize, (&u8, &u8))| found != expected;
    let first = pairs().find(differ);
    Err(first.map_or_else(
        || Wrong {
            at: at + found.len().min(expected.len()),
            found: 0,
            expected: 0,
            n: found.len().abs_diff(expected.len()),
        },
        |(index, (found, expected))| Wrong {
            at: at + index,
            found: *found,
            expected: *expected,
            n: pairs().filter(differ).count(),
        },
    ))
}

#[cfg(test)]
mod tests {
    use super::{BLOCK, Model};

    const LENGTH: usize = 5 * BLOCK + 100;

    fn model() -> Model {
        let mut model = Model::new(vec![1; LENGTH]);
        for (at, length, fill) in [(0, BLOCK, 2), (10, 3 * BLOCK, 3), (LENGTH - 5, 5, 4)] {
            model.begin(at, vec![fill; length]);
            model.end();
        }
        model
    }

    fn after(changes: &[(usize, usize, u8)]) -> Vec<u8> {
        let mut bytes = vec![1; LENGTH];
        for (at, length, fill) in changes {
            bytes[*at..at + length].fill(*fill);
        }
        bytes
    }

    #[test]
    fn reads_are_held_against_what_was_written_last() {
        let model = model();
        assert!(model.check(8, &[2, 2, 3, 3]).is_ok());
        let wrong = model.check(8, &[2, 2, 3, 2]).unwrap_err();
        assert_eq!((wrong.at, wrong.found, wrong.expected), (11, 2, 3));
    }

    #[test]
    fn a_crash_leaves_one_moment_since_the_sync() {
        let all = [(0, BLOCK, 2), (10, 3 * BLOCK, 3), (LENGTH - 5, 5, 4)];
        for n in 0..=3 {
            assert_eq!(model().recover(&after(&all[..n])), Ok(n), "{n} changes");
        }
        // The last without the first.
        assert!(model().recover(&after(&all[1..])).is_err());
        assert!(model().recover(&after(&all[2..])).is_err());
    }

    #[test]
    fn a_change_may_be_there_by_whole_blocks_only() {
        let first = (0, BLOCK, 2);
        let second_block = (BLOCK, BLOCK, 3);
        assert_eq!(model().recover(&after(&[first, second_block])), Ok(2));
        let half = (BLOCK, BLOCK / 2, 3);
        assert!(model().recover(&after(&[first, half])).is_err());
    }

    #[test]
    fn what_was_synced_stays() {
        let mut model = model();
        model.synced();
        model.begin(2 * BLOCK, vec![9; 100]);
        let synced = after(&[(0, BLOCK, 2), (10, 3 * BLOCK, 3), (LENGTH - 5, 5, 4)]);
        assert_eq!(model.clone().recover(&synced), Ok(0));
        let mut begun = synced.clone();
        begun[2 * BLOCK..2 * BLOCK + 100].fill(9);
        assert_eq!(model.clone().recover(&begun), Ok(1));
        assert!(model.recover(&after(&[(0, BLOCK, 2)])).is_err());
    }
}
