//! Streams the boot pack into the caches, behind and beside what guests read.
//!
//! The head comes first and is verified before anything in it is believed. Then frame after frame
//! ([`planner`](crate::prefetch::planner) says which): what the caches hold or somebody fetches
//! already is taken away, and the rest comes as the frame, or as ranges of ordinary packs where that
//! is cheaper. A boot pack that is of no use is logged once; ordinary packs have all of its chunks.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use bytes::Bytes;
use futures_util::future::join_all;
use image_format::boot_pack::{FrameError, Head, PlacedChunk};
use image_format::chunk::{Chunk, ChunkId};
use image_format::manifest::BootPack;
use image_format::trace::Origin;
use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio::time::Instant;

use super::Chunks;
use super::kept::fill_if_few;
use crate::cache::documents::Name;
use crate::disk::plan::Part;
use crate::fetch::fetcher::part::{ObjectPart, Patience};
use crate::fetch::fetcher::{Wanted, land_all};
use crate::fetch::lanes::{Hurry, Priority};
use crate::fetch::plan::coalesce;
use crate::fetch::retry::Fault;
use crate::fetch::{FetchError, Source};
use crate::flight::Boarding;
use crate::open::EarlyHead;
use crate::place::Place;
use crate::prefetch::ledger::{Ahead, Reason};
use crate::prefetch::planner::{Pressure, Route, Step, frames_max, route};
use crate::prefetch::{BootStream, Held};

impl Place {
    /// The chunk that the head of a boot pack lists.
    #[must_use]
    pub const fn of(chunk: &PlacedChunk) -> Self {
        Self::new(chunk.region, chunk.entry, chunk.pack)
    }
}

/// A stream that is running; when it ends, however it does, nobody waits for it any more.
struct Running(Arc<BootStream>);

impl Drop for Running {
    fn drop(&mut self) {
        self.0.close();
    }
}

/// A frame that is being fetched; when that ends, however it does, nobody waits for it any more.
struct Bringing {
    boot: Arc<BootStream>,
    frame: usize,
}

impl Drop for Bringing {
    fn drop(&mut self) {
        drop(self.boot.finish(self.frame));
    }
}

/// How long a reader waits to learn what the boot pack brings: a round trip and what a retry may take
/// on a bad line. The head comes beside the index page that a first read needs anyway.
const HEAD_WAIT: Duration = Duration::from_millis(500);

/// How often it is asked for room before it is looked once more what of that is taken in vain.
const SWEEP_EVERY: usize = 16;

/// How long to leave a server alone that failed when frames were to be kept.
const KEEP_AGAIN: Duration = Duration::from_secs(30);

/// Frames of no use after which no more are fetched to be kept.
const USELESS_MAX: u32 = 4;

/// The head of a boot pack is on its way, until this is dropped.
#[derive(Debug)]
pub struct Expected(watch::Sender<Heads>);

impl Drop for Expected {
    fn drop(&mut self) {
        self.0.send_modify(|heads| heads.coming -= 1);
    }
}

/// The heads of boot packs that are on their way.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Heads {
    coming: usize,
    /// Since when the last of them is.
    since: Option<Instant>,
}

impl<S: Source> Chunks<S> {
    /// Says that a head of a boot pack is on its way: readers wait a little for it, so that what it
    /// lists is not fetched from elsewhere first.
    #[must_use]
    pub fn expect_boot_pack(&self) -> Expected {
        self.expected.send_modify(|heads| {
            heads.coming += 1;
            heads.since = Some(Instant::now());
        });
        Expected(self.expected.clone())
    }

    /// Waits until it is known what the boot pack brings, but not for long, and not again when that was in vain.
    pub async fn boot_pack_is_known(&self) {
        let mut expected = self.expected.subscribe();
        let Some(since) = expected.borrow().since else {
            return;
        };
        // The sender lives as long as `self`; after the wait, packs serve.
        let known = expected.wait_for(|heads| heads.coming == 0);
        let _ = tokio::time::timeout_at(since + HEAD_WAIT, known).await;
    }

