//! Finds the index page of a region, fetching it when the region is first touched.
//!
//! A page is looked for among what a former run kept, then made from the page of the version before ([`Since`]), then fetched.
//!
//! Bounds: decoded pages and leaf tables of at most 8 MiB are kept, however large the disk, and those that are
//! [held](Pages::hold): for each 64 MiB of disk that a boot reads from, 120 KB, and not a megabyte if its chunks are small.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use bytes::Bytes;
use image_format::digest::Digest;
use image_format::page::{Entry, PAGE_BYTES_MAX, Page};
use image_format::region_table::{LEAF_BYTES_MAX, LeafTable, Lookup, RegionTable};
use image_format::{DecodeError, REGION_BYTES};

use crate::cache::shelf::Shelf;
use crate::disk::since::Since;
use crate::disk::{ReadError, Root};
use crate::fetch::fetcher::{Fetcher, Whole};
use crate::fetch::lanes::Hurry;
use crate::fetch::{FetchError, Source};
use crate::flight::{Abandoned, Boarding, Flights};
use crate::waits::{self, Layer};

/// A page of a full region with chunks of the usual length takes 120 KB, so this serves 4 GiB of
/// disk that is in use at one time.
const BYTES_MAX: usize = 8 << 20;

/// The index of one disk.
#[derive(Debug)]
pub struct Pages<S> {
    fetcher: Arc<Fetcher<S>>,
    table: RegionTable,
    since: Option<Since<S>>,
    kept: Shelf<Digest, Index>,
    /// What is never let go of.
    held: Mutex<HashMap<Digest, Index>>,
    flights: Flights<Digest, Result<Index, ReadError>>,
}

/// What is wanted of the index.
#[derive(Clone, Copy, Debug)]
enum Part {
    Leaf,
    Page { region: u32 },
}

/// A decoded part of the index.
#[derive(Clone, Debug)]
enum Index {
    Leaf(Arc<LeafTable>),
    Page(Arc<Page>),
}

impl Index {
    /// About what it takes in memory.
    fn bytes(&self) -> usize {
        match self {
            Self::Leaf(_) => LEAF_BYTES_MAX,
            Self::Page(page) => {
                size_of_val(page.entries()) + size_of_val(page.packs()) + size_of::<Entry>()
            }
        }
    }
}

impl<S: Source> Pages<S> {
    /// The index under `root`.
    #[must_use]
    pub fn new(root: Root, fetcher: Arc<Fetcher<S>>) -> Self {
        let since = |delta| Since::new(delta, Arc::clone(&fetcher));
        Self {
            since: root.delta.map(since),
            fetcher,
            table: root.table,
            kept: Shelf::new(BYTES_MAX),
            held: Mutex::default(),
            flights: Flights::new(),
        }
    }

    /// The length of the disk, in bytes.
    #[must_use]
    pub const fn disk_length(&self) -> u64 {
        self.table.disk_length()
    }

    /// How many regions the disk has.
    #[must_use]
    pub fn n_regions(&self) -> u32 {
        self.table.n_regions()
    }

    /// The page of `region`; `None`: all of it is a hole.
    ///
    /// # Errors
    ///
    /// When it cannot be fetched, or is no page.
    ///
    /// # Cancel safety
    ///
    /// Dropping the future ends the fetch; others who wait for the same page begin anew.
    pub async fn page(&self, region: u32) -> Result<Option<Arc<Page>>, ReadError> {
        let page = match self.table.lookup(region) {
            Lookup::Hole => None,
            Lookup::Page(page) => Some(page),
            Lookup::Leaf { leaf, number, slot } => self.leaf(leaf, number).await?.page(slot),
        };
        let Some(digest) = page else { return Ok(None) };
        let decode = |bytes: &[u8]| Ok(Index::Page(Arc::new(Page::decode(bytes)?)));
        match self.index(digest, Part::Page { region }, decode).await? {
            Index::Page(page) => Ok(Some(page)),
            Index::Leaf(_) => Err(ReadError::Confused { digest }),
        }
    }

    /// All regions that have a page, if that is known without asking and they are at most `most`; else
    /// none.
    #[must_use]
    pub fn regions(&self, most: usize) -> Vec<u32> {
        let all = 0..u32::try_from(self.table.disk_length().div_ceil(REGION_BYTES)).unwrap_or(0);
        let has_page = |region: &u32| matches!(self.table.lookup(*region), Lookup::Page(_));
        let some: Vec<u32> = all.filter(has_page).take(most + 1).collect();
        if some.len() > most { Vec::new() } else { some }
    }

    /// The page of `region`, if that can be said at once: `Some(None)` if all of it is a hole.
    #[must_use]
    pub fn at_hand(&self, region: u32) -> Option<Option<Arc<Page>>> {
        match self.table.lookup(region) {
            Lookup::Hole => Some(None),
            Lookup::Page(_) | Lookup::Leaf { .. } => self.kept(region).map(Some),
        }
    }

