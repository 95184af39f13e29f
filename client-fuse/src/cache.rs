//! What is kept of fetched chunks: in memory, and in a file in the layout of the disk.
//!
//! Both are optional in the strict sense: whatever they lack or lose is fetched again, and neither
//! can make a read fail.

use std::sync::Weak;
use std::time::Duration;

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

/// A machine that is switched off, and a client that is killed, forget what they used since; a boot uses most of what
/// it uses in the first minute.
const SAVE_EVERY: Duration = Duration::from_secs(30);

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

/// Saves what of `caches` was used when, now and then, for as long as somebody has them: root disks never end in order.
pub async fn keep_recency(caches: Weak<Caches>) {
    loop {
        tokio::time::sleep(SAVE_EVERY).await;
        let Some(caches) = caches.upgrade() else {
            return;
        };
        let saved = tokio::task::spawn_blocking(move || caches.disk.save_news()).await;
        if let Err(error) = saved {
            tracing::error!(%error, "what was used when is not saved");
        }
    }
}
