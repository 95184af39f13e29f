//! The content digest of a disk: what is on it, wherever its chunks are stored.
//!
//! The disk digest (that of the region table) also covers which packs the chunks lie in, because
//! readers need that verified. Publishers compare content digests instead, so that one disk stays
//! one version when its chunks were stored twice, or elsewhere. Layout: docs/FORMAT.md, "Content
//! digest".

use crate::chunk::ChunkId;
use crate::digest::{Digest, Hasher};

const MAGIC: &[u8; 8] = b"CIRCDISK";

/// Computes a content digest from the chunks of a disk, in their order.
#[derive(Clone, Debug)]
pub struct ContentHasher(Hasher);

impl Default for ContentHasher {
    fn default() -> Self {
        let mut hasher = Hasher::new();
        hasher.update(MAGIC);
        Self(hasher)
    }
}

impl ContentHasher {
    /// Takes the next chunk: `blocks` blocks from `block` of the disk on.
    pub fn push(&mut self, block: u64, blocks: u32, chunk: ChunkId) {
        self.0.update(&block.to_le_bytes());
        self.0.update(&blocks.to_le_bytes());
        self.0.update(chunk.as_bytes());
    }

    /// Returns the digest of the disk, of `length` bytes.
    pub fn finish(mut self, length: u64) -> Digest {
        self.0.update(&length.to_le_bytes());
        self.0.finish()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn content(chunks: &[(u64, u32, &[u8])], length: u64) -> Digest {
        let mut hasher = ContentHasher::default();
        for (block, blocks, plain) in chunks {
            hasher.push(*block, *blocks, ChunkId::of(plain));
        }
        hasher.finish(length)
    }

    #[test]
    fn every_difference_between_disks_counts() {
        let disks = [
            content(&[], 4096),
            content(&[], 4097),
            content(&[(0, 1, b"a")], 4096),
            content(&[(1, 1, b"a")], 8192),
            content(&[(0, 2, b"a")], 8192),
            content(&[(0, 2, b"b")], 8192),
            content(&[(0, 1, b"a"), (1, 1, b"a")], 8192),
        ];
        for (at, disk) in disks.iter().enumerate() {
            assert!(!disks[..at].contains(disk), "row {at}");
        }
    }
}
