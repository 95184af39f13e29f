//! Proves that the whole cache file is the disk, so that it can be read without us.
//!
//! A proof is a pass over all of the file that found nothing wrong. It ends with the first reason to
//! doubt: data is taken out of the file, or a chunk in it does not match. Who is lent the file gets a
//! lock along: as long as that is held, by us or by the kernel, nobody takes data out.
//!
//! What is written into a lent file are chunks that were verified, at their own places: the same
//! bytes, or a repair.

use std::fs::{File, OpenOptions};
use std::io;
use std::ops::Range;
use std::os::fd::AsRawFd as _;
use std::os::unix::fs::{FileExt as _, MetadataExt as _, OpenOptionsExt as _};
use std::sync::atomic::{AtomicU64, Ordering};

use image_format::BLOCK_BYTES;
use nix::fcntl::{PosixFadviseAdvice, posix_fadvise};
use nix::libc::{O_CLOEXEC, O_DIRECT};
use tokio::sync::Notify;

use super::{CacheFile, Cached, DiskCache, now, read_verified};
use crate::cache::desk;
use crate::cache::policy::SEGMENT_BYTES;
use crate::cache::sparse;
use crate::place::Place;

/// Holes are compared with zeros in pieces of this length.
const PIECE_BYTES: u64 = 256 << 10;

/// Whether the file is proven to be the disk.
#[derive(Debug, Default)]
pub(super) struct Proof {
    /// How often there was a reason to doubt it.
    doubts: AtomicU64,
    /// One more than the doubts that there were when the last pass without a fault began.
    proven: AtomicU64,
    /// Something was filled in, or doubted.
    changed: Notify,
}

impl Proof {
    /// What was proven is so no more.
    pub(super) fn doubt(&self) {
        self.doubts.fetch_add(1, Ordering::SeqCst);
        self.changed.notify_one();
    }

    /// Something was filled in.
    pub(super) fn filled(&self) {
        self.changed.notify_one();
    }

    fn holds(&self) -> bool {
        self.proven.load(Ordering::SeqCst) == self.doubts.load(Ordering::SeqCst) + 1
    }
}

/// A pass over the file that has begun.
#[derive(Debug)]
pub struct Pass {
    doubts: u64,
}

impl DiskCache {
    /// Bytes that the file occupies: if these are less than the disk has data, it is not all there.
    /// 0 if the cache is off. Asks the file system.
    #[must_use]
    pub fn occupied_bytes(&self) -> u64 {
        let metadata = self.file().and_then(|cache| cache.file.metadata().ok());
        metadata.map_or(0, |metadata| metadata.blocks() * 512)
    }

    /// Waits until something is filled in, or doubted, that was not before the last call returned.
    ///
    /// # Cancel safety
    ///
    /// Nothing is lost.
    pub async fn changed(&self) {
        match &self.0 {
            Some(cache) => cache.proof.changed.notified().await,
            None => std::future::pending().await,
        }
    }

    /// Begins a pass: brings what was written to the medium, so that it is read from there. `None`:
    /// such a file cannot be lent. Blocks on the disk.
    #[must_use]
    pub fn begin_pass(&self) -> Option<Pass> {
        let cache = self.file()?;
        let doubts = cache.proof.doubts.load(Ordering::SeqCst);
        if let Err(error) = cache.file.sync_data() {
            cache.switch_off("bring to its disk", &error);
            return None;
        }
        match cache.is_fit() {
            Ok(true) => Some(Pass { doubts }),
            Ok(false) => None,
            Err(error) => {
                tracing::debug!(%error, "the cache file cannot be lent");
                None
            }
        }
    }

    /// Has the kernel forget what it keeps of `range`, so that it is read from the medium.
    pub fn forget_pages(&self, range: &Range<u64>) {
        if let Some(cache) = self.file()
            && let (Ok(start), Ok(length)) = (
                i64::try_from(range.start),
                i64::try_from(range.end - range.start),
            )
        {
            // An advice: without it what is verified may be what is in memory.
            let advice = PosixFadviseAdvice::POSIX_FADV_DONTNEED;
            let _ = posix_fadvise(&*cache.file, start, length, advice);
        }
    }

    /// Whether the chunk at `place` is in the file, and right. Blocks on the disk.
    #[must_use]
    pub fn check(&self, place: &Place) -> bool {
        let Some(cache) = self.file() else {
            return false;
        };
        match read_verified(&cache.file, place, place.disk_offset()) {
            Ok(Cached::Chunk(_)) => true,
            Ok(_) => {
                cache.known().present.remove(place.blocks());
                cache.proof.doubt();
                false
            }
            Err(error) => {
                cache.switch_off("read", &error);
                false
            }
        }
    }

