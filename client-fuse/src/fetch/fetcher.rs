//! Carries requests out: asks the source, bounds and verifies what comes, tries again, delivers.
//!
//! A range request belongs to a task, not to a reader. As soon as the bytes of a chunk are there
//! they are decoded and verified on a thread of their own, kept in memory, delivered to whoever
//! waits, and then written to the disk cache; the rest of the body is still on its way meanwhile.
//! After a failure only what is missing is asked for again.
//!
//! Bounds: requests and bytes in flight by [`Lanes`], the length of every answer before it is asked
//! for, tries and time by [`RetryPolicy`].

use std::hash::{BuildHasher, RandomState};
use std::sync::Arc;

use bytes::{Bytes, BytesMut};
use futures_util::StreamExt;
use image_format::chunk::{Chunk, ChunkId};
use image_format::digest::{Digest, DigestMismatch, ObjectRef};
use image_format::frame::FrameError;
use tokio::task::JoinSet;
use tokio::time::Instant;

use crate::cache::Caches;
use crate::fetch::lanes::{Hurry, Lanes, Priority, Slot};
use crate::fetch::plan::{RangeRequest, Wants};
use crate::fetch::retry::{Next, RetryPolicy};
use crate::fetch::split::Splitter;
use crate::fetch::{FetchError, Freshness, Part, Request, Source};
use crate::flight::Landing;
use crate::place::Place;
use crate::stats::{Counter, Stats};

mod outage;
pub mod part;

use outage::Outage;

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

/// A file to fetch as a whole.
#[derive(Clone, Debug)]
pub struct Whole {
    /// Path in the store.
    pub path: String,
    /// What is known of it beforehand.
    pub expect: Expect,
}

/// What is known of a file before it is fetched.
#[derive(Clone, Copy, Debug)]
pub enum Expect {
    /// Its digest and its length; no copy of it is ever out of date.
    Object(ObjectRef),
    /// Its digest and a bound.
    Digest(Digest, u64),
    /// A bound only; whoever reads it checks it. No copy of it is ever out of date.
    Fixed(u64),
    /// The same, but a cached copy may be out of date.
    Bound(u64),
    /// The same, and that there is no such file is an answer like any other.
    Optional(u64),
}

impl Whole {
    /// The object that `object` names.
    #[must_use]
    pub fn object(object: ObjectRef) -> Self {
        Self {
            path: object.digest.object_path(),
            expect: Expect::Object(object),
        }
    }

    /// The object that `digest` names, of at most `bytes_max` bytes.
    #[must_use]
    pub fn of(digest: Digest, bytes_max: usize) -> Self {
        Self {
            path: digest.object_path(),
            expect: Expect::Digest(digest, bytes_max as u64),
        }
    }

    const fn bytes_max(&self) -> u64 {
        match self.expect {
            Expect::Object(object) => object.length,
            Expect::Digest(_, bytes_max)
            | Expect::Fixed(bytes_max)
            | Expect::Bound(bytes_max)
            | Expect::Optional(bytes_max) => bytes_max,
        }
    }

    const fn freshness(&self) -> Freshness {
        match self.expect {
            Expect::Object(_) | Expect::Digest(..) | Expect::Fixed(_) => Freshness::Any,
            Expect::Bound(_) | Expect::Optional(_) => Freshness::Revalidate,
        }
    }

    /// Whether the answer is good, though it is an error to the source.
    fn is_answered_by(&self, error: &FetchError) -> bool {
        matches!(self.expect, Expect::Optional(_)) && error.is_missing()
    }

    /// Checks what came.
    fn verify(&self, bytes: &[u8]) -> Result<(), FetchError> {
        let path = || self.path.clone();
        let got = bytes.len() as u64;
        let expected = match self.expect {
            Expect::Object(object) if got < object.length => {
                return Err(FetchError::Short {
                    path: path(),
                    want: object.length,
                    got,
                });
            }
            Expect::Object(object) => object.digest,
            Expect::Digest(digest, _) => digest,
            Expect::Fixed(_) | Expect::Bound(_) | Expect::Optional(_) => return Ok(()),
        };
        let actual = Digest::of(bytes);
        if actual != expected {
            let source = DigestMismatch { expected, actual };
            return Err(FetchError::Digest {
                path: path(),
                source,
            });
        }
        Ok(())
    }
}

/// Fetches from one store.
#[derive(Debug)]
pub struct Fetcher<S> {
    source: S,
    caches: Arc<Caches>,
    lanes: Lanes,
    policy: RetryPolicy,
    outage: Outage,
    stats: Arc<Stats>,
}

impl<S: Source> Fetcher<S> {
    /// Fetches from `source` over at most `connections` requests at once.
    #[must_use]
    pub fn new(
        source: S,
        connections: u16,
        policy: RetryPolicy,
        caches: Arc<Caches>,
        stats: Arc<Stats>,
    ) -> Self {
        Self {
            source,
            caches,
            lanes: Lanes::new(connections),
            policy,
            outage: Outage::new(),
            stats,
        }
    }

    /// The counters.
    pub const fn stats(&self) -> &Arc<Stats> {
        &self.stats
    }

