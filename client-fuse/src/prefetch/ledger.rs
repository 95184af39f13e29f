//! Keeps count of what was fetched before anybody asked for it, until somebody does.
//!
//! Bounds: [`ENTRIES_MAX`] chunks; what is beyond is counted as never used.

use std::collections::HashMap;
use std::sync::{Mutex, MutexGuard, PoisonError};

use image_format::ChunkId;

/// More than a boot pack lists; 3 MiB of memory.
const ENTRIES_MAX: usize = 65_536;

/// Chunks that were fetched ahead, or are on their way, and not yet read.
#[derive(Debug, Default)]
pub struct Ledger(Mutex<Unused>);

#[derive(Debug, Default)]
struct Unused {
    chunks: HashMap<ChunkId, Ahead>,
    bytes: u64,
}

/// A chunk that was fetched ahead.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Ahead {
    /// Its plain bytes.
    pub bytes: u64,
    /// On whose word.
    pub reason: Reason,
}

/// Why a chunk is fetched ahead.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reason {
    /// A boot pack lists it.
    Listed,
    /// Somebody reads towards it.
    Stream,
    /// It lies beside what somebody lacks.
    Neighbour,
}

impl Ledger {
    /// Notes that `chunk` is fetched ahead.
    pub fn bring(&self, chunk: ChunkId, ahead: Ahead) {
        let mut unused = self.unused();
        if unused.chunks.len() < ENTRIES_MAX && unused.chunks.insert(chunk, ahead).is_none() {
            unused.bytes += ahead.bytes;
        }
    }

    /// Notes that `chunk` is read; returns what is known of it if it was unused until now.
    pub fn strike(&self, chunk: &ChunkId) -> Option<Ahead> {
        let mut unused = self.unused();
        let ahead = unused.chunks.remove(chunk)?;
        unused.bytes -= ahead.bytes;
        Some(ahead)
    }

    /// Forgets what is no more, and will not be read from here.
    pub fn retain(&self, is_there: impl Fn(&ChunkId) -> bool) {
        let mut unused = self.unused();
        let Unused { chunks, bytes } = &mut *unused;
        chunks.retain(|chunk, ahead| {
            let is_there = is_there(chunk);
            if !is_there {
                *bytes -= ahead.bytes;
            }
            is_there
        });
    }

    /// Bytes that nobody has read yet.
    #[must_use]
    pub fn unused_bytes(&self) -> u64 {
        self.unused().bytes
    }

    fn unused(&self) -> MutexGuard<'_, Unused> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_brought_counts_until_it_is_read() {
        let (ledger, chunk) = (Ledger::default(), ChunkId::of(b"chunk"));
        let ahead = Ahead {
            bytes: 4096,
            reason: Reason::Stream,
        };
        ledger.bring(chunk, ahead);
        ledger.bring(chunk, ahead);
        assert_eq!(ledger.unused_bytes(), 4096);
        assert_eq!(ledger.strike(&chunk), Some(ahead));
        assert_eq!(ledger.strike(&chunk), None);
        assert_eq!(ledger.unused_bytes(), 0);
    }

    #[test]
    fn what_is_no_more_does_not_count() {
        let ledger = Ledger::default();
        let chunks = [ChunkId::of(b"evicted"), ChunkId::of(b"there")];
        for (chunk, bytes) in chunks.into_iter().zip([4096, 8192]) {
            let reason = Reason::Neighbour;
            ledger.bring(chunk, Ahead { bytes, reason });
        }
        ledger.retain(|chunk| *chunk == chunks[1]);
        assert_eq!(ledger.unused_bytes(), 8192);
        assert_eq!(ledger.strike(&chunks[0]), None);
    }
}
