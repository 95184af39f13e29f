//! Reads a published disk back from its store: for `export`, `verify` and raw views.
//!
//! Clients have their own lazy path (`client-fuse`); this one is for programs that sit beside the
//! store. Every byte returned was verified. Pages are kept for a while, chunks are not.

use std::num::NonZeroUsize;
use std::sync::{Arc, Mutex};

use bytes::{Bytes, BytesMut};
use image_format::frame::{self, FrameError};
use image_format::geometry::{self, BlockRun};
use image_format::manifest::{Disk, Manifest};
use image_format::page::{Entry, PAGE_BYTES_MAX, Page};
use image_format::region_table::{LEAF_BYTES_MAX, LeafTable, Lookup, RegionTable};
use image_format::{BLOCK_BYTES, Chunk, DecodeError, Digest};
use lru::LruCache;

use crate::store::{Store, StoreError};

/// Pages kept: each describes 64 MiB and has at most 1.3 MiB, mostly 100 KiB.
const PAGES_KEPT: NonZeroUsize = NonZeroUsize::new(16).unwrap();

/// Leaf tables kept, of 32 KiB each.
const LEAVES_KEPT: NonZeroUsize = NonZeroUsize::new(16).unwrap();

/// Stored bytes fetched at once: neighbours in a pack come in one request up to this length.
const FETCH_BYTES_MAX: u64 = 4 * 1024 * 1024;

/// Why a part of a disk cannot be read.
#[derive(Debug, thiserror::Error)]
#[expect(missing_docs, reason = "the messages are the docs")]
pub enum ReadError {
    #[error(transparent)]
    Store(#[from] StoreError),
    #[error("the index of region {region} cannot be used")]
    Index { region: u32, source: DecodeError },
    #[error("the region table cannot be used")]
    Table { source: DecodeError },
    #[error("pack {pack} is damaged in a chunk of region {region}")]
    Chunk {
        pack: Digest,
        region: u32,
        source: FrameError,
    },
    #[error("a decoder thread died")]
    Decoder,
}

/// Reads one disk. Shared by reference between tasks.
#[derive(Debug)]
pub struct ImageReader {
    store: Store,
    table: RegionTable,
    leaves: Mutex<LruCache<Digest, Arc<LeafTable>>>,
    pages: Mutex<LruCache<Digest, Arc<Page>>>,
}

impl ImageReader {
    /// Opens the disk that `manifest` describes.
    ///
    /// # Errors
    /// Its region table is missing or damaged.
    pub async fn open(store: Store, manifest: &Manifest) -> Result<Self, ReadError> {
        Self::open_disk(store, &manifest.disk).await
    }

    /// Opens a disk that perhaps no manifest describes yet.
    ///
    /// # Errors
    /// Its region table is missing or damaged.
    pub async fn open_disk(store: Store, disk: &Disk) -> Result<Self, ReadError> {
        let bytes = store.object(&disk.regions).await?;
        let table = RegionTable::decode(&bytes).map_err(|source| ReadError::Table { source })?;
        if table.disk_length() != disk.length {
            let source = DecodeError::Invalid {
                what: "region table",
                reason: "it is that of a disk of another length",
            };
            return Err(ReadError::Table { source });
        }
        Ok(Self {
            store,
            table,
            leaves: Mutex::new(LruCache::new(LEAVES_KEPT)),
            pages: Mutex::new(LruCache::new(PAGES_KEPT)),
        })
    }

    /// Returns the length of the disk in bytes.
    pub const fn length(&self) -> u64 {
        self.table.disk_length()
    }

    /// Returns how many regions the disk has.
    pub fn n_regions(&self) -> u32 {
        self.table.n_regions()
    }

    /// Returns the digest of the page of `region`, or `None` where all of it is a hole.
    ///
    /// # Errors
    /// A leaf of the region table is missing or damaged.
    pub async fn page_digest(&self, region: u32) -> Result<Option<Digest>, ReadError> {
        match self.table.lookup(region) {
            Lookup::Hole => Ok(None),
            Lookup::Page(page) => Ok(Some(page)),
            Lookup::Leaf { leaf, number, slot } => Ok(self.leaf(leaf, number).await?.page(slot)),
        }
    }

    /// Returns the digest of the leaf of the region table that `region` is in, if it has leaves.
    pub(crate) fn leaf_digest(&self, region: u32) -> Option<Digest> {
        match self.table.lookup(region) {
            Lookup::Leaf { leaf, .. } => Some(leaf),
            Lookup::Hole | Lookup::Page(_) => None,
        }
    }

    async fn leaf(&self, digest: Digest, number: u32) -> Result<Arc<LeafTable>, ReadError> {
        if let Some(leaf) = lock(&self.leaves).get(&digest) {
            return Ok(leaf.clone());
        }
        let bytes = self.store.object_at_most(&digest, LEAF_BYTES_MAX).await?;
        let leaf = LeafTable::decode(&bytes, &self.table, number)
            .map_err(|source| ReadError::Table { source })?;
        let leaf = Arc::new(leaf);
        lock(&self.leaves).put(digest, leaf.clone());
        Ok(leaf)
    }

