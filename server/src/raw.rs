//! The images of the store: found by reference, opened as disks, listed.
//!
//! A reference is looked up anew for each request, so a tag that moved is seen at once. Open
//! disks are kept by their content, with the index pages that they have read: a program that
//! reads a disk in a thousand ranges opens it once.

use std::num::NonZeroUsize;
use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};

use image_format::catalogue::Catalogue;
use image_format::{Digest, ImageRef, Version};
use image_store::trust::TIMESTAMP_PATH;
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
    /// What was listed last; held while it is made, which takes a large store its time.
    listed: tokio::sync::Mutex<Option<(Digest, Arc<Listing>)>>,
}

/// What the images of a store are.
#[derive(Debug)]
pub(crate) struct Listing {
    /// The catalogues of the first names, with the versions that have tags.
    pub(crate) catalogues: Vec<Catalogue>,
    /// How many names there are.
    pub(crate) n_names: usize,
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
            listed: tokio::sync::Mutex::new(None),
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

    /// Returns the catalogues of the first `max` names, with the versions that have tags. Made once for each state of the store, however many ask.
    ///
    /// A catalogue that cannot be read is left out and logged: one damaged image does not hide
    /// the others.
    ///
    /// # Errors
    /// What the store offers cannot be read.
    pub(crate) async fn list(&self, max: usize) -> Result<Arc<Listing>, StoreError> {
        let mut listed = self.listed.lock().await;
        let timestamp = self.store.root().join(TIMESTAMP_PATH);
        // A store without one is empty, which is soon seen.
        let now = Digest::of(&tokio::fs::read(timestamp).await.unwrap_or_default());
        if let Some((_, listing)) = listed.as_ref().filter(|(then, _)| *then == now) {
            return Ok(Arc::clone(listing));
        }
        let listing = Arc::new(self.list_anew(max).await?);
        // What could not be read may be mended in the same state.
        let is_whole = listing.catalogues.len() == listing.n_names.min(max);
        *listed = is_whole.then(|| (now, Arc::clone(&listing)));
        Ok(listing)
    }

    async fn list_anew(&self, max: usize) -> Result<Listing, StoreError> {
        let names = self.store.names().await.map_err(StoreError::Names)?;
        let mut catalogues = Vec::new();
        for name in names.names.keys().take(max) {
            match self.store.catalogue(&names, name).await {
                Ok(mut catalogue) => {
                    let tags = &catalogue.tags;
                    let is_tagged =
                        |version: &Version| tags.values().any(|tagged| tagged == version);
                    catalogue.versions.retain(|version, _| is_tagged(version));
                    catalogues.push(catalogue);
                }
                Err(error) => tracing::error!("cannot list image {name}: {error}"),
            }
        }
        Ok(Listing {
            catalogues,
            n_names: names.names.len(),
        })
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
