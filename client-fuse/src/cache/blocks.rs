//! Sets of blocks of a disk, one bit each; memory is used only for regions that have some.

use std::collections::HashMap;
use std::ops::Range;

use image_format::REGION_BLOCKS;

const REGION: u64 = REGION_BLOCKS as u64;
const WORDS: usize = (REGION_BLOCKS / u64::BITS) as usize;

/// A set of blocks. Full, it takes 32 KiB of memory for each GiB of disk.
#[derive(Debug, Default)]
pub struct BlockSet {
    regions: HashMap<u64, Box<[u64; WORDS]>>,
}

impl BlockSet {
    /// Adds `blocks`.
    pub fn insert(&mut self, blocks: Range<u64>) {
        for_each_word(blocks, |region, word, mask| {
            self.regions
                .entry(region)
                .or_insert_with(|| Box::new([0; WORDS]))[word] |= mask;
            true
        });
    }

    /// Takes `blocks` out.
    pub fn remove(&mut self, blocks: Range<u64>) {
        for_each_word(blocks, |region, word, mask| {
            if let Some(words) = self.regions.get_mut(&region) {
                words[word] &= !mask;
            }
            true
        });
    }

    /// Whether all of `blocks` are in the set.
    #[must_use]
    pub fn contains(&self, blocks: Range<u64>) -> bool {
        for_each_word(blocks, |region, word, mask| {
            self.regions
                .get(&region)
                .is_some_and(|words| words[word] & mask == mask)
        })
    }
}

/// Calls `visit` with (region, word, bits of the word) for all of `blocks` until it says false;
/// returns whether it never did.
fn for_each_word(blocks: Range<u64>, mut visit: impl FnMut(u64, usize, u64) -> bool) -> bool {
    let bits = u64::from(u64::BITS);
    let mut block = blocks.start;
    while block < blocks.end {
        let first = block % bits;
        let count = (bits - first).min(blocks.end - block);
        let mask = (u64::MAX >> (bits - count)) << first;
        let word =
            usize::try_from(block % REGION / bits).expect("a word of a region is a small number");
        if !visit(block / REGION, word, mask) {
            return false;
        }
        block += count;
    }
    true
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use proptest::collection::vec;
    use proptest::prelude::*;

    use super::*;

    proptest! {
        /// The set is the set of integers that it stands for.
        #[test]
        fn bits_are_a_set(ops in vec((any::<bool>(), 0..40_000_u64, 1..300_u64), 1..40)) {
            let (mut blocks, mut model) = (BlockSet::default(), BTreeSet::new());
            for (insert, start, len) in ops {
                let range = start..start + len;
                if insert {
                    blocks.insert(range.clone());
                    model.extend(range.clone());
                } else {
                    blocks.remove(range.clone());
                    model.retain(|block| !range.contains(block));
                }
                let probe = start.saturating_sub(2)..start + len / 2;
                prop_assert_eq!(blocks.contains(probe.clone()), probe.clone().all(|b| model.contains(&b)));
                prop_assert_eq!(blocks.contains(range.clone()), insert);
            }
        }
    }
}
