//! Fetches chunks for the cache file alone, whether or not anybody will read them.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use super::Chunks;
use crate::fetch::fetcher::Wanted;
use crate::fetch::lanes::{Hurry, Priority};
use crate::fetch::{FetchError, Source};
use crate::flight::Boarding;
use crate::place::Place;

impl<S: Source> Chunks<S> {
    /// Most bytes of chunks that the disk cache holds; `None`: there is none.
    pub fn pin_room(&self) -> Option<u64> {
        self.caches.disk.bytes_max()
    }

    /// Whether guests wait for the network.
    pub fn has_guests(&self) -> bool {
        self.guest_requests.load(Ordering::Relaxed) > 0
    }

    /// Those of `places` that the cache file lacks, after copying what memory or other versions have;
    /// and how many bytes it lacked before that.
    pub async fn unpinned(&self, places: Vec<Place>) -> (Vec<Place>, u64) {
        let (caches, asked) = (Arc::clone(&self.caches), places.clone());
        let look = move || {
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
        let all = places.iter().map(Place::plain_bytes).sum();
        let looking = tokio::task::spawn_blocking(look);
        looking.await.unwrap_or((places, all))
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
                    wanted.push(Wanted { place, landing });
                    seats.push(seat);
                }
                Boarding::Follow(seat) => seats.push(seat),
            }
        }
        self.launch_all(wanted, Priority::Ahead, &hurry);
        for seat in seats {
            // What was abandoned the next round looks for again.
            if let Ok(delivery) = seat.wait().await {
                drop(delivery?);
            }
        }
        Ok(())
    }
}
