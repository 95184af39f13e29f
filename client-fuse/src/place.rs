//! Where a chunk is: on the disk and in the store.

use std::ops::Range;

use image_format::chunk::{Chunk, ChunkId};
use image_format::digest::ObjectRef;
use image_format::frame::{self, FrameError};
use image_format::page::Entry;
use image_format::{BLOCK_BYTES, REGION_BYTES};

/// One chunk of the disk, as an index page describes it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Place {
    region: u32,
    entry: Entry,
    pack: ObjectRef,
}

impl Place {
    /// The chunk of `entry` in region number `region`, stored in `pack`.
    #[must_use]
    pub const fn new(region: u32, entry: Entry, pack: ObjectRef) -> Self {
        Self {
            region,
            entry,
            pack,
        }
    }

    /// The name of the chunk.
    #[must_use]
    pub const fn id(&self) -> ChunkId {
        self.entry.chunk
    }

    /// Decodes and verifies the chunk from its stored bytes.
    ///
    /// # Errors
    ///
    /// When they are not the chunk.
    pub fn decode(&self, stored: &[u8]) -> Result<Chunk, FrameError> {
        frame::decode(self.entry.chunk, self.entry.plain_len(), stored)
    }

    /// The object that holds the chunk.
    #[must_use]
    pub const fn pack(&self) -> ObjectRef {
        self.pack
    }

    /// The bytes of the pack that hold the chunk.
    #[must_use]
    pub fn stored(&self) -> Range<u64> {
        let start = u64::from(self.entry.offset);
        start..start + u64::from(self.entry.length)
    }

    /// Where the chunk begins on the disk.
    #[must_use]
    pub fn disk_offset(&self) -> u64 {
        u64::from(self.region) * REGION_BYTES + u64::from(self.entry.block) * u64::from(BLOCK_BYTES)
    }

    /// The length of the chunk on the disk, in bytes.
    #[must_use]
    pub fn plain_bytes(&self) -> u64 {
        u64::from(self.entry.blocks) * u64::from(BLOCK_BYTES)
    }

    /// The disk's bytes that the chunk fills.
    #[must_use]
    pub fn on_disk(&self) -> Range<u64> {
        let start = self.disk_offset();
        start..start + self.plain_bytes()
    }

    /// The blocks that the chunk fills, counted from the start of the disk.
    #[must_use]
    pub fn blocks(&self) -> Range<u64> {
        let block = u64::from(BLOCK_BYTES);
        self.disk_offset() / block..(self.disk_offset() + self.plain_bytes()) / block
    }
}
