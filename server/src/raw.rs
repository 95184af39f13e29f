//! The images of the store: found by reference, opened as disks, listed.
//!
//! A reference is looked up anew for each request, so a tag that moved is seen at once. Open
//! disks are kept by their content, with the index pages that they have read: a program that
//! reads a disk in a thousand ranges opens it once.

use std::num::NonZeroUsize;
use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};

use image_format::catalogue::Catalogue;
use image_format::{Digest, ImageRef};
use image_store::{ImageReader, ReadError, Store};
use lru::LruCache;

use crate::precondition::EntityTag;
use crate::store::StoreError;

/// Open disks kept: more than people read through `/raw/` at once. Each holds at most 16 index
/// pages, mostly of 100 KiB.
const DISKS_KEPT: NonZeroUsize = NonZeroUsize::new(8).expect("not zero");

/// The images of one store.
#[derive(Debug)]
pub(crate) struct Images {
    store: Store,
    disks: Mutex<LruCache<Digest, Arc<ImageReader>>>,
}

impl Images {
    /// Opens the store in a directory.
    ///
    /// # Errors
    /// The directory holds no store that can be read.
    pub(crate) async fn open(root: &Path) -> Result<Self, image_store::StoreError> {
        Ok(Self {
            store: Store::open(root).await?,
            disks: Mutex::new(LruCache::new(DISKS_KEPT)),
        })
    }

    /// Opens the disk that a reference means now, with the tag of its content.
    ///
    /// # Errors
    /// [`StoreError::NoSuchImage`], or the store is damaged.
    pub(crate) async fn disk(
        &self,
        image: &ImageRef,
    ) -> Result<(Arc<ImageReader>, EntityTag), StoreError> {
        let failed = |source| from_image_store(image, source);
        let names = self.store.names().await.map_err(failed)?;
        let catalogue = self
            .store
            .catalogue(&names, &image.name)
            .await
            .map_err(failed)?;
        let (_, version) = catalogue
            .resolve(image)
            .map_err(|error| failed(error.into()))?;
        // Not the tag of the region table's own bytes, which have the same digest.
        let tag = EntityTag::new(&format!("{}.raw", version.disk));
        if let Some(disk) = self.kept().get(&version.disk) {
            return Ok((Arc::clone(disk), tag));
        }
        let manifest = self
            .store
            .manifest(&version.manifest)
            .await
            .map_err(failed)?;
        let opened = ImageReader::open(self.store.clone(), &manifest).await;
        let disk = Arc::new(opened.map_err(|source| StoreError::Image {
            image: image.clone(),
            source: Box::new(source),
        })?);
        self.kept()
            .put(manifest.disk.regions.digest, Arc::clone(&disk));
        Ok((disk, tag))
    }

    /// Returns the catalogues of the first `max` names and how many more there are.
    ///
    /// A catalogue that cannot be read is left out and logged: one damaged image does not hide
    /// the others.
    ///
    /// # Errors
    /// What the store offers cannot be read.
    pub(crate) async fn list(&self, max: usize) -> Result<(Vec<Catalogue>, usize), StoreError> {
        let names = self.store.names().await.map_err(StoreError::Names)?;
        let mut catalogues = Vec::new();
        for name in names.names.keys().take(max) {
            match self.store.catalogue(&names, name).await {
                Ok(catalogue) => catalogues.push(catalogue),
                Err(error) => tracing::error!("cannot list image {name}: {error}"),
            }
        }
        Ok((catalogues, names.names.len().saturating_sub(max)))
    }

    /// The lock is held for a look-up; a panic cannot leave the map half changed.
    fn kept(&self) -> std::sync::MutexGuard<'_, LruCache<Digest, Arc<ImageReader>>> {
        self.disks.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn from_image_store(image: &ImageRef, error: image_store::StoreError) -> StoreError {
    match error {
        image_store::StoreError::UnknownImage { .. } | image_store::StoreError::Resolve(_) => {
            StoreError::NoSuchImage {
                reason: error.to_string(),
            }
        }
        error => StoreError::Image {
            image: image.clone(),
            source: Box::new(ReadError::Store(error)),
        },
    }
}
