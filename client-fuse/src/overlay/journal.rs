//! What was written and not synced, in memory that outlives the process that wrote it.
//!
//! Where a supervisor holds a mount ([`crate::supervise`]), a worker that dies is followed by another one, and whoever wrote
//! to the disk knows of no power cut. What it wrote is in the overlay's file, for a death of a process takes nothing from the
//! page cache; what the map in memory has beside the log is here, in the order in which it came to be:
//!
//! - Before a block is written, its place and checksum are noted. So the last write may not have been made, or in parts:
//!   its blocks count where the file has their bytes ([`replay`]). The kernel sends that write again.
//! - Before a batch of the log begins, it is noted behind which batch it comes. If the log goes on from there when it is read
//!   again, the batch is on disk, and with it all that was noted before.
//! - When a batch is on disk, what came before it is forgotten, and its memory given back.
//!
//! An entry is two words, at a multiple of their 16 bytes: a copy that a kill cuts between two pages leaves whole ones.
//! Only processes of one mount have the memory; but they may be of different versions of this program.

use std::fs::File;
use std::io;
use std::ops::Range;
use std::os::fd::OwnedFd;
use std::os::unix::fs::FileExt;
use std::sync::{Mutex, MutexGuard, PoisonError};

use image_format::overlay::{Log, Record, Side};
use nix::sys::memfd::{MFdFlags, memfd_create};

use super::commit::punch;
use super::ledger::Ledger;

#[cfg(test)]
mod tests;

/// Says what this is, and its version.
const MAGIC: u64 = u64::from_le_bytes(*b"CIRCJRN\x01");

/// Where entries begin: before them are the magic and the place from which they count.
const ENTRIES_AT: u64 = 4096;

const ENTRY_BYTES: u64 = 16;

/// What this many entries would take to read is not waited for: whoever writes has to wait for a sync, 4 MiB of them.
pub(super) const ENTRIES_MAX: u64 = 1 << 18;

/// The kind of an entry is in the highest byte of its first word.
const KIND_SHIFT: u32 = 56;

/// What came to be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Entry {
    /// A block has another content; if it is data, they are about to be written.
    Record(Record),
    /// A write begins, whose blocks follow.
    Patch,
    /// These blocks of the last write were not written.
    Undone {
        /// The first of them.
        block: u64,
        /// How many.
        count: u64,
    },
    /// A batch is about to be written, with all that was noted before.
    Batch {
        /// Of the log, before that.
        generation: u64,
        /// The number of the batch to come.
        sequence: u64,
    },
    /// Nobody can say what is on disk.
    Broken,
    /// Another process takes over, and syncs the file first.
    Taking,
}

impl Entry {
    fn encode(self) -> [u8; 16] {
        let (kind, first, second) = match self {
            Self::Record(Record::Zeros { block, count }) => (0, block, count),
            Self::Record(Record::Data { block, side, sum }) => match side {
                Side::A => (1, block, sum),
                Side::B => (2, block, sum),
            },
            Self::Patch => (3, 0, 0),
            Self::Undone { block, count } => (4, block, count),
            Self::Batch {
                generation,
                sequence,
            } => (5, generation, sequence),
            Self::Broken => (6, 0, 0),
            Self::Taking => (7, 0, 0),
        };
        let words = u128::from(first | kind << KIND_SHIFT) | u128::from(second) << 64;
        words.to_le_bytes()
    }

    /// `None` if there is no such entry for a disk of `n_blocks`.
    fn decode(bytes: [u8; 16], n_blocks: u64) -> Option<Self> {
        let words = u128::from_le_bytes(bytes);
        let word = |shift: u32| u64::try_from(words >> shift & u128::from(u64::MAX)).unwrap_or(0);
        let (kind, first) = (word(0) >> KIND_SHIFT, word(0) & ((1 << KIND_SHIFT) - 1));
        let second = word(64);
        let data = |side| {
            let (block, sum) = (first, second);
            Self::Record(Record::Data { block, side, sum })
        };
        let (entry, count) = match kind {
            0 => {
                let (block, count) = (first, second);
                (Self::Record(Record::Zeros { block, count }), count)
            }
            1 => (data(Side::A), 1),
            2 => (data(Side::B), 1),
            4 => {
                let (block, count) = (first, second);
                (Self::Undone { block, count }, count)
            }
            3 => return Some(Self::Patch),
            5 => {
                return Some(Self::Batch {
                    generation: first,
                    sequence: second,
                });
            }
            6 => return Some(Self::Broken),
            7 => return Some(Self::Taking),
            _ => return None,
        };
        let inside = first.checked_add(count).is_some_and(|end| end <= n_blocks);
        inside.then_some(entry)
    }
}

