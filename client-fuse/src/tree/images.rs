//! Opens images, keeps some of them open, and never one of them twice.
//!
//! Kept open are those that files are open of, at most [`LIVE_MAX`], and beside them the
//! [`KEPT_MAX`] used last. Each takes what its index takes, at most 8 MiB.

use std::collections::HashMap;
use std::fmt;
use std::num::NonZeroUsize;
use std::sync::{Arc, Mutex, PoisonError, Weak};

use image_format::catalogue::VersionEntry;
use image_format::reference::{ImageRef, Version};
use lru::LruCache;
use tokio::runtime::Handle;

use super::TreeError;
use crate::cache::disk::DiskCache;
use crate::cache::memory::MemoryCache;
use crate::cache::{Caches, desk, keep_recency};
use crate::config::{BaseUrl, DiskCacheConfig};
use crate::disk::Disk;
use crate::fetch::Source;
use crate::fetch::fetcher::Fetcher;
use crate::fs::ImageFs;
use crate::open::{OpenError, OpenImage, open_version};
use crate::overlay::layered::Layered;

/// Images kept open after the last file was closed.
const KEPT_MAX: NonZeroUsize = NonZeroUsize::new(16).expect("it is not 0");

/// Images open at once.
const LIVE_MAX: usize = 64;

/// A version of an image, by what its catalogue says of it: always the same disk.
#[derive(Clone, Debug)]
pub struct Pinned {
    reference: ImageRef,
    version: Version,
    entry: VersionEntry,
}

impl Pinned {
    pub(super) const fn new(reference: ImageRef, version: Version, entry: VersionEntry) -> Self {
        Self {
            reference,
            version,
            entry,
        }
    }

    /// When it was published: seconds since 1970-01-01 00:00 UTC.
    pub(super) const fn created(&self) -> u64 {
        self.entry.created
    }
}

impl fmt::Display for Pinned {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.reference.fmt(f)
    }
}

/// The manifest names all of it; a new revision is another one.
impl PartialEq for Pinned {
    fn eq(&self, other: &Self) -> bool {
        self.reference == other.reference && self.entry.manifest == other.entry.manifest
    }
}

impl Eq for Pinned {}

impl std::hash::Hash for Pinned {
    fn hash<H: std::hash::Hasher>(&self, state: &mut H) {
        self.reference.hash(state);
        self.entry.manifest.digest.hash(state);
    }
}

/// An open image.
#[derive(Debug)]
pub struct Opened<S> {
    pinned: Arc<Pinned>,
    fs: ImageFs<S>,
    caches: Arc<Caches>,
    runtime: Handle,
}

impl<S> Opened<S> {
    /// Which it is.
    pub(super) const fn pinned(&self) -> &Arc<Pinned> {
        &self.pinned
    }

    /// Its files.
    pub(super) const fn fs(&self) -> &ImageFs<S> {
        &self.fs
    }
}

impl<S> Drop for Opened<S> {
    fn drop(&mut self) {
        let caches = Arc::clone(&self.caches);
        // What was used when: a hint, which may get lost when the process ends.
        self.runtime.spawn(desk::ask(move || caches.disk.save()));
    }
}

/// Opens images of one store.
#[derive(Debug)]
pub struct Images<S> {
    /// For what describes disks: gives up early.
    metadata: Arc<Fetcher<S>>,
    /// For what is on disks; each disk has a cache file of its own, and all else in common.
    chunks: Fetcher<S>,
    memory: MemoryCache,
    cache: Option<DiskCacheConfig>,
    base: BaseUrl,
    runtime: Handle,
    open: Mutex<Open<S>>,
}

/// Where an image is, if it is open.
type Place<S> = Arc<tokio::sync::Mutex<Weak<Opened<S>>>>;

#[derive(Debug)]
struct Open<S> {
    kept: LruCache<Arc<Pinned>, Arc<Opened<S>>>,
    /// All that are open, those kept included; the locks are held by who opens.
    live: HashMap<Arc<Pinned>, Place<S>>,
}

impl<S: Source> Images<S> {
    /// Images whose metadata `metadata` fetches, and whose chunks `chunks`, into `memory` and the
    /// directory of `cache`; their background work runs on `runtime`.
    #[must_use]
    pub fn new(
        metadata: Arc<Fetcher<S>>,
        chunks: Fetcher<S>,
        memory: MemoryCache,
        cache: Option<DiskCacheConfig>,
        base: BaseUrl,
        runtime: Handle,
    ) -> Self {
        Self {
            metadata,
            chunks,
            memory,
            cache,
            base,
            runtime,
            open: Mutex::new(Open {
                kept: LruCache::new(KEPT_MAX),
                live: HashMap::new(),
            }),
        }
    }

