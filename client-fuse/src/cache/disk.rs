//! Keeps fetched chunks in one sparse file for each disk, in the layout of the disk.
//!
//! A chunk is written at its own place; a hole is a miss. Nothing in the file is believed: a chunk
//! is verified **each time** it is read from here into memory, by its digest or, when that matched
//! earlier in this run, by the [seals] of its blocks; and an all-zero block inside a chunk is a miss
//! (no chunk contains one, so it is a hole). Torn writes, bit rot, a foreign, a truncated or a punched
//! file are therefore misses, never wrong bytes, whenever they happen.
//!
//! A chunk that is not at its place may be elsewhere: in the file of another version, or at another
//! place of this disk. [`hints`](crate::cache::hints) say where; it is verified and written to its own place.
//!
//! An error switches the cache off for the rest of the run, with one line in the log; it never
//! reaches a reader. A disk that does not [answer](desk) switches it off until it does. A full file system
//! only ends filling. Once open, the file is not needed by name.
//!
//! Bounds: the bytes of the whole directory ([`budget`]); what was unused for longest makes room
//! ([`evict`]), but never in a file that another process mounts. Memory: one bit for each block of a
//! region that was touched, 50 bytes for each MiB that was used, and at most 4 MiB of seals.

use std::collections::{HashMap, HashSet};
use std::fs::File;
use std::io;
use std::os::unix::fs::{FileExt, MetadataExt as _};
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{SystemTime, UNIX_EPOCH};

use bytes::Bytes;
use image_format::chunk::Chunk;
use image_format::digest::Digest;
use image_format::{BLOCK_BYTES, REGION_BYTES};
use nix::fcntl::Flock;

use crate::cache::blocks::BlockSet;
use crate::cache::desk;
use crate::cache::directory::{self, Directory};
use crate::cache::hints::{Hints, NOTE_BYTES};
use crate::cache::policy::SEGMENT_BYTES;
use crate::cache::recency::Recency;
use crate::cache::sparse;
use crate::place::Place;
use crate::stats::Counter;

mod budget;
mod elsewhere;
pub(super) mod evict;
mod open;
mod parts;
mod proof;
mod seals;
#[cfg(test)]
mod tests;
mod whole;

pub use budget::Room;
use budget::{Budget, is_full};
pub use open::CacheError;
pub use parts::Wait;
pub use proof::Pass;
use proof::Proof;
use seals::Seals;
pub use whole::Whole;

/// The cache file of one disk.
#[derive(Debug)]
pub struct DiskCache(Option<CacheFile>);

#[derive(Debug)]
struct CacheFile {
    file: Flock<File>,
    path: PathBuf,
    disk: Digest,
    disk_bytes: u64,
    directory: Directory,
    /// Set by the first error.
    off: AtomicBool,
    budget: Mutex<Budget>,
    /// Bytes that were reserved of it and are perhaps not in a file yet.
    unwritten: AtomicU64,
    /// How many want all of the disk here: nothing of it makes room meanwhile.
    wanted_whole: AtomicUsize,
    /// What [`Self::room_bytes`] was when it was counted last.
    room: AtomicU64,
    known: Mutex<Known>,
    recency: Mutex<Recency>,
    /// How often anything was used, and how often when that was saved last.
    touches: AtomicU64,
    saved: AtomicU64,
    hints: Option<Hints>,
    /// Files of other disks, as far as somebody asked for them.
    others: Mutex<HashMap<u32, Option<Arc<File>>>>,
    evicted: Evicted,
    proof: Proof,
    /// Of what was verified in this run.
    seals: Option<Seals>,
    /// Whether the file is on a tmpfs.
    in_memory: bool,
}

/// What was taken out of the files of a directory to make room, by this mount.
#[derive(Debug, Default)]
pub struct Evicted {
    /// Segments of 1 MiB that had data.
    pub segments: Counter,
    /// Bytes that the files occupy less.
    pub bytes: Counter,
}

/// What is known about the blocks of the file.
#[derive(Debug, Default)]
struct Known {
    /// Not a hole, as far as we know.
    present: BlockSet,
    /// The regions of which that was asked.
    mapped: HashSet<u64>,
}

/// What the cache has of a chunk.
#[derive(Debug)]
pub enum Cached {
    /// All of it, verified just now.
    Chunk(Chunk),
    /// The same, from another place; it is to be [filled in](DiskCache::fill) at its own.
    Copied(Chunk),
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

    /// Whether there is any use in asking.
    #[must_use]
    pub fn is_on(&self) -> bool {
        self.file().is_some()
    }

    /// Whether reading `place` may be worth a try. Answered from memory, but for the first question
    /// about a region, which asks the file system where its holes are.
    #[must_use]
    pub fn may_hold(&self, place: &Place) -> bool {
        self.file().is_some_and(|cache| cache.may_hold(place))
    }