/// What is left to do when all entries were taken over.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Rest {
    /// Entries that are on disk.
    pub landed: usize,
    /// Blocks of the write that came last: which of them were written, their bytes say.
    pub unsure: Vec<(u64, Side, u64)>,
    /// Nobody can say what is on disk: that was noted, or the log has less than was on disk before.
    pub is_broken: bool,
    /// A sync was under way when a process died: if it failed, only the bytes can tell.
    pub was_syncing: bool,
}

/// Takes over into `ledger`, which is that of `log`, what `entries` have beside the log.
pub fn replay(entries: &[Entry], log: &Log, ledger: &mut Ledger) -> Rest {
    let ends_at = (log.generation, log.sequence);
    let batches = || {
        entries
            .iter()
            .enumerate()
            .filter_map(|(at, entry)| match *entry {
                Entry::Batch {
                    generation,
                    sequence,
                } => Some((at, (generation, sequence))),
                _ => None,
            })
    };
    // Behind a batch that is on disk, there may be others that are not, which say where the log ends now.
    let landed = batches().rev().find(|(_, noted)| *noted < ends_at);
    let landed = landed.map_or(0, |(at, _)| at + 1);
    let is_behind = batches().any(|(_, noted)| noted > ends_at);
    let is_broken = is_behind || entries.contains(&Entry::Broken);
    let was_syncing =
        batches().any(|(at, _)| at >= landed) || entries.last() == Some(&Entry::Taking);
    let mut unsure = Vec::new();
    for entry in &entries[landed..] {
        match *entry {
            Entry::Record(Record::Data { block, side, sum }) => unsure.push((block, side, sum)),
            Entry::Undone { block, count } => {
                let undone = block..block + count;
                unsure.retain(|(block, ..)| !undone.contains(block));
            }
            Entry::Record(Record::Zeros { block, count }) => {
                settle(&mut unsure, ledger);
                ledger.discard(&(block..block + count));
            }
            Entry::Patch | Entry::Batch { .. } => settle(&mut unsure, ledger),
            // A write may be under way beside a sync that fails, or have been when a process died.
            Entry::Broken | Entry::Taking => {}
        }
    }
    Rest {
        landed,
        unsure,
        is_broken,
        was_syncing,
    }
}

/// Something came after that write: it was made.
fn settle(written: &mut Vec<(u64, Side, u64)>, ledger: &mut Ledger) {
    for (block, side, sum) in written.drain(..) {
        ledger.note_written(side, block, &[sum]);
    }
}

/// The entries of an overlay that is open.
#[derive(Debug)]
pub(super) struct Journal {
    file: File,
    ends: Mutex<Ends>,
}

/// Where the entries are that count.
#[derive(Clone, Copy, Debug)]
struct Ends {
    start: u64,
    end: u64,
    /// Generation and sequence of the batch that was noted last, and the place behind it.
    batch: Option<(u64, u64, u64)>,
}

impl Ends {
    const fn of(start: u64, end: u64) -> Mutex<Self> {
        let batch = None;
        Mutex::new(Self { start, end, batch })
    }
}

impl Journal {
    /// One without entries.
    pub(super) fn new() -> io::Result<Self> {
        let file = File::from(memfd_create(c"circular-journal", MFdFlags::MFD_CLOEXEC)?);
        let (start, end) = (ENTRIES_AT, ENTRIES_AT);
        file.write_all_at(&MAGIC.to_le_bytes(), 0)?;
        file.write_all_at(&start.to_le_bytes(), 8)?;
        file.set_len(end)?;
        let ends = Ends::of(start, end);
        Ok(Self { file, ends })
    }

