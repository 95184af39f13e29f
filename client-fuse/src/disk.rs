//! The disk: a range of bytes becomes index pages, pieces, chunks, and bytes again.
//!
//! A read first learns from the pages what it is made of ([`plan`]), then asks for all the chunks at
//! once. A single piece is returned without a copy. Sequential readers are followed, and what they
//! will want next is fetched before they ask ([`ReadAhead`]), unless they read what the boot pack
//! lists: that knows better what comes next.

use std::ops::Range;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Instant;

use bytes::{Bytes, BytesMut};
use futures_util::{StreamExt, stream};
use image_format::DecodeError;
use image_format::digest::Digest;
use image_format::geometry::runs;
use image_format::manifest::{BootPack, IndexDelta};
use image_format::region_table::RegionTable;
use tokio::runtime::Handle;

use crate::cache::Caches;
use crate::chunks::boot::Expected;
use crate::chunks::{Chunks, Found};
use crate::disk::pages::Pages;
use crate::disk::plan::{Part, Piece};
use crate::fetch::fetcher::Fetcher;
use crate::fetch::{FetchError, Source};
use crate::open::{EarlyHead, OpenImage};
use crate::place::Place;
use crate::readahead::ReadAhead;
use crate::record::Recorder;
use crate::stats::Stats;
use crate::tasks::Tasks;

pub mod extents;
pub mod near;
pub mod pages;
pub mod pin;
pub mod plan;
pub mod prove;
mod since;

/// Index pages fetched ahead of a boot: as many as are kept.
const PAGES_AHEAD_MAX: usize = 64;

/// A disk with as many index pages is small: all of them are less than 1 MB.
const PAGES_SMALL_MAX: usize = 16;

/// Index pages fetched ahead at once.
const PAGES_AT_ONCE: usize = 4;

/// Who is read ahead for less than this at once is not expected to read through a large hole.
const STRETCH_BYTES_MIN: u64 = 2 << 20;

/// How often as much as was asked for is looked at for what lies behind holes: 2 GiB for a reader of all of a disk.
const STRETCH_STEPS_MAX: usize = 256;

/// Where the index of a disk begins.
#[derive(Clone, Debug)]
pub struct Root {
    /// Leads to all pages.
    pub table: RegionTable,
    /// What changed since a version whose pages may be here.
    pub delta: Option<IndexDelta>,
}

impl From<RegionTable> for Root {
    fn from(table: RegionTable) -> Self {
        Self { table, delta: None }
    }
}

impl From<&OpenImage> for Root {
    fn from(image: &OpenImage) -> Self {
        Self {
            table: image.table.clone(),
            delta: image.manifest.index_delta,
        }
    }
}

/// A published disk, readable at any offset.
#[derive(Debug)]
pub struct Disk<S> {
    length: u64,
    parts: Arc<Parts<S>>,
    ahead: Arc<Mutex<ReadAhead>>,
    recorder: Option<Arc<Recorder>>,
    tasks: Tasks,
    stats: Arc<Stats>,
}

/// What reading and reading ahead share.
#[derive(Debug)]
struct Parts<S> {
    pages: Pages<S>,
    chunks: Arc<Chunks<S>>,
}

/// Why a read fails. Cheap to clone: all who wait for the same thing get the same one.
#[derive(Clone, Debug, thiserror::Error)]
#[expect(missing_docs, reason = "the messages are the docs")]
pub enum ReadError {
    #[error(transparent)]
    Fetch(#[from] FetchError),
    #[error("the index in object {digest} is of no use")]
    Index {
        digest: Digest,
        source: Arc<DecodeError>,
    },
    #[error("object {digest} is a page in one place of the index and a table in another")]
    Confused { digest: Digest },
}

impl<S: Source> Disk<S> {
    /// The disk that `root` leads to; its background work runs on `runtime`, and `recorder` notes
    /// what is read first.
    #[must_use]
    pub fn new(
        root: impl Into<Root>,
        fetcher: Arc<Fetcher<S>>,
        caches: Arc<Caches>,
        runtime: &Handle,
        recorder: Option<Arc<Recorder>>,
    ) -> Self {
        let stats = Arc::clone(fetcher.stats());
        let root = root.into();
        let length = root.table.disk_length();
        let chunks = Chunks::new(
            Arc::clone(&fetcher),
            caches,
            runtime.clone(),
            Arc::clone(&stats),
        );
        let ahead = ReadAhead::new(ReadAhead::WINDOW_BYTES_MAX.min(chunks.ahead_bytes_max()));
        Self {
            length,
            parts: Arc::new(Parts {
                pages: Pages::new(root, fetcher),
                chunks: Arc::new(chunks),
            }),
            ahead: Arc::new(Mutex::new(ahead)),
            recorder,
            tasks: Tasks::new(runtime.clone()),
            stats,
        }
    }

