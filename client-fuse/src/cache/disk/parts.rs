//! Reads parts of chunks that were verified in this run, and holds them against their seals.

use std::fs::File;
use std::io;
use std::ops::Range;
use std::os::fd::AsRawFd as _;
use std::os::unix::fs::FileExt as _;

use bytes::Bytes;
use image_format::BLOCK_BYTES;
use nix::libc;
use nix::sys::statfs::{TMPFS_MAGIC, fstatfs};

use super::{CacheFile, DiskCache, now};
use crate::cache::desk;
use crate::cache::policy::SEGMENT_BYTES;
use crate::place::Place;

const BLOCK: u64 = BLOCK_BYTES as u64;

/// Whether the medium may be waited for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Wait {
    /// Only what is in memory is read.
    No,
    /// What it takes.
    Yes,
}

impl DiskCache {
    /// Reads the bytes `range` of the disk into `buffer`, and returns where in it they are. `None`: they
    /// were not all verified in this run, are not what they were, or would have to be waited for.
    #[must_use]
    pub fn read_sealed(
        &self,
        range: &Range<u64>,
        buffer: &mut Vec<u8>,
        wait: Wait,
    ) -> Option<Range<usize>> {
        let cache = self.file()?;
        let blocks = range.start / BLOCK..range.end.div_ceil(BLOCK);
        let seals_kept = cache.seals.as_ref()?;
        let seals = seals_kept.of(blocks.clone())?;
        let length = usize::try_from((blocks.end - blocks.start) * BLOCK).ok()?;
        if buffer.len() < length {
            buffer.resize(length, 0);
        }
        let bytes = buffer.get_mut(..length)?;
        // An error is told by whoever reads the whole chunk.
        cache.read_blocks(blocks.start, bytes, wait).ok()?;
        if !seals_kept.match_all(blocks.start, bytes, &seals) {
            // The caller may find the bytes in memory, and nobody else would say so.
            cache.proof.doubt();
            return None;
        }
        cache.touch_bytes(range);
        let start = usize::try_from(range.start - blocks.start * BLOCK).ok()?;
        let end = usize::try_from(range.end - blocks.start * BLOCK).ok()?;
        Some(start..end)
    }

    /// The bytes `within` the chunk of `place`, likewise. Blocks on the disk.
    #[must_use]
    pub fn read_part(&self, place: &Place, within: &Range<usize>) -> Option<Bytes> {
        let start = place.disk_offset() + within.start as u64;
        let range = start..start + (within.end - within.start) as u64;
        let mut buffer = Vec::new();
        let within = self.read_sealed(&range, &mut buffer, Wait::Yes)?;
        Some(Bytes::from(buffer).slice(within))
    }
}

impl CacheFile {
    fn read_blocks(&self, first: u64, bytes: &mut [u8], wait: Wait) -> io::Result<()> {
        let offset = first * BLOCK;
        if wait == Wait::Yes || self.in_memory {
            let _busy = desk::begin();
            return self.file.read_exact_at(bytes, offset);
        }
        let read = read_at_once(&self.file, bytes, offset)?;
        if read == bytes.len() {
            return Ok(());
        }
        Err(io::ErrorKind::WouldBlock.into())
    }

    fn touch_bytes(&self, range: &Range<u64>) {
        let (mut recency, now) = (self.recency(), now());
        for segment in range.start / SEGMENT_BYTES..=(range.end - 1) / SEGMENT_BYTES {
            if let Ok(segment) = u32::try_from(segment) {
                recency.touch(segment, now);
            }
        }
    }
}

/// Whether a file lies in memory: it is never waited for, and cannot say so itself.
pub(super) fn is_in_memory(file: &File) -> bool {
    fstatfs(file).is_ok_and(|system| system.filesystem_type() == TMPFS_MAGIC)
}

/// Reads what can be read without waiting for the medium.
#[expect(unsafe_code, reason = "nix has no preadv2")]
fn read_at_once(file: &File, bytes: &mut [u8], offset: u64) -> io::Result<usize> {
    let offset = libc::off_t::try_from(offset).map_err(io::Error::other)?;
    let part = libc::iovec {
        iov_base: bytes.as_mut_ptr().cast(),
        iov_len: bytes.len(),
    };
    // SAFETY: the descriptor is open, and the one part is memory that is ours for the call.
    let read = unsafe {
        libc::preadv2(
            file.as_raw_fd(),
            &raw const part,
            1,
            offset,
            libc::RWF_NOWAIT,
        )
    };
    usize::try_from(read).map_err(|_| io::Error::last_os_error())
}
