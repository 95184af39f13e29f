//! Fetches ranges of packs, and delivers each chunk as soon as it is complete.
//!
//! As soon as the bytes of a chunk are there they are decoded and verified on a thread of their own,
//! kept in memory, delivered to whoever waits, and then written to the disk cache; the rest of the
//! body is still on its way meanwhile. After a failure only what is missing is asked for again. Where
//! two requests bring the same ([`race`](super::race)), each chunk is that of the faster one.

use std::ops::Range;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use bytes::Bytes;
use image_format::chunk::{Chunk, ChunkId};
use image_format::digest::ObjectRef;
use image_format::frame::FrameError;
use tokio::task::JoinSet;
use tokio::time::Instant;

use super::Fetcher;
use super::race::{Terms, Try};
use crate::cache::Caches;
use crate::cache::desk::Started;
use crate::fetch::lanes::{Hurry, Priority};
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

/// Chunks of one pack that somebody waits for, whichever request brings them.
#[derive(Debug)]
struct Job {
    pack: ObjectRef,
    /// Those that are not here yet.
    wanted: Mutex<Vec<Option<Wanted>>>,
}

/// One of them, by its number.
#[derive(Clone, Copy, Debug)]
struct Piece {
    number: usize,
    place: Place,
}

impl Wants for Piece {
    fn place(&self) -> &Place {
        &self.place
    }
}

impl Job {
    fn new(request: RangeRequest<Wanted>) -> Self {
        Self {
            pack: request.pack,
            wanted: Mutex::new(request.wanted.into_iter().map(Some).collect()),
        }
    }

    /// What is not here yet, in the order of the pack.
    fn left(&self) -> Vec<Piece> {
        let wanted = self.lock();
        let numbered = wanted.iter().enumerate();
        let piece = |(number, wanted): (usize, &Option<Wanted>)| {
            let place = wanted.as_ref()?.place;
            Some(Piece { number, place })
        };
        numbered.filter_map(piece).collect()
    }

    fn is_open(&self, piece: Piece) -> bool {
        self.lock()[piece.number].is_some()
    }

    /// Whom to deliver to; `None`: another request was faster.
    fn take(&self, piece: Piece) -> Option<Wanted> {
        self.lock()[piece.number].take()
    }

    /// Delivers an error to all who still wait.
    fn fail(&self, error: &FetchError) {
        let left: Vec<_> = self.lock().iter_mut().filter_map(Option::take).collect();
        for wanted in left {
            wanted.landing.deliver(Err(error.clone()));
        }
    }

    fn lock(&self) -> MutexGuard<'_, Vec<Option<Wanted>>> {
        self.wanted.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The bytes of the pack in which `pieces` lie, and what they unpack to.
fn extent(pieces: &[Piece]) -> (Range<u64>, u64) {
    let stored = || pieces.iter().map(|piece| piece.place.stored());
    let start = stored().map(|range| range.start).min().unwrap_or(0);
    let end = stored().map(|range| range.end).max().unwrap_or(start);
    let plain = pieces.iter().map(|piece| piece.place.plain_bytes()).sum();
    (start..end, plain)
}

impl<S: Source> Fetcher<S> {
    /// Fetches a range of a pack and delivers every chunk that is wanted of it, or an error.
    ///
    /// # Cancel safety
    ///
    /// Dropping the future abandons what was not yet delivered.
    pub async fn range(
        self: Arc<Self>,
        request: RangeRequest<Wanted>,
        priority: Priority,
        hurry: Arc<Hurry>,
    ) {
        let job = Arc::new(Job::new(request));
        let path = job.pack.digest.object_path();
        let places: Vec<Place> = job.left().iter().map(|piece| piece.place).collect();
        let mut attempts = self.attempts_since(Instant::now(), priority, &hurry);
        let mut freshness = Freshness::Any;
        loop {
            let first = self.choose(&attempts);
            let left = job.left();
            let (range, plain_bytes) = extent(&left);
            let bytes = range.end - range.start;
            let entering =
                self.enter_in_time(&mut attempts, &path, priority, bytes + plain_bytes, &hurry);
            let slot = match entering.await {
                Ok(slot) => slot,
                Err(error) => return job.fail(&error),
            };
            let terms = Terms {
                path: &path,
                attempts: Some(&attempts),
                first,
                elsewhere: true,
                bytes,
                priority,
                hurry: &hurry,
                at_a_glance: false,
            };
            let raced = self
                .race(terms, |attempt| self.try_range(attempt, &job, freshness))
                .await;
            drop(slot);
            self.note(&raced, |_| false);
            let (mirror, before) = (raced.mirror, raced.before);
            let Err(error) = raced.outcome else {
                self.look_around(&places);
                return;
            };
            let n_left = job.left().len();
            if n_left == 0 {
                tracing::debug!(%error, "a body went wrong behind what was wanted of it");
                return;
            }
            if n_left < left.len() {
                attempts = self.attempts_since(raced.heard, priority, &hurry);
            }
            if let Some((mirror, error)) = before {
                attempts.round.add(mirror, error);
            }
            freshness = Freshness::Revalidate;
            if error.is_overdue() && !attempts.is_over() {
                // What came before the silence counts: there is time for another try.
                self.stats.retries.increment();
                continue;
            }
            if let Err(error) = self.turn_or_wait(&mut attempts, mirror, error).await {
                self.tell_if_gone(&error);
                job.fail(&error);
                return;
            }
        }
    }

