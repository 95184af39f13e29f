//! Finds parts of chunks: in memory, in the disk cache, on their way, or on the server.
//!
//! Whatever a read lacks is fetched together: neighbouring chunks come in one request. A chunk that
//! is already on its way is waited for, whoever asked for it first, so that no chunk is ever fetched
//! twice at once. What the boot pack brings is not fetched from anywhere else ([`boot`]).

use std::collections::HashSet;
use std::ops::Range;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};

use bytes::Bytes;
use image_format::chunk::{Chunk, ChunkId};
use image_format::trace::Origin;
use tokio::runtime::Handle;
use tokio::sync::watch;

use crate::cache::Caches;
use crate::cache::disk::Cached;
use crate::disk::plan::Part;
use crate::fetch::fetcher::{Delivery, Fetcher, Wanted};
use crate::fetch::lanes::{Hurry, Priority};
use crate::fetch::plan::{RangeRequest, coalesce};
use crate::fetch::{FetchError, Source};
use crate::flight::{Abandoned, Boarding, Flights, Seat};
use crate::place::Place;
use crate::prefetch::BootStream;
use crate::prefetch::ledger::{Ledger, Reason};
use crate::prefetch::neighbours::Neighbours;
use crate::stats::Stats;
use crate::tasks::Tasks;
use crate::waits;

pub mod boot;
mod kept;
pub mod pin;

use boot::Heads;

/// A read joins this many flights that come to nothing (a task failed) before it reports an error.
const ABANDONED_MAX: usize = 3;

/// All chunks of a store, as seen through the caches.
#[derive(Debug)]
pub struct Chunks<S> {
    fetcher: Arc<Fetcher<S>>,
    caches: Arc<Caches>,
    flights: Flights<ChunkId, Delivery>,
    /// The boot pack, once its head is here.
    boot: OnceLock<Arc<BootStream>>,
    /// How many heads of boot packs are on their way.
    expected: watch::Sender<Heads>,
    ledger: Ledger,
    /// How often there was little room for what nobody has asked for.
    sweeps: AtomicUsize,
    neighbours: Mutex<Neighbours>,
    /// Requests for guests that no frame of the boot pack carries.
    guest_requests: Arc<AtomicUsize>,
    tasks: Tasks,
    stats: Arc<Stats>,
}

/// The bytes of a part, and where they came from.
#[derive(Clone, Debug)]
pub struct Found {
    /// The bytes.
    pub bytes: Bytes,
    /// Where they were, or what brought them.
    pub from: Origin,
}

/// The parts of one read that are still looked for, by their number in the read.
type Missing = Vec<(usize, Part)>;

impl<S: Source> Chunks<S> {
    /// Chunks that `fetcher` fetches into `caches`, by tasks on `runtime`.
    #[must_use]
    pub fn new(
        fetcher: Arc<Fetcher<S>>,
        caches: Arc<Caches>,
        runtime: Handle,
        stats: Arc<Stats>,
    ) -> Self {
        Self {
            fetcher,
            caches,
            flights: Flights::new(),
            boot: OnceLock::new(),
            expected: watch::Sender::new(Heads::default()),
            ledger: Ledger::default(),
            sweeps: AtomicUsize::new(0),
            neighbours: Mutex::default(),
            guest_requests: Arc::default(),
            tasks: Tasks::new(runtime),
            stats,
        }
    }

    /// Who fetches them.
    pub(crate) const fn fetcher(&self) -> &Arc<Fetcher<S>> {
        &self.fetcher
    }

    /// Where they are kept.
    pub(crate) const fn caches(&self) -> &Arc<Caches> {
        &self.caches
    }

    /// Most bytes that are worth fetching ahead: what is not read soon must not push out what is.
    #[must_use]
    pub fn ahead_bytes_max(&self) -> u64 {
        self.caches.memory.bytes_max() as u64 / 4
    }

