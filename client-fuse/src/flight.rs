//! One flight for each key: whoever asks for what is already being fetched waits for it.
//!
//! The first to ask gets a [`Landing`] and must deliver; everybody, the first included, waits on a
//! [`Seat`]. The landing belongs to whoever carries the fetch out, not to the first reader, so a
//! reader that goes away takes nothing from the others. A landing that is dropped undelivered tells
//! its waiters so, and the next to ask leads a new flight.
//!
//! Bounds: as many entries as fetches are in flight, which the fetcher bounds.

use std::collections::HashMap;
use std::fmt;
use std::hash::Hash;
use std::sync::{Arc, Mutex, PoisonError};

use tokio::sync::watch;

use crate::fetch::lanes::Hurry;

/// The flights under way, by key.
pub struct Flights<K, V> {
    map: Arc<Map<K, V>>,
}

type Map<K, V> = Mutex<HashMap<K, Seat<V>>>;

/// What [`Flights::board`] found.
#[derive(Debug)]
pub enum Boarding<K: Eq + Hash + Copy, V> {
    /// Nobody is fetching it: the caller sees to it that the landing is delivered.
    Lead(Landing<K, V>, Seat<V>),
    /// Somebody is fetching it.
    Follow(Seat<V>),
}

/// The duty to deliver one key.
pub struct Landing<K: Eq + Hash + Copy, V> {
    key: K,
    sender: watch::Sender<Option<V>>,
    map: Arc<Map<K, V>>,
}

/// A place among those who wait for one key.
#[derive(Clone, Debug)]
pub struct Seat<V> {
    delivery: watch::Receiver<Option<V>>,
    hurry: Arc<Hurry>,
}

/// The flight ended without delivering; ask again.
#[derive(Debug, PartialEq, Eq)]
pub struct Abandoned;

impl<K: Eq + Hash + Copy, V: Clone> Flights<K, V> {
    /// No flights.
    #[must_use]
    pub fn new() -> Self {
        Self {
            map: Arc::new(Mutex::new(HashMap::new())),
        }
    }

    /// Whether `key` is on its way.
    #[must_use]
    pub fn is_on_its_way(&self, key: &K) -> bool {
        let map = self.map.lock().unwrap_or_else(PoisonError::into_inner);
        map.contains_key(key)
    }

    /// Joins the flight of `key`, or starts one that `hurry` will speed up.
    #[must_use]
    pub fn board(&self, key: K, hurry: &Arc<Hurry>) -> Boarding<K, V> {
        let mut map = self.map.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(seat) = map.get(&key) {
            return Boarding::Follow(seat.clone());
        }
        let (sender, delivery) = watch::channel(None);
        let seat = Seat {
            delivery,
            hurry: Arc::clone(hurry),
        };
        map.insert(key, seat.clone());
        Boarding::Lead(
            Landing {
                key,
                sender,
                map: Arc::clone(&self.map),
            },
            seat,
        )
    }
}

impl<K: Eq + Hash + Copy, V: Clone> Default for Flights<K, V> {
    fn default() -> Self {
        Self::new()
    }
}

impl<K: Eq + Hash + Copy, V> Landing<K, V> {
    /// What was asked for.
    pub const fn key(&self) -> K {
        self.key
    }

    /// Delivers to all who wait. Whoever asks from now on does not find this flight, so the value
    /// must already be where they look first.
    pub fn deliver(self, value: V) {
        self.sender.send_replace(Some(value));
    }
}

impl<K: Eq + Hash + Copy, V> Drop for Landing<K, V> {
    fn drop(&mut self) {
        self.map
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .remove(&self.key);
    }
}

impl<V: Clone> Seat<V> {
    /// Tells whoever carries the fetch out that somebody waits for it.
    pub fn hurry(&self) {
        self.hurry.call();
    }

    /// Waits for the delivery.
    ///
    /// # Errors
    ///
    /// [`Abandoned`] when the landing was dropped undelivered.
    ///
    /// # Cancel safety
    ///
    /// Dropping the future gives up the seat and nothing else.
    pub async fn wait(mut self) -> Result<V, Abandoned> {
        let value = self
            .delivery
            .wait_for(Option::is_some)
            .await
            .map_err(|_| Abandoned)?;
        value.clone().ok_or(Abandoned)
    }
}

impl<K, V> fmt::Debug for Flights<K, V> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Flights")
    }
}

impl<K: Eq + Hash + Copy, V> fmt::Debug for Landing<K, V> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Landing")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn board<V: Clone>(flights: &Flights<u32, V>) -> Boarding<u32, V> {
        flights.board(7, &Arc::new(Hurry::new()))
    }

    fn leads<V: Clone>(boarding: Boarding<u32, V>) -> (Landing<u32, V>, Seat<V>) {
        match boarding {
            Boarding::Lead(landing, seat) => (landing, seat),
            Boarding::Follow(_) => panic!("a flight is already under way"),
        }
    }

    fn follows<V: Clone>(boarding: Boarding<u32, V>) -> Seat<V> {
        match boarding {
            Boarding::Follow(seat) => seat,
            Boarding::Lead(..) => panic!("a second flight for the same key"),
        }
    }

    #[tokio::test]
    async fn all_who_wait_share_one_flight() {
        let flights = Flights::new();
        let (landing, first) = leads(board(&flights));
        let second = follows(board(&flights));
        landing.deliver("chunk");
        assert_eq!(first.wait().await, Ok("chunk"));
        assert_eq!(second.wait().await, Ok("chunk"));
    }

    #[tokio::test]
    async fn others_are_served_when_the_first_reader_leaves() {
        let flights = Flights::new();
        let (landing, first) = leads(board(&flights));
        let second = follows(board(&flights));
        drop(first);
        landing.deliver("chunk");
        assert_eq!(second.wait().await, Ok("chunk"));
    }

    #[tokio::test]
    async fn a_dropped_landing_sends_the_waiters_away_and_frees_the_key() {
        let flights: Flights<u32, ()> = Flights::new();
        let (landing, seat) = leads(board(&flights));
        drop(landing);
        assert_eq!(seat.wait().await, Err(Abandoned));
        drop(leads(board(&flights)));
    }

    #[tokio::test]
    async fn a_key_can_fly_again_after_landing() {
        let flights = Flights::new();
        let (landing, _) = leads(board(&flights));
        landing.deliver(1);
        drop(leads(board(&flights)));
    }
}