    /// The page of `region`, if it is here already.
    #[must_use]
    pub fn kept(&self, region: u32) -> Option<Arc<Page>> {
        let digest = match self.table.lookup(region) {
            Lookup::Hole => None,
            Lookup::Page(page) => Some(page),
            Lookup::Leaf { leaf, slot, .. } => match self.find(&leaf)? {
                Index::Leaf(leaf) => leaf.page(slot),
                Index::Page(_) => None,
            },
        };
        match self.find(&digest?)? {
            Index::Page(page) => Some(page),
            Index::Leaf(_) => None,
        }
    }

    /// Never lets go of what leads to the chunks of `region`, as far as it is here.
    pub fn hold(&self, region: u32) {
        let digests = match self.table.lookup(region) {
            Lookup::Hole => return,
            Lookup::Page(page) => [Some(page), None],
            Lookup::Leaf { leaf, slot, .. } => {
                let page = match self.find(&leaf) {
                    Some(Index::Leaf(leaf)) => leaf.page(slot),
                    Some(Index::Page(_)) | None => None,
                };
                [Some(leaf), page]
            }
        };
        for digest in digests.into_iter().flatten() {
            if let Some(index) = self.find(&digest) {
                self.held().insert(digest, index);
            }
        }
    }

    /// Sees to it that what leads to the chunks of `region` is among what is kept from run to run; returns whether it is.
    ///
    /// # Errors
    ///
    /// When it cannot be had.
    ///
    /// # Cancel safety
    ///
    /// Dropping the future stops waiting; a write that has begun goes on.
    pub async fn keep(&self, region: u32) -> Result<bool, ReadError> {
        let Some(page) = self.page(region).await? else {
            return Ok(true);
        };
        let bytes = Bytes::from(page.encode());
        let mut parts = vec![(Digest::of(&bytes), bytes)];
        if let Lookup::Leaf { leaf, number, .. } = self.table.lookup(region) {
            let bytes = self.leaf(leaf, number).await?.encode();
            parts.push((leaf, bytes.into()));
        }
        for (digest, bytes) in parts {
            let whole = Whole::of(digest, PAGE_BYTES_MAX.max(LEAF_BYTES_MAX));
            if self.fetcher.recall(&whole).await.is_none()
                && !self.fetcher.keep_now(&whole, bytes).await
            {
                return Ok(false);
            }
        }
        Ok(true)
    }

    fn find(&self, digest: &Digest) -> Option<Index> {
        let kept = self.kept.find(digest);
        kept.or_else(|| self.held().get(digest).cloned())
    }

    fn held(&self) -> MutexGuard<'_, HashMap<Digest, Index>> {
        self.held.lock().unwrap_or_else(PoisonError::into_inner)
    }

    async fn leaf(&self, digest: Digest, number: u32) -> Result<Arc<LeafTable>, ReadError> {
        let decode = |bytes: &[u8]| {
            Ok(Index::Leaf(Arc::new(LeafTable::decode(
                bytes,
                &self.table,
                number,
            )?)))
        };
        match self.index(digest, Part::Leaf, decode).await? {
            Index::Leaf(leaf) => Ok(leaf),
            Index::Page(_) => Err(ReadError::Confused { digest }),
        }
    }

    /// What `digest` names: kept, on its way, or fetched now.
    async fn index(
        &self,
        digest: Digest,
        part: Part,
        decode: impl Fn(&[u8]) -> Result<Index, DecodeError>,
    ) -> Result<Index, ReadError> {
        loop {
            if let Some(index) = self.find(&digest) {
                return Ok(index);
            }
            waits::note(Layer::Index);
            let landing = match self.flights.board(digest, &Arc::new(Hurry::new())) {
                Boarding::Lead(landing, _) => landing,
                Boarding::Follow(seat) => match seat.wait().await {
                    Ok(outcome) => return outcome,
                    Err(Abandoned) => continue,
                },
            };
            if let Some(index) = self.find(&digest) {
                landing.deliver(Ok(index.clone()));
                return Ok(index);
            }
            let fetched = self.fetch(digest, part).await.map_err(ReadError::Fetch);
            let outcome = fetched.and_then(|bytes| {
                decode(&bytes).map_err(|source| ReadError::Index {
                    digest,
                    source: Arc::new(source),
                })
            });
            if let Ok(index) = &outcome {
                self.kept.keep(digest, index.clone(), index.bytes());
            }
            landing.deliver(outcome.clone());
            return outcome;
        }
    }
    /// A part of the index that is not in memory.
    async fn fetch(&self, digest: Digest, part: Part) -> Result<Bytes, FetchError> {
        let fetched = &self.fetcher.stats().fetched;
        let Part::Page { region } = part else {
            let leaf = Whole::of(digest, LEAF_BYTES_MAX);
            return self.fetcher.whole(&leaf, &fetched.table_bytes).await;
        };
        let page = Whole::of(digest, PAGE_BYTES_MAX);
        if let Some(since) = &self.since
            && self.fetcher.recall(&page).await.is_none()
            && let Some(made) = since.page(region, digest).await
        {
            return Ok(made);
        }
        self.fetcher.whole(&page, &fetched.page_bytes).await
    }
}
