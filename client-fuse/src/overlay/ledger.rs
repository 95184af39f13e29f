//! Which block is where: the map of an overlay in memory, and what of it is not yet on disk. Pure.
//!
//! A block is *clean* (the log on disk has it), *dirty* (only we know), or *in flight* (in the batch
//! that is being written). The rules that keep every block whole, whatever breaks:
//!
//! - What the log points to, or will point to once the batch in flight is there, is never written:
//!   a clean block goes to its other side, a dirty one may be written again where it is, and one in
//!   flight has to wait.
//! - A side is given back to the file system only when nothing points to it any more.
//!
//! Memory: 9 bytes for each written block where 64 neighbours are written, 560 for a lonely one.

use std::collections::{BTreeMap, BTreeSet};
use std::ops::Range;

use image_format::overlay::{Record, Side};

use super::ranges::Ranges;

#[cfg(test)]
mod tests;

/// Blocks in a leaf: the bits of a word.
const LEAF: u64 = 64;
const LEAF_LEN: usize = 64;

/// What is known of 64 neighbours, a bit for each.
#[derive(Clone, Debug)]
struct Leaf {
    /// In the file.
    written: u64,
    /// The next clean write goes to side B. What is written is on the other side than this says.
    next_b: u64,
    /// Written since the last batch began.
    dirty: u64,
    /// Written, and in the batch that is under way.
    flying: u64,
    /// Dirty or in flight, in place of something on the other side that will be of no use.
    replaces: u64,
    sums: [u64; LEAF_LEN],
}

/// Where the content of some neighbouring blocks is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Content {
    /// In the image.
    Base,
    /// Nowhere: they are zeros.
    Zeros,
    /// In the file.
    Data {
        /// On which side.
        side: Side,
        /// Of each block.
        sums: Vec<u64>,
    },
}

/// Neighbouring blocks whose content is in the same place.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Run {
    /// Their numbers.
    pub blocks: Range<u64>,
    /// Where they are.
    pub content: Content,
}

/// What the batch under way will make true.
#[derive(Debug)]
struct Flight {
    leaves: Vec<u64>,
    zeros: Ranges,
}

/// The map of an overlay.
#[derive(Debug, Default)]
pub struct Ledger {
    leaves: BTreeMap<u64, Box<Leaf>>,
    /// What was discarded; where a block is written, that counts.
    zeros: Ranges,
    dirty_leaves: BTreeSet<u64>,
    dirty_zeros: Ranges,
    n_dirty: usize,
    n_written: u64,
    flight: Option<Flight>,
    /// On each side: was in use, is not any more, and was not given back yet.
    stale: [Ranges; 2],
}

impl Ledger {
    /// Takes over a record of the log.
    pub fn replay(&mut self, record: &Record) {
        match *record {
            Record::Zeros { block, count } => {
                self.clear(&(block..block + count));
                self.zeros.insert(block..block + count);
            }
            Record::Data { block, side, sum } => {
                let leaf = leaf_of(&mut self.leaves, block);
                let bit = bit(block);
                self.n_written += u64::from(leaf.written & bit == 0);
                leaf.written |= bit;
                leaf.set_side(bit, side);
                leaf.sums[slot(block)] = sum;
            }
        }
    }

    /// Where `blocks` are, in runs.
    #[must_use]
    pub fn look_up(&self, blocks: Range<u64>) -> Vec<Run> {
        let mut runs: Vec<Run> = Vec::new();
        let mut leaf = None;
        let mut zeros = self.zeros.overlapping(&blocks).peekable();
        for block in blocks.clone() {
            if block == blocks.start || block % LEAF == 0 {
                leaf = self.leaves.get(&(block / LEAF));
            }
            while zeros.next_if(|run| run.end <= block).is_some() {}
            let one = match leaf.filter(|leaf| leaf.written & bit(block) != 0) {
                Some(leaf) => Content::Data {
                    side: leaf.side(bit(block)),
                    sums: vec![leaf.sums[slot(block)]],
                },
                None if zeros.peek().is_some_and(|run| run.contains(&block)) => Content::Zeros,
                None => Content::Base,
            };
            if let Some(run) = runs.last_mut()
                && run.content.takes(&one)
            {
                run.blocks.end = block + 1;
                continue;
            }
            runs.push(Run {
                blocks: block..block + 1,
                content: one,
            });
        }
        runs
    }

