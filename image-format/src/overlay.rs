//! The overlay file: what was written to a disk, kept beside its image.
//!
//! ```text
//! header │ header again │ log 0 │ log 1 │ data A │ data B
//! ```
//!
//! Each block of the disk has two places, one in data A and one in data B, in the order of the disk.
//! A block is written to the place that no map on disk points to, so the bytes that count are never
//! overwritten. The map is a log of batches: which blocks are where, with a checksum each, and what
//! reads as zeros. A batch counts as a whole or not at all. A log begins with a checkpoint, the
//! whole map; a longer log is replaced by a checkpoint in the other one, of the next generation.
//! Layout: docs/FORMAT.md, "Overlay". How it is written: `client-fuse/src/overlay.rs`.

use std::ops::Range;

use twox_hash::XxHash3_64;

use crate::codec::{DecodeError, Reader};
use crate::digest::Digest;
use crate::geometry::{BLOCK_BYTES, DISK_BYTES_MAX};

mod log;

pub use log::{Batch, Kind, LOG_LEAST_BYTES, Log, LogError, RECORDS_MAX, Record, walk};

const MAGIC: &[u8; 8] = b"CIRCOVLY";
const WHAT: &str = "overlay";

/// A header, and the grain of everything in the file.
pub const HEADER_BYTES: usize = BLOCK_BYTES as usize;

/// Where the second copy of the header is.
pub const SECOND_HEADER: u64 = HEADER_BYTES as u64;

/// The longest name of a base, in bytes; a reference has at most 210.
pub const BASE_BYTES_MAX: usize = 254;

const CHECKSUM_AT: usize = HEADER_BYTES - 8;

/// Logs and data begin at multiples of this.
const ALIGNMENT: u64 = 1 << 20;

/// Which disk an overlay belongs to. Never changes once it is written.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Header {
    /// Names the content of the disk below.
    pub disk: Digest,
    /// The length of the disk in bytes.
    pub disk_length: u64,
    /// A random number, the seed of all checksums in the file: bytes of another file never match.
    pub seed: u64,
    /// The reference of the disk below when the overlay was made, with its version; for people.
    pub base: String,
}

impl Header {
    /// Encodes the header.
    ///
    /// # Panics
    /// If the name of the base is longer than [`BASE_BYTES_MAX`].
    pub fn encode(&self) -> Vec<u8> {
        let base = self.base.as_bytes();
        assert!(base.len() <= BASE_BYTES_MAX, "references are shorter");
        let base_length = u16::try_from(base.len()).expect("it is at most 254");
        let mut out = Vec::with_capacity(HEADER_BYTES);
        out.extend_from_slice(MAGIC);
        out.extend_from_slice(&1_u16.to_le_bytes());
        out.extend_from_slice(&base_length.to_le_bytes());
        out.extend_from_slice(&BLOCK_BYTES.to_le_bytes());
        out.extend_from_slice(self.disk.as_bytes());
        out.extend_from_slice(&self.disk_length.to_le_bytes());
        out.extend_from_slice(&self.seed.to_le_bytes());
        out.extend_from_slice(base);
        out.resize(CHECKSUM_AT, 0);
        let sum = checksum(0, &out);
        out.extend_from_slice(&sum.to_le_bytes());
        out
    }

    /// Decodes a header.
    ///
    /// # Errors
    /// The bytes are no header, or a damaged one.
    pub fn decode(bytes: &[u8]) -> Result<Self, DecodeError> {
        let mut reader = Reader::new(WHAT, bytes, HEADER_BYTES)?;
        reader.magic(MAGIC)?;
        reader.version_1()?;
        if bytes.len() < HEADER_BYTES {
            return Err(DecodeError::Truncated { what: WHAT });
        }
        let (content, sum) = bytes.split_at(CHECKSUM_AT);
        if sum != checksum(0, content).to_le_bytes() {
            let reason = "its header does not match its checksum";
            return Err(DecodeError::invalid(WHAT, reason));
        }
        let base_length = usize::from(reader.u16()?);
        if reader.u32()? != BLOCK_BYTES {
            return Err(DecodeError::invalid(WHAT, "its blocks have another size"));
        }
        let disk = Digest::from_bytes(reader.array()?);
        let disk_length = reader.u64()?;
        if disk_length == 0 || disk_length > DISK_BYTES_MAX {
            let reason = "the disk has an impossible length";
            return Err(DecodeError::invalid(WHAT, reason));
        }
        let seed = reader.u64()?;
        let name = reader.array::<BASE_BYTES_MAX>()?;
        let base = name
            .get(..base_length)
            .and_then(|name| str::from_utf8(name).ok())
            .ok_or(DecodeError::invalid(WHAT, "the name of its base is none"))?
            .to_owned();
        Ok(Self {
            disk,
            disk_length,
            seed,
            base,
        })
    }
}

