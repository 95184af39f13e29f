//! Carries requests out: asks the source, bounds and verifies what comes, tries again, delivers.
//!
//! A range request belongs to a task, not to a reader. As soon as the bytes of a chunk are there
//! they are decoded and verified on a thread of their own, kept in memory, delivered to whoever
//! waits, and then written to the disk cache; the rest of the body is still on its way meanwhile.
//! After a failure only what is missing is asked for again.
//!
//! Bounds: requests and bytes in flight by [`Lanes`], the length of every answer before it is asked
//! for, tries and time by [`RetryPolicy`].

use std::sync::Arc;

use bytes::{Bytes, BytesMut};
use futures_util::StreamExt;
use image_format::chunk::{Chunk, ChunkId};
use image_format::digest::{Digest, DigestMismatch, ObjectRef};
use image_format::frame::FrameError;
use tokio::task::JoinSet;

use crate::cache::Caches;
use crate::cache::documents::Documents;
use crate::fetch::lanes::{Hurry, Lanes, Priority, Slot};
use crate::fetch::mirrors::{MirrorId, Mirrors};
use crate::fetch::pace::Pace;
use crate::fetch::plan::{RangeRequest, Wants};
use crate::fetch::retry::{Fault, Next, RetryPolicy};
use crate::fetch::split::Splitter;
use crate::fetch::{Body, FetchError, Freshness, Part, Request, Source};
use crate::flight::Landing;
use crate::place::Place;
use crate::stats::{Counter, Stats};

mod attempts;
mod kept;
mod outage;
pub mod part;

