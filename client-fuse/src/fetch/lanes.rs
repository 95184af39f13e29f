//! Bounds what is in flight and lets guest reads go before read-ahead.
//!
//! There is one number of requests and one of bytes for all. Read-ahead may use at most half of
//! each, so that a guest read never finds everything taken, and no more requests than the line needs
//! ([`ahead_slots`]), so that a guest read does not share it with what nobody waits for yet. Read-ahead that a guest has come to
//! wait for goes as a guest read from then on ([`Hurry`]).

use std::sync::{Mutex, PoisonError};

use tokio::sync::{Semaphore, SemaphorePermit, watch};
use tokio::time::Instant;

use crate::fetch::line::Estimate;

/// Bytes that requests under way may bring and unpack to: with the process itself, within 32 MiB beside
/// its caches. A request brings at most 4 MiB and unpacks to at most 4 MiB (see
/// [`PlanLimits`](crate::fetch::plan::PlanLimits)): one of the largest beside nearly as much read-ahead.
const BYTES_IN_FLIGHT_MAX: u32 = 15 << 20;

/// Second requests for what the first lets wait for, at once; beside all others, because those may
/// all be stuck.
const SPARE_SLOTS: usize = 8;

/// Bytes that these may bring and unpack to: two of the largest.
const SPARE_BYTES_MAX: u32 = 16 << 20;

/// Who wants a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Priority {
    /// A reader waits for it.
    Guest,
    /// Nobody waits for it yet.
    Ahead,
}

/// A usual answer to a request of read-ahead: a run of chunks.
const ANSWER_BYTES: u64 = 64 << 10;

/// As many requests keep decoding and receiving both busy, however short the round trip.
const AHEAD_SLOTS_MIN: usize = 4;

/// How many requests read-ahead needs at once to fill `line`: twice what is on its way in a round
/// trip, because answers are of all lengths. At most `most`.
#[must_use]
pub fn ahead_slots(line: Estimate, most: usize) -> usize {
    let slots = line.bytes_per_round_trip().saturating_mul(2) / ANSWER_BYTES;
    let slots = usize::try_from(slots).unwrap_or(usize::MAX);
    slots.max(AHEAD_SLOTS_MIN).min(most)
}

/// The slots and bytes that requests share.
#[derive(Debug)]
pub struct Lanes {
    connections: u16,
    slots: Semaphore,
    bytes: Semaphore,
    ahead_slots: Semaphore,
    /// How many slots read-ahead has, taken ones included.
    n_ahead_slots: Mutex<usize>,
    ahead_bytes: Semaphore,
    spare_slots: Semaphore,
    spare_bytes: Semaphore,
}

/// The right to have a second request in flight.
#[derive(Debug)]
#[must_use = "the slot is given back when this is dropped"]
pub struct Spare<'a>(#[expect(dead_code, reason = "held for its drop")] [SemaphorePermit<'a>; 2]);

/// The right to have one request in flight.
#[derive(Debug)]
#[must_use = "the slot is given back when this is dropped"]
pub struct Slot<'a>(#[expect(dead_code, reason = "held for its drop")] Vec<SemaphorePermit<'a>>);

impl Lanes {
    /// Lanes for `connections` requests at once.
    #[must_use]
    pub fn new(connections: u16) -> Self {
        let connections = connections.max(1);
        let bytes = BYTES_IN_FLIGHT_MAX as usize;
        let ahead = ahead_slots(Estimate::UNKNOWN, usize::from(connections.div_ceil(2)));
        Self {
            connections,
            slots: Semaphore::new(usize::from(connections)),
            bytes: Semaphore::new(bytes),
            ahead_slots: Semaphore::new(ahead),
            n_ahead_slots: Mutex::new(ahead),
            ahead_bytes: Semaphore::new(bytes / 2),
            spare_slots: Semaphore::new(SPARE_SLOTS),
            spare_bytes: Semaphore::new(SPARE_BYTES_MAX as usize),
        }
    }

    /// How many requests may be under way.
    #[must_use]
    pub const fn connections(&self) -> u16 {
        self.connections
    }

    /// Gives read-ahead as many slots as `line` needs, at most half of all. Slots that are taken are
    /// taken away when they come back.
    pub fn fit(&self, line: Estimate) {
        let most = usize::from(self.connections.div_ceil(2));
        let wanted = ahead_slots(line, most);
        let mut now = self
            .n_ahead_slots
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        if wanted > *now {
            self.ahead_slots.add_permits(wanted - *now);
            *now = wanted;
        } else {
            *now -= self.ahead_slots.forget_permits(*now - wanted);
        }
    }

