//! Every counter: its name, unit and meaning; nothing else.
//!
//! Counters only grow. They are read without a lock, so that a snapshot taken under load is not
//! exact to the last read.

use std::sync::atomic::{AtomicU64, Ordering};

use serde::Serialize;

pub mod histogram;
pub mod mirrors;

use crate::passthrough;
use crate::waits::Layer;
use histogram::{Counts, Histogram};

/// A number of something that happened.
#[derive(Debug, Default)]
pub struct Counter(AtomicU64);

impl Counter {
    /// Nothing happened yet.
    #[must_use]
    pub const fn new() -> Self {
        Self(AtomicU64::new(0))
    }

    /// Counts `n` more.
    pub fn add(&self, n: u64) {
        self.0.fetch_add(n, Ordering::Relaxed);
    }

    /// Counts one more.
    pub fn increment(&self) {
        self.add(1);
    }

    /// The count so far.
    #[must_use]
    pub fn count(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }
}

impl Serialize for Counter {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_u64(self.count())
    }
}

/// What a mount has done since it began. Serialized as `.circular/stats.json`.
#[derive(Debug, Default, Serialize)]
pub struct Stats {
    /// Processes that served the mount before this one; all else counts what this one did.
    pub restarts: Counter,
    /// Reads of the disk by the kernel.
    pub reads: Counter,
    /// Bytes that they returned.
    pub read_bytes: Counter,
    /// Reads that ended in an error.
    pub read_errors: Counter,
    /// How long guests waited for their reads, from the kernel's request to the reply.
    pub read_wait: ReadWaits,
    /// Pieces of chunks found in the memory cache.
    pub memory_hits: Counter,
    /// Pieces of chunks found in the disk cache; a read that is answered from it at once counts as one.
    pub disk_hits: Counter,
    /// Of these, pieces of chunks that another version, or another place of the disk, had.
    pub disk_copies: Counter,
    /// Pieces of chunks that had to be fetched.
    pub misses: Counter,
    /// Of these, pieces that another reader or read-ahead was fetching already.
    pub shared_fetches: Counter,
    /// Pieces of the disk cache that did not match their digest and were fetched anew.
    pub disk_rejects: Counter,
    /// Bytes written to the disk cache.
    pub disk_fill_bytes: Counter,
    /// How long HTTP requests took.
    pub request_wait: RequestWaits,
    /// HTTP requests, failed ones included.
    pub requests: Counter,
    /// Requests that were tried again.
    pub retries: Counter,
    /// Bodies received, by what they were.
    pub fetched: Fetched,
    /// Chunks fetched and verified.
    pub chunks: Counter,
    /// Chunks that were fetched although memory held them; always 0.
    pub duplicate_chunks: Counter,
    /// Chunks that read-ahead asked for.
    pub ahead_chunks: Counter,
    /// Plain bytes that were asked for ahead of any reader, by read-ahead or the boot pack.
    pub ahead_bytes: Counter,
    /// Of these, bytes of chunks that were read later; the others were fetched in vain so far.
    pub ahead_used_bytes: Counter,
    /// The same bytes, by why they were asked for; what is missing was listed by a boot pack.
    pub ahead: AheadStats,
    /// What the boot pack did.
    pub boot_pack: BootPackStats,
    /// What the index delta did.
    pub index_delta: IndexDeltaStats,
    /// Objects and chunks that did not match their digest.
    pub verify_failures: Counter,
    /// What was done where an answer did not come.
    pub faults: mirrors::FaultStats,
    /// Whether the version was found to be removed from the store; told with what is there now.
    #[serde(skip)]
    pub withdrawn: Counter,
    /// What each server did.
    pub mirrors: mirrors::ByMirror,
    /// What the kernel reads without asking us.
    pub passthrough: PassthroughStats,
}

/// How long guests waited for their reads, by what they waited for last: see [`Layer`].
#[derive(Debug, Default, Serialize)]
pub struct ReadWaits {
    /// For nothing: what they read was in memory, or a hole.
    pub memory: Histogram,
    /// For the file of the overlay.
    pub overlay: Histogram,
    /// For the disk cache.
    pub disk: Histogram,
    /// For a page of the index.
    pub index: Histogram,
    /// For a chunk that was on its way already.
    pub flight: Histogram,
    /// For a frame of the boot pack.
    pub boot_pack: Histogram,
    /// For a chunk that was fetched for them.
    pub demand: Histogram,
    /// For an error.
    pub failed: Histogram,
}