    /// The same, as far as it is known: no, where nobody asked the file system yet. Does not block.
    #[must_use]
    pub fn is_known_to_hold(&self, place: &Place) -> bool {
        let known = |cache: &CacheFile| cache.known().present.contains(place.blocks());
        self.file().is_some_and(known)
    }

    /// Reads and verifies the chunk at `place`; where it is not there, the same chunk from elsewhere.
    /// Blocks on the disk.
    #[must_use]
    pub fn read(&self, place: &Place) -> Cached {
        let Some(cache) = self.file() else {
            return Cached::Miss;
        };
        let found = if cache.may_hold(place) {
            cache.read_chunk(place)
        } else {
            Cached::Miss
        };
        if let Cached::Chunk(_) = found {
            return found;
        }
        cache.elsewhere(place).map_or(found, Cached::Copied)
    }

    /// Sees to it that the chunk at `place` is there, without a network. Returns whether it may be.
    /// Blocks on the disk.
    #[must_use]
    pub fn obtain(&self, place: &Place) -> bool {
        let Some(cache) = self.file() else {
            return false;
        };
        cache.may_hold(place)
            || cache
                .elsewhere(place)
                .is_some_and(|chunk| self.fill(place, &chunk) > 0)
    }

    /// Whether the chunk of `place` may be at another place, in this file or in another version's. Blocks on the disk.
    #[must_use]
    pub fn may_be_elsewhere(&self, place: &Place) -> bool {
        self.file().is_some_and(|cache| {
            let _busy = desk::begin();
            cache.may_be_elsewhere(place)
        })
    }

    /// Writes a chunk to its place and returns how many bytes that took. Blocks on the disk.
    pub fn fill(&self, place: &Place, chunk: &Chunk) -> u64 {
        let Some(cache) = self.file().filter(|cache| !cache.may_hold(place)) else {
            return 0;
        };
        let bytes = chunk.bytes().len() as u64;
        let Some(_reserved) = cache.reserve(bytes + NOTE_BYTES) else {
            return 0;
        };
        let write = || {
            let _busy = desk::begin();
            cache.file.write_all_at(chunk.bytes(), place.disk_offset())
        };
        let written = match write() {
            Err(error) if is_full(&error) && cache.make_room(bytes) => write(),
            written => written,
        };
        match written {
            Ok(()) => {
                cache.known().present.insert(place.blocks());
                cache.touch(place);
                cache.note(place);
                cache.proof.filled();
                bytes
            }
            Err(error) if is_full(&error) => {
                cache.stop_filling(&error);
                0
            }
            Err(error) => {
                cache.switch_off("write", &error);
                0
            }
        }
    }

    /// Notes that the chunk at `place` was used, though not from here.
    pub fn touch(&self, place: &Place) {
        if let Some(cache) = self.file() {
            cache.touch(place);
        }
    }

    /// Says which chunks a boot reads: they are worth more than the rest.
    pub fn prize(&self, places: impl Iterator<Item = Place>) {
        if let Some(cache) = self.file() {
            let segments = places.flat_map(|place| segments(&place)).collect();
            cache.recency().prize(&segments, now());
        }
    }

    /// Bytes that filling in may take before it pushes out what it brought.
    #[must_use]
    pub fn room_bytes(&self) -> u64 {
        self.file().map_or(0, CacheFile::room_bytes)
    }

    /// Bytes that the file of this disk occupies; 0: the cache is off. Asks the file system.
    #[must_use]
    pub fn bytes(&self) -> u64 {
        let metadata = self.file().and_then(|it| it.file.metadata().ok());
        metadata.map_or(0, |metadata| metadata.blocks() * 512)
    }

    /// What this mount took out to make room, so far.
    #[must_use]
    pub fn evicted(&self) -> Option<&Evicted> {
        Some(&self.0.as_ref()?.evicted)
    }

    /// Most bytes of chunks that the directory holds; `None`: the cache is off for good.
    #[must_use]
    pub fn bytes_max(&self) -> Option<u64> {
        let on = |cache: &&CacheFile| !cache.off.load(Ordering::Relaxed);
        Some(self.0.as_ref().filter(on)?.directory.disks_max())
    }

    /// Saves what was used when. Blocks on the disk.
    pub fn save(&self) {
        if let Some(cache) = self.file() {
            cache.save();
        }
    }

    /// Makes all that is on the file system of the cache durable, documents, too. Blocks on the disk, for as long as that
    /// takes: no sign that it does not answer.
    ///
    /// # Errors
    ///
    /// There is no cache, or its disk failed.
    pub fn sync(&self) -> io::Result<()> {
        let cache = self.file().ok_or(io::ErrorKind::NotFound)?;
        Ok(nix::unistd::syncfs(&*cache.file)?)
    }

