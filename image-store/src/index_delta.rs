//! Builds the index delta of a disk that is about to be the next version of a name.
//!
//! Machines that have the version before have its pages; in a page of the new one mostly a few entries are others. Patches of
//! what boots read come first; the others only where they are few, because the delta is fetched as a whole.

use std::collections::BTreeSet;
use std::io;
use std::pin::pin;
use std::sync::Arc;

use futures_util::{StreamExt as _, TryStreamExt as _, stream};
use image_format::ImageRef;
use image_format::catalogue::VersionEntry;
use image_format::index_delta::{INDEX_DELTA_BYTES_MAX, PatchesBuilder};
use image_format::manifest::{Disk, IndexDelta};
use image_format::page::Page;

use crate::reader::{ImageReader, ReadError};
use crate::store::{Store, StoreError};

/// Patches of pages that no boot reads are added as long as the delta is no longer.
const OTHERS_BYTES_MAX: usize = 256 << 10;

/// As many bytes of such pages are tried at most: a hundred of the usual length.
const TRIED_BYTES_MAX: usize = 4 << 20;

/// Pages of each disk that are read at once; the store may be a server.
const PAGES_AT_ONCE: usize = 8;

/// Why there can be no index delta.
#[derive(Debug, thiserror::Error)]
#[expect(missing_docs, reason = "the messages are the docs")]
pub enum IndexDeltaError {
    #[error(transparent)]
    Read(#[from] ReadError),
    #[error(transparent)]
    Store(#[from] StoreError),
    #[error("cannot compress a patch of the index")]
    Compress(#[source] io::Error),
}

impl Store {
    /// Builds the index delta of `disk`, whose objects are in the store, from the version that the tag of `reference` leads
    /// to, or else from the newest. `booted`: regions that a boot reads. None, if there is no version, or it is of no use, or
    /// one has this very disk already.
    ///
    /// # Errors
    /// One of the disks cannot be read, or the store cannot be written.
    ///
    /// # Cancel safety
    /// Dropped before it ends, it leaves an object that nothing refers to.
    pub async fn build_index_delta(
        &self,
        reference: &ImageRef,
        disk: &Disk,
        booted: &BTreeSet<u32>,
    ) -> Result<Option<IndexDelta>, IndexDeltaError> {
        let Some(base) = self.before(reference, disk).await? else {
            return Ok(None);
        };
        let mut pages = Pages {
            base: ImageReader::open_disk(self.clone(), &base).await?,
            disk: ImageReader::open_disk(self.clone(), disk).await?,
            builder: PatchesBuilder::default(),
        };
        let booted_first = booted.iter().copied();
        pages
            .patch(booted_first, INDEX_DELTA_BYTES_MAX, usize::MAX)
            .await?;
        let others = (0..pages.disk.n_regions()).filter(|region| !booted.contains(region));
        pages
            .patch(others, OTHERS_BYTES_MAX, TRIED_BYTES_MAX)
            .await?;
        let Some(bytes) = pages.builder.finish() else {
            return Ok(None);
        };
        Ok(Some(IndexDelta {
            object: self.put_object(bytes.into()).await?,
            base: base.regions.digest,
        }))
    }

    /// The disk of the version that machines have which will boot `disk` as the next one.
    async fn before(&self, reference: &ImageRef, disk: &Disk) -> Result<Option<Disk>, StoreError> {
        let names = self.names().await?;
        if !names.names.contains_key(&reference.name) {
            return Ok(None);
        }
        let catalogue = self.catalogue(&names, &reference.name).await?;
        let is_known = |entry: &VersionEntry| entry.content == disk.content;
        if catalogue.versions.values().any(is_known) {
            return Ok(None);
        }
        let tagged = catalogue.tags.get(&reference.tag_or_latest());
        let newest = catalogue.versions.keys().next_back();
        let entry = tagged.or(newest).and_then(|it| catalogue.versions.get(it));
        match entry {
            Some(entry) => Ok(Some(self.manifest(&entry.manifest).await?.disk)),
            None => Ok(None),
        }
    }
}

/// Two indexes, and what makes one from the other.
struct Pages {
    base: ImageReader,
    disk: ImageReader,
    builder: PatchesBuilder,
}

/// The pages of a region, if both disks have one and they differ.
type Pair = Option<(Arc<Page>, Arc<Page>)>;

impl Pages {
    /// Adds patches of `regions`, as long as the delta is no longer than `bytes_max`, until pages of `tried_max` bytes were
    /// tried.
    async fn patch(
        &mut self,
        regions: impl Iterator<Item = u32>,
        bytes_max: usize,
        tried_max: usize,
    ) -> Result<(), IndexDeltaError> {
        let Self {
            base,
            disk,
            builder,
        } = self;
        let pairs = stream::iter(regions).map(|region| pair(base, disk, region));
        let mut pairs = pin!(pairs.buffered(PAGES_AT_ONCE));
        let mut tried = 0;
        while let Some((region, pair)) = pairs.try_next().await? {
            let Some((base, page)) = pair else { continue };
            let mut taken = std::mem::take(builder);
            let compressed = tokio::task::spawn_blocking(move || {
                let page = page.encode();
                let fits = taken.push(region, &base.encode(), &page, bytes_max);
                (taken, fits.map(|_| page.len()))
            });
            let compressed = compressed.await.map_err(io::Error::other);
            let (given_back, outcome) = compressed.map_err(IndexDeltaError::Compress)?;
            *builder = given_back;
            // One that has no room says nothing of the next one.
            let page_bytes = outcome.map_err(IndexDeltaError::Compress)?;
            tried += page_bytes;
            if tried > tried_max {
                break;
            }
        }
        Ok(())
    }
}

async fn pair(
    base: &ImageReader,
    disk: &ImageReader,
    region: u32,
) -> Result<(u32, Pair), IndexDeltaError> {
    if base.page_digest(region).await? == disk.page_digest(region).await? {
        return Ok((region, None));
    }
    let pages = futures_util::try_join!(base.page(region), disk.page(region))?;
    Ok((region, pages.0.zip(pages.1)))
}