impl ReadWaits {
    /// Reads that `layer` answered.
    #[must_use]
    pub const fn of(&self, layer: Layer) -> &Histogram {
        match layer {
            Layer::Memory => &self.memory,
            Layer::Overlay => &self.overlay,
            Layer::Disk => &self.disk,
            Layer::Index => &self.index,
            Layer::Flight => &self.flight,
            Layer::BootPack => &self.boot_pack,
            Layer::Demand => &self.demand,
        }
    }

    /// All reads, the failed ones too.
    #[must_use]
    pub fn all(&self) -> Counts {
        let mut all = self.failed.counts();
        for layer in Layer::ALL {
            all.merge(&self.of(layer).counts());
        }
        all
    }
}

/// How long HTTP requests took.
#[derive(Debug, Default, Serialize)]
pub struct RequestWaits {
    /// From the request to the head of its answer.
    pub head: Histogram,
    /// From the request to the end of its body, for those that came whole.
    pub whole: Histogram,
}

/// What the kernel reads without asking us; it is in no other count.
#[derive(Debug, Default, Serialize)]
pub struct PassthroughStats {
    /// `on` while it does, `ready` if it will at the next open, or why not.
    pub state: passthrough::State,
    /// Opens of the disk that it serves itself.
    pub opens: Counter,
    /// Verifications of the whole cache file.
    pub passes: Counter,
    /// Chunks, and holes, that were wrong then, and were mended.
    pub mended: Counter,
}

/// Plain bytes that were asked for ahead of any reader.
#[derive(Debug, Default, Serialize)]
pub struct AheadStats {
    /// Ahead of a sequential reader.
    pub stream_bytes: Counter,
    /// Of these, bytes of chunks that were read later.
    pub stream_used_bytes: Counter,
    /// Beside what a reader lacked.
    pub neighbour_bytes: Counter,
    /// Of these, bytes of chunks that were read later.
    pub neighbour_used_bytes: Counter,
}

/// What the boot pack did.
#[derive(Debug, Default, Serialize)]
pub struct BootPackStats {
    /// Chunks that its head lists; 0 until the head is there.
    pub listed_chunks: Counter,
    /// Frames that were fetched.
    pub frames: Counter,
    /// Frames whose missing chunks were fetched from ordinary packs: they were few, or the frame was
    /// of no use.
    pub frames_by_ranges: Counter,
    /// Chunks that came in frames.
    pub framed_chunks: Counter,
    /// Chunks that came in frames although they were here, or on their way, before.
    pub repeated_chunks: Counter,
    /// Stored bytes of frames that are kept.
    pub kept_bytes: Counter,
    /// Chunks that were unpacked once more from frames that are kept.
    pub unpacked_chunks: Counter,
    /// Heads and frames that were of no use.
    pub damaged: Counter,
}

/// What the index delta did.
#[derive(Debug, Default, Serialize)]
pub struct IndexDeltaStats {
    /// Pages of the index that were made from those of the version before.
    pub pages: Counter,
    /// Deltas and patches that were of no use.
    pub damaged: Counter,
}

/// Bytes of bodies received.
#[derive(Debug, Default, Serialize)]
pub struct Fetched {
    /// Signed metadata, catalogue and manifest.
    pub metadata_bytes: Counter,
    /// Region tables.
    pub table_bytes: Counter,
    /// Pages of the index.
    pub page_bytes: Counter,
    /// Index deltas.
    pub index_delta_bytes: Counter,
    /// Boot packs.
    pub boot_pack_bytes: Counter,
    /// Ranges of packs: chunks as stored, and the small gaps between them.
    pub chunk_bytes: Counter,
}

impl Fetched {
    /// Bytes of all bodies.
    #[must_use]
    pub fn bytes(&self) -> u64 {
        let all = [
            &self.metadata_bytes,
            &self.table_bytes,
            &self.page_bytes,
            &self.index_delta_bytes,
            &self.boot_pack_bytes,
            &self.chunk_bytes,
        ];
        all.into_iter().map(Counter::count).sum()
    }
}
