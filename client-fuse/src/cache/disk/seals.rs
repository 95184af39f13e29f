//! Seals of blocks that were verified in this run, so that a part of a chunk can be read and checked alone.
//!
//! A digest says something about a whole chunk: to read 4 KiB, some 64 KiB would be read and hashed.
//! So when a chunk of the cache file matches its digest, each of its blocks gets a seal: a code
//! (AES-GMAC) under a key that was made for this run and never leaves it. What is read later is held
//! against the seals, each time: what rots is found as ever, and who may write the file cannot make seals.
//!
//! Bound: [`BYTES_MAX`]; what was unused for longest goes, and is verified by its digest again.

use std::fmt;
use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use aws_lc_rs::aead::{AES_128_GCM, Aad, LessSafeKey, NONCE_LEN, Nonce, UnboundKey};
use image_format::BLOCK_BYTES;

use crate::cache::shelf::Shelf;

/// Seals of 2 GiB of disk.
const BYTES_MAX: usize = 4 << 20;

/// Blocks whose seals are kept together: those of 1 MiB.
const GROUP: u64 = GROUP_LEN as u64;
const GROUP_LEN: usize = 256;

const BLOCK: usize = BLOCK_BYTES as usize;

/// The seals of one run.
pub(super) struct Seals {
    key: LessSafeKey,
    groups: Shelf<u64, Arc<Group>>,
}

/// Seals of neighbouring blocks; 0: there is none.
#[derive(Debug)]
struct Group([AtomicU64; GROUP_LEN]);

impl Seals {
    /// None yet; `None`: this system has no random numbers for a key.
    pub(super) fn new() -> Option<Self> {
        let mut key = [0; 16];
        // The kernel's: the library's own source would measure the jitter of the processor first, for longer than
        // it takes to open an image.
        getrandom::fill(&mut key).ok()?;
        let key = UnboundKey::new(&AES_128_GCM, &key).ok()?;
        Some(Self {
            key: LessSafeKey::new(key),
            groups: Shelf::new(BYTES_MAX),
        })
    }

    /// Seals `bytes`, which were just verified, as the blocks from `first` on.
    pub(super) fn seal(&self, first: u64, bytes: &[u8]) {
        let mut group: Option<(u64, Arc<Group>)> = None;
        for (block, bytes) in (first..).zip(bytes.chunks(BLOCK)) {
            let number = block / GROUP;
            let known = match group.take() {
                Some((same, group)) if same == number => group,
                _ => self.group(number),
            };
            if let Some(seal) = self.code(block, bytes) {
                slot(&known, block).store(seal, Ordering::Release);
            }
            group = Some((number, known));
        }
    }

    /// The seals of `blocks`; `None`: some have none.
    pub(super) fn of(&self, blocks: Range<u64>) -> Option<Vec<u64>> {
        let mut seals = Vec::with_capacity(usize::try_from(blocks.end - blocks.start).ok()?);
        let mut at = blocks.start;
        while at < blocks.end {
            let group = self.groups.find(&(at / GROUP))?;
            let end = blocks.end.min((at / GROUP + 1) * GROUP);
            for block in at..end {
                let seal = slot(&group, block).load(Ordering::Acquire);
                seals.push(Some(seal).filter(|seal| *seal != 0)?);
            }
            at = end;
        }
        Some(seals)
    }

    /// Whether `bytes` are the blocks from `first` on that `seals` were made for.
    pub(super) fn match_all(&self, first: u64, bytes: &[u8], seals: &[u64]) -> bool {
        let blocks = (first..).zip(bytes.chunks(BLOCK));
        bytes.len() == seals.len() * BLOCK
            && blocks
                .zip(seals)
                .all(|((block, bytes), seal)| self.code(block, bytes) == Some(*seal))
    }

    fn group(&self, number: u64) -> Arc<Group> {
        if let Some(group) = self.groups.find(&number) {
            return group;
        }
        let group = Arc::new(Group([const { AtomicU64::new(0) }; GROUP_LEN]));
        self.groups
            .keep(number, Arc::clone(&group), size_of::<Group>());
        group
    }

    /// The code of a block. A disk never changes, so that a number of a block, and with it a nonce, is used for one
    /// content only.
    fn code(&self, block: u64, bytes: &[u8]) -> Option<u64> {
        let mut nonce = [0; NONCE_LEN];
        let number = block.to_le_bytes();
        nonce[..number.len()].copy_from_slice(&number);
        let nonce = Nonce::assume_unique_for_key(nonce);
        let tag = self
            .key
            .seal_in_place_separate_tag(nonce, Aad::from(bytes), &mut []);
        let tag = tag.ok()?;
        let code = tag.as_ref().first_chunk().copied().map(u64::from_le_bytes);
        // 0 means that there is none.
        code.map(|code| code.max(1))
    }
}

impl fmt::Debug for Seals {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Seals").finish_non_exhaustive()
    }
}

fn slot(group: &Group, block: u64) -> &AtomicU64 {
    let at = usize::try_from(block % GROUP).unwrap_or_default();
    &group.0[at]
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        /// What was sealed matches in any part, at its own place, and with not one bit changed.
        #[test]
        fn a_seal_fits_its_block_and_nothing_else(
            first in prop_oneof![0..1000_u64, Just(u64::MAX / 8192)],
            count in 1..20_usize,
            part in any::<(prop::sample::Index, prop::sample::Index)>(),
            flip in any::<prop::sample::Index>(),
        ) {
            let seals = Seals::new().unwrap();
            let mut bytes: Vec<u8> = (0..251).cycle().take(count * BLOCK).collect();
            seals.seal(first, &bytes);
            let start = part.0.index(count);
            let end = start + 1 + part.1.index(count - start);
            let blocks = first + start as u64..first + end as u64;
            let known = seals.of(blocks.clone()).unwrap();
            let within = start * BLOCK..end * BLOCK;
            prop_assert!(seals.match_all(blocks.start, &bytes[within.clone()], &known));
            prop_assert!(!seals.match_all(blocks.start + 1, &bytes[within.clone()], &known));
            prop_assert!(!Seals::new().unwrap().match_all(blocks.start, &bytes[within.clone()], &known));
            let bit = flip.index(within.len() * 8);
            bytes[within.start + bit / 8] ^= 1 << (bit % 8);
            prop_assert!(!seals.match_all(blocks.start, &bytes[within], &known));
            prop_assert_eq!(seals.of(first..first + count as u64 + 1), None);
        }
    }

    #[test]
    fn the_bound_holds() {
        let seals = Seals::new().unwrap();
        let groups = (BYTES_MAX / size_of::<Group>()) as u64;
        for group in 0..groups + 1 {
            seals.seal(group * GROUP, &[1; BLOCK]);
        }
        assert_eq!(seals.of(0..1), None);
        assert!(seals.of(groups * GROUP..groups * GROUP + 1).is_some());
    }
}