    /// How many frames the boot pack has, and how many of them are on their way or still to come.
    #[must_use]
    pub fn boot_pack_frames(&self) -> (usize, usize) {
        self.boot.get().map_or((0, 0), |boot| boot.frames())
    }

    /// Whether there are parts, and the boot pack lists all of them.
    pub fn are_foreseen(&self, parts: &[Part]) -> bool {
        let listed = |boot: &Arc<BootStream>| parts.iter().all(|part| boot.lists(&part.place.id()));
        !parts.is_empty() && self.boot.get().is_some_and(listed)
    }

    /// Notes that `chunk` is read: if it was fetched ahead, that was not in vain.
    pub(super) fn strike(&self, chunk: &ChunkId) {
        if let Some(ahead) = self.ledger.strike(chunk) {
            self.stats.ahead_used_bytes.add(ahead.bytes);
            match ahead.reason {
                Reason::Listed => {}
                Reason::Stream => self.stats.ahead.stream_used_bytes.add(ahead.bytes),
                Reason::Neighbour => {
                    self.neighbours().used(ahead.bytes);
                    self.stats.ahead.neighbour_used_bytes.add(ahead.bytes);
                }
            }
            if let Some(boot) = self.boot.get() {
                boot.call();
            }
        }
    }

    /// Notes that the chunk at `place` is fetched ahead.
    pub(super) fn bring(&self, place: &Place, reason: Reason) {
        let bytes = place.plain_bytes();
        self.ledger.bring(place.id(), Ahead { bytes, reason });
        self.stats.ahead_bytes.add(bytes);
        match reason {
            Reason::Listed => {}
            Reason::Stream => self.stats.ahead.stream_bytes.add(bytes),
            Reason::Neighbour => {
                self.neighbours().brought(bytes);
                self.stats.ahead.neighbour_bytes.add(bytes);
            }
        }
    }

    /// What brings the chunk at `place`, which is on its way already.
    pub(super) fn followed(&self, place: &Place) -> Origin {
        match self.boot.get() {
            Some(boot) if boot.lists(&place.id()) => Origin::BootPack,
            _ => Origin::Flight,
        }
    }

    /// Leaves a chunk that a guest waits for to the boot pack, if that will bring it.
    pub(super) fn hand_over(&self, wanted: Wanted) -> Option<Wanted> {
        match self.boot.get() {
            Some(boot) => boot.take(wanted),
            None => Some(wanted),
        }
    }

    /// Fetches the head of the boot pack of a disk of `disk_length` bytes, unless it is on its way as `early`;
    /// `None`, with a line in the log, if it is of no use.
    ///
    /// # Cancel safety
    ///
    /// Dropping the future ends the fetch.
    pub async fn open_boot_pack(
        &self,
        pack: BootPack,
        disk_length: u64,
        early: Option<EarlyHead>,
    ) -> Option<&Arc<BootStream>> {
        let head = self.boot_pack_head(pack, disk_length, early).await;
        match head {
            Ok(head) => {
                let listed = head.chunks().len() as u64;
                let places = head.chunks().map(|chunk| Place::of(&chunk));
                self.caches.disk.prize(places);
                let boot = self
                    .boot
                    .get_or_init(|| Arc::new(BootStream::new(pack.object, head)));
                self.stats.boot_pack.listed_chunks.add(listed);
                let (bytes, most) = (pack.object.length, self.caches.frames.bytes_max());
                if bytes > most && most > 0 {
                    tracing::info!(bytes, most, "the boot pack is too long to be kept");
                }
                Some(boot)
            }
            Err(error) => {
                self.stats.boot_pack.damaged.increment();
                warn(&error);
                None
            }
        }
    }

