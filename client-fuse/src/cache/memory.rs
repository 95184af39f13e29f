//! Keeps recently used chunks in memory, up to a number of bytes.
//!
//! A [`Chunk`] is verified by construction, so what is found here is believed.

use std::sync::Arc;

use image_format::chunk::{Chunk, ChunkId};

use crate::cache::shelf::{Dropped, Shelf};
use crate::process::MMAP_THRESHOLD_BYTES;

/// A byte-bounded cache of verified chunks; the least recently used one goes first. A clone is the
/// same cache: several disks may share it, because a chunk is named by its bytes.
#[derive(Clone, Debug)]
pub struct MemoryCache(Arc<Shelf<ChunkId, Chunk>>);

impl MemoryCache {
    /// An empty cache that takes at most `bytes_max` bytes of memory, that of its bookkeeping included.
    #[must_use]
    pub fn new(bytes_max: usize) -> Self {
        Self(Arc::new(Shelf::new(bytes_max)))
    }

    /// The bound.
    #[must_use]
    pub fn bytes_max(&self) -> usize {
        self.0.bytes_max()
    }

    /// Bytes of memory that the chunks that are here take.
    #[must_use]
    pub fn bytes(&self) -> usize {
        self.0.bytes()
    }

    /// The chunks that were dropped so far to make room.
    #[must_use]
    pub fn dropped(&self) -> Dropped {
        self.0.dropped()
    }

    /// The chunk `id`, now the most recently used one.
    #[must_use]
    pub fn find(&self, id: &ChunkId) -> Option<Chunk> {
        self.0.find(id)
    }

    /// Whether `id` is here; does not count as use.
    #[must_use]
    pub fn holds(&self, id: &ChunkId) -> bool {
        self.0.holds(id)
    }

    /// Keeps `chunk` and returns whether it was new; makes room by dropping what was unused for longest.
    pub fn keep(&self, chunk: Chunk) -> bool {
        let bytes = bytes_taken(chunk.bytes().len());
        self.0.keep(chunk.id(), chunk, bytes)
    }
}

/// What a chunk of so many bytes takes of memory: large blocks have pages of their own, the last of
/// which is half empty; small ones share theirs, with 16 bytes between them.
const fn bytes_taken(bytes: usize) -> usize {
    /// An entry of the map and of the order of use, and the counters of what shares the chunk.
    const ENTRY: usize = 256;
    let grain = if bytes < MMAP_THRESHOLD_BYTES as usize {
        16
    } else {
        4096
    };
    (bytes + 16).next_multiple_of(grain) + ENTRY
}