    /// The bytes of `parts`, in order. What lies around those that are fetched may come too: `around`
    /// says which chunks a range of the disk has, as far as that is known without waiting.
    ///
    /// # Errors
    ///
    /// When one of them cannot be had.
    ///
    /// # Cancel safety
    ///
    /// Dropping the future stops waiting; fetches under way go on into the caches.
    pub async fn read(
        &self,
        parts: &[Part],
        around: impl Fn(&Range<u64>) -> Vec<Place> + Sync,
    ) -> Result<Vec<Found>, FetchError> {
        for part in parts {
            self.strike(&part.place.id());
        }
        let nothing = Found {
            bytes: Bytes::new(),
            from: Origin::Memory,
        };
        let mut found = vec![nothing; parts.len()];
        let missing = self.look_in_memory(parts, &mut found);
        let mut missing = self.look_on_disk(missing, &mut found).await;
        self.stats.misses.add(missing.len() as u64);
        for _ in 0..ABANDONED_MAX {
            if missing.is_empty() {
                return Ok(found);
            }
            missing = self.fetch(missing, &mut found, &around).await?;
        }
        match missing.first() {
            None => Ok(found),
            Some((_, part)) => Err(FetchError::Abandoned {
                path: part.place.pack().digest.object_path(),
            }),
        }
    }

    /// The bytes of `parts`, in order, if the memory cache has all of them.
    #[must_use]
    pub fn find_in_memory(&self, parts: &[Part]) -> Option<Vec<Bytes>> {
        let find = |part: &Part| {
            let chunk = self.caches.memory.find(&part.place.id())?;
            piece(&chunk, part)
        };
        let found: Vec<Bytes> = parts.iter().map(find).collect::<Option<_>>()?;
        for part in parts {
            self.strike(&part.place.id());
            self.caches.disk.touch(&part.place);
        }
        self.stats.memory_hits.add(parts.len() as u64);
        Some(found)
    }

    fn look_in_memory(&self, parts: &[Part], found: &mut [Found]) -> Missing {
        let mut missing = Vec::new();
        for (number, part) in parts.iter().enumerate() {
            let chunk = self.caches.memory.find(&part.place.id());
            match chunk.and_then(|chunk| piece(&chunk, part)) {
                Some(bytes) => {
                    self.caches.disk.touch(&part.place);
                    found[number].bytes = bytes;
                }
                None => missing.push((number, part.clone())),
            }
        }
        self.stats
            .memory_hits
            .add((parts.len() - missing.len()) as u64);
        missing
    }

    async fn look_on_disk(&self, missing: Missing, found: &mut [Found]) -> Missing {
        if missing.is_empty() || !self.caches.disk.is_on() {
            return missing;
        }
        waits::note(Origin::Disk);
        let (asked, before) = (missing.clone(), missing.len());
        let reading = self.caches.ask(move |caches| {
            let read = |(_, part): &(usize, Part)| {
                let sealed = caches.disk.read_part(&part.place, &part.within);
                sealed.ok_or_else(|| caches.disk.read(&part.place))
            };
            asked.iter().map(read).collect::<Vec<_>>()
        });
        let Some(cached) = reading.await else {
            return missing;
        };
        let (mut left, mut copied) = (Vec::new(), Vec::new());
        for ((number, part), cached) in missing.into_iter().zip(cached) {
            found[number].from = Origin::Disk;
            match cached {
                // The kernel keeps what is read in parts: no need to keep it twice.
                Ok(bytes) => found[number].bytes = bytes,
                Err(Cached::Chunk(chunk)) => {
                    found[number].bytes = chunk.bytes().slice(part.within);
                    self.caches.memory.keep(chunk);
                }
                Err(Cached::Copied(chunk)) => {
                    self.stats.disk_copies.increment();
                    found[number].bytes = chunk.bytes().slice(part.within);
                    copied.push((part.place, chunk.clone()));
                    self.caches.memory.keep(chunk);
                }
                Err(Cached::Miss) => left.push((number, part)),
                Err(Cached::Rejected) => {
                    self.stats.disk_rejects.increment();
                    left.push((number, part));
                }
            }
        }
        self.stats.disk_hits.add((before - left.len()) as u64);
        if !copied.is_empty() {
            // It may have to wait for whoever makes room, and who reads does not.
            let (caches, stats) = (Arc::clone(&self.caches), Arc::clone(&self.stats));
            let filling = async move { kept::fill_if_few(&caches, &stats, copied).await };
            self.tasks.spawn(filling);
        }
        left
    }

