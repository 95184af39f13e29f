//! What is kept of fetched chunks: in memory, and in a file in the layout of the disk.
//!
//! Both are optional in the strict sense: whatever they lack or lose is fetched again, and neither
//! can make a read fail.

use std::sync::{Arc, Weak};

use crate::cache::disk::DiskCache;
use crate::cache::disk::answers::LOOK_EVERY;
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

/// Looks from one save to the next, which is 30 s. A machine that is switched off, and a client that is killed, forget
/// what they used since; a boot uses most of what it uses in the first minute.
const LOOKS_TO_A_SAVE: u32 = 15;

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

    /// Does something that blocks on the disk cache, on a thread where it may. `None`: the cache is off, its disk
    /// does not answer, or `work` failed.
    ///
    /// # Cancel safety
    ///
    /// Work that has begun goes on.
    pub(crate) async fn ask<T: Send + 'static>(
        self: &Arc<Self>,
        work: impl FnOnce(&Self) -> T + Send + 'static,
    ) -> Option<T> {
        let asking = async {
            let thread = self.disk.thread().await?;
            let caches = Arc::clone(self);
            let working = tokio::task::spawn_blocking(move || {
                let done = work(&caches);
                drop(thread);
                done
            });
            working.await.ok()
        };
        tokio::select! {
            biased;
            done = asking => done,
            () = self.disk.silence() => None,
        }
    }
}

/// Looks after `caches` for as long as somebody has them: whether their disk answers, and that what was used when is
/// saved now and then, because root disks never end in order.
pub async fn tend(caches: Weak<Caches>) {
    let mut looks = 0;
    loop {
        tokio::time::sleep(LOOK_EVERY).await;
        let Some(caches) = caches.upgrade() else {
            return;
        };
        caches.disk.look();
        looks = (looks + 1) % LOOKS_TO_A_SAVE;
        if looks == 0 {
            // Who looks does not wait for the disk.
            tokio::task::spawn_blocking(move || caches.disk.save_news());
        }
    }
}