    /// The head of a boot pack: as it was kept, as it came with the opening, or as it comes now.
    async fn boot_pack_head(
        &self,
        pack: BootPack,
        disk_length: u64,
        early: Option<EarlyHead>,
    ) -> Result<Head, FetchError> {
        let name = Name::Head(pack.object.digest);
        let kept = self.fetcher.recall_document(name, pack.head.length).await;
        if let Some(head) = kept.and_then(|bytes| pack.open(&bytes, disk_length).ok()) {
            return Ok(head);
        }
        if let Some(early) = early
            && let Some(bytes) = early.bytes().await
            && let Ok(head) = pack.open(&bytes, disk_length)
        {
            self.fetcher.keep_document(name, bytes);
            return Ok(head);
        }
        let part = ObjectPart {
            object: pack.object,
            range: 0..pack.head.length,
            plain_bytes: 0,
        };
        // Only what turns out to be the head is kept.
        let decode = move |bytes: &[u8]| {
            let head = pack.open(bytes, disk_length);
            head.map(|head| (head, Bytes::copy_from_slice(bytes)))
        };
        let hurry = Hurry::new();
        let fetched = self
            .fetcher
            .part(&part, Priority::Guest, &hurry, Patience::Policy, decode);
        let (head, bytes) = fetched.await?;
        self.fetcher.keep_document(name, bytes);
        Ok(head)
    }

    /// Brings frame after frame until all are here.
    ///
    /// # Cancel safety
    ///
    /// Dropping the future ends the stream; who waits for a chunk of it fetches it elsewhere.
    pub async fn stream(self: &Arc<Self>, boot: &Arc<BootStream>) {
        let running = Running(Arc::clone(boot));
        let mut bringing = JoinSet::new();
        loop {
            let mut pressure = self.pressure();
            if self.keeps(boot) && boot.is_trusted() {
                // What the caches let go of is not lost.
                pressure.room_bytes = u64::MAX;
            }
            match boot.next(pressure) {
                Step::Finished => break,
                Step::Fetch { frame, priority } => {
                    let hurry = Arc::new(Hurry::new());
                    let places = boot.head().chunks_of(frame).map(|chunk| Place::of(&chunk));
                    // Who waits for a frame does not wait for what is written, if it need not.
                    let (lacking, are_elsewhere) = self.look_around(places.collect()).await;
                    if are_elsewhere {
                        // What another version's cache has is at its place after this.
                        self.lacking(lacking).await;
                    }
                    boot.hold(frame, self.board(boot, frame, &hurry), &hurry);
                    let (chunks, boot) = (Arc::clone(self), Arc::clone(boot));
                    bringing.spawn(async move {
                        let frame = Bringing { boot, frame };
                        chunks.bring_frame(&frame, priority, &hurry).await;
                    });
                }
                Step::Wait => tokio::select! {
                    () = boot.called() => {}
                    Some(ended) = bringing.join_next() => {
                        if let Err(error) = ended {
                            tracing::error!(%error, "a frame of the boot pack was given up; ordinary packs have its chunks");
                        }
                    }
                },
            }
        }
        while bringing.join_next().await.is_some() {}
        drop(running);
        self.keep_rest(boot).await;
    }

    /// Fetches and keeps the frames that did not come as frames: what they hold was here, or the server failed then.
    async fn keep_rest(&self, boot: &BootStream) {
        if !self.keeps(boot) {
            return;
        }
        let mut useless = 0;
        for frame in 0..boot.head().frames().len() {
            while !self.caches.frames.holds(frame) && useless < USELESS_MAX {
                match self.fetch_frame(boot, frame).await {
                    Ok(stored) => self.keep(frame, stored),
                    // A server that fails may be back later: nobody waits for this.
                    Err(error) if error.fault() == Fault::Transient => {
                        tokio::time::sleep(KEEP_AGAIN).await;
                    }
                    Err(error) => {
                        let cause: &dyn std::error::Error = &error;
                        tracing::warn!(
                            frame,
                            error = cause,
                            "a frame of the boot pack is not kept"
                        );
                        useless += 1;
                        break;
                    }
                }
            }
        }
    }

    /// The stored bytes of a frame, verified.
    async fn fetch_frame(&self, boot: &BootStream, frame: usize) -> Result<Bytes, FetchError> {
        let (head, hurry) = (Arc::clone(boot.head()), Hurry::new());
        let decode = move |stored: &[u8]| {
            let verified = head.decode_frame(frame, stored);
            verified.map(|_| Bytes::copy_from_slice(stored))
        };
        let (part, ahead) = (boot.part(frame), Priority::Ahead);
        self.fetcher
            .part(&part, ahead, &hurry, Patience::Policy, decode)
            .await
    }

