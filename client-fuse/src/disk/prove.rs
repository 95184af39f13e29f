//! Verifies all of the cache file behind a mount, so that the kernel may read it without us.
//!
//! A pass begins when the file has something everywhere, and again from time to time. It reads the
//! medium, not what is kept of it in memory; it waits while guests wait for the network, and rests as
//! long as it works. What is wrong is fetched again, and another pass has to find nothing.

use std::ops::Range;
use std::sync::Arc;
use std::time::{Duration, Instant};

use image_format::page::Page;
use image_format::{BLOCK_BYTES, REGION_BYTES};

use super::{Disk, Parts, ReadError};
use crate::cache::{Caches, desk};
use crate::fetch::Source;
use crate::passthrough::{Content, Lender};
use crate::place::Place;

/// Verified at once: some milliseconds of work.
const BATCH_BYTES: u64 = 4 << 20;

/// Between two looks whether guests still wait.
const PAUSE: Duration = Duration::from_millis(20);

/// After a change: more of it will follow.
const SETTLE: Duration = Duration::from_millis(500);

/// A medium that is wrong in so many passes, one after another, is tried again after a rest only.
const PASSES_MAX: usize = 3;

/// What a pass found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Verdict {
    /// All is there, and right.
    Proven,
    /// Some of the disk is not there.
    Lacking,
    /// Some was wrong, and was mended, or made doubtful meanwhile.
    Doubtful,
    /// The file is right, but not one that can be lent.
    Unfit,
}

/// What a region consists of.
#[derive(Debug, Default, PartialEq, Eq)]
struct Extent {
    places: Vec<Place>,
    /// What no chunk fills, as bytes of the disk.
    holes: Vec<Range<u64>>,
}

/// What was wrong in a part of the file.
#[derive(Clone, Copy, Debug, Default)]
struct Wrong {
    /// Chunks, and holes.
    count: u64,
    /// Where the first of the chunks is on the disk.
    at: Option<u64>,
}

impl Wrong {
    fn add(&mut self, other: Self) {
        self.count += other.count;
        self.at = self.at.or(other.at);
    }
}

impl<S: Source> Disk<S> {
    /// Keeps the cache file verified, in the background: once all of it is there (`data` bytes of the
    /// disk are no holes), and again after `every`. `lender` learns what was found.
    pub fn keep_proven(&self, data: u64, every: Duration, lender: &Arc<Lender>) {
        if !lender.may_open() {
            return;
        }
        let (parts, lender) = (Arc::clone(&self.parts), Arc::clone(lender));
        self.tasks
            .spawn(async move { parts.keep_proven(data, every, &lender).await });
    }
}

impl<S: Source> Parts<S> {
    async fn keep_proven(&self, data: u64, every: Duration, lender: &Lender) {
        let caches = self.chunks.caches();
        let (mut is_due, mut lacking) = (true, 0);
        // The kernel may come to refuse it, and the cache to be of no use.
        while lender.kernel_can().await && !caches.disk.is_off() {
            desk::answered().await;
            let silences = desk::silences();
            let occupied = self.with_cache(|caches| caches.disk.occupied_bytes()).await;
            let is_proven = caches.disk.is_proven();
            // What is on the disk twice need be in the file only once until now.
            if occupied.unwrap_or(0) < data / 2 {
                lender.tell_content(Content::Incomplete);
            } else if (is_due || !is_proven) && !self.prove(lender, &mut lacking).await {
                tokio::time::sleep(every).await;
                is_due = true;
                continue;
            }
            if desk::silences() != silences {
                // What was found meanwhile says nothing.
                is_due = true;
                continue;
            }
            is_due = tokio::select! {
                () = tokio::time::sleep(every) => true,
                () = caches.disk.changed() => {
                    tokio::time::sleep(SETTLE).await;
                    false
                }
            };
        }
    }

