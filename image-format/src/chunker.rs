//! Cuts a disk into chunks: block-aligned, content-defined, with a cut at the end of files.
//!
//! Going through the blocks of one region, a chunk ends
//! - before an all-zero block, and at the end of the region, always (zero runs are holes, so no
//!   chunk contains an all-zero block);
//! - once it has [`min_blocks`](ChunkerParams::min_blocks): after a block whose last
//!   [`tail_bytes`](ChunkerParams::tail_bytes) are zero (the padding behind the last byte of a
//!   file: an end-of-file detector that needs no file-system parser), or after a block whose
//!   XXH3-64 has [`mask_bits`](ChunkerParams::mask_bits) low zero bits;
//! - at [`max_blocks`](ChunkerParams::max_blocks).
//!
//! [`ChunkerParams::cut`] is one decision on bytes in memory; who reads them is not its concern.
//! Regions are cut independently of each other, so they can be cut in parallel.

use serde::{Deserialize, Serialize};
use twox_hash::XxHash3_64;

use crate::chunk::CHUNK_BLOCKS_MAX;
use crate::codec::DecodeError;
use crate::geometry::BLOCK_LEN;

/// What decides where chunks end. Recorded in each manifest; a store has defaults.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ChunkerParams {
    /// Least blocks before a cut by content, at least 1.
    pub min_blocks: u32,
    /// Low bits of the block hash that must be zero for a cut: n bits cut every 2^n blocks.
    pub mask_bits: u32,
    /// Most blocks of a chunk, at most [`CHUNK_BLOCKS_MAX`].
    pub max_blocks: u32,
    /// Bytes at the end of a block that are zero behind the end of a file; 0 switches this off.
    pub tail_bytes: u32,
    /// Seed of the block hash (XXH3-64).
    pub seed: u64,
}

impl ChunkerParams {
    /// 8 KiB least, a hash cut every 128 KiB, 256 KiB most: of the settings measured, the one that
    /// stores least when a disk is rebuilt (docs/CHUNKING.md).
    pub const DEFAULT: Self = Self {
        min_blocks: 2,
        mask_bits: 5,
        max_blocks: 64,
        tail_bytes: 64,
        seed: 0,
    };

    /// Checks parameters that come from outside.
    ///
    /// # Errors
    /// Says which field is out of its bounds.
    pub const fn check(&self) -> Result<(), DecodeError> {
        const WHAT: &str = "chunker parameters";
        if self.min_blocks == 0 || self.min_blocks > self.max_blocks {
            return Err(DecodeError::invalid(
                WHAT,
                "min_blocks is not between 1 and max_blocks",
            ));
        }
        if self.max_blocks > CHUNK_BLOCKS_MAX {
            return Err(DecodeError::invalid(WHAT, "max_blocks is above 256"));
        }
        if self.mask_bits > 63 {
            return Err(DecodeError::invalid(WHAT, "mask_bits is above 63"));
        }
        if self.tail_bytes as usize > BLOCK_LEN {
            return Err(DecodeError::invalid(WHAT, "tail_bytes is above 4096"));
        }
        Ok(())
    }

    /// Decides what the blocks at the start of `data` are, where a chunk or a zero run begins.
    ///
    /// `data` is a whole number of blocks of one region, at least one; a partial trailing part is
    /// ignored. `end` says whether the region ends with it.
    pub fn cut(&self, data: &[u8], end: End) -> Cut {
        let (blocks, _) = data.as_chunks::<BLOCK_LEN>();
        let zeros = blocks.iter().take_while(|block| is_zero(*block)).count();
        if zeros > 0 {
            return Cut::Zero { blocks: zeros };
        }
        let (min, max) = (self.min_blocks as usize, self.max_blocks as usize);
        for (index, block) in blocks.iter().enumerate() {
            if index > 0 && is_zero(block) {
                return Cut::Chunk { blocks: index };
            }
            let length = index + 1;
            if length >= max || (length >= min && self.ends_after(block)) {
                return Cut::Chunk { blocks: length };
            }
        }
        match end {
            End::Region if !blocks.is_empty() => Cut::Chunk {
                blocks: blocks.len(),
            },
            End::Region | End::Unknown => Cut::More,
        }
    }

    /// Tells whether the content of `block` ends a chunk that is long enough.
    fn ends_after(&self, block: &[u8; BLOCK_LEN]) -> bool {
        let tail = self.tail_bytes as usize;
        let tail_is_zero = tail > 0 && is_zero(&block[BLOCK_LEN - tail..]);
        tail_is_zero || {
            let hash = XxHash3_64::oneshot_with_seed(self.seed, block);
            hash & ((1 << self.mask_bits) - 1) == 0
        }
    }
}

/// What is known about the data behind the slice given to [`ChunkerParams::cut`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum End {
    /// The region (or the disk) ends here.
    Region,
    /// More blocks of the region follow.
    Unknown,
}

/// What lies at the start of the data.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Cut {
    /// A run of all-zero blocks: a hole. More zero blocks may follow.
    Zero {
        /// How many.
        blocks: usize,
    },
    /// One chunk.
    Chunk {
        /// How many blocks it has.
        blocks: usize,
    },
    /// The chunk goes on past the data: call again with more. Never at [`End::Region`] with data,
    /// and never with [`ChunkerParams::max_blocks`] blocks or more.
    More,
}

/// Tells whether all bytes are zero; stops early on the first that is not.
pub fn is_zero(bytes: &[u8]) -> bool {
    // 64 bytes at a time: wide enough to vectorize, narrow enough to leave early.
    let (wide, rest) = bytes.as_chunks::<64>();
    wide.iter()
        .all(|part| part.iter().fold(0, |seen, byte| seen | byte) == 0)
        && rest.iter().all(|byte| *byte == 0)
}

#[cfg(test)]
mod tests;
