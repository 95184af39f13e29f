//! Brings all of a disk into the cache file: behind a mount that is used, or for a later one.

use std::future::Future;
use std::io;
use std::sync::Arc;
use std::time::Duration;

use super::{Disk, Parts, ReadError};
use crate::cache::desk;
use crate::cache::disk::Room;
use crate::fetch::retry::Fault;
use crate::fetch::{FetchError, Source};
use crate::place::Place;

/// Asked for at once; a guest that comes meanwhile waits for no more than this on a slow line.
const BATCH_BYTES: u64 = 4 << 20;

/// Read back at once: 8 MiB of chunks of the usual length.
const CHECK_PLACES: usize = 64;

/// How often it is tried to keep a page.
const KEEP_TRIES: u32 = 20;

/// Between two looks whether guests still wait.
const PAUSE: Duration = Duration::from_millis(20);

/// So many rounds over the disk, one after the other, that found as much lacking as the best one before end a fill;
const IDLE_ROUNDS_MAX: u32 = 5;

/// so many, a minute at least, where another process was making room all the time.
const BUSY_ROUNDS_MAX: u32 = 120;

/// Where so many chunks in a row are gone or damaged, all of them are, and the rest is not asked for.
const WRONG_MAX: u32 = 8;

/// Before a disk is filled again whose server failed.
const PIN_AGAIN: Duration = Duration::from_secs(30);

/// Before such a round: what came late is written by then, and who looked for room has found it.
const ROUND_PAUSE: Duration = Duration::from_millis(500);

/// Why a disk is not in the cache as a whole.
#[derive(Debug, thiserror::Error)]
#[expect(missing_docs, reason = "the messages are the docs")]
pub enum PinError {
    #[error("there is no disk cache to fill, or no more")]
    NoCache,
    #[error(
        "the disk has {data} bytes of data, but the cache holds {room} at most (see --cache-size)"
    )]
    NoRoom { data: u64, room: u64 },
    #[error(transparent)]
    Read(#[from] ReadError),
    #[error(
        "the index of the disk is not in the cache: others are busy in it, or have filled it. Fetch again"
    )]
    NoIndex,
    #[error("what is in the cache cannot be brought to its disk")]
    Sync(#[source] io::Error),
    #[error(
        "{bytes} bytes of the disk are not in the cache: the file system is full, or other mounts hold the rest of the cache"
    )]
    Incomplete { bytes: u64 },
}

impl PinError {
    /// Whether it is a server that fails, which may be back later.
    fn may_pass(&self) -> bool {
        matches!(self, Self::Read(error) if may_pass(error))
    }
}

/// Whether it is that what was asked for is gone or damaged; others may be there.
fn is_wrong(error: &ReadError) -> bool {
    matches!(error, ReadError::Fetch(error) if error.fault() == Fault::Wrong)
}

/// Whether it is a server that fails, which may be back later.
fn may_pass(error: &ReadError) -> bool {
    matches!(error, ReadError::Fetch(error) if error.fault() == Fault::Transient)
}

/// Fills the cache file of a disk.
#[derive(Debug)]
pub struct Filler<S>(Arc<Parts<S>>);

impl<S: Source> Filler<S> {
    /// Whether the cache may hold all of the disk, of which `data` bytes are no holes.
    ///
    /// # Errors
    ///
    /// Says why not.
    pub fn has_room(&self, data: u64) -> Result<(), PinError> {
        self.0.has_room(data)
    }

    /// As [`Disk::fill`].
    ///
    /// # Errors
    ///
    /// As there.
    ///
    /// # Cancel safety
    ///
    /// Dropping the future ends it; what came stays.
    pub async fn fill(&self, data: u64, progress: impl FnMut(u64) + Send) -> Result<(), PinError> {
        self.0.fill(data, progress).await
    }
}

impl<S: Source> Disk<S> {
    /// Brings all of the disk, of which `data` bytes are no holes, into the cache; `progress` learns
    /// how many are there.
    ///
    /// # Errors
    ///
    /// When they do not fit, or cannot be had.
    ///
    /// # Cancel safety
    ///
    /// Dropping the future ends it; what came stays.
    pub async fn fill(&self, data: u64, progress: impl FnMut(u64) + Send) -> Result<(), PinError> {
        self.parts.fill(data, progress).await
    }

