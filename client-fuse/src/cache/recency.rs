//! When the segments of a cached disk were used: in memory, and in a small file for the next run.
//!
//! The file is a hint: one that is missing, damaged or out of date makes eviction choose worse, and
//! nothing else. Layout: docs/FORMAT.md, "Cache directory".

use std::collections::HashSet;
use std::num::NonZeroUsize;

use image_format::digest::{DIGEST_BYTES, Digest};
use lru::LruCache;

use crate::cache::policy::Candidate;

const MAGIC: &[u8; 8] = b"CIRCUSE1";
const ENTRY_BYTES: usize = 12;
const BOOT: u32 = 1;

/// Most segments remembered: those of 256 GiB. Others count as unused.
const SEGMENTS_MAX: NonZeroUsize = NonZeroUsize::new(1 << 18).expect("a constant");

/// The longest file.
pub(super) const RECENCY_BYTES_MAX: u64 =
    (MAGIC.len() + DIGEST_BYTES + SEGMENTS_MAX.get() * ENTRY_BYTES) as u64;

/// Where there is no boot pack, the first segments that a run touches count as those of a boot.
const FIRST_TOUCHES: usize = 128;

/// When the segments of one disk were used.
#[derive(Debug)]
pub(super) struct Recency {
    segments: LruCache<u32, Use>,
    /// Segments that may still be taken for those of a boot; `None`: these are known.
    first_touches: Option<usize>,
}

/// The last use of a segment.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Use {
    /// Seconds since 1970.
    at: u32,
    boot: bool,
}

impl Recency {
    pub(super) fn new() -> Self {
        Self {
            segments: LruCache::new(SEGMENTS_MAX),
            first_touches: Some(FIRST_TOUCHES),
        }
    }

    /// Notes that a segment is used.
    pub(super) fn touch(&mut self, segment: u32, now: u32) {
        let known = self
            .segments
            .get_or_insert_mut(segment, || Use { at: 0, boot: false });
        known.at = now;
        if !known.boot
            && let Some(left) = self.first_touches.as_mut().filter(|left| **left > 0)
        {
            known.boot = true;
            *left -= 1;
        }
    }

    /// Says which segments a boot reads, and that all others are not of that kind.
    pub(super) fn prize(&mut self, boot: &HashSet<u32>, now: u32) {
        self.first_touches = None;
        for (segment, known) in &mut self.segments {
            known.boot = boot.contains(segment);
        }
        for segment in boot {
            if !self.segments.contains(segment) {
                let at = now;
                self.segments.put(*segment, Use { at, boot: true });
            }
        }
    }

    /// Forgets a segment.
    pub(super) fn forget(&mut self, segment: u32) {
        self.segments.pop(&segment);
    }

    /// Those of `present` as candidates for eviction; what is not known was used at `unknown`.
    /// Of equal age, the least recently used one comes first.
    pub(super) fn candidates<'a>(
        &'a self,
        present: &'a HashSet<u32>,
        unknown: u32,
    ) -> impl Iterator<Item = Candidate<u32>> + 'a {
        let strangers = present
            .iter()
            .filter(|segment| !self.segments.contains(segment));
        let strangers = strangers.map(move |segment| Candidate {
            key: *segment,
            used_at: unknown,
            boot: false,
        });
        let known = self.segments.iter().rev();
        let known = known.filter(|(segment, _)| present.contains(segment));
        strangers.chain(known.map(|(segment, known)| Candidate {
            key: *segment,
            used_at: known.at,
            boot: known.boot,
        }))
    }

    /// The file: the least recently used segment first.
    pub(super) fn encode(&self) -> Vec<u8> {
        let mut entries = Vec::with_capacity(self.segments.len() * ENTRY_BYTES);
        for (segment, known) in self.segments.iter().rev() {
            let flags = if known.boot { BOOT } else { 0 };
            for number in [*segment, known.at, flags] {
                entries.extend_from_slice(&number.to_le_bytes());
            }
        }
        let mut file = MAGIC.to_vec();
        file.extend_from_slice(Digest::of(&entries).as_bytes());
        file.append(&mut entries);
        file
    }

    /// What a former run knew; nothing, if the file is not whole.
    pub(super) fn decode(file: &[u8]) -> Option<Self> {
        let rest = file.strip_prefix(MAGIC)?;
        let (digest, entries) = rest.split_at_checked(DIGEST_BYTES)?;
        if Digest::of(entries).as_bytes() != digest {
            return None;
        }
        let mut recency = Self::new();
        let (words, _) = entries.as_chunks::<4>();
        for entry in words.chunks_exact(ENTRY_BYTES / 4) {
            let [segment, at, flags] = [entry[0], entry[1], entry[2]].map(u32::from_le_bytes);
            let boot = flags & BOOT != 0;
            recency.segments.put(segment, Use { at, boot });
        }
        Some(recency)
    }
}

#[cfg(test)]
mod tests {
    use proptest::collection::vec;
    use proptest::prelude::*;

    use super::*;

    fn order(recency: &Recency) -> Vec<(u32, u32, bool)> {
        let all = (0..100).collect();
        let known = recency.candidates(&all, 0).filter(|it| it.used_at > 0);
        known.map(|it| (it.key, it.used_at, it.boot)).collect()
    }

    #[test]
    fn first_touches_are_the_boot_set_until_it_is_known() {
        let mut recency = Recency::new();
        recency.touch(1, 10);
        recency.touch(2, 10);
        assert_eq!(order(&recency), [(1, 10, true), (2, 10, true)]);
        recency.prize(&HashSet::from([2, 3]), 11);
        recency.touch(1, 12);
        assert_eq!(
            order(&recency),
            [(2, 10, true), (3, 11, true), (1, 12, false)]
        );
    }

    proptest! {
        /// What was used when survives a restart, in its order; a damaged file says nothing.
        #[test]
        fn recency_round_trips(touched in vec(0..100_u32, 0..200), flip: prop::sample::Index) {
            let mut recency = Recency::new();
            for (now, segment) in (1..).zip(touched) {
                recency.touch(segment, now);
            }
            let mut file = recency.encode();
            prop_assert_eq!(order(&Recency::decode(&file).unwrap()), order(&recency));
            let at = flip.index(file.len());
            file[at] ^= 4;
            prop_assert!(Recency::decode(&file).is_none());
            prop_assert!(Recency::decode(&file[..at]).is_none());
        }
    }
}