    /// Keeps a frame that was verified.
    fn keep(&self, frame: usize, stored: Bytes) {
        self.stats.boot_pack.kept_bytes.add(stored.len() as u64);
        self.caches.frames.keep(frame, stored);
    }

    pub(super) fn pressure(&self) -> Pressure {
        // Half of the memory, so that what was read lately is not pushed out by what may be read.
        let memory = self.caches.memory.bytes_max() as u64 / 2;
        let on_disk = self.caches.disk.room_bytes();
        if on_disk < memory / 4 && self.ledger.unused_bytes() > memory / 4 * 3 {
            self.forget_what_is_no_more();
        }
        let in_memory = memory.saturating_sub(self.ledger.unused_bytes());
        Pressure {
            guest_requests: self.guest_requests.load(Ordering::Relaxed),
            room_bytes: in_memory.max(on_disk),
            frames_max: frames_max(self.fetcher.line()),
        }
    }

    /// What came ahead in vain takes no room once memory has let go of it, nor what did not come. Looks now and then.
    fn forget_what_is_no_more(&self) {
        let asked = self.sweeps.fetch_add(1, Ordering::Relaxed);
        if asked.is_multiple_of(SWEEP_EVERY) {
            let memory = &self.caches.memory;
            self.ledger
                .retain(|chunk| memory.holds(chunk) || self.flights.is_on_its_way(chunk));
        }
    }

    /// Starts flights for what is neither here nor on its way of a frame, which was looked for on disk.
    fn board(&self, boot: &BootStream, frame: usize, hurry: &Arc<Hurry>) -> Vec<Wanted> {
        let mut wanted = Vec::new();
        for chunk in boot.head().chunks_of(frame) {
            let place = Place::of(&chunk);
            if self.caches.memory.holds(&place.id()) || self.caches.disk.is_known_to_hold(&place) {
                continue;
            }
            if let Boarding::Lead(landing, _) = self.flights.board(place.id(), hurry)
                && !self.caches.memory.holds(&place.id())
            {
                self.bring(&place, Reason::Listed);
                wanted.push(Wanted { place, landing });
            }
        }
        wanted
    }

    /// Whether the frames of `boot` are kept.
    pub(crate) fn keeps(&self, boot: &BootStream) -> bool {
        self.caches.frames.fits(boot.object_bytes())
    }

    /// Brings what is held of a frame, and whatever guests add meanwhile.
    async fn bring_frame(&self, bringing: &Bringing, priority: Priority, hurry: &Arc<Hurry>) {
        let (boot, frame) = (&bringing.boot, bringing.frame);
        let held = boot.held(frame);
        let places: Vec<Place> = held.iter().map(|held| held.wanted.place).collect();
        let ranges = coalesce(places, self.fetcher.limits());
        let stored = boot.part(frame).range;
        let lengths = ranges
            .iter()
            .map(|request| request.range.end - request.range.start);
        let left = match route(stored.end - stored.start, lengths) {
            Route::Frame if boot.is_trusted() => {
                self.by_frame(bringing, held, priority, hurry).await
            }
            // As ranges it would be here, but nothing of it to keep.
            Route::Ranges if boot.is_trusted() && self.keeps(boot) => {
                self.by_frame(bringing, held, priority, hurry).await
            }
            Route::Nothing => held,
            Route::Frame | Route::Ranges => {
                self.stats.boot_pack.frames_by_ranges.increment();
                held
            }
        };
        self.by_ranges(left, priority, hurry).await;
        // What guests added while the last of it came; a frame that is kept has it.
        let added = boot.finish(frame);
        let added = if self.caches.frames.holds(frame) {
            let wanted = added.into_iter().map(|held| held.wanted).collect();
            let left = self.unpack_kept(wanted).into_iter();
            let guest = Priority::Guest;
            left.map(|wanted| Held {
                wanted,
                priority: guest,
            })
            .collect()
        } else {
            added
        };
        self.by_ranges(added, priority, hurry).await;
    }

