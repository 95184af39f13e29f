//! Makes pages of the index from those of the version before, which this machine may have kept.
//!
//! The index delta is fetched when the first page is wanted that can be made so, and is of use for all of them. Whatever
//! fails here costs nothing but the page: it is fetched then.
//!
//! Bounds: an index delta is at most 1 MiB, and is kept for as long as the disk is open; the region table below it is 131 KiB
//! at most.

use std::sync::Arc;

use bytes::Bytes;
use image_format::digest::Digest;
use image_format::index_delta::Patches;
use image_format::manifest::IndexDelta;
use image_format::page::PAGE_BYTES_MAX;
use image_format::region_table::{LEAF_BYTES_MAX, LeafTable, Lookup, RegionTable, TABLE_BYTES_MAX};
use tokio::sync::OnceCell;

use crate::fetch::Source;
use crate::fetch::fetcher::{Fetcher, Whole};

/// What changed since a version that may be here.
#[derive(Debug)]
pub(super) struct Since<S> {
    delta: IndexDelta,
    fetcher: Arc<Fetcher<S>>,
    /// The index of that version, if it is here.
    base: OnceCell<Option<RegionTable>>,
    /// Fetched once, or not to be had.
    patches: OnceCell<Option<Patches>>,
}

impl<S: Source> Since<S> {
    pub(super) fn new(delta: IndexDelta, fetcher: Arc<Fetcher<S>>) -> Self {
        Self {
            delta,
            fetcher,
            base: OnceCell::new(),
            patches: OnceCell::new(),
        }
    }

    /// The page of `region` that `page` names, verified, if it can be made from what is here.
    ///
    /// # Cancel safety
    ///
    /// Dropping the future ends what only it waits for; the next one begins anew.
    pub(super) async fn page(&self, region: u32, page: Digest) -> Option<Bytes> {
        let base = self.base_page(region).await?;
        let patches = self.patches.get_or_init(|| self.fetch()).await.as_ref()?;
        let stats = self.fetcher.stats();
        match patches.page(region, &page, &base) {
            Ok(Some(bytes)) => {
                stats.index_delta.pages.increment();
                self.fetcher.keep(&Whole::of(page, PAGE_BYTES_MAX), &bytes);
                Some(bytes)
            }
            Ok(None) => None,
            Err(error) => {
                let error: &dyn std::error::Error = &error;
                tracing::warn!(
                    error,
                    region,
                    "a patch of the index is of no use; the page is fetched"
                );
                stats.index_delta.damaged.increment();
                None
            }
        }
    }

    /// The page of `region` in the version before, if it is here.
    async fn base_page(&self, region: u32) -> Option<Bytes> {
        let table = self.base.get_or_init(|| self.base_table()).await.as_ref()?;
        let page = match table.lookup(region) {
            Lookup::Hole => None,
            Lookup::Page(page) => Some(page),
            Lookup::Leaf { leaf, number, slot } => {
                let leaf = self.recall(leaf, LEAF_BYTES_MAX).await?;
                LeafTable::decode(&leaf, table, number).ok()?.page(slot)
            }
        };
        self.recall(page?, PAGE_BYTES_MAX).await
    }

    async fn base_table(&self) -> Option<RegionTable> {
        let bytes = self.recall(self.delta.base, TABLE_BYTES_MAX).await?;
        RegionTable::decode(&bytes).ok()
    }

    async fn recall(&self, digest: Digest, bytes_max: usize) -> Option<Bytes> {
        self.fetcher.recall(&Whole::of(digest, bytes_max)).await
    }

    async fn fetch(&self) -> Option<Patches> {
        let counter = &self.fetcher.stats().fetched.index_delta_bytes;
        let whole = Whole::object(self.delta.object);
        let bytes = self.fetcher.whole_at_best(&whole, counter).await?;
        let decoded = Patches::decode(bytes);
        decoded
            .inspect_err(|error| {
                tracing::warn!(%error, "the index delta is of no use; pages are fetched");
                self.fetcher.stats().index_delta.damaged.increment();
            })
            .ok()
    }
}
