//! Sets of blocks as runs: large where much is alike, such as what a whole-disk discard leaves.

use std::collections::BTreeMap;
use std::ops::Range;

/// A set of block numbers, kept as runs that neither touch nor overlap.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Ranges {
    /// Start of each run → its end.
    runs: BTreeMap<u64, u64>,
    blocks: u64,
}

impl Ranges {
    /// Adds `blocks`.
    pub fn insert(&mut self, blocks: Range<u64>) {
        if blocks.is_empty() {
            return;
        }
        let Range { mut start, mut end } = blocks;
        if let Some((first, last)) = self.runs.range(..start).next_back()
            && *last >= start
        {
            start = *first;
            end = end.max(*last);
        }
        while let Some((first, last)) = self.runs.range(start..=end).next() {
            let (first, last) = (*first, *last);
            self.runs.remove(&first);
            self.blocks -= last - first;
            end = end.max(last);
        }
        self.runs.insert(start, end);
        self.blocks += end - start;
    }

    /// Takes `blocks` out.
    pub fn remove(&mut self, blocks: &Range<u64>) {
        let hit: Vec<_> = self.overlapping(blocks).collect();
        for run in hit {
            self.runs.remove(&run.start);
            self.blocks -= run.end - run.start;
            for left in [run.start..blocks.start, blocks.end..run.end] {
                if !left.is_empty() {
                    self.runs.insert(left.start, left.end);
                    self.blocks += left.end - left.start;
                }
            }
        }
    }

    /// The runs that have a block in common with `blocks`, whole.
    pub fn overlapping(&self, blocks: &Range<u64>) -> impl Iterator<Item = Range<u64>> {
        let before = self.runs.range(..blocks.start).next_back();
        let before = before.filter(|(_, end)| **end > blocks.start && !blocks.is_empty());
        let inside = self.runs.range(blocks.start..blocks.end.max(blocks.start));
        before
            .into_iter()
            .chain(inside)
            .map(|(start, end)| *start..*end)
    }

    /// Whether any of `blocks` is in the set.
    #[must_use]
    pub fn touches(&self, blocks: &Range<u64>) -> bool {
        self.overlapping(blocks).next().is_some()
    }

    /// All runs, in order.
    pub fn iter(&self) -> impl Iterator<Item = Range<u64>> {
        self.runs.iter().map(|(start, end)| *start..*end)
    }

    /// How many runs there are.
    #[must_use]
    pub fn n_runs(&self) -> usize {
        self.runs.len()
    }

    /// How many blocks are in the set.
    #[must_use]
    pub const fn n_blocks(&self) -> u64 {
        self.blocks
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use proptest::collection::vec;
    use proptest::prelude::*;

    use super::*;

    proptest! {
        /// The runs are the set of integers that they stand for, and as few as can be.
        #[test]
        fn runs_are_a_set(ops in vec((any::<bool>(), 0..200_u64, 0..40_u64), 1..60)) {
            let (mut ranges, mut model) = (Ranges::default(), BTreeSet::new());
            for (insert, start, len) in ops {
                let range = start..start + len;
                prop_assert_eq!(ranges.touches(&range), range.clone().any(|b| model.contains(&b)));
                if insert {
                    ranges.insert(range.clone());
                    model.extend(range);
                } else {
                    ranges.remove(&range);
                    model.retain(|block| !range.contains(block));
                }
                let found: Vec<_> = ranges.iter().flatten().collect();
                prop_assert_eq!(found, model.iter().copied().collect::<Vec<_>>());
                prop_assert_eq!(ranges.n_blocks(), model.len() as u64);
                let ends = ranges.iter().map(|run| run.end);
                prop_assert!(ends.zip(ranges.iter().skip(1)).all(|(end, next)| end < next.start));
            }
        }
    }
}