    /// All chunks of it.
    pub(crate) fn chunks(&self) -> &Chunks<S> {
        &self.parts.chunks
    }

    /// The length in bytes.
    #[must_use]
    pub const fn length(&self) -> u64 {
        self.length
    }

    /// Reads `len` bytes at `offset`, fewer at the end of the disk and none behind it.
    ///
    /// # Errors
    ///
    /// When what the bytes are made of cannot be had. Never returns a byte that was not verified.
    ///
    /// # Cancel safety
    ///
    /// Dropping the future stops waiting; fetches of chunks go on into the caches.
    pub async fn read(&self, offset: u64, len: u32) -> Result<Bytes, ReadError> {
        let outcome = self.read_part(offset, len).await;
        self.count(&outcome);
        outcome
    }

    /// The same for a part of what somebody reads, or for what a write needs: it does not count as a read.
    pub(crate) async fn read_part(&self, offset: u64, len: u32) -> Result<Bytes, ReadError> {
        let end = offset.saturating_add(u64::from(len)).min(self.length);
        if offset >= end {
            return Ok(Bytes::new());
        }
        self.read_range(offset..end).await
    }

    /// Counts a read that came to this.
    pub(crate) fn count<E>(&self, outcome: &Result<Bytes, E>) {
        self.stats.reads.increment();
        match outcome {
            Ok(bytes) => self.stats.read_bytes.add(bytes.len() as u64),
            Err(_) => self.stats.read_errors.increment(),
        }
    }

    async fn read_range(&self, range: Range<u64>) -> Result<Bytes, ReadError> {
        let asked = Instant::now();
        let pieces = self.parts.plan(&range).await?;
        let planned = Instant::now();
        let parts: Vec<Part> = pieces.iter().filter_map(Piece::part).cloned().collect();
        if !self.parts.chunks.are_foreseen(&parts) {
            self.read_ahead(&range);
        }
        let found = self.parts.read(&parts).await?;
        if let Some(recorder) = &self.recorder {
            let from = found.iter().map(|found| found.from);
            recorder.note(asked, planned, parts.iter().zip(from));
        }
        let mut bytes = found.into_iter().map(|found| found.bytes);
        if let [Piece::Part(_)] = &pieces[..] {
            return Ok(bytes.next().unwrap_or_default());
        }
        let mut out =
            BytesMut::with_capacity(usize::try_from(range.end - range.start).unwrap_or_default());
        for piece in pieces {
            match piece {
                Piece::Zeros(count) => out.resize(out.len() + count, 0),
                Piece::Part(_) => out.extend_from_slice(&bytes.next().unwrap_or_default()),
            }
        }
        Ok(out.freeze())
    }

    /// Begins to fetch, in the background, what will be read: what `pack` lists, or the index at least.
    pub fn prefetch(&self, pack: Option<BootPack>, early: Option<EarlyHead>) {
        match pack {
            Some(pack) => self.prefetch_listed(pack, early),
            None => self.prefetch_index(),
        }
    }

    /// Begins to fetch the index of a small disk, in the background, before it is read: a page that
    /// is not here when it is needed costs its reader a round trip.
    fn prefetch_index(&self) {
        let parts = Arc::clone(&self.parts);
        self.tasks.spawn(async move {
            let regions = parts.pages.regions(PAGES_SMALL_MAX);
            parts.pages_ahead(&regions, false).await;
        });
    }

    /// Begins to fetch what `pack` lists, in the background, before it is read.
    fn prefetch_listed(&self, pack: BootPack, early: Option<EarlyHead>) {
        let (parts, length) = (Arc::clone(&self.parts), self.length);
        let expected = self.parts.chunks.expect_boot_pack();
        self.tasks
            .spawn(async move { parts.prefetch(pack, length, early, expected).await });
    }