    /// Goes over the file until nothing is wrong. Returns whether it is worth going on before a rest.
    async fn prove(&self, lender: &Lender, lacking: &mut u32) -> bool {
        for _ in 0..PASSES_MAX {
            let content = match self.pass(lender, lacking).await {
                Ok(Verdict::Doubtful) => continue,
                Ok(Verdict::Proven) => Content::Verified,
                Ok(Verdict::Lacking) => Content::Incomplete,
                Ok(Verdict::Unfit) => Content::Unverified,
                Err(error) => {
                    let cause: &dyn std::error::Error = &error;
                    tracing::debug!(error = cause, "the cache file cannot be verified");
                    Content::Unverified
                }
            };
            if content == Content::Verified {
                tracing::debug!("all of the cache file is verified");
            }
            lender.tell_content(content);
            return true;
        }
        tracing::warn!("the cache file is wrong again and again; its disk may be dying");
        false
    }

    /// Goes over the file once.
    async fn pass(&self, lender: &Lender, lacking: &mut u32) -> Result<Verdict, ReadError> {
        if let Some(region) = self.find_lacking(*lacking).await? {
            *lacking = region;
            return Ok(Verdict::Lacking);
        }
        lender.tell_content(match self.chunks.caches().disk.is_proven() {
            true => Content::Verified,
            false => Content::Unverified,
        });
        let begun = self.with_cache(|caches| caches.disk.begin_pass()).await;
        let Some(pass) = begun.flatten() else {
            return Ok(Verdict::Unfit);
        };
        let mut wrong = Wrong::default();
        for region in 0..self.pages.n_regions() {
            let page = self.pages.page(region).await?;
            let extent = extent(region, page.as_deref(), self.pages.disk_length());
            for batch in batches(extent) {
                match self.check(batch, lender).await? {
                    Some(found) => wrong.add(found),
                    None => return Ok(Verdict::Unfit),
                }
            }
        }
        lender.stats().passthrough.passes.increment();
        if wrong.count > 0 {
            let Wrong { count, at } = wrong;
            tracing::warn!(
                count,
                at,
                "the cache file is not what it was; what was wrong was fetched anew"
            );
            return Ok(Verdict::Doubtful);
        }
        let proven = self
            .with_cache(move |caches| caches.disk.conclude(&pass))
            .await;
        Ok(match proven {
            Some(true) => Verdict::Proven,
            _ => Verdict::Doubtful,
        })
    }

    /// A region of which a chunk is not in the file, nor anywhere else in the cache, from where it could be
    /// copied: a chunk that the disk has twice is kept where it was read first. Begins to look in region
    /// `first`, which lacked something the last time.
    async fn find_lacking(&self, first: u32) -> Result<Option<u32>, ReadError> {
        let all = self.pages.n_regions();
        for region in (first..all).chain(0..first.min(all)) {
            let Some(page) = self.pages.page(region).await? else {
                continue;
            };
            let places = extent(region, Some(&page), self.pages.disk_length()).places;
            let has_all = move |caches: &Caches| places.iter().all(|it| caches.disk.obtain(it));
            if self.with_cache(has_all).await != Some(true) {
                return Ok(Some(region));
            }
        }
        Ok(None)
    }

    /// Verifies a part of the file, mends what is wrong in it, and returns how much that is. `None`: the
    /// file cannot be read, and the cache is off; nothing is fetched for it then.
    async fn check(&self, part: Extent, lender: &Lender) -> Result<Option<Wrong>, ReadError> {
        while self.chunks.has_guests() {
            tokio::time::sleep(PAUSE).await;
        }
        let begun = Instant::now();
        let checked = self.with_cache(move |caches| check(caches, part)).await;
        let Some((wrong, holes)) = checked.filter(|_| self.chunks.caches().disk.is_on()) else {
            lender.tell_content(Content::Unverified);
            return Ok(None);
        };
        tokio::time::sleep(begun.elapsed()).await;
        let found = Wrong {
            count: wrong.len() as u64 + holes,
            at: wrong.first().map(Place::disk_offset),
        };
        if found.count > 0 {
            lender.tell_content(Content::Unverified);
            lender.stats().passthrough.mended.add(found.count);
            self.batch(wrong).await?;
        }
        Ok(Some(found))
    }