    /// Those of `places` whose chunks are in no cache, nor can be copied from another version's.
    pub async fn lacking(&self, places: Vec<Place>) -> Vec<Place> {
        if places.is_empty() || !self.caches.disk.is_on() {
            return places;
        }
        let asked = places.clone();
        let looking = self.caches.ask_behind(move |caches| {
            let lacks =
                |place: &Place| !caches.memory.holds(&place.id()) && !caches.disk.obtain(place);
            asked.into_iter().filter(lacks).collect()
        });
        looking.await.unwrap_or(places)
    }

    /// Those of `places` whose chunks are in no cache at their place, and whether another version's may have some.
    async fn look_around(&self, places: Vec<Place>) -> (Vec<Place>, bool) {
        if places.is_empty() || !self.caches.disk.is_on() {
            return (places, false);
        }
        let mut lacking = places.clone();
        let looking = self.caches.ask(move |caches| {
            let disk = &caches.disk;
            lacking.retain(|place| !caches.memory.holds(&place.id()) && !disk.may_hold(place));
            let are_elsewhere = lacking.iter().any(|place| disk.may_be_elsewhere(place));
            (lacking, are_elsewhere)
        });
        looking.await.unwrap_or((places, false))
    }

    /// Fetches what is missing and returns what was abandoned by a failed task.
    async fn fetch(
        &self,
        missing: Missing,
        found: &mut [Found],
        around: &(impl Fn(&Range<u64>) -> Vec<Place> + Sync),
    ) -> Result<Missing, FetchError> {
        self.boot_pack_is_known().await;
        let hurry = Arc::new(Hurry::new());
        let mut wanted = Vec::new();
        let mut seats: Vec<(usize, Part, Seat<Delivery>)> = Vec::new();
        for (number, part) in missing {
            found[number].from = Origin::Demand;
            match self.flights.board(part.place.id(), &hurry) {
                Boarding::Follow(seat) => {
                    seat.hurry();
                    found[number].from = self.followed(&part.place);
                    self.stats.shared_fetches.increment();
                    seats.push((number, part, seat));
                }
                Boarding::Lead(landing, seat) => {
                    // It may have landed between the look into memory and this.
                    match self.caches.memory.find(&part.place.id()) {
                        Some(chunk) if piece(&chunk, &part).is_some() => landing.deliver(Ok(chunk)),
                        _ => {
                            let place = part.place;
                            let left = self.hand_over(Wanted { place, landing });
                            if left.is_none() || self.is_kept(&place) {
                                found[number].from = Origin::BootPack;
                            }
                            wanted.extend(left);
                        }
                    }
                    seats.push((number, part, seat));
                }
            }
        }
        let wanted = self.unpack_kept(wanted);
        self.launch_for_guest(wanted, &hurry, around).await;
        let mut abandoned = Vec::new();
        for (number, part, seat) in seats {
            waits::note(found[number].from);
            match seat.wait().await {
                Ok(delivery) => match piece(&delivery?, &part) {
                    Some(bytes) => found[number].bytes = bytes,
                    // It was fetched for another place, which the index says has another length.
                    None => abandoned.push((number, part)),
                },
                Err(Abandoned) => abandoned.push((number, part)),
            }
        }
        Ok(abandoned)
    }

    /// Fetches into the caches what of `places`, which are [lacking](Self::lacking), is not on its way. Does not wait.
    pub fn fetch_ahead(&self, places: impl IntoIterator<Item = Place>) {
        let hurry = Arc::new(Hurry::new());
        let wanted = self.board_ahead(places, Reason::Stream, &hurry);
        self.launch_all(wanted, Priority::Ahead, &hurry);
    }

    fn launch_all(&self, wanted: Vec<Wanted>, priority: Priority, hurry: &Arc<Hurry>) {
        for request in coalesce(wanted, self.fetcher.limits()) {
            self.launch(request, priority, hurry);
        }
    }

