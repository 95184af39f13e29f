//! Where chunks are, by digest, over all disks of a cache directory: a table that may be wrong.
//!
//! A file of buckets of 64 slots; a slot is the first 8 bytes of a digest, the first 4 of a disk's
//! digest, and a block. It is written without locks and without order: whoever looks something up
//! reads what lies there and verifies it. A slot that is lost is a chunk that is fetched once more.

use std::fs::{File, OpenOptions};
use std::io;
use std::os::unix::fs::{FileExt as _, OpenOptionsExt as _};
use std::path::Path;

use image_format::chunk::ChunkId;
use image_format::digest::Digest;
use nix::libc::{O_CLOEXEC, O_NOFOLLOW, O_NONBLOCK};

const SLOT_BYTES: usize = 16;
const SLOTS: usize = 64;
const BUCKET_BYTES: usize = SLOTS * SLOT_BYTES;
const BUCKETS_MAX: u64 = 8192;

/// The usual chunk, to choose the size of the table by.
const CHUNK_BYTES: u64 = 28 << 10;

/// Disk written for a new slot, at most.
pub(super) const NOTE_BYTES: u64 = 4096;

/// The table.
#[derive(Debug)]
pub(super) struct Hints {
    file: File,
    buckets: u64,
}

/// Where a chunk may be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Hint {
    /// In the file of which disk: the first bytes of its digest.
    pub(super) disk: u32,
    /// Where in it.
    pub(super) block: u32,
}

/// The first bytes of the digest of a disk.
pub(super) fn disk_key(disk: &Digest) -> u32 {
    let bytes = disk.as_bytes();
    u32::from_be_bytes([bytes[0], bytes[1], bytes[2], bytes[3]])
}

impl Hints {
    /// Opens the table at `path`; a new one is sized for a cache of `bytes_max`.
    pub(super) fn open(path: &Path, bytes_max: u64) -> io::Result<Self> {
        let file = OpenOptions::new()
            .read(true)
            .write(true)
            .create(true)
            .truncate(false)
            .mode(0o600)
            .custom_flags(O_NOFOLLOW | O_CLOEXEC | O_NONBLOCK)
            .open(path)?;
        let metadata = file.metadata()?;
        if !metadata.is_file() {
            return Err(io::Error::other("it is no regular file"));
        }
        let bucket = BUCKET_BYTES as u64;
        let buckets = metadata.len() / bucket;
        if metadata.len().is_multiple_of(bucket)
            && buckets.is_power_of_two()
            && buckets <= BUCKETS_MAX
        {
            return Ok(Self { file, buckets });
        }
        let chunks = bytes_max / CHUNK_BYTES;
        // Half full at most, so that buckets seldom overflow.
        let buckets = (chunks * 2 / SLOTS as u64).next_power_of_two();
        let buckets = buckets.clamp(1, BUCKETS_MAX);
        file.set_len(0)?;
        file.set_len(buckets * bucket)?;
        Ok(Self { file, buckets })
    }

    /// Where `chunk` may be.
    pub(super) fn find(&self, chunk: &ChunkId) -> Vec<Hint> {
        let Ok(bucket) = self.bucket(chunk) else {
            return Vec::new();
        };
        let slots = bucket.as_chunks::<SLOT_BYTES>().0.iter();
        let ours = slots.filter(|slot| slot[..8] == chunk.as_bytes()[..8]);
        let number = |bytes: &[u8]| bytes.try_into().map_or(0, u32::from_le_bytes);
        ours.map(|slot| Hint {
            disk: number(&slot[8..12]),
            block: number(&slot[12..]),
        })
        .collect()
    }

    /// Notes where `chunk` is; forgets where it or, in a full bucket, another one was.
    pub(super) fn note(&self, chunk: &ChunkId, hint: Hint) -> io::Result<()> {
        let bucket = self.bucket(chunk)?;
        let slots = bucket.as_chunks::<SLOT_BYTES>().0;
        let digest = chunk.as_bytes();
        let free = |prefix: &[u8]| slots.iter().position(|slot| slot[..8] == *prefix);
        let slot = free(&digest[..8])
            .or_else(|| free(&[0; 8]))
            .unwrap_or_else(|| usize::from(digest[12]) % SLOTS);
        let mut bytes = [0; SLOT_BYTES];
        bytes[..8].copy_from_slice(&digest[..8]);
        bytes[8..12].copy_from_slice(&hint.disk.to_le_bytes());
        bytes[12..].copy_from_slice(&hint.block.to_le_bytes());
        if bytes == slots[slot] {
            return Ok(());
        }
        let at = self.offset(chunk) + (slot * SLOT_BYTES) as u64;
        self.file.write_all_at(&bytes, at)
    }

    fn bucket(&self, chunk: &ChunkId) -> io::Result<[u8; BUCKET_BYTES]> {
        let mut bucket = [0; BUCKET_BYTES];
        self.file.read_exact_at(&mut bucket, self.offset(chunk))?;
        Ok(bucket)
    }

    fn offset(&self, chunk: &ChunkId) -> u64 {
        let digest = chunk.as_bytes();
        let number = u32::from_be_bytes([digest[8], digest[9], digest[10], digest[11]]);
        u64::from(number) % self.buckets * BUCKET_BYTES as u64
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn id(number: u32) -> ChunkId {
        ChunkId::of(&number.to_le_bytes())
    }

    #[test]
    fn what_is_noted_is_found_and_the_latest_place_counts() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("hints");
        let hints = Hints::open(&path, 64 << 20).unwrap();
        assert_eq!(hints.find(&id(1)), []);
        for number in 0..1000 {
            let (disk, block) = (number / 3, number);
            hints.note(&id(number), Hint { disk, block }).unwrap();
        }
        hints.note(&id(7), Hint { disk: 9, block: 9 }).unwrap();
        drop(hints);
        let hints = Hints::open(&path, 1 << 30).unwrap();
        assert_eq!(hints.find(&id(7)), [Hint { disk: 9, block: 9 }]);
        let kept = (0..1000).filter(|number| !hints.find(&id(*number)).is_empty());
        assert!(kept.count() > 950);
    }

    #[test]
    fn a_table_of_another_length_is_made_anew() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("hints");
        std::fs::write(&path, [1; 5000]).unwrap();
        let hints = Hints::open(&path, 1 << 20).unwrap();
        hints.note(&id(1), Hint { disk: 1, block: 2 }).unwrap();
        assert_eq!(hints.find(&id(1)), [Hint { disk: 1, block: 2 }]);
        File::options()
            .write(true)
            .open(&path)
            .unwrap()
            .set_len(0)
            .unwrap();
        assert_eq!(hints.find(&id(1)), []);
        assert!(hints.note(&id(1), Hint { disk: 1, block: 2 }).is_err());
    }
}