    /// Whether any of `blocks` is in the batch under way, so that whoever changes it has to wait.
    #[must_use]
    pub fn is_flying(&self, blocks: &Range<u64>) -> bool {
        self.flight.as_ref().is_some_and(|flight| {
            flight.zeros.touches(blocks)
                || leaves_in(&self.leaves, blocks)
                    .any(|(number, leaf)| leaf.flying & mask(number, blocks) != 0)
        })
    }

    /// Where `blocks` are to be written, none of which is in flight.
    #[must_use]
    pub fn place(&self, blocks: Range<u64>) -> Vec<(Side, Range<u64>)> {
        let mut runs: Vec<(Side, Range<u64>)> = Vec::new();
        for block in blocks {
            let side = match self.leaves.get(&(block / LEAF)) {
                Some(leaf) if leaf.dirty & bit(block) != 0 => leaf.side(bit(block)),
                Some(leaf) => leaf.side(bit(block)).other(),
                None => Side::A,
            };
            match runs.last_mut() {
                Some((last, run)) if *last == side => run.end = block + 1,
                _ => runs.push((side, block..block + 1)),
            }
        }
        runs
    }

    /// Notes that blocks from `first` on were written to `side`, as [`Self::place`] said.
    pub fn note_written(&mut self, side: Side, first: u64, sums: &[u64]) {
        let end = first + sums.len() as u64;
        for (block, sum) in (first..end).zip(sums) {
            let (number, bit) = (block / LEAF, bit(block));
            let leaf = leaf_of(&mut self.leaves, block);
            let was_written = leaf.written & bit != 0;
            if leaf.dirty & bit == 0 {
                leaf.dirty |= bit;
                leaf.set_side(bit, side);
                leaf.replaces |= if was_written { bit } else { 0 };
                self.n_dirty += 1;
                self.dirty_leaves.insert(number);
            }
            leaf.written |= bit;
            leaf.sums[slot(block)] = *sum;
            self.n_written += u64::from(!was_written);
        }
        self.stale[index(side)].remove(&(first..end));
    }

    /// Makes `blocks`, none of which is in flight, read as zeros.
    pub fn discard(&mut self, blocks: &Range<u64>) {
        self.clear(blocks);
        self.zeros.insert(blocks.clone());
        self.dirty_zeros.insert(blocks.clone());
    }

    /// Records that the next batch will have.
    #[must_use]
    pub fn n_dirty(&self) -> usize {
        self.n_dirty + self.dirty_zeros.n_runs()
    }

    /// Blocks that were written since the last batch began.
    #[must_use]
    pub const fn n_dirty_blocks(&self) -> usize {
        self.n_dirty
    }

    /// Blocks that were written since the last batch began: where they are, and their checksums.
    #[must_use]
    pub fn dirty_blocks(&self) -> Vec<(u64, Side, u64)> {
        let mut records = Vec::new();
        for (number, leaf) in &self.leaves {
            leaf.records(*number, leaf.dirty, &mut records);
        }
        let data = |record| match record {
            Record::Data { block, side, sum } => Some((block, side, sum)),
            Record::Zeros { .. } => None,
        };
        records.into_iter().filter_map(data).collect()
    }

    /// Written blocks of the disk.
    #[must_use]
    pub const fn n_written(&self) -> u64 {
        self.n_written
    }

    /// At most so many records are the whole map.
    #[must_use]
    pub fn n_records(&self) -> u64 {
        self.n_written + self.zeros.n_runs() as u64
    }