    /// Fetches a frame and delivers what is wanted of it; returns what it did not bring.
    async fn by_frame(
        &self,
        bringing: &Bringing,
        held: Vec<Held>,
        priority: Priority,
        hurry: &Hurry,
    ) -> Vec<Held> {
        let (boot, frame) = (&bringing.boot, bringing.frame);
        let (head, keeps) = (Arc::clone(boot.head()), self.keeps(boot));
        let decode = move |stored: &[u8]| {
            let chunks = head.decode_frame(frame, stored)?;
            let kept = keeps.then(|| Bytes::copy_from_slice(stored));
            Ok::<_, FrameError>((chunks, kept))
        };
        let part = boot.part(frame);
        let fetched = self
            .fetcher
            .part(&part, priority, hurry, Patience::Short, decode);
        match fetched.await {
            Ok((chunks, kept)) => {
                self.stats.boot_pack.frames.increment();
                if let Some(stored) = kept {
                    self.keep(frame, stored);
                }
                // Guests may have come to wait for more of it meanwhile.
                let held = held.into_iter().chain(boot.held(frame)).collect();
                self.deliver_frame(chunks, held, priority).await
            }
            // Who waited for all of the deadline does not wait for it twice.
            Err(error)
                if error.is_overdue() && (priority == Priority::Guest || hurry.is_called()) =>
            {
                for held in held {
                    held.wanted.landing.deliver(Err(error.clone()));
                }
                Vec::new()
            }
            Err(error) => {
                self.stats.boot_pack.frames_by_ranges.increment();
                // A connection that broke says nothing about the pack.
                if error.fault() != Fault::Transient {
                    self.stats.boot_pack.damaged.increment();
                    if boot.distrust() {
                        warn(&error);
                    }
                }
                held
            }
        }
    }

    /// Delivers the chunks of a frame to those who want them; returns what was not among them.
    async fn deliver_frame(
        &self,
        chunks: Vec<Chunk>,
        held: Vec<Held>,
        priority: Priority,
    ) -> Vec<Held> {
        let mut wanted: HashMap<ChunkId, Held> = held
            .into_iter()
            .map(|held| (held.wanted.place.id(), held))
            .collect();
        let mut verified = Vec::new();
        for chunk in chunks {
            match wanted.remove(&chunk.id()) {
                Some(held) => verified.push((held.wanted, chunk)),
                None => self.stats.boot_pack.repeated_chunks.increment(),
            }
        }
        let framed = &self.stats.boot_pack.framed_chunks;
        framed.add(verified.len() as u64);
        let landed = land_all(verified, &self.caches, &self.stats);
        match priority {
            // Of these there may be any number.
            Priority::Guest => fill_if_few(&self.caches, &self.stats, landed).await,
            Priority::Ahead => {
                if let Some(filling) = self.caches.fill(landed) {
                    let filled = filling.end().await;
                    self.stats.disk_fill_bytes.add(filled.unwrap_or(0));
                }
            }
        }
        wanted.into_values().collect()
    }

    /// Fetches chunks from ordinary packs, and waits for them.
    async fn by_ranges(&self, held: Vec<Held>, priority: Priority, hurry: &Arc<Hurry>) {
        let is_guest = |held: &Held| held.priority == Priority::Guest;
        let (guests, ahead): (Vec<_>, Vec<_>) = held.into_iter().partition(is_guest);
        let fetch = |held: Vec<Held>, priority| {
            let wanted: Vec<_> = held.into_iter().map(|held| held.wanted).collect();
            coalesce(wanted, self.fetcher.limits())
                .into_iter()
                .map(move |request| {
                    Arc::clone(&self.fetcher).range(request, priority, Arc::clone(hurry))
                })
        };
        let all = fetch(guests, Priority::Guest).chain(fetch(ahead, priority));
        join_all(all).await;
    }
}

fn warn(error: &FetchError) {
    let cause: &dyn std::error::Error = error;
    tracing::warn!(
        error = cause,
        "the boot pack is of no use; ordinary packs serve"
    );
}
