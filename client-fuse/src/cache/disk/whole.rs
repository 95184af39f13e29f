//! While all of a disk is brought into the cache, nothing of it makes room for the rest of it: what goes is of disks that
//! nobody mounts, whatever it is worth. So a fill comes to its end, and fetches nothing twice.

use std::sync::atomic::Ordering;

use super::budget::Room;
use super::{CacheFile, DiskCache};

/// That somebody wants all of a disk in the cache, until it is dropped.
#[derive(Debug)]
pub struct Whole<'a>(Option<&'a CacheFile>);

impl Whole<'_> {
    /// All of it is here, and stays wanted for as long as it is mounted.
    pub fn keep(mut self) {
        self.0 = None;
    }
}

impl Drop for Whole<'_> {
    fn drop(&mut self) {
        if let Some(cache) = self.0 {
            cache.wanted_whole.fetch_sub(1, Ordering::AcqRel);
        }
    }
}

impl DiskCache {
    /// Says that all of the disk is wanted here.
    #[must_use]
    pub fn want_whole(&self) -> Whole<'_> {
        let cache = self.0.as_ref();
        if let Some(cache) = cache {
            cache.wanted_whole.fetch_add(1, Ordering::AcqRel);
        }
        Whole(cache)
    }

    /// What looking for room came to the last time; none, while the disk does not answer. Does not block.
    #[must_use]
    pub fn room(&self) -> Room {
        self.file().map_or(Room::None, CacheFile::room)
    }

    /// Looks for room again, though there was none. Blocks on the disk.
    pub fn look_for_room(&self) {
        if let Some(cache) = self.file() {
            cache.look_for_room();
        }
    }
}

impl CacheFile {
    pub(super) fn is_wanted_whole(&self) -> bool {
        self.wanted_whole.load(Ordering::Acquire) > 0
    }
}