pub(crate) use attempts::Attempts;
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

    pub(crate) const fn freshness(&self) -> Freshness {
        match self.expect {
            Expect::Object(_) | Expect::Digest(..) | Expect::Fixed(_) => Freshness::Any,
            Expect::Bound(_) | Expect::Optional(_) => Freshness::Revalidate,
        }
    }

    /// Whether the answer is good, though it is an error to the source.
    pub(crate) fn is_answered_by(&self, error: &FetchError) -> bool {
        matches!(self.expect, Expect::Optional(_)) && error.is_missing_or_forbidden()
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
    mirrors: Arc<Mirrors<S>>,
    caches: Arc<Caches>,
    lanes: Lanes,
    policy: RetryPolicy,
    outage: Outage,
    documents: Arc<Documents>,
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
        let mirrors = Arc::new(Mirrors::one(source));
        Self::over(mirrors, connections, policy, caches, stats)
    }

    /// Fetches from `mirrors` over at most `connections` requests at once.
    #[must_use]
    pub fn over(
        mirrors: Arc<Mirrors<S>>,
        connections: u16,
        policy: RetryPolicy,
        caches: Arc<Caches>,
        stats: Arc<Stats>,
    ) -> Self {
        Self {
            mirrors,
            caches,
            lanes: Lanes::new(connections),
            policy,
            outage: Outage::new(),
            documents: Arc::default(),
            stats,
        }
    }

    /// The counters.
    pub const fn stats(&self) -> &Arc<Stats> {
        &self.stats
    }

    /// The servers.
    pub(crate) fn mirrors(&self) -> &Mirrors<S> {
        &self.mirrors
    }

    /// The tries of something that begins now.
    pub(crate) fn attempts(&self) -> Attempts {
        Attempts::begin(self.policy)
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
        if let Some(kept) = self.recall(whole).await {
            return Ok(kept);
        }
        let mut attempts = self.attempts();
        let mut freshness = whole.freshness();
        loop {
            let mirror = self.choose(&attempts);
            let error = match self.whole_of(mirror, whole, freshness, counter).await {
                Ok(bytes) => return Ok(bytes),
                Err(error) if whole.is_answered_by(&error) => return Err(error),
                Err(error) => error,
            };
            freshness = Freshness::Revalidate;
            self.turn_or_wait(&mut attempts, mirror, error).await?;
        }
    }

    /// Fetches a whole file, once, on the chance that it is there. That it is not is no failure.
    ///
    /// # Cancel safety
    ///
    /// Dropping the future ends the fetch.
    pub async fn glance(&self, whole: &Whole, counter: &Counter) -> Option<Bytes> {
        let mirror = self.choose(&self.attempts());
        self.glance_at(mirror, whole, counter).await
    }

    /// The same, of one mirror.
    pub(crate) async fn glance_at(
        &self,
        mirror: MirrorId,
        whole: &Whole,
        counter: &Counter,
    ) -> Option<Bytes> {
        if let Some(kept) = self.recall(whole).await {
            return Some(kept);
        }
        let hurry = Hurry::new();
        let bytes_max = whole.bytes_max();
        let slot = self.lanes.enter(Priority::Guest, bytes_max, &hurry).await;
        let tried = self
            .try_whole(mirror, whole, whole.freshness(), counter)
            .await;
        drop(slot);
        tried
            .inspect_err(|error| tracing::debug!(%error, "not there at a glance"))
            .ok()
    }

    /// Asks one mirror for a whole file, once.
    pub(crate) async fn whole_of(
        &self,
        mirror: MirrorId,
        whole: &Whole,
        freshness: Freshness,
        counter: &Counter,
    ) -> Result<Bytes, FetchError> {
        let hurry = Hurry::new();
        let bytes_max = whole.bytes_max();
        let _slot = self.lanes.enter(Priority::Guest, bytes_max, &hurry).await;
        let seen = self.outage.seen();
        let outcome = self.try_whole(mirror, whole, freshness, counter).await;
        match &outcome {
            Err(error) if !whole.is_answered_by(error) => {
                self.mirrors.failed(mirror, error.blame(), error);
            }
            _ => {
                self.outage.ended(seen);
                self.mirrors.answered(mirror);
            }
        }
        outcome
    }

    async fn try_whole(
        &self,
        mirror: MirrorId,
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
        let pace = Pace::begin();
        let mut body = self.open(mirror, request, &pace).await?;
        let mut bytes = BytesMut::new();
        while let Some(part) = next_part(&mut body, &whole.path, &pace, bytes.len() as u64).await? {
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
        let bytes = bytes.freeze();
        self.keep(whole, &bytes);
        Ok(bytes)
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
        let mut attempts = self.attempts();
        let mut freshness = Freshness::Any;
        loop {
            let mirror = self.choose(&attempts);
            let bytes = request.range.end - request.range.start + request.plain_bytes;
            let slot = self.lanes.enter(priority, bytes, &hurry).await;
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
        self.stats.requests.increment();
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
        let pace = Pace::begin();
        let mut body = self.open(mirror, asked, &pace).await?;
        let mut got = 0;
        while let Some(part) = next_part(&mut body, &path, &pace, got).await? {
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

    /// Asks a mirror, and waits for the head of its answer as long as for any part of it.
    async fn open(
        &self,
        mirror: MirrorId,
        request: Request,
        pace: &Pace,
    ) -> Result<Body, FetchError> {
        let path = request.path.clone();
        let opened = tokio::time::timeout_at(pace.until(0), self.mirrors.open(mirror, request));
        match opened.await {
            Ok(body) => Ok(body?),
            Err(_) => Err(pace.too_slow(path, 0)),
        }
    }

    fn count_damage(&self, error: &FetchError) {
        if matches!(error, FetchError::Digest { .. }) {
            self.stats.verify_failures.increment();
        }
    }

    /// The mirror for the next try.
    fn choose(&self, attempts: &Attempts) -> MirrorId {
        let next = self.mirrors.next(&attempts.round.tried());
        next.unwrap_or_else(|| self.mirrors.order()[0])
    }

    /// Turns to the next mirror; where all were asked, waits before the next round, or returns the
    /// error for good.
    async fn turn_or_wait(
        &self,
        attempts: &mut Attempts,
        mirror: MirrorId,
        error: FetchError,
    ) -> Result<(), FetchError> {
        attempts.round.add(mirror, error.clone());
        if self.mirrors.next(&attempts.round.tried()).is_some() {
            self.stats.retries.increment();
            tracing::debug!(%error, "asking another mirror");
            return Ok(());
        }
        let error = attempts.round.finish(&self.mirrors, error);
        if self.wait(attempts, error.fault(), &error).await {
            return Ok(());
        }
        Err(error)
    }

    /// Waits before the next try; `false`: there is to be none.
    pub(crate) async fn wait(
        &self,
        attempts: &mut Attempts,
        fault: Fault,
        error: &(dyn std::error::Error + Sync + 'static),
    ) -> bool {
        match attempts.failed(fault) {
            Next::Stop => false,
            Next::Wait(wait) => {
                self.stats.retries.increment();
                self.outage.began(fault, error);
                tracing::debug!(%error, ?wait, "trying again");
                tokio::time::sleep(wait).await;
                true
            }
        }
    }
}

/// The next part of a body, of which `got` bytes came; `None`: it has ended.
async fn next_part(
    body: &mut Body,
    path: &str,
    pace: &Pace,
    got: u64,
) -> Result<Option<Bytes>, FetchError> {
    match tokio::time::timeout_at(pace.until(got), body.next()).await {
        Ok(part) => Ok(part.transpose()?),
        Err(_) => Err(pace.too_slow(path.to_owned(), got)),
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