/// One of the two places of a block.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Side {
    /// In data A.
    A,
    /// In data B.
    B,
}

impl Side {
    /// The other one.
    #[must_use]
    pub const fn other(self) -> Self {
        match self {
            Self::A => Self::B,
            Self::B => Self::A,
        }
    }
}

/// Where things are in the file: follows from the length of the disk.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Layout {
    n_blocks: u64,
    log_bytes: u64,
}

impl Layout {
    /// The layout for a disk of `disk_length` bytes.
    #[must_use]
    pub const fn of(disk_length: u64) -> Self {
        let n_blocks = disk_length.div_ceil(BLOCK_BYTES as u64);
        // Four times the records of a map of single blocks, and a place to begin.
        let log_bytes = (n_blocks * 64).next_multiple_of(ALIGNMENT) + LOG_LEAST_BYTES;
        Self {
            n_blocks,
            log_bytes,
        }
    }

    /// Blocks of the disk; the last one may be partial, and is padded with zeros.
    #[must_use]
    pub const fn n_blocks(&self) -> u64 {
        self.n_blocks
    }

    /// The bytes of the file that the log of `generation` may fill.
    #[must_use]
    pub const fn log(&self, generation: u64) -> Range<u64> {
        let start = ALIGNMENT + (generation % 2) * self.log_bytes;
        start..start + self.log_bytes
    }

    /// Where a block is on one side.
    #[must_use]
    pub const fn place(&self, side: Side, block: u64) -> u64 {
        let data_bytes = (self.n_blocks * BLOCK_BYTES as u64).next_multiple_of(ALIGNMENT);
        let data = ALIGNMENT + 2 * self.log_bytes;
        let start = match side {
            Side::A => data,
            Side::B => data + data_bytes,
        };
        start + block * BLOCK_BYTES as u64
    }

    /// The length of the file.
    #[must_use]
    pub const fn file_bytes(&self) -> u64 {
        self.place(Side::B, self.n_blocks)
    }
}

/// The checksum of a block, a batch or a header: XXH3-64. It notices accidents, not forgers.
#[must_use]
pub fn checksum(seed: u64, bytes: &[u8]) -> u64 {
    XxHash3_64::oneshot_with_seed(seed, bytes)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn header() -> Header {
        Header {
            disk: Digest::of(b"a disk"),
            disk_length: 1 << 30,
            seed: 7,
            base: "lab/debian:12@3".to_owned(),
        }
    }

    #[test]
    fn a_header_is_read_as_it_was_written() {
        let bytes = header().encode();
        assert_eq!(bytes.len(), HEADER_BYTES);
        assert_eq!(Header::decode(&bytes).unwrap(), header());
    }

    #[test]
    fn every_flipped_bit_of_a_header_is_noticed() {
        let good = header().encode();
        for bit in 0..good.len() * 8 {
            let mut bytes = good.clone();
            bytes[bit / 8] ^= 1 << (bit % 8);
            assert!(Header::decode(&bytes).is_err(), "bit {bit}");
        }
        assert!(Header::decode(&good[..100]).is_err());
        assert!(Header::decode(&[]).is_err());
    }

    proptest! {
        /// Logs and data lie one behind the other, whatever the disk.
        #[test]
        fn nothing_in_the_file_overlaps(length in 1..DISK_BYTES_MAX) {
            let layout = Layout::of(length);
            let end = layout.n_blocks();
            let starts = [
                layout.log(0).start, layout.log(1).start,
                layout.place(Side::A, 0), layout.place(Side::B, 0),
            ];
            let ends = [
                layout.log(0).end, layout.log(1).end,
                layout.place(Side::A, end), layout.place(Side::B, end),
            ];
            prop_assert!(starts[0] >= 2 * HEADER_BYTES as u64);
            for (end, next) in ends.iter().zip(&starts[1..]) {
                prop_assert!(end <= next);
            }
            prop_assert_eq!(layout.file_bytes(), ends[3]);
            prop_assert!(starts.iter().all(|start| start % u64::from(BLOCK_BYTES) == 0));
        }
    }
}