    /// Reads all of the disk back from the cache, and what leads to it; `progress` learns how many bytes were. Returns how
    /// many are not there, or wrong; the rest is on the medium.
    ///
    /// # Errors
    ///
    /// When the index cannot be had or kept, or the cache went.
    ///
    /// # Cancel safety
    ///
    /// Dropping the future ends it.
    pub async fn check_kept(&self, progress: impl FnMut(u64) + Send) -> Result<u64, PinError> {
        self.parts.check_kept(progress).await
    }

    /// Runs what may come to fill the cache file, until the disk is gone.
    pub fn with_filler<F>(&self, task: impl FnOnce(Filler<S>) -> F)
    where
        F: Future<Output = ()> + Send + 'static,
    {
        self.tasks.spawn(task(Filler(Arc::clone(&self.parts))));
    }

    /// Does so in the background, whenever no guest waits; how it ends is logged.
    pub fn pin(&self, data: u64) {
        let parts = Arc::clone(&self.parts);
        self.tasks.spawn(async move {
            loop {
                match parts.fill(data, |_| {}).await {
                    Ok(()) => return tracing::info!("all of the disk is in the cache"),
                    Err(error) => {
                        let (cause, again): (&dyn std::error::Error, _) =
                            (&error, error.may_pass());
                        tracing::warn!(error = cause, again, "not all of the disk is in the cache");
                        if !again {
                            return;
                        }
                    }
                }
                tokio::time::sleep(PIN_AGAIN).await;
            }
        });
    }
}

impl<S: Source> Parts<S> {
    fn has_room(&self, data: u64) -> Result<(), PinError> {
        let room = self.chunks.pin_room().ok_or(PinError::NoCache)?;
        if room < data {
            return Err(PinError::NoRoom { data, room });
        }
        Ok(())
    }

    async fn fill(&self, data: u64, mut progress: impl FnMut(u64) + Send) -> Result<(), PinError> {
        self.has_room(data)?;
        let whole = self.chunks.caches().disk.want_whole();
        self.chunks.boot_pack_is_over().await;
        let (mut least, mut idle) = (u64::MAX, 0);
        loop {
            desk::answered().await;
            let silences = desk::silences();
            let caches = self.chunks.caches();
            caches.ask_behind(|it| it.disk.look_for_room()).await;
            let lacking = self.round(&mut progress).await?;
            if lacking == 0 {
                whole.keep();
                return Ok(());
            }
            // What was found while the disk did not answer says nothing.
            if lacking < least || silences != desk::silences() {
                (least, idle) = (least.min(lacking), 0);
                continue;
            }
            idle += 1;
            let idle_max = match self.chunks.caches().disk.room() {
                Room::Busy => BUSY_ROUNDS_MAX,
                Room::Some | Room::None => IDLE_ROUNDS_MAX,
            };
            if idle >= idle_max {
                return Err(PinError::Incomplete { bytes: lacking });
            }
            tokio::time::sleep(ROUND_PAUSE).await;
        }
    }

    /// Goes over the disk once; returns how many bytes were lacking when they were come to. What no server has right keeps nobody
    /// from the rest, and is told when that is there.
    async fn round(&self, progress: &mut (impl FnMut(u64) + Send)) -> Result<u64, PinError> {
        let (mut done, mut lacking) = (0, 0);
        let mut wrong = None;
        for region in 0..self.pages.n_regions() {
            let page = match self.pages.page(region).await {
                Ok(Some(page)) => page,
                Ok(None) => continue,
                Err(error) if is_wrong(&error) => {
                    wrong.get_or_insert(error);
                    continue;
                }
                Err(error) => return Err(error.into()),
            };
            let mut batch: Vec<Place> = Vec::new();
            let mut bytes = 0;
            for (number, entry) in page.entries().iter().enumerate() {
                let place = Place::new(region, *entry, page.pack(entry));
                bytes += place.plain_bytes();
                batch.push(place);
                if bytes < BATCH_BYTES && number + 1 < page.entries().len() {
                    continue;
                }
                let places = std::mem::take(&mut batch);
                // Into a disk that does not answer nothing can be brought, and it may answer again.
                desk::answered().await;
                lacking += if self.chunks.caches().disk.room() == Room::Some {
                    self.as_far_as_it_is_right(places, &mut wrong).await?
                } else {
                    // What could not be kept would be fetched for nothing.
                    self.chunks.unpinned(places).await.1
                };
                if self.chunks.caches().disk.is_off() {
                    return Err(PinError::NoCache);
                }
                done += std::mem::take(&mut bytes);
                progress(done);
            }
        }
        wrong.map_or(Ok(lacking), |error| Err(error.into()))
    }