    /// Does something with the caches that blocks; `None`: it failed.
    async fn with_cache<T: Send + 'static>(
        &self,
        work: impl FnOnce(&Caches) -> T + Send + 'static,
    ) -> Option<T> {
        self.chunks.caches().ask_behind(work).await
    }
}

/// The chunks of a part that are wrong, and how many holes were.
fn check(caches: &Caches, part: Extent) -> (Vec<Place>, u64) {
    for range in part.places.iter().map(Place::on_disk) {
        caches.disk.forget_pages(&range);
    }
    let mut wrong = part.places;
    wrong.retain(|place| !caches.disk.check(place));
    let holes = part.holes.iter().filter(|hole| {
        caches.disk.forget_pages(hole);
        !caches.disk.check_hole(hole)
    });
    (wrong, holes.count() as u64)
}

/// The chunks and the holes of `region`, which `page` describes, of a disk of `length` bytes.
fn extent(region: u32, page: Option<&Page>, length: u64) -> Extent {
    let start = u64::from(region) * REGION_BYTES;
    let end = (start + REGION_BYTES).min(length.next_multiple_of(u64::from(BLOCK_BYTES)));
    let (mut extent, mut at) = (Extent::default(), start);
    let places = page.into_iter().flat_map(|page| {
        let entries = page.entries().iter();
        entries.map(|entry| Place::new(region, *entry, page.pack(entry)))
    });
    for place in places {
        let chunk = place.on_disk();
        if at < chunk.start {
            extent.holes.push(at..chunk.start);
        }
        at = chunk.end;
        extent.places.push(place);
    }
    if at < end {
        extent.holes.push(at..end);
    }
    extent
}

/// The same in parts of about [`BATCH_BYTES`] of chunks; the holes are in the first of them.
fn batches(extent: Extent) -> Vec<Extent> {
    let mut parts = vec![Extent {
        places: Vec::new(),
        holes: extent.holes,
    }];
    let mut bytes = 0;
    for place in extent.places {
        bytes += place.plain_bytes();
        if let Some(last) = parts.last_mut() {
            last.places.push(place);
        }
        if bytes >= BATCH_BYTES {
            bytes = 0;
            parts.push(Extent::default());
        }
    }
    parts
}

#[cfg(test)]
mod tests {
    use image_format::chunk::ChunkId;
    use image_format::digest::{Digest, ObjectRef};
    use image_format::page::{Location, PageBuilder};
    use proptest::collection::vec;
    use proptest::prelude::*;

    use super::*;

    const BLOCK: u64 = BLOCK_BYTES as u64;

    proptest! {
        /// Chunks and holes are the region, without a gap and without an overlap; so are the batches.
        #[test]
        fn all_of_a_region_is_looked_at(
            chunks in vec((0..5_u32, 1..200_u32), 0..60),
            region in 0..3_u32,
            behind in 0..9_u64,
        ) {
            let pack = ObjectRef { digest: Digest::of(b"pack"), length: 1 << 25 };
            let (mut page, mut block) = (PageBuilder::default(), 0);
            for (number, (gap, blocks)) in (0_u32..).zip(&chunks) {
                block += gap;
                let location = Location { pack, offset: 8 + number, length: 1 };
                page.push(block, *blocks, ChunkId::of(&number.to_le_bytes()), location);
                block += blocks;
            }
            let start = u64::from(region) * REGION_BYTES;
            let length = start + (u64::from(block) + behind).max(1) * BLOCK;
            let page = page.finish().unwrap();
            let whole = extent(region, page.as_ref(), length);
            prop_assert_eq!(whole.places.len(), chunks.len());
            let parts = batches(extent(region, page.as_ref(), length));
            for parts in [vec![whole], parts] {
                let chunks = parts.iter().flat_map(|part| part.places.iter().map(Place::on_disk));
                let holes = parts.iter().flat_map(|part| part.holes.iter().cloned());
                let mut all: Vec<_> = chunks.chain(holes).collect();
                all.sort_by_key(|range| range.start);
                let mut at = start;
                for range in all {
                    prop_assert_eq!(range.start, at);
                    at = range.end;
                }
                prop_assert_eq!(at, length.min(start + REGION_BYTES));
            }
        }
    }
}
