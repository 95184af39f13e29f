//! Builds the index delta of a disk that is about to be the next version of a name.
//!
//! Machines that have the version before have its pages; in a page of the new one mostly a few entries are others. Patches of
//! what boots read come first; the others only where they are few, because the delta is fetched as a whole.

use std::collections::BTreeSet;
use std::io;

use image_format::catalogue::VersionEntry;
use image_format::index_delta::{INDEX_DELTA_BYTES_MAX, PatchesBuilder};
use image_format::manifest::{Disk, IndexDelta};
use image_format::{Digest, ImageRef};

use crate::reader::{ImageReader, ReadError};
use crate::store::{Store, StoreError};

/// Patches of pages that no boot reads are added as long as the delta is no longer.
const OTHERS_BYTES_MAX: usize = 256 << 10;

/// As many bytes of such pages are tried at most: it takes a second.
const TRIED_BYTES_MAX: usize = 16 << 20;

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
        for region in booted {
            pages.patch(*region, INDEX_DELTA_BYTES_MAX).await?;
        }
        let mut tried = 0;
        for region in (0..pages.disk.n_regions()).filter(|region| !booted.contains(region)) {
            match pages.patch(region, OTHERS_BYTES_MAX).await? {
                Patched::Tried { page_bytes } => tried += page_bytes,
                Patched::Full => break,
            }
            if tried > TRIED_BYTES_MAX {
                break;
            }
        }
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

enum Patched {
    /// There is a patch, or it is of no use. No bytes, if the page is the same, or one of the disks has none.
    Tried { page_bytes: usize },
    /// The delta has become as long as it may be.
    Full,
}

impl Pages {
    /// Adds the patch of `region` if that makes the delta no longer than `bytes_max`.
    async fn patch(&mut self, region: u32, bytes_max: usize) -> Result<Patched, IndexDeltaError> {
        let digests: [Option<Digest>; 2] = [
            self.base.page_digest(region).await?,
            self.disk.page_digest(region).await?,
        ];
        let nothing = Patched::Tried { page_bytes: 0 };
        if digests[0] == digests[1] {
            return Ok(nothing);
        }
        let pages = (self.base.page(region).await?, self.disk.page(region).await?);
        let (Some(base), Some(page)) = pages else {
            return Ok(nothing);
        };
        let mut builder = std::mem::take(&mut self.builder);
        let compressed = tokio::task::spawn_blocking(move || {
            let page = page.encode();
            let fits = builder.push(region, &base.encode(), &page, bytes_max);
            (builder, fits.map(|fits| (fits, page.len())))
        });
        let compressed = compressed.await.map_err(io::Error::other);
        let (builder, outcome) = compressed.map_err(IndexDeltaError::Compress)?;
        self.builder = builder;
        let (fits, page_bytes) = outcome.map_err(IndexDeltaError::Compress)?;
        Ok(match fits {
            true => Patched::Tried { page_bytes },
            false => Patched::Full,
        })
    }
}