    /// One try for what is not here yet; what is delivered is taken out of the job.
    async fn try_range(
        &self,
        attempt: Try,
        job: &Arc<Job>,
        freshness: Freshness,
    ) -> Result<(), FetchError> {
        let pieces = job.left();
        let mut decoding = JoinSet::new();
        let received = self
            .receive(&attempt, job, pieces, freshness, &mut decoding)
            .await;
        let mut damaged = None;
        while let Some(ended) = decoding.join_next().await {
            let decoded = ended.unwrap_or_default();
            for error in decoded.damaged {
                self.stats.verify_failures.increment();
                damaged = Some(FetchError::Chunk {
                    path: job.pack.digest.object_path(),
                    source: Arc::new(error),
                });
            }
            // The slot of the request is held until this is done, which bounds the memory in use.
            if let Some(filling) = decoded.filling {
                let filled = filling.end().await;
                self.stats.disk_fill_bytes.add(filled.unwrap_or(0));
            }
        }
        received?;
        damaged.map_or(Ok(()), Err)
    }

    /// Reads the body, handing over each chunk as soon as it is complete.
    async fn receive(
        &self,
        attempt: &Try,
        job: &Arc<Job>,
        pieces: Vec<Piece>,
        freshness: Freshness,
        decoding: &mut JoinSet<Decoded>,
    ) -> Result<(), FetchError> {
        let path = job.pack.digest.object_path();
        let (range, _) = extent(&pieces);
        let want = range.end - range.start;
        let mut splitter = Splitter::new(range.start, pieces);
        let asked = Request {
            path: path.clone(),
            part: Part::Range {
                range,
                object_bytes: job.pack.length,
            },
            freshness,
        };
        let mut incoming = self.open(attempt, asked).await?;
        let mut got = 0;
        while let Some(part) = incoming.next().await? {
            got += part.len() as u64;
            self.stats.fetched.chunk_bytes.add(part.len() as u64);
            let complete = splitter.push(&part);
            if !complete.is_empty() {
                let (job, caches) = (Arc::clone(job), Arc::clone(&self.caches));
                let stats = Arc::clone(&self.stats);
                let turn = self.decoders.turn().await;
                decoding.spawn_blocking(move || {
                    let decoded = deliver(complete, &job, &caches, &stats);
                    drop(turn);
                    decoded
                });
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

/// What decoding came to.
#[derive(Debug, Default)]
struct Decoded {
    /// What was wrong with chunks, which stay wanted.
    damaged: Vec<FrameError>,
    /// Writes the others to the disk cache.
    filling: Option<Started<u64>>,
}

/// Decodes, verifies and delivers chunks, then begins to write them to the disk cache.
fn deliver(
    complete: Vec<(Piece, Bytes)>,
    job: &Job,
    caches: &Arc<Caches>,
    stats: &Stats,
) -> Decoded {
    let (mut damaged, mut chunks) = (Vec::new(), Vec::new());
    for (piece, stored) in complete {
        if !job.is_open(piece) {
            continue;
        }
        match piece.place.decode(&stored) {
            Ok(chunk) => {
                if let Some(wanted) = job.take(piece) {
                    chunks.push((piece.place, land(wanted, chunk, caches, stats)));
                }
            }
            Err(error) => damaged.push(error),
        }
    }
    let filling = caches.fill(chunks);
    Decoded { damaged, filling }
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

/// Keeps and delivers chunks that are verified already; they are to be written to the disk cache.
pub(crate) fn land_all(
    verified: Vec<(Wanted, Chunk)>,
    caches: &Caches,
    stats: &Stats,
) -> Vec<(Place, Chunk)> {
    let landed = verified
        .into_iter()
        .map(|(wanted, chunk)| (wanted.place, land(wanted, chunk, caches, stats)));
    landed.collect()
}