    /// As [`Self::batch`]; what is `wrong` for good is noted once, and does not count.
    async fn as_far_as_it_is_right(
        &self,
        places: Vec<Place>,
        wrong: &mut Option<ReadError>,
    ) -> Result<u64, ReadError> {
        match self.batch(places.clone()).await.map_err(ReadError::from) {
            Err(error) if is_wrong(&error) => {}
            outcome => return outcome,
        }
        let (mut bytes, mut in_a_row) = (0, 0);
        for place in places {
            match self.batch(vec![place]).await.map_err(ReadError::from) {
                Ok(of_place) => (bytes, in_a_row) = (bytes + of_place, 0),
                Err(error) if is_wrong(&error) && in_a_row < WRONG_MAX => {
                    in_a_row += 1;
                    wrong.get_or_insert(error);
                }
                Err(error) => return Err(error),
            }
        }
        Ok(bytes)
    }

    async fn check_kept(&self, mut progress: impl FnMut(u64) + Send) -> Result<u64, PinError> {
        let (mut done, mut unkept) = (0, 0);
        for region in 0..self.pages.n_regions() {
            self.keep_page(region).await?;
            let Some(page) = self.pages.page(region).await? else {
                continue;
            };
            let entries = page.entries().iter();
            let places = entries.map(|entry| Place::new(region, *entry, page.pack(entry)));
            let places: Vec<Place> = places.collect();
            for batch in places.chunks(CHECK_PLACES) {
                unkept += self.unkept(batch).await?;
                done += batch.iter().map(Place::plain_bytes).sum::<u64>();
                progress(done);
            }
        }
        let caches = Arc::clone(self.chunks.caches());
        let synced = tokio::task::spawn_blocking(move || caches.disk.sync()).await;
        synced
            .unwrap_or_else(|error| Err(io::Error::other(error)))
            .map_err(PinError::Sync)?;
        Ok(unkept)
    }

    /// Sees to it that the page of `region` is kept, though others are busy in the directory, or its disk hangs.
    async fn keep_page(&self, region: u32) -> Result<(), PinError> {
        for _ in 0..KEEP_TRIES {
            desk::answered().await;
            if self.pages.keep(region).await? {
                return Ok(());
            }
            tokio::time::sleep(ROUND_PAUSE).await;
        }
        Err(PinError::NoIndex)
    }

    /// How many bytes of `places` are not in the cache file, as soon as its disk answers.
    async fn unkept(&self, places: &[Place]) -> Result<u64, PinError> {
        loop {
            desk::answered().await;
            let silences = desk::silences();
            match self.chunks.unkept(places.to_vec()).await {
                Some(unkept) if !self.chunks.caches().disk.is_off() => return Ok(unkept),
                None if silences != desk::silences() => {}
                Some(_) | None => return Err(PinError::NoCache),
            }
        }
    }

    /// Brings `places` into the cache file; returns how many bytes of them it lacked.
    pub(super) async fn batch(&self, places: Vec<Place>) -> Result<u64, FetchError> {
        desk::answered().await;
        while self.chunks.has_guests() {
            tokio::time::sleep(PAUSE).await;
        }
        let (places, bytes) = self.chunks.unpinned(places).await;
        self.chunks.fetch_all(places).await?;
        Ok(bytes)
    }
}
