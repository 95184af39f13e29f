//! What is kept of fetched chunks: in memory, and in a file in the layout of the disk.
//!
//! Both are optional in the strict sense: whatever they lack or lose is fetched again, and neither
//! can make a read fail.

use crate::cache::disk::DiskCache;
use crate::cache::memory::MemoryCache;

pub mod blocks;
pub mod care;
pub mod directory;
pub mod disk;
pub mod documents;
mod hints;
pub mod memory;
pub mod policy;
mod recency;
pub mod shelf;
mod sparse;

/// The two caches of a mount.
#[derive(Debug)]
pub struct Caches {
    /// Verified chunks in memory.
    pub memory: MemoryCache,
    /// Chunks in the cache file.
    pub disk: DiskCache,
}

impl Caches {
    /// For what is fetched and kept nowhere.
    #[must_use]
    pub fn none() -> Self {
        Self {
            memory: MemoryCache::new(0),
            disk: DiskCache::off(),
        }
    }
}
