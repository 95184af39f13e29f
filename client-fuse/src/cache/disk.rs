//! Keeps fetched chunks in one sparse file for each disk, in the layout of the disk.
//!
//! A chunk is written at its own place; a hole is a miss. Nothing in the file is believed: a chunk
//! is verified by its digest when it is first read back in a run, and an all-zero block inside a
//! chunk is a miss (no chunk contains one, so it is a hole that a power cut left). Torn writes, bit
//! rot, a foreign or a truncated file are therefore misses, never wrong bytes.
//!
//! An error switches the cache off for the rest of the run, with one line in the log; it never
//! reaches a reader. The file is opened once and never needed by name again.
//!
//! Bounds: filling stops at a number of bytes on disk, counted over all files of the directory when
//! the cache is opened. Memory: two bits for each block that is present.
//!
//! Two mounts of one image may share a file: both only ever write what belongs there, and each
//! holds a shared lock on it, so that whoever wants to remove or punch a file knows that it is used.

use std::fs::File;
use std::io;
use std::ops::Range;
use std::os::unix::fs::FileExt;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};

use bytes::Bytes;
use image_format::BLOCK_BYTES;
use image_format::chunk::Chunk;
use nix::fcntl::Flock;

use crate::cache::blocks::BlockSet;
use crate::place::Place;

mod open;
#[cfg(test)]
mod tests;

pub use open::CacheError;

/// The cache file of one disk.
#[derive(Debug)]
pub struct DiskCache(Option<CacheFile>);

#[derive(Debug)]
struct CacheFile {
    file: Flock<File>,
    path: PathBuf,
    /// Set by the first error.
    off: AtomicBool,
    /// Bytes that may still be filled in.
    room: AtomicU64,
    /// Whether the log already says that there is no room.
    full: AtomicBool,
    known: Mutex<Known>,
}

/// What is known about the blocks of the file.
#[derive(Debug, Default)]
struct Known {
    /// Not a hole, as far as we know.
    present: BlockSet,
    /// Matched their digest since the cache was opened.
    verified: BlockSet,
}

/// What the cache has of a chunk.
#[derive(Debug)]
pub enum Cached {
    /// All of it, verified just now.
    Chunk(Chunk),
    /// The asked part of it, verified earlier in this run.
    Part(Bytes),
    /// Nothing.
    Miss,
    /// Something that does not match its digest; it will be overwritten by what is fetched.
    Rejected,
}

impl DiskCache {
    /// A cache that holds nothing and keeps nothing.
    #[must_use]
    pub const fn off() -> Self {
        Self(None)
    }

    /// Whether reading `place` may be worth a try. Answered from memory.
    #[must_use]
    pub fn may_hold(&self, place: &Place) -> bool {
        self.file()
            .is_some_and(|cache| cache.known().present.contains(place.blocks()))
    }

    /// Reads the bytes `within` the chunk at `place`. Blocks on the disk.
    #[must_use]
    pub fn read(&self, place: &Place, within: Range<usize>) -> Cached {
        let Some(cache) = self.file().filter(|_| self.may_hold(place)) else {
            return Cached::Miss;
        };
        let verified = cache.known().verified.contains(place.blocks());
        let found = if verified {
            cache.read_part(place, within)
        } else {
            cache.read_chunk(place)
        };
        let found = found.unwrap_or_else(|error| {
            cache.switch_off("read", &error);
            Cached::Miss
        });
        if matches!(found, Cached::Miss | Cached::Rejected) {
            let mut known = cache.known();
            known.present.remove(place.blocks());
            known.verified.remove(place.blocks());
        }
        found
    }

    /// Writes a chunk to its place and returns how many bytes that took. Blocks on the disk.
    pub fn fill(&self, place: &Place, chunk: &Chunk) -> u64 {
        let Some(cache) = self.file() else { return 0 };
        let bytes = chunk.bytes();
        if cache.known().present.contains(place.blocks()) || !cache.reserve(bytes.len() as u64) {
            return 0;
        }
        match cache.file.write_all_at(bytes, place.disk_offset()) {
            Ok(()) => {
                cache.known().present.insert(place.blocks());
                bytes.len() as u64
            }
            Err(error) => {
                cache.switch_off("write", &error);
                0
            }
        }
    }

    /// Bytes that may still be filled in.
    #[must_use]
    pub fn room_bytes(&self) -> u64 {
        self.file()
            .map_or(0, |cache| cache.room.load(Ordering::Relaxed))
    }

    /// The file, unless the cache is off.
    fn file(&self) -> Option<&CacheFile> {
        self.0
            .as_ref()
            .filter(|cache| !cache.off.load(Ordering::Relaxed))
    }
}

impl CacheFile {
    /// Reads a part of a chunk that was verified before; only zero blocks are looked for.
    fn read_part(&self, place: &Place, within: Range<usize>) -> io::Result<Cached> {
        let block = BLOCK_BYTES as usize;
        let start = within.start / block * block;
        let mut bytes = vec![0; within.end.next_multiple_of(block) - start];
        self.file
            .read_exact_at(&mut bytes, place.disk_offset() + start as u64)?;
        if has_zero_block(&bytes) {
            return Ok(Cached::Miss);
        }
        Ok(Cached::Part(
            Bytes::from(bytes).slice(within.start - start..within.end - start),
        ))
    }

    /// Reads a whole chunk and verifies it.
    fn read_chunk(&self, place: &Place) -> io::Result<Cached> {
        let mut bytes = vec![0; usize::try_from(place.plain_bytes()).map_err(io::Error::other)?];
        self.file.read_exact_at(&mut bytes, place.disk_offset())?;
        if has_zero_block(&bytes) {
            return Ok(Cached::Miss);
        }
        let Ok(chunk) = Chunk::verify(place.id(), Bytes::from(bytes)) else {
            return Ok(Cached::Rejected);
        };
        self.known().verified.insert(place.blocks());
        Ok(Cached::Chunk(chunk))
    }

    /// Takes `bytes` of the room that is left.
    fn reserve(&self, bytes: u64) -> bool {
        let took = self
            .room
            .fetch_update(Ordering::Relaxed, Ordering::Relaxed, |room| {
                room.checked_sub(bytes)
            });
        if took.is_err() && !self.full.swap(true, Ordering::Relaxed) {
            tracing::info!(cache = %self.path.display(), "the disk cache is full; it serves what it has (see --cache-size)");
        }
        took.is_ok()
    }

    fn switch_off(&self, attempt: &str, error: &io::Error) {
        if !self.off.swap(true, Ordering::Relaxed) {
            tracing::warn!(cache = %self.path.display(), %error, "cannot {attempt} the cache file; the disk cache is off, reads go on");
        }
    }

    fn known(&self) -> MutexGuard<'_, Known> {
        self.known.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn has_zero_block(bytes: &[u8]) -> bool {
    const ZERO: [u8; BLOCK_BYTES as usize] = [0; BLOCK_BYTES as usize];
    bytes
        .chunks(ZERO.len())
        .any(|block| block == &ZERO[..block.len()])
}