    /// Begins a batch of all that is dirty. It has to be ended before the next one begins.
    #[must_use]
    pub fn begin(&mut self) -> Vec<Record> {
        let zeros = std::mem::take(&mut self.dirty_zeros);
        let mut records: Vec<_> = zeros.iter().map(zeros_record).collect();
        let leaves: Vec<_> = std::mem::take(&mut self.dirty_leaves).into_iter().collect();
        for number in &leaves {
            if let Some(leaf) = self.leaves.get_mut(number) {
                leaf.flying = std::mem::take(&mut leaf.dirty);
                leaf.records(*number, leaf.flying, &mut records);
            }
        }
        self.n_dirty = 0;
        self.flight = Some(Flight { leaves, zeros });
        records
    }

    /// The whole map, as a checkpoint has it; the batch under way is in it, and nothing may be dirty
    /// beside that.
    #[must_use]
    pub fn checkpoint(&self) -> Vec<Record> {
        let mut records: Vec<_> = self.zeros.iter().map(zeros_record).collect();
        for (number, leaf) in &self.leaves {
            leaf.records(*number, leaf.written, &mut records);
        }
        records
    }

    /// Ends the batch: it is on disk for good. Returns whether it discarded something.
    pub fn finish(&mut self) -> bool {
        let Some(flight) = self.flight.take() else {
            return false;
        };
        for run in flight.zeros.iter() {
            for stale in &mut self.stale {
                stale.insert(run.clone());
            }
            self.drop_empty(&run);
        }
        for number in flight.leaves {
            let Some(leaf) = self.leaves.get_mut(&number) else {
                continue;
            };
            for block in blocks_of(number, leaf.flying) {
                let side = index(leaf.side(bit(block)));
                self.stale[side].remove(&(block..block + 1));
                if leaf.replaces & bit(block) != 0 {
                    self.stale[1 - side].insert(block..block + 1);
                }
            }
            leaf.replaces &= !leaf.flying;
            leaf.flying = 0;
        }
        flight.zeros.n_runs() > 0
    }

    /// Ends the batch: it is not on disk and never will be as it was. All of it is dirty again.
    pub fn revert(&mut self) {
        let Some(flight) = self.flight.take() else {
            return;
        };
        for run in flight.zeros.iter() {
            self.dirty_zeros.insert(run);
        }
        for number in flight.leaves {
            if let Some(leaf) = self.leaves.get_mut(&number) {
                let flying = std::mem::take(&mut leaf.flying);
                self.n_dirty += (flying & !leaf.dirty).count_ones() as usize;
                leaf.dirty |= flying;
                self.dirty_leaves.insert(number);
            }
        }
    }

    /// Blocks of the file that nothing points to any more.
    #[must_use]
    pub const fn n_stale(&self) -> u64 {
        self.stale[0].n_blocks() + self.stale[1].n_blocks()
    }

    /// Takes what nothing points to any more, to give it back.
    #[must_use]
    pub fn take_stale(&mut self) -> Vec<(Side, Range<u64>)> {
        let [a, b] = std::mem::take(&mut self.stale);
        let a = a.iter().map(|run| (Side::A, run));
        a.chain(b.iter().map(|run| (Side::B, run))).collect()
    }

    /// Forgets what is written in `blocks`.
    fn clear(&mut self, blocks: &Range<u64>) {
        let numbers = blocks.start / LEAF..blocks.end.div_ceil(LEAF);
        for (number, leaf) in self.leaves.range_mut(numbers) {
            let mask = mask(*number, blocks);
            let dirty = leaf.dirty & mask;
            // What was dirty may be written again where it is; its other side is still pointed to.
            leaf.next_b ^= dirty;
            leaf.dirty &= !mask;
            leaf.replaces &= !mask;
            self.n_dirty -= dirty.count_ones() as usize;
            self.n_written -= u64::from((leaf.written & mask).count_ones());
            leaf.written &= !mask;
        }
    }