    /// Does so if anything was used since. Returns whether it was.
    pub fn save_news(&self) -> bool {
        let Some(cache) = self.file() else {
            return false;
        };
        let news = cache.touches.load(Ordering::Relaxed) != cache.saved.load(Ordering::Relaxed);
        if news {
            cache.save();
        }
        news
    }

    /// Whether the cache is off for good: there is none, or an error switched it off.
    #[must_use]
    pub fn is_off(&self) -> bool {
        let is_off = |cache: &CacheFile| cache.off.load(Ordering::Relaxed);
        self.0.as_ref().is_none_or(is_off)
    }

    /// The file, unless the cache is off.
    fn file(&self) -> Option<&CacheFile> {
        self.0
            .as_ref()
            .filter(|cache| !cache.off.load(Ordering::Relaxed) && !desk::is_silent())
    }
}

impl CacheFile {
    fn may_hold(&self, place: &Place) -> bool {
        let region = place.disk_offset() / REGION_BYTES;
        let known = self.known();
        if known.mapped.contains(&region) {
            return known.present.contains(place.blocks());
        }
        drop(known);
        let _busy = desk::begin();
        let start = region * REGION_BYTES;
        let data = match sparse::data_in(&self.file, start..start + REGION_BYTES) {
            Ok(data) => data,
            Err(error) => {
                self.switch_off("look for data in", &error);
                return false;
            }
        };
        let mut known = self.known();
        let block = u64::from(BLOCK_BYTES);
        for data in data {
            known
                .present
                .insert(data.start / block..data.end.div_ceil(block));
        }
        known.mapped.insert(region);
        known.present.contains(place.blocks())
    }

    /// Reads the chunk at its own place and verifies it.
    fn read_chunk(&self, place: &Place) -> Cached {
        let found = read_verified(&self.file, place, place.disk_offset());
        let found = found.unwrap_or_else(|error| {
            self.switch_off("read", &error);
            Cached::Miss
        });
        if let Cached::Chunk(chunk) = &found {
            if let Some(seals) = &self.seals {
                seals.seal(place.blocks().start, chunk.bytes());
            }
            self.touch(place);
        } else {
            self.known().present.remove(place.blocks());
            self.proof.doubt();
        }
        found
    }

    fn touch(&self, place: &Place) {
        self.touches.fetch_add(1, Ordering::Relaxed);
        let (mut recency, now) = (self.recency(), now());
        for segment in segments(place) {
            recency.touch(segment, now);
        }
    }

    /// Saves what was used when; a hint, so that failing at it is no failure.
    fn save(&self) {
        let touches = self.touches.load(Ordering::Relaxed);
        let file = self.recency().encode();
        let Some(_reserved) = self.reserve(file.len() as u64 + NOTE_BYTES) else {
            return;
        };
        let _busy = desk::begin();
        match directory::replace(&self.directory.recency(&self.disk), &file) {
            Ok(()) => self.saved.store(touches, Ordering::Relaxed),
            Err(error) => tracing::debug!(%error, "what was used when is not saved"),
        }
    }

    fn switch_off(&self, attempt: &str, error: &io::Error) {
        if !self.off.swap(true, Ordering::Relaxed) {
            tracing::warn!(cache = %self.path.display(), %error, "cannot {attempt} the cache file; the disk cache is off, reads go on");
        }
    }

    fn known(&self) -> MutexGuard<'_, Known> {
        self.known.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn recency(&self) -> MutexGuard<'_, Recency> {
        self.recency.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Reads the bytes at `offset` of `file` as the chunk of `place`.
pub(super) fn read_verified(file: &File, place: &Place, offset: u64) -> io::Result<Cached> {
    let mut bytes = vec![0; usize::try_from(place.plain_bytes()).map_err(io::Error::other)?];
    let busy = desk::begin();
    file.read_exact_at(&mut bytes, offset)?;
    drop(busy);
    if has_zero_block(&bytes) {
        return Ok(Cached::Miss);
    }
    let chunk = Chunk::verify(place.id(), Bytes::from(bytes));
    Ok(chunk.map_or(Cached::Rejected, Cached::Chunk))
}

fn has_zero_block(bytes: &[u8]) -> bool {
    const ZERO: [u8; BLOCK_BYTES as usize] = [0; BLOCK_BYTES as usize];
    bytes
        .chunks(ZERO.len())
        .any(|block| block == &ZERO[..block.len()])
}

/// The segments that a chunk touches: one, seldom two. A disk of more than 4 PiB has no more of them.
fn segments(place: &Place) -> impl Iterator<Item = u32> + use<> {
    let disk = place.on_disk();
    (disk.start / SEGMENT_BYTES..=(disk.end - 1) / SEGMENT_BYTES)
        .filter_map(|segment| u32::try_from(segment).ok())
}

/// Seconds since 1970, for hints.
fn now() -> u32 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH);
    since.map_or(0, |since| {
        u32::try_from(since.as_secs()).unwrap_or(u32::MAX)
    })
}
