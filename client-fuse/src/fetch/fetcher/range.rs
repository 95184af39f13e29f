//! Fetches ranges of packs, and delivers each chunk as soon as it is complete.
//!
//! As soon as the bytes of a chunk are there they are decoded and verified on a thread of their own,
//! kept in memory, delivered to whoever waits, and then written to the disk cache; the rest of the
//! body is still on its way meanwhile. After a failure only what is missing is asked for again.

use std::sync::Arc;

use bytes::Bytes;
use image_format::chunk::{Chunk, ChunkId};
use image_format::frame::FrameError;
use tokio::task::JoinSet;

use super::Fetcher;
use crate::cache::Caches;
use crate::fetch::lanes::{Hurry, Priority, Slot};
use crate::fetch::mirrors::MirrorId;
use crate::fetch::plan::{RangeRequest, Wants};
use crate::fetch::split::Splitter;
use crate::fetch::{FetchError, Freshness, Part, Request, Source};
use crate::flight::Landing;
use crate::place::Place;
use crate::stats::Stats;

/// What a flight of a chunk delivers.
pub type Delivery = Result<Chunk, FetchError>;

/// A chunk that somebody waits for.
#[derive(Debug)]
pub struct Wanted {
    /// Where it is.
    pub place: Place,
    /// Where it is to be delivered.
    pub landing: Landing<ChunkId, Delivery>,
}

impl Wants for Wanted {
    fn place(&self) -> &Place {
        &self.place
    }
}

impl<S: Source> Fetcher<S> {
    /// Fetches a range of a pack and delivers every chunk that is wanted of it, or an error.
    ///
    /// # Cancel safety
    ///
    /// Dropping the future abandons what was not yet delivered.
    pub async fn range(
        self: Arc<Self>,
        mut request: RangeRequest<Wanted>,
        priority: Priority,
        hurry: Arc<Hurry>,
    ) {
        let mut attempts = self.attempts();
        let mut freshness = Freshness::Any;
        loop {
            let mirror = self.choose(&attempts);
            let bytes = request.range.end - request.range.start + request.plain_bytes;
            let slot = self.enter(priority, bytes, &hurry).await;
            let before = request.wanted.len();
            let seen = self.outage.seen();
            let outcome = self.try_range(mirror, &mut request, freshness, slot).await;
            let Err(error) = outcome else {
                self.outage.ended(seen);
                self.mirrors.answered(mirror);
                return;
            };
            self.mirrors.failed(mirror, error.blame(), &error);
            if request.wanted.is_empty() {
                tracing::debug!(%error, "a body went wrong behind what was wanted of it");
                return;
            }
            if request.wanted.len() < before {
                attempts = self.attempts();
            }
            freshness = Freshness::Revalidate;
            request.shrink();
            if let Err(error) = self.turn_or_wait(&mut attempts, mirror, error).await {
                for wanted in request.wanted {
                    wanted.landing.deliver(Err(error.clone()));
                }
                return;
            }
        }
    }

    /// One try; what is delivered is taken out of the request.
    async fn try_range(
        &self,
        mirror: MirrorId,
        request: &mut RangeRequest<Wanted>,
        freshness: Freshness,
        slot: Slot<'_>,
    ) -> Result<(), FetchError> {
        let path = request.pack.digest.object_path();
        let mut splitter = Splitter::new(request.range.start, std::mem::take(&mut request.wanted));
        let mut decoding = JoinSet::new();
        let received = self
            .receive(mirror, request, freshness, &mut splitter, &mut decoding)
            .await;
        request.wanted = splitter.into_waiting();
        let mut damaged = None;
        while let Some(ended) = decoding.join_next().await {
            for (wanted, error) in ended.unwrap_or_default() {
                self.stats.verify_failures.increment();
                request.wanted.push(wanted);
                damaged = Some(FetchError::Chunk {
                    path: path.clone(),
                    source: Arc::new(error),
                });
            }
        }
        drop(slot);
        received?;
        damaged.map_or(Ok(()), Err)
    }

    /// Reads the body, handing over each chunk as soon as it is complete.
    async fn receive(
        &self,
        mirror: MirrorId,
        request: &RangeRequest<Wanted>,
        freshness: Freshness,
        splitter: &mut Splitter<Wanted>,
        decoding: &mut JoinSet<Vec<Damaged>>,
    ) -> Result<(), FetchError> {
        let path = request.pack.digest.object_path();
        let want = request.range.end - request.range.start;
        let part = Part::Range {
            range: request.range.clone(),
            object_bytes: request.pack.length,
        };
        let asked = Request {
            path: path.clone(),
            part,
            freshness,
        };
        let mut incoming = self.open(mirror, asked).await?;
        let mut got = 0;
        while let Some(part) = incoming.next().await? {
            got += part.len() as u64;
            self.stats.fetched.chunk_bytes.add(part.len() as u64);
            let complete = splitter.push(&part);
            if !complete.is_empty() {
                let (caches, stats) = (Arc::clone(&self.caches), Arc::clone(&self.stats));
                decoding.spawn_blocking(move || deliver(complete, &caches, &stats));
            }
            // What was asked for came before what is too much.
            if got > want {
                return Err(FetchError::Long { path, limit: want });
            }
        }
        if got < want {
            return Err(FetchError::Short { path, want, got });
        }
        Ok(())
    }
}

/// A chunk that did not survive decoding, and why.
type Damaged = (Wanted, FrameError);

/// Decodes, verifies and delivers chunks, then writes them to the disk cache. Returns the damaged
/// ones. The slot of the request is held until this is done, which bounds the memory in use.
fn deliver(complete: Vec<(Wanted, Bytes)>, caches: &Caches, stats: &Stats) -> Vec<Damaged> {
    let mut damaged = Vec::new();
    let mut fill = Vec::new();
    for (wanted, stored) in complete {
        match wanted.place.decode(&stored) {
            Ok(chunk) => fill.push((wanted.place, land(wanted, chunk, caches, stats))),
            Err(error) => damaged.push((wanted, error)),
        }
    }
    for (place, chunk) in fill {
        stats.disk_fill_bytes.add(caches.disk.fill(&place, &chunk));
    }
    damaged
}

/// Keeps a chunk in memory and delivers it.
fn land(wanted: Wanted, chunk: Chunk, caches: &Caches, stats: &Stats) -> Chunk {
    stats.chunks.increment();
    if !caches.memory.keep(chunk.clone()) {
        stats.duplicate_chunks.increment();
    }
    wanted.landing.deliver(Ok(chunk.clone()));
    chunk
}

/// Keeps and delivers chunks that are verified already, then writes them to the disk cache.
pub(crate) fn land_all(verified: Vec<(Wanted, Chunk)>, caches: &Caches, stats: &Stats) {
    let landed = verified
        .into_iter()
        .map(|(wanted, chunk)| (wanted.place, land(wanted, chunk, caches, stats)));
    for (place, chunk) in landed.collect::<Vec<_>>() {
        stats.disk_fill_bytes.add(caches.disk.fill(&place, &chunk));
    }
}