    /// Drops leaves in `blocks` that say nothing, unless a discard that is not on disk yet needs to
    /// know which side the log still points to.
    fn drop_empty(&mut self, blocks: &Range<u64>) {
        let empty: Vec<u64> = leaves_in(&self.leaves, blocks)
            .filter(|(number, leaf)| {
                let whole = *number * LEAF..(*number + 1) * LEAF;
                leaf.written == 0 && !self.dirty_zeros.touches(&whole)
            })
            .map(|(number, _)| number)
            .collect();
        for number in empty {
            self.leaves.remove(&number);
        }
    }
}

impl Leaf {
    const EMPTY: Self = Self {
        written: 0,
        next_b: 0,
        dirty: 0,
        flying: 0,
        replaces: 0,
        sums: [0; LEAF_LEN],
    };

    /// Where a block is that is written; never written ones count as on side B, so that they go to A.
    const fn side(&self, bit: u64) -> Side {
        if self.next_b & bit == 0 {
            Side::B
        } else {
            Side::A
        }
    }

    const fn set_side(&mut self, bit: u64, side: Side) {
        match side {
            Side::A => self.next_b |= bit,
            Side::B => self.next_b &= !bit,
        }
    }

    fn records(&self, number: u64, which: u64, out: &mut Vec<Record>) {
        out.extend(blocks_of(number, which).map(|block| Record::Data {
            block,
            side: self.side(bit(block)),
            sum: self.sums[slot(block)],
        }));
    }
}

impl Content {
    /// Takes in the content of the next block, if it is in the same place.
    fn takes(&mut self, next: &Self) -> bool {
        match (self, next) {
            (Self::Base, Self::Base) | (Self::Zeros, Self::Zeros) => true,
            (
                Self::Data { side, sums },
                Self::Data {
                    side: other,
                    sums: more,
                },
            ) if side == other => {
                sums.extend_from_slice(more);
                true
            }
            _ => false,
        }
    }
}

fn zeros_record(run: Range<u64>) -> Record {
    Record::Zeros {
        block: run.start,
        count: run.end - run.start,
    }
}

fn leaf_of(leaves: &mut BTreeMap<u64, Box<Leaf>>, block: u64) -> &mut Leaf {
    leaves
        .entry(block / LEAF)
        .or_insert_with(|| Box::new(Leaf::EMPTY))
}

fn leaves_in<'a>(
    leaves: &'a BTreeMap<u64, Box<Leaf>>,
    blocks: &Range<u64>,
) -> impl Iterator<Item = (u64, &'a Leaf)> {
    let numbers = blocks.start / LEAF..blocks.end.div_ceil(LEAF).max(blocks.start / LEAF);
    leaves
        .range(numbers)
        .map(|(number, leaf)| (*number, &**leaf))
}

/// The bits of leaf `number` that are in `blocks`.
fn mask(number: u64, blocks: &Range<u64>) -> u64 {
    let base = number * LEAF;
    let start = blocks.start.saturating_sub(base).min(LEAF);
    let end = blocks.end.saturating_sub(base).min(LEAF);
    let below = |count: u64| {
        if count == LEAF {
            u64::MAX
        } else {
            (1 << count) - 1
        }
    };
    below(end) & !below(start)
}

fn blocks_of(number: u64, which: u64) -> impl Iterator<Item = u64> {
    (0..LEAF)
        .filter(move |place| which >> place & 1 != 0)
        .map(move |place| number * LEAF + place)
}

const fn bit(block: u64) -> u64 {
    1 << (block % LEAF)
}

fn slot(block: u64) -> usize {
    usize::try_from(block % LEAF).expect("it is below 64")
}

const fn index(side: Side) -> usize {
    match side {
        Side::A => 0,
        Side::B => 1,
    }
}