    /// Fetches a whole file, verified if its digest is known; `counter` counts its bytes.
    ///
    /// # Errors
    ///
    /// When the policy gives up.
    ///
    /// # Cancel safety
    ///
    /// Dropping the future ends the fetch.
    pub async fn whole(&self, whole: &Whole, counter: &Counter) -> Result<Bytes, FetchError> {
        let mut attempts = Attempts::begin(self.policy);
        let hurry = Hurry::new();
        let mut freshness = whole.freshness();
        loop {
            let slot = self
                .lanes
                .enter(Priority::Guest, whole.bytes_max(), &hurry)
                .await;
            let seen = self.outage.seen();
            let error = match self.try_whole(whole, freshness, counter).await {
                Ok(bytes) => {
                    self.outage.ended(seen);
                    return Ok(bytes);
                }
                Err(error) if whole.is_answered_by(&error) => {
                    self.outage.ended(seen);
                    return Err(error);
                }
                Err(error) => error,
            };
            drop(slot);
            freshness = Freshness::Revalidate;
            self.wait_or_stop(&mut attempts, error).await?;
        }
    }

    async fn try_whole(
        &self,
        whole: &Whole,
        freshness: Freshness,
        counter: &Counter,
    ) -> Result<Bytes, FetchError> {
        self.stats.requests.increment();
        let request = Request {
            path: whole.path.clone(),
            part: Part::Whole,
            freshness,
        };
        let mut body = self.source.open(request).await?;
        let mut bytes = BytesMut::new();
        while let Some(part) = body.next().await {
            let part = part?;
            counter.add(part.len() as u64);
            if (bytes.len() + part.len()) as u64 > whole.bytes_max() {
                return Err(FetchError::Long {
                    path: whole.path.clone(),
                    limit: whole.bytes_max(),
                });
            }
            bytes.extend_from_slice(&part);
        }
        whole
            .verify(&bytes)
            .inspect_err(|error| self.count_damage(error))?;
        Ok(bytes.freeze())
    }

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
        let mut attempts = Attempts::begin(self.policy);
        let mut freshness = Freshness::Any;
        loop {
            let bytes = request.range.end - request.range.start + request.plain_bytes;
            let slot = self.lanes.enter(priority, bytes, &hurry).await;
            let before = request.wanted.len();
            let seen = self.outage.seen();
            let outcome = self.try_range(&mut request, freshness, slot).await;
            let Err(error) = outcome else {
                self.outage.ended(seen);
                return;
            };
            if request.wanted.is_empty() {
                tracing::debug!(%error, "a body went wrong behind what was wanted of it");
                return;
            }
            if request.wanted.len() < before {
                attempts = Attempts::begin(self.policy);
            }
            freshness = Freshness::Revalidate;
            request.shrink();
            if let Err(error) = self.wait_or_stop(&mut attempts, error).await {
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
        request: &mut RangeRequest<Wanted>,
        freshness: Freshness,
        slot: Slot<'_>,
    ) -> Result<(), FetchError> {
        let path = request.pack.digest.object_path();
        let mut splitter = Splitter::new(request.range.start, std::mem::take(&mut request.wanted));
        let mut decoding = JoinSet::new();
        let received = self
            .receive(request, &path, freshness, &mut splitter, &mut decoding)
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
        request: &RangeRequest<Wanted>,
        path: &str,
        freshness: Freshness,
        splitter: &mut Splitter<Wanted>,
        decoding: &mut JoinSet<Vec<Damaged>>,
    ) -> Result<(), FetchError> {
        self.stats.requests.increment();
        let want = request.range.end - request.range.start;
        let part = Part::Range {
            range: request.range.clone(),
            object_bytes: request.pack.length,
        };
        let mut body = self
            .source
            .open(Request {
                path: path.to_owned(),
                part,
                freshness,
            })
            .await?;
        let mut got = 0;
        while let Some(part) = body.next().await {
            let part = part?;
            got += part.len() as u64;
            self.stats.fetched.chunk_bytes.add(part.len() as u64);
            if got > want {
                return Err(FetchError::Long {
                    path: path.to_owned(),
                    limit: want,
                });
            }
            let complete = splitter.push(&part);
            if !complete.is_empty() {
                let (caches, stats) = (Arc::clone(&self.caches), Arc::clone(&self.stats));
                decoding.spawn_blocking(move || deliver(complete, &caches, &stats));
            }
        }
        if got < want {
            return Err(FetchError::Short {
                path: path.to_owned(),
                want,
                got,
            });
        }
        Ok(())
    }

    fn count_damage(&self, error: &FetchError) {
        if matches!(error, FetchError::Digest { .. }) {
            self.stats.verify_failures.increment();
        }
    }

    /// Waits before the next try, or returns the error for good.
    async fn wait_or_stop(
        &self,
        attempts: &mut Attempts,
        error: FetchError,
    ) -> Result<(), FetchError> {
        match attempts.failed(&error) {
            Next::Stop => Err(error),
            Next::Wait(wait) => {
                self.stats.retries.increment();
                self.outage.began(&error);
                tracing::debug!(%error, ?wait, "trying again");
                tokio::time::sleep(wait).await;
                Ok(())
            }
        }
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

/// The tries of one fetch.
struct Attempts {
    policy: RetryPolicy,
    began: Instant,
    tries: u32,
}

impl Attempts {
    fn begin(policy: RetryPolicy) -> Self {
        Self {
            policy,
            began: Instant::now(),
            tries: 0,
        }
    }

    fn failed(&mut self, error: &FetchError) -> Next {
        self.tries = self.tries.saturating_add(1);
        // The seed of a hasher is random; back-off needs no better chance than that.
        let random =
            u32::try_from(RandomState::new().hash_one(self.tries) >> 32).unwrap_or_default();
        self.policy
            .next(self.tries, error.fault(), self.began.elapsed(), random)
    }
}