    /// The image, open.
    ///
    /// # Errors
    ///
    /// When it cannot be opened, or too many are.
    pub(super) async fn open(&self, pinned: &Arc<Pinned>) -> Result<Arc<Opened<S>>, TreeError> {
        let mut dropped = Vec::new();
        let place = {
            let mut open = self.open.lock().unwrap_or_else(PoisonError::into_inner);
            if let Some(opened) = open.kept.get(pinned) {
                return Ok(Arc::clone(opened));
            }
            open.place(pinned, &mut dropped)
        };
        drop(dropped);
        let place = place?;
        // Who opens the same image waits here; others do not.
        let mut place = place.lock().await;
        let opened = match place.upgrade() {
            Some(opened) => opened,
            None => {
                let opened = self.open_anew(pinned).await.map_err(|error| {
                    let cause: &dyn std::error::Error = &error;
                    tracing::error!(image = %pinned, error = cause, "an image cannot be opened");
                    TreeError::Open(Arc::new(error))
                })?;
                let opened = Arc::new(opened);
                *place = Arc::downgrade(&opened);
                opened
            }
        };
        drop(place);
        let mut open = self.open.lock().unwrap_or_else(PoisonError::into_inner);
        let pushed = open.kept.push(Arc::clone(pinned), Arc::clone(&opened));
        drop(open);
        // What this pushes out may end here, which must not be under the lock.
        drop(pushed);
        Ok(opened)
    }

    /// What fetches chunks.
    pub(super) const fn fetcher(&self) -> &Fetcher<S> {
        &self.chunks
    }

    /// Saves what was used when, of all that are kept. Blocks on the disk.
    pub(super) fn save(&self) {
        let kept: Vec<_> = {
            let open = self.open.lock().unwrap_or_else(PoisonError::into_inner);
            open.kept.iter().map(|(_, it)| Arc::clone(it)).collect()
        };
        for opened in kept {
            opened.caches.disk.save();
        }
    }

    async fn open_anew(&self, pinned: &Arc<Pinned>) -> Result<Opened<S>, OpenError> {
        let Pinned {
            reference,
            version,
            entry,
        } = &**pinned;
        let image = open_version(&self.metadata, reference, *version, entry).await?;
        let disk = self.disk_cache(&image).await;
        let caches = Arc::new(Caches::of(self.memory.clone(), disk));
        self.runtime.spawn(keep_recency(Arc::downgrade(&caches)));
        let fetcher = Arc::new(self.chunks.into_caches(Arc::clone(&caches)));
        let stats = Arc::clone(fetcher.stats());
        // Nothing is fetched ahead of the first read: who lists a store wants none of its disks.
        let disk = Disk::new(&image, fetcher, Arc::clone(&caches), &self.runtime, None);
        tracing::debug!(image = %pinned, "opened");
        Ok(Opened {
            pinned: Arc::clone(pinned),
            fs: ImageFs::new(Layered::read_only(disk), &image, &self.base, stats),
            caches,
            runtime: self.runtime.clone(),
        })
    }

    async fn disk_cache(&self, image: &OpenImage) -> DiskCache {
        let Some(cache) = self.cache.clone() else {
            return DiskCache::off();
        };
        DiskCache::open_or_off(cache, image.disk_digest(), image.manifest.disk.length).await
    }
}

impl<S> Open<S> {
    /// Where `pinned` is, or will be, open. What is no longer kept for it goes to `dropped`, to end outside
    /// of the lock.
    fn place(
        &mut self,
        pinned: &Arc<Pinned>,
        dropped: &mut Vec<Arc<Opened<S>>>,
    ) -> Result<Place<S>, TreeError> {
        if let Some(place) = self.live.get(pinned) {
            return Ok(Arc::clone(place));
        }
        if self.live.len() >= LIVE_MAX {
            // In use is what somebody opens right now, or has.
            self.live.retain(|_, place| {
                Arc::strong_count(place) > 1
                    || place
                        .try_lock()
                        .is_ok_and(|opened| opened.strong_count() > 0)
            });
        }
        while self.live.len() >= LIVE_MAX {
            // What is only kept makes room for what is asked for.
            let Some((pinned, opened)) = self.kept.pop_lru() else {
                return Err(TreeError::TooManyOpen);
            };
            let is_in_use = Arc::strong_count(&opened) > 1;
            dropped.push(opened);
            if !is_in_use {
                self.live.remove(&pinned);
            }
        }
        let place = Arc::new(tokio::sync::Mutex::new(Weak::new()));
        self.live.insert(Arc::clone(pinned), Arc::clone(&place));
        Ok(place)
    }
}