    /// Whether `range`, which is a hole of the disk, reads as zeros; if not, it is made so. Nobody
    /// ever wants anything else there. Blocks on the disk.
    #[must_use]
    pub fn check_hole(&self, range: &Range<u64>) -> bool {
        let Some(cache) = self.file() else {
            return false;
        };
        let _busy = desk::begin();
        match cache.is_zero(range) {
            Ok(true) => true,
            Ok(false) => {
                cache.proof.doubt();
                if let Err(error) = sparse::punch(&cache.file, range.clone()) {
                    cache.switch_off("clean a hole of", &error);
                }
                false
            }
            Err(error) => {
                cache.switch_off("read", &error);
                false
            }
        }
    }

    /// Ends a pass that found nothing wrong. Returns whether the file is proven: there may have been a
    /// doubt meanwhile.
    #[must_use]
    pub fn conclude(&self, pass: &Pass) -> bool {
        let Some(cache) = self.file() else {
            return false;
        };
        cache.proof.proven.store(pass.doubts + 1, Ordering::SeqCst);
        cache.proof.holds()
    }

    /// Whether the file is proven to be the disk.
    #[must_use]
    pub fn is_proven(&self) -> bool {
        self.file().is_some_and(|cache| cache.proof.holds())
    }

    /// The file, for somebody who reads it without us: its own description of it, with a lock on it.
    /// Nobody takes data out of the file until that is closed by all who have it. `None`: the file is
    /// not proven, or somebody takes data out of it now.
    ///
    /// # Errors
    ///
    /// When it cannot be opened again.
    pub fn lend(&self) -> io::Result<Option<File>> {
        let Some(cache) = self.file() else {
            return Ok(None);
        };
        let file = cache.reopen(0)?;
        if file.try_lock_shared().is_err() {
            return Ok(None);
        }
        // Whoever took data out before there was this lock has said so.
        Ok((cache.proof.holds() && cache.is_ours(&file)?).then_some(file))
    }

    /// Notes that all of the disk is used.
    pub fn touch_all(&self) {
        if let Some(cache) = self.file() {
            let segments = cache.disk_bytes.div_ceil(SEGMENT_BYTES);
            let (mut recency, now) = (cache.recency(), now());
            for segment in 0..u32::try_from(segments).unwrap_or(u32::MAX) {
                recency.touch(segment, now);
            }
        }
    }
}

impl CacheFile {
    /// The same file, opened anew for reading.
    fn reopen(&self, flags: i32) -> io::Result<File> {
        OpenOptions::new()
            .read(true)
            .custom_flags(flags | O_CLOEXEC)
            .open(format!("/proc/self/fd/{}", self.file.as_raw_fd()))
    }

    /// Whether the file is as long as the disk, and nobody else may write to it.
    fn is_ours(&self, file: &File) -> io::Result<bool> {
        let metadata = file.metadata()?;
        let owner = nix::unistd::geteuid().as_raw();
        Ok(metadata.len() == self.disk_bytes
            && metadata.uid() == owner
            && metadata.mode() & 0o077 == 0)
    }

    /// The same, and whether its file system reads past the page cache, at each sector: readers of
    /// the disk do.
    fn is_fit(&self) -> io::Result<bool> {
        const SECTOR: usize = 512;
        if !self.is_ours(&self.file)? {
            return Ok(false);
        }
        let file = self.reopen(O_DIRECT)?;
        let mut room = [0; SECTOR * 2];
        let skip = room.as_ptr().align_offset(SECTOR);
        let Some(sector) = room.get_mut(skip..skip + SECTOR) else {
            return Ok(false);
        };
        Ok(file.read_at(sector, SECTOR as u64)? == SECTOR)
    }

    fn is_zero(&self, range: &Range<u64>) -> io::Result<bool> {
        let mut bytes = Vec::new();
        for data in sparse::data_in(&self.file, range.clone())? {
            let mut at = data.start;
            while at < data.end {
                let length = PIECE_BYTES.min(data.end - at);
                bytes.resize(usize::try_from(length).map_err(io::Error::other)?, 0);
                self.file.read_exact_at(&mut bytes, at)?;
                if bytes.iter().any(|byte| *byte != 0) {
                    return Ok(false);
                }
                at += length;
            }
        }
        Ok(true)
    }
}

const _: () = assert!(PIECE_BYTES.is_multiple_of(BLOCK_BYTES as u64));