    /// Starts flights for what of `places`, which were looked for on disk, is neither here nor on its way.
    fn board_ahead(
        &self,
        places: impl IntoIterator<Item = Place>,
        reason: Reason,
        hurry: &Arc<Hurry>,
    ) -> Vec<Wanted> {
        let mut wanted = Vec::new();
        for place in places {
            let comes = |boot: &Arc<BootStream>| boot.will_bring(&place.id());
            if self.caches.memory.holds(&place.id())
                || self.caches.disk.is_known_to_hold(&place)
                || self.boot.get().is_some_and(comes)
                || self.is_kept(&place)
            {
                continue;
            }
            if let Boarding::Lead(landing, _) = self.flights.board(place.id(), hurry)
                && !self.caches.memory.holds(&place.id())
            {
                self.bring(&place, reason);
                wanted.push(Wanted { place, landing });
            }
        }
        self.stats.ahead_chunks.add(wanted.len() as u64);
        wanted
    }

    /// Fetches what a guest waits for. What lies behind it comes in the same answer, after it; what
    /// lies before it comes beside.
    async fn launch_for_guest(
        &self,
        mut wanted: Vec<Wanted>,
        hurry: &Arc<Hurry>,
        around: &(impl Fn(&Range<u64>) -> Vec<Place> + Sync),
    ) {
        let Some(missing) = extent(&wanted) else {
            return;
        };
        let urgent: HashSet<ChunkId> = wanted.iter().map(|wanted| wanted.place.id()).collect();
        let (line, room) = (self.fetcher.line(), self.pressure().room_bytes);
        let stretch = self.neighbours().around(&missing, line);
        let stretch = stretch.filter(|stretch| stretch.end - stretch.start <= room);
        tracing::trace!(?missing, ?stretch, ?line, "a miss");
        let places = stretch.map_or_else(Vec::new, |stretch| around(&stretch));
        let (mut places, are_elsewhere) = self.look_around(places).await;
        if are_elsewhere {
            // To copy them takes the disk its time; what is waited for goes first.
            self.launch_all(std::mem::take(&mut wanted), Priority::Guest, hurry);
            places = self.lacking(places).await;
        }
        let is_behind = |place: &Place| place.disk_offset() >= missing.start;
        let (behind, before): (Vec<_>, Vec<_>) = places.into_iter().partition(is_behind);
        wanted.extend(self.board_ahead(behind, Reason::Neighbour, hurry));
        let limits = self.fetcher.limits();
        for request in coalesce(wanted, limits) {
            let is_urgent = |wanted: &Wanted| urgent.contains(&wanted.place.id());
            let priority = if request.wanted.iter().any(is_urgent) {
                Priority::Guest
            } else {
                Priority::Ahead
            };
            self.launch(request, priority, hurry);
        }
        let calm = Arc::new(Hurry::new());
        let before = self.board_ahead(before, Reason::Neighbour, &calm);
        self.launch_all(before, Priority::Ahead, &calm);
    }

    fn launch(&self, request: RangeRequest<Wanted>, priority: Priority, hurry: &Arc<Hurry>) {
        let fetch = Arc::clone(&self.fetcher).range(request, priority, Arc::clone(hurry));
        let guest = (priority == Priority::Guest).then(|| Counted::up(&self.guest_requests));
        let boot = guest.is_some().then(|| self.boot.get().cloned()).flatten();
        self.tasks.spawn(async move {
            fetch.await;
            drop(guest);
            if let Some(boot) = boot {
                // It holds itself back while guests wait.
                boot.call();
            }
        });
    }

    fn neighbours(&self) -> MutexGuard<'_, Neighbours> {
        self.neighbours
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
    }
}

/// The bytes of `part`; `None`: `chunk`, though of the same name, has not the length that the index says
/// of this place, which whoever fetches it is told.
fn piece(chunk: &Chunk, part: &Part) -> Option<Bytes> {
    let fits = chunk.bytes().len() as u64 == part.place.plain_bytes();
    fits.then(|| chunk.bytes().slice(part.within.clone()))
}

/// The stretch of the disk from the first to the last of `wanted`.
fn extent(wanted: &[Wanted]) -> Option<Range<u64>> {
    let all = || wanted.iter().map(|wanted| wanted.place.on_disk());
    let start = all().map(|range| range.start).min()?;
    let end = all().map(|range| range.end).max()?;
    Some(start..end)
}

/// One of a number of things that go on at once.
#[derive(Debug)]
struct Counted(Arc<AtomicUsize>);

impl Counted {
    fn up(count: &Arc<AtomicUsize>) -> Self {
        count.fetch_add(1, Ordering::Relaxed);
        Self(Arc::clone(count))
    }
}

impl Drop for Counted {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}