    /// Waits until a request that brings `bytes` may go.
    ///
    /// # Cancel safety
    ///
    /// Dropping the future gives up the place in the queue.
    pub async fn enter(&self, priority: Priority, bytes: u64, hurry: &Hurry) -> Slot<'_> {
        let mut permits = Vec::with_capacity(4);
        if priority == Priority::Ahead {
            tokio::select! {
                biased;
                () = hurry.called() => {}
                ahead = self.enter_ahead(bytes) => permits.extend(ahead.into_iter().flatten()),
            }
        }
        permits.extend(acquire(&self.slots, 1).await);
        permits.extend(acquire(&self.bytes, clamp(bytes, BYTES_IN_FLIGHT_MAX)).await);
        Slot(permits)
    }

    /// Waits until a second request that brings `bytes` may go.
    ///
    /// # Cancel safety
    ///
    /// Dropping the future gives up the place in the queue.
    pub async fn spare(&self, bytes: u64) -> Spare<'_> {
        let bytes = clamp(bytes, SPARE_BYTES_MAX);
        let (slot, bytes) = (
            self.spare_slots.acquire().await,
            self.spare_bytes.acquire_many(bytes).await,
        );
        Spare([slot, bytes].map(|permit| permit.expect("never closed")))
    }

    /// The same without waiting.
    pub fn spare_now(&self, bytes: u64) -> Option<Spare<'_>> {
        let bytes = clamp(bytes, SPARE_BYTES_MAX);
        let slot = self.spare_slots.try_acquire().ok()?;
        let bytes = self.spare_bytes.try_acquire_many(bytes).ok()?;
        Some(Spare([slot, bytes]))
    }

    async fn enter_ahead(&self, bytes: u64) -> [Option<SemaphorePermit<'_>>; 2] {
        let slot = acquire(&self.ahead_slots, 1).await;
        [
            slot,
            acquire(&self.ahead_bytes, clamp(bytes, BYTES_IN_FLIGHT_MAX / 2)).await,
        ]
    }
}

/// No request is larger than all there is, or it would wait for ever.
fn clamp(bytes: u64, max: u32) -> u32 {
    u32::try_from(bytes).unwrap_or(max).min(max)
}

/// The semaphores are never closed, so there always is a permit in the end.
async fn acquire(semaphore: &Semaphore, permits: u32) -> Option<SemaphorePermit<'_>> {
    semaphore.acquire_many(permits).await.ok()
}

/// A bell that tells read-ahead that somebody now waits for it.
#[derive(Debug)]
pub struct Hurry(watch::Sender<Option<Instant>>);

impl Hurry {
    /// Not in a hurry.
    #[must_use]
    pub fn new() -> Self {
        Self(watch::Sender::new(None))
    }

    /// Rings.
    pub fn call(&self) {
        self.0.send_if_modified(|called| {
            let is_first = called.is_none();
            called.get_or_insert_with(Instant::now);
            is_first
        });
    }

    /// When it rang first.
    pub(crate) fn called_at(&self) -> Option<Instant> {
        *self.0.borrow()
    }

    /// Whether it has rung.
    pub fn is_called(&self) -> bool {
        self.called_at().is_some()
    }

    /// Waits until it has rung.
    pub(crate) async fn called(&self) {
        // The sender is `self`, so the channel cannot close while this waits.
        let _ = self.0.subscribe().wait_for(Option::is_some).await;
    }
}

impl Default for Hurry {
    fn default() -> Self {
        Self::new()
    }
}

#[cfg(test)]
mod tests {
    use futures_util::FutureExt;

    use super::*;

    #[tokio::test]
    async fn read_ahead_leaves_half_of_the_slots_to_guests() {
        let (lanes, hurry) = (Lanes::new(4), Hurry::new());
        let _first = lanes.enter(Priority::Ahead, 1, &hurry).await;
        let _second = lanes.enter(Priority::Ahead, 1, &hurry).await;
        assert!(
            lanes
                .enter(Priority::Ahead, 1, &hurry)
                .now_or_never()
                .is_none()
        );
        assert!(
            lanes
                .enter(Priority::Guest, 1, &hurry)
                .now_or_never()
                .is_some()
        );
    }

    #[tokio::test]
    async fn read_ahead_has_the_slots_that_the_line_needs() {
        let line = |ms, mbit: u64| Estimate {
            round_trip: std::time::Duration::from_millis(ms),
            rate: mbit * 125_000,
        };
        let lanes = Lanes::new(32);
        for (line, slots) in [
            (Estimate::UNKNOWN, 4),
            (line(50, 100), 16),
            (line(20, 100), 7),
            (line(1, 1000), 4),
            (line(300, 1000), 16),
        ] {
            lanes.fit(line);
            assert_eq!(lanes.ahead_slots.available_permits(), slots, "{line:?}");
        }
    }

    #[tokio::test]
    async fn read_ahead_that_a_guest_waits_for_goes_as_a_guest() {
        let (lanes, calm, hurry) = (Lanes::new(2), Hurry::new(), Hurry::new());
        let _first = lanes.enter(Priority::Ahead, 1, &calm).await;
        let mut second = Box::pin(lanes.enter(Priority::Ahead, 1, &hurry));
        assert!(second.as_mut().now_or_never().is_none());
        hurry.call();
        assert!(second.now_or_never().is_some());
    }

    #[tokio::test]
    async fn a_request_larger_than_the_bound_goes_alone_but_goes() {
        let (lanes, hurry) = (Lanes::new(4), Hurry::new());
        let slot = lanes.enter(Priority::Guest, u64::MAX, &hurry).await;
        assert!(
            lanes
                .enter(Priority::Guest, 1, &hurry)
                .now_or_never()
                .is_none()
        );
        drop(slot);
        assert!(
            lanes
                .enter(Priority::Guest, 1, &hurry)
                .now_or_never()
                .is_some()
        );
    }

    #[tokio::test]
    async fn slots_come_back() {
        let (lanes, hurry) = (Lanes::new(1), Hurry::new());
        for _ in 0..100 {
            drop(lanes.enter(Priority::Ahead, 1 << 20, &hurry).await);
        }
    }
}
