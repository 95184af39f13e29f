//! How a disk is divided: blocks of 4096 bytes, regions of 64 MiB.
//!
//! Pure arithmetic on offsets and lengths; every function that could overflow is checked or
//! bounded by [`DISK_BYTES_MAX`].

/// The grain of chunk boundaries, in bytes. File systems place file data on such borders.
pub const BLOCK_BYTES: u32 = 4096;

/// [`BLOCK_BYTES`] as a buffer length.
pub const BLOCK_LEN: usize = 4096;

/// Blocks in a region.
pub const REGION_BLOCKS: u32 = 16_384;

/// Bytes in a region: 64 MiB. One index page describes one region.
pub const REGION_BYTES: u64 = 64 * 1024 * 1024;

/// The longest disk, in bytes: 4,096 leaf tables of 1,024 regions are 256 TiB.
pub const DISK_BYTES_MAX: u64 = 4096 * 1024 * REGION_BYTES;

/// Returns how many blocks hold `bytes`, the last one perhaps in part.
pub const fn blocks_for(bytes: u64) -> u64 {
    bytes.div_ceil(BLOCK_BYTES as u64)
}

/// Returns how many regions hold `bytes`, the last one perhaps in part.
pub const fn regions_for(bytes: u64) -> u64 {
    bytes.div_ceil(REGION_BYTES)
}

/// A run of blocks within one region.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BlockRun {
    /// Which region of the disk.
    pub region: u32,
    /// First block, relative to the region.
    pub first: u32,
    /// One past the last block, relative to the region.
    pub end: u32,
}

impl BlockRun {
    /// Returns the disk offset of the first byte of the run.
    pub const fn offset(&self) -> u64 {
        self.region as u64 * REGION_BYTES + self.first as u64 * BLOCK_BYTES as u64
    }
}

/// Splits the bytes `offset .. offset + len` into the block runs that cover them, one a region.
///
/// Offsets past [`DISK_BYTES_MAX`] yield nothing.
pub fn runs(offset: u64, len: u64) -> impl Iterator<Item = BlockRun> {
    let end = offset.saturating_add(len).min(DISK_BYTES_MAX);
    let mut at = offset;
    std::iter::from_fn(move || {
        if at >= end {
            return None;
        }
        let region = u32::try_from(at / REGION_BYTES).ok()?;
        let base = u64::from(region) * REGION_BYTES;
        let stop = end.min(base + REGION_BYTES);
        let first = u32::try_from((at - base) / u64::from(BLOCK_BYTES)).ok()?;
        let last = u32::try_from((stop - base).div_ceil(u64::from(BLOCK_BYTES))).ok()?;
        at = stop;
        Some(BlockRun {
            region,
            first,
            end: last,
        })
    })
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        /// The runs are in order, inside their region, and cover just the blocks touched.
        #[test]
        fn runs_cover_the_range(offset in 0..(1_u64 << 40), len in 1..(1_u64 << 28)) {
            let all: Vec<_> = runs(offset, len).collect();
            let block = u64::from(BLOCK_BYTES);
            let mut next = offset / block;
            for run in &all {
                prop_assert!(run.first < run.end && run.end <= REGION_BLOCKS);
                prop_assert_eq!(run.offset() / block, next);
                next += u64::from(run.end - run.first);
            }
            prop_assert_eq!(next, (offset + len).div_ceil(block));
        }
    }

    #[test]
    fn an_empty_range_has_no_runs() {
        assert_eq!(runs(5, 0).count(), 0);
        assert_eq!(runs(u64::MAX, 1).count(), 0);
    }
}
