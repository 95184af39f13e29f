//! What an overlay did since it was opened, and what it has now.

use std::ops::Range;
use std::os::unix::fs::MetadataExt as _;
use std::sync::atomic::Ordering;

use serde::Serialize;

use super::{BLOCK, Overlay};
use crate::stats::Counter;

/// What an overlay did since it was opened.
#[derive(Debug, Default, Serialize)]
pub struct OverlayStats {
    /// Writes to the disk.
    pub writes: Counter,
    /// Blocks of 4096 bytes that they wrote; one written in part counts.
    pub written_blocks: Counter,
    /// Writes and discards that failed.
    pub write_failures: Counter,
    /// Blocks that were read from the file.
    pub read_blocks: Counter,
    /// Blocks that were discarded.
    pub discarded_blocks: Counter,
    /// Syncs that were asked for, by the kernel or every few seconds, and ended well.
    pub syncs: Counter,
    /// Batches of the log that are on disk, checkpoints included.
    pub commits: Counter,
    /// Syncs that failed: what was written is dirty still.
    pub commit_failures: Counter,
}

impl OverlayStats {
    /// Counts a change of `blocks` in `counter`, or that it failed.
    pub(super) fn changed<E>(
        &self,
        outcome: &Result<(), E>,
        blocks: &Range<u64>,
        counter: &Counter,
    ) {
        match outcome {
            Ok(()) => counter.add(blocks.end - blocks.start),
            Err(_) => self.write_failures.increment(),
        }
    }
}

/// What an overlay has now.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct OverlayNow {
    /// Bytes that were written and that no batch has yet.
    pub dirty_bytes: u64,
    /// Bytes of the disk that the overlay has.
    pub written_bytes: u64,
    /// Bytes of the file that nothing points to any more.
    pub stale_bytes: u64,
    /// Bytes that the file occupies.
    pub file_bytes: u64,
    /// Whether it takes no more writes, because nobody can say what is on disk.
    pub is_out_of_use: bool,
}

impl Overlay {
    /// What it did since it was opened.
    #[must_use]
    pub const fn stats(&self) -> &OverlayStats {
        &self.stats
    }

    /// What it has now. Asks the file system how much the file occupies.
    #[must_use]
    pub fn now(&self) -> OverlayNow {
        let file_bytes = self.file.metadata().map_or(0, |it| it.blocks() * 512);
        let ledger = self.ledger();
        OverlayNow {
            dirty_bytes: ledger.n_dirty_blocks() as u64 * BLOCK,
            written_bytes: ledger.n_written() * BLOCK,
            stale_bytes: ledger.n_stale() * BLOCK,
            file_bytes,
            is_out_of_use: self.broken.load(Ordering::Relaxed),
        }
    }
}