    /// Notes a read and fetches what its reader will probably want next.
    fn read_ahead(&self, read: &Range<u64>) {
        let mut ahead = self.ahead.lock().unwrap_or_else(PoisonError::into_inner);
        let next = ahead.note(read.start, read.end - read.start);
        drop(ahead);
        if let Some(next) = next
            .map(|next| next.start..next.end.min(self.length))
            .filter(|next| !next.is_empty())
        {
            let (parts, ahead) = (Arc::clone(&self.parts), Arc::clone(&self.ahead));
            let length = self.length;
            self.tasks.spawn(async move {
                let end = next.end;
                let reached = parts.fetch_ahead(next, length).await;
                if reached > end {
                    let mut ahead = ahead.lock().unwrap_or_else(PoisonError::into_inner);
                    ahead.skip(end, reached);
                }
            });
        }
    }
}

impl<S: Source> Parts<S> {
    async fn plan(&self, range: &Range<u64>) -> Result<Vec<Piece>, ReadError> {
        let mut pieces = Vec::new();
        for run in runs(range.start, range.end - range.start) {
            let page = self.pages.page(run.region).await?;
            pieces.extend(plan::pieces(run, page.as_deref(), range));
        }
        Ok(pieces)
    }

    async fn read(&self, parts: &[Part]) -> Result<Vec<Found>, FetchError> {
        self.chunks.read(parts, |range| self.places(range)).await
    }

    /// The chunks of `range` whose pages are here.
    fn places(&self, range: &Range<u64>) -> Vec<Place> {
        let mut places = Vec::new();
        for run in runs(range.start, range.end - range.start) {
            let page = self.pages.kept(run.region);
            let pieces = plan::pieces(run, page.as_deref(), range);
            places.extend(pieces.iter().filter_map(Piece::part).map(|part| part.place));
        }
        places
    }

    async fn prefetch(
        &self,
        pack: BootPack,
        length: u64,
        early: Option<EarlyHead>,
        expected: Expected,
    ) {
        let opened = self.chunks.open_boot_pack(pack, length, early).await;
        drop(expected);
        let Some(boot) = opened else { return };
        let keeps = self.chunks.keeps(boot);
        let mut regions: Vec<u32> = Vec::new();
        for region in boot.head().chunks().map(|chunk| chunk.region) {
            if !regions.contains(&region) && (keeps || regions.len() < PAGES_AHEAD_MAX) {
                regions.push(region);
            }
        }
        tokio::join!(self.pages_ahead(&regions, keeps), self.chunks.stream(boot));
    }

    /// Fetches the pages of `regions`. Where chunks are kept, these are: what is kept can be had without a server only
    /// if it is known where it is.
    async fn pages_ahead(&self, regions: &[u32], keeps: bool) {
        let each = stream::iter(regions.iter().copied());
        let fetch = async |region| match self.pages.page(region).await {
            Ok(_) if keeps => self.pages.hold(region),
            Ok(_) => {}
            Err(error) => {
                tracing::debug!(%error, region, "no page ahead; the read itself will report it");
            }
        };
        each.for_each_concurrent(PAGES_AT_ONCE, fetch).await;
    }

    /// Fetches `range`, and where it is long and at least half of it are holes, as much of what follows, so that the line
    /// has something to do while its reader is in a hole. Returns how far, on a disk of `length` bytes.
    async fn fetch_ahead(&self, range: Range<u64>, length: u64) -> u64 {
        let step = range.end - range.start;
        let (mut reached, mut next, mut bytes) = (range.end, range, 0);
        for _ in 0..STRETCH_STEPS_MAX {
            bytes += match self.step_ahead(&next).await {
                Ok(found) => found,
                Err(error) => {
                    tracing::debug!(%error, "read-ahead fails; the read itself will report it");
                    break;
                }
            };
            reached = next.end;
            if step < STRETCH_BYTES_MIN || bytes >= step / 2 || reached >= length {
                break;
            }
            next = reached..(reached + step - bytes).min(length);
        }
        reached
    }

    /// Fetches `range`, and returns how many bytes of it are no holes.
    async fn step_ahead(&self, range: &Range<u64>) -> Result<u64, ReadError> {
        let pieces = self.plan(range).await?;
        let parts = pieces.iter().filter_map(Piece::part);
        let bytes = parts.clone().map(|part| part.within.len() as u64).sum();
        let places: Vec<Place> = parts.map(|part| part.place).collect();
        if !places.is_empty() {
            self.chunks.boot_pack_is_known().await;
            let places = self.chunks.lacking(places).await;
            self.chunks.fetch_ahead(places);
        }
        Ok(bytes)
    }
}

impl Piece {
    /// The part of a chunk, unless it is a hole.
    const fn part(&self) -> Option<&Part> {
        match self {
            Self::Zeros(_) => None,
            Self::Part(part) => Some(part),
        }
    }
}
