//! What is kept of fetched chunks: in memory, in a file in the layout of the disk, and as frames of the boot pack.
//!
//! All are optional in the strict sense: whatever they lack or lose is fetched again, and none
//! can make a read fail.

use std::sync::{Arc, Weak};
use std::time::Duration;

use image_format::chunk::Chunk;

use crate::cache::desk::Started;
use crate::cache::disk::DiskCache;
use crate::cache::kept::KeptFrames;
use crate::cache::memory::MemoryCache;
use crate::place::Place;

pub mod blocks;
pub mod care;
pub mod desk;
pub mod directory;
pub mod disk;
pub mod documents;
mod hints;
pub mod kept;
pub mod memory;
pub mod policy;
mod recency;
pub mod shelf;
mod sparse;

/// A machine that is switched off, and a client that is killed, forget what they used since; a boot uses most of what
/// it uses in the first minute.
const SAVE_EVERY: Duration = Duration::from_secs(30);

/// The caches of a mount.
#[derive(Debug)]
pub struct Caches {
    /// Verified chunks in memory.
    pub memory: MemoryCache,
    /// Chunks in the cache file.
    pub disk: DiskCache,
    /// Frames of the boot pack, as they came.
    pub frames: KeptFrames,
}

impl Caches {
    /// These two, and no frames.
    #[must_use]
    pub fn of(memory: MemoryCache, disk: DiskCache) -> Self {
        Self {
            memory,
            disk,
            frames: KeptFrames::new(0),
        }
    }

    /// For what is fetched and kept nowhere.
    #[must_use]
    pub fn none() -> Self {
        Self::of(MemoryCache::new(0), DiskCache::off())
    }

    /// Does something that blocks on the disk cache; see [`desk::ask`].
    ///
    /// # Cancel safety
    ///
    /// Work that has begun goes on.
    pub(crate) async fn ask<T: Send + 'static>(
        self: &Arc<Self>,
        work: impl FnOnce(&Self) -> T + Send + 'static,
    ) -> Option<T> {
        let caches = Arc::clone(self);
        desk::ask(move || work(&caches)).await
    }

    /// The same behind readers; see [`desk::start`].
    ///
    /// # Cancel safety
    ///
    /// The work is done all the same.
    pub(crate) async fn ask_behind<T: Send + 'static>(
        self: &Arc<Self>,
        work: impl FnOnce(&Self) -> T + Send + 'static,
    ) -> Option<T> {
        let caches = Arc::clone(self);
        desk::start(move || work(&caches)).end().await
    }

    /// Begins to write chunks to the disk cache; ends with how many bytes that took. `None`: the cache is off.
    pub(crate) fn fill(self: &Arc<Self>, chunks: Vec<(Place, Chunk)>) -> Option<Started<u64>> {
        if chunks.is_empty() || !self.disk.is_on() {
            return None;
        }
        let caches = Arc::clone(self);
        Some(desk::start(move || {
            let fill = |(place, chunk): &(Place, Chunk)| caches.disk.fill(place, chunk);
            chunks.iter().map(fill).sum()
        }))
    }
}

/// Saves what of `caches` was used when, now and then, for as long as somebody has them: root disks never end in order.
pub async fn keep_recency(caches: Weak<Caches>) {
    loop {
        tokio::time::sleep(SAVE_EVERY).await;
        let Some(caches) = caches.upgrade() else {
            return;
        };
        // What is begun while its disk hangs would stay, each time.
        if caches.disk.is_on() {
            caches.ask_behind(|caches| caches.disk.save_news()).await;
        }
    }
}