    /// Returns the index page of `region`, or `None` where all of it is a hole.
    ///
    /// # Errors
    /// The page is missing or damaged.
    pub async fn page(&self, region: u32) -> Result<Option<Arc<Page>>, ReadError> {
        let Some(digest) = self.page_digest(region).await? else {
            return Ok(None);
        };
        if let Some(page) = lock(&self.pages).get(&digest) {
            return Ok(Some(page.clone()));
        }
        let bytes = self.store.object_at_most(&digest, PAGE_BYTES_MAX).await?;
        let page = Page::decode(&bytes).map_err(|source| ReadError::Index { region, source })?;
        let page = Arc::new(page);
        lock(&self.pages).put(digest, page.clone());
        Ok(Some(page))
    }

    /// Reads `len` bytes at `offset`; fewer at the end of the disk, none past it.
    ///
    /// Memory is bounded by `len` and a few MiB.
    ///
    /// # Errors
    /// What the range needs is missing or damaged. No byte is returned then.
    pub async fn read(&self, offset: u64, len: usize) -> Result<Bytes, ReadError> {
        let end = offset.saturating_add(len as u64).min(self.length());
        if offset >= end {
            return Ok(Bytes::new());
        }
        let total = usize::try_from(end - offset).expect("at most len");
        let mut out = BytesMut::zeroed(total);
        for run in geometry::runs(offset, end - offset) {
            for (chunk, at) in self.chunks(run).await? {
                copy_overlap(&mut out, offset, chunk.bytes(), at);
            }
        }
        Ok(out.freeze())
    }

    /// Reads and verifies the chunks that have blocks in `run`, each with its offset on the disk.
    ///
    /// # Errors
    /// One is missing or damaged.
    pub async fn chunks(&self, run: BlockRun) -> Result<Vec<(Chunk, u64)>, ReadError> {
        let Some(page) = self.page(run.region).await? else {
            return Ok(Vec::new());
        };
        let base = BlockRun { first: 0, ..run }.offset();
        let mut chunks = Vec::new();
        for group in neighbours(page.overlapping(run.first, run.end)) {
            let pack = page.pack(&group[0]).digest;
            let start = u64::from(group[0].offset);
            let stop = group.last().map_or(start, |last| {
                u64::from(last.offset) + u64::from(last.length)
            });
            let stored = self.store.object_range(&pack, start..stop).await?;
            let entries = group.to_vec();
            let decoded = tokio::task::spawn_blocking(move || decode_all(&entries, &stored))
                .await
                .map_err(|_| ReadError::Decoder)?
                .map_err(|source| ReadError::Chunk {
                    pack,
                    region: run.region,
                    source,
                })?;
            let offsets = group
                .iter()
                .map(|entry| base + u64::from(entry.block) * u64::from(BLOCK_BYTES));
            chunks.extend(decoded.into_iter().zip(offsets));
        }
        Ok(chunks)
    }
}

/// Splits entries into groups that lie behind one another in one pack.
fn neighbours(entries: &[Entry]) -> impl Iterator<Item = &[Entry]> {
    let mut rest = entries;
    std::iter::from_fn(move || {
        let first = rest.first()?;
        let mut count = 1;
        for pair in rest.windows(2) {
            let end = u64::from(pair[0].offset) + u64::from(pair[0].length);
            let span = u64::from(pair[1].offset) + u64::from(pair[1].length);
            let adjacent = pair[1].pack == first.pack && u64::from(pair[1].offset) == end;
            if !adjacent || span - u64::from(first.offset) > FETCH_BYTES_MAX {
                break;
            }
            count += 1;
        }
        let (group, left) = rest.split_at(count);
        rest = left;
        Some(group)
    })
}

fn decode_all(entries: &[Entry], stored: &[u8]) -> Result<Vec<Chunk>, FrameError> {
    let base = entries.first().map_or(0, |first| first.offset);
    entries
        .iter()
        .map(|entry| {
            let from = (entry.offset - base) as usize;
            frame::decode(
                entry.chunk,
                entry.plain_len(),
                &stored[from..from + entry.length as usize],
            )
        })
        .collect()
}

/// Copies the part of `chunk`, which lies at `at` on the disk, that `out`, at `offset`, covers.
fn copy_overlap(out: &mut [u8], offset: u64, chunk: &[u8], at: u64) {
    let index =
        |position: u64, base: u64| usize::try_from(position - base).expect("inside a buffer");
    let from = at.max(offset);
    let to = (at + chunk.len() as u64).min(offset + out.len() as u64);
    if from < to {
        out[index(from, offset)..index(to, offset)]
            .copy_from_slice(&chunk[index(from, at)..index(to, at)]);
    }
}

fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex
        .lock()
        .unwrap_or_else(std::sync::PoisonError::into_inner)
}
