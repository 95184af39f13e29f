//! Fetches chunks for the cache file alone, whether or not anybody will read them.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use super::Chunks;
use crate::cache::Caches;
use crate::fetch::fetcher::Wanted;
use crate::fetch::lanes::{Hurry, Priority};
use crate::fetch::{FetchError, Source};
use crate::flight::Boarding;
use crate::place::Place;

/// How often it is looked what is left of a boot pack.
const LOOK_EVERY: Duration = Duration::from_millis(100);

/// After so many looks at which no frame has come, half a minute, none will soon.
const STANDSTILL_LOOKS: u32 = 300;

impl<S: Source> Chunks<S> {
    /// Most bytes of chunks that the disk cache holds; `None`: there is none.
    pub fn pin_room(&self) -> Option<u64> {
        self.caches.disk.bytes_max()
    }

    /// Waits until the boot pack has brought what it brings, or stands still because there is no room for more: what it
    /// lists would come twice.
    pub async fn boot_pack_is_over(&self) {
        self.boot_pack_is_known().await;
        let (mut left, mut looks) = (self.boot_pack_frames().1, 0);
        while left > 0 && looks < STANDSTILL_LOOKS {
            tokio::time::sleep(LOOK_EVERY).await;
            let now = self.boot_pack_frames().1;
            looks = if now == left { looks + 1 } else { 0 };
            left = now;
        }
    }

    /// Whether guests wait for the network.
    pub fn has_guests(&self) -> bool {
        self.guest_requests.load(Ordering::Relaxed) > 0
    }

    /// Those of `places` that the cache file lacks, after copying what memory or other versions have;
    /// and how many bytes it lacked before that.
    pub async fn unpinned(&self, places: Vec<Place>) -> (Vec<Place>, u64) {
        let all = places.iter().map(Place::plain_bytes).sum();
        if !self.caches.disk.is_on() {
            return (places, all);
        }
        let asked = places.clone();
        let look = move |caches: &Caches| {
            let (mut lacking, mut bytes) = (Vec::new(), 0);
            for place in asked {
                if caches.disk.may_hold(&place) {
                    continue;
                }
                bytes += place.plain_bytes();
                let in_memory = || caches.memory.find(&place.id());
                let filled = |chunk| caches.disk.fill(&place, &chunk) > 0;
                if !caches.disk.obtain(&place) && !in_memory().is_some_and(filled) {
                    lacking.push(place);
                }
            }
            (lacking, bytes)
        };
        let looking = self.caches.ask_behind(look);
        looking.await.unwrap_or((places, all))
    }

    /// Reads `places` back; returns how many bytes of them the cache file has not, or has wrong and forgets now. `None`: its
    /// disk does not answer.
    pub async fn unkept(&self, places: Vec<Place>) -> Option<u64> {
        let look = move |caches: &Caches| {
            let wrong = places.iter().filter(|place| !caches.disk.check(place));
            wrong.map(Place::plain_bytes).sum()
        };
        self.caches.ask_behind(look).await
    }

    /// Fetches `places` behind whatever guests want, and waits for them.
    ///
    /// # Errors
    ///
    /// The first one of any of them.
    ///
    /// # Cancel safety
    ///
    /// Dropping the future stops waiting; fetches under way go on into the caches.
    pub async fn fetch_all(&self, places: Vec<Place>) -> Result<(), FetchError> {
        let hurry = Arc::new(Hurry::new());
        let (mut wanted, mut seats) = (Vec::new(), Vec::new());
        for place in places {
            match self.flights.board(place.id(), &hurry) {
                Boarding::Lead(landing, seat) => {
                    // It may have landed since it was looked for.
                    match self.caches.memory.find(&place.id()) {
                        Some(chunk) => landing.deliver(Ok(chunk)),
                        None => wanted.push(Wanted { place, landing }),
                    }
                    seats.push(seat);
                }
                Boarding::Follow(seat) => seats.push(seat),
            }
        }
        self.launch_all(wanted, Priority::Ahead, &hurry);
        let mut outcome = Ok(());
        for seat in seats {
            // What was abandoned the next round looks for again.
            if let Ok(Err(error)) = seat.wait().await {
                outcome = outcome.and(Err(error));
            }
        }
        outcome
    }
}