    /// The one that a process before this one had, and its entries.
    pub(super) fn of(kept: OwnedFd, n_blocks: u64) -> io::Result<(Self, Vec<Entry>)> {
        let garbled = || {
            io::Error::new(
                io::ErrorKind::InvalidData,
                "the journal of the overlay is of no use",
            )
        };
        let file = File::from(kept);
        let word = |at| -> io::Result<u64> {
            let mut bytes = [0; 8];
            file.read_exact_at(&mut bytes, at)?;
            Ok(u64::from_le_bytes(bytes))
        };
        let (magic, start) = (word(0)?, word(8)?);
        // What was cut off behind the last whole entry was not noted.
        let end = file.metadata()?.len() / ENTRY_BYTES * ENTRY_BYTES;
        let length = end.checked_sub(start).filter(|_| start >= ENTRIES_AT);
        // One write may come on top, and between each two of them a batch that failed.
        let length = length.filter(|length| *length <= 4 * ENTRIES_MAX * ENTRY_BYTES);
        let length = length.filter(|_| magic == MAGIC).ok_or_else(garbled)?;
        let mut bytes = vec![0; usize::try_from(length).map_err(|_| garbled())?];
        file.read_exact_at(&mut bytes, start)?;
        let (entries, _) = bytes.as_chunks();
        let entries = entries.iter().map(|bytes| Entry::decode(*bytes, n_blocks));
        let entries = entries.collect::<Option<Vec<_>>>().ok_or_else(garbled)?;
        let journal = Self {
            file,
            ends: Ends::of(start, end),
        };
        // The process before may have died right before it did that.
        journal.give_back(ENTRIES_AT..start);
        Ok((journal, entries))
    }

    /// The memory, to hand it on.
    pub(super) fn kept(&self) -> io::Result<OwnedFd> {
        Ok(self.file.try_clone()?.into())
    }

    /// Notes that this comes to be.
    pub(super) fn note(&self, entries: impl IntoIterator<Item = Entry>) -> io::Result<()> {
        let bytes: Vec<u8> = entries.into_iter().flat_map(Entry::encode).collect();
        let mut ends = self.ends();
        if let Err(error) = self.file.write_all_at(&bytes, ends.end) {
            // What is there of it is not to be taken for noted. If that fails too, it is a write that was not made.
            let _ = self.file.set_len(ends.end);
            return Err(error);
        }
        ends.end += bytes.len() as u64;
        Ok(())
    }

    /// Notes that a batch begins that comes behind the end of `log`, while nobody writes. Returns the place up to which all is
    /// on disk when the batch is.
    pub(super) fn begin_batch(&self, log: &Log) -> io::Result<u64> {
        let again = self.ends().batch;
        if let Some((generation, sequence, place)) = again
            && (generation, sequence) == (log.generation, log.sequence)
            && place == self.ends().end
        {
            // It failed, and nothing was written since.
            return Ok(place);
        }
        let (generation, sequence) = (log.generation, log.sequence);
        self.note([Entry::Batch {
            generation,
            sequence,
        }])?;
        let mut ends = self.ends();
        ends.batch = Some((generation, sequence, ends.end));
        Ok(ends.end)
    }

    /// Forgets the entries before `place`. If that fails, they are found to be on disk when they are read.
    pub(super) fn forget(&self, place: u64) {
        let mut ends = self.ends();
        if self.file.write_all_at(&place.to_le_bytes(), 8).is_err() {
            return;
        }
        let first = std::mem::replace(&mut ends.start, place);
        drop(ends);
        self.give_back(first..place);
    }

    /// Gives the memory of these entries back, as far as no others share it.
    fn give_back(&self, entries: Range<u64>) {
        let page = |place: u64| place / ENTRIES_AT * ENTRIES_AT;
        let unused = page(entries.start).max(ENTRIES_AT)..page(entries.end);
        if !unused.is_empty() {
            // Costs memory, nothing else.
            let _ = punch(&self.file, &unused);
        }
    }

    /// As [`Self::forget`], of the first `n` entries.
    pub(super) fn forget_first(&self, n: usize) {
        let place = self.ends().start + n as u64 * ENTRY_BYTES;
        if n > 0 {
            self.forget(place);
        }
    }

    /// Forgets all entries: nothing is dirty, and nobody writes.
    pub(super) fn clear(&self) {
        let end = self.ends().end;
        self.forget(end);
    }

    /// Entries that count.
    pub(super) fn n_entries(&self) -> u64 {
        let ends = *self.ends();
        (ends.end - ends.start) / ENTRY_BYTES
    }

    fn ends(&self) -> MutexGuard<'_, Ends> {
        self.ends.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
