//! The requests under way: what was asked of whom, how long ago, and what came of it so far.
//!
//! For whoever looks from outside; nothing is decided by it. Bounds: as many entries as there are
//! connections, which [`lanes`](super::lanes) bound.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::time::Instant;

use crate::fetch::{Part, Request};
use crate::stats::Stats;

/// The requests under way.
#[derive(Debug, Default)]
pub(crate) struct Underway {
    next: AtomicU64,
    entries: Mutex<BTreeMap<u64, Arc<Entry>>>,
}

#[derive(Debug)]
struct Entry {
    mirror: String,
    path: String,
    part: Part,
    asked: Instant,
    got: AtomicU64,
    is_answered: AtomicBool,
}

/// A request under way, as it looks from outside.
#[derive(Clone, Debug)]
pub(crate) struct Asked {
    /// Whom.
    pub(crate) mirror: String,
    /// For which file.
    pub(crate) path: String,
    /// For which of its bytes.
    pub(crate) part: Part,
    /// How long ago.
    pub(crate) age: Duration,
    /// How many bytes of the body came.
    pub(crate) got: u64,
    /// Whether the head of the answer is here.
    pub(crate) is_answered: bool,
}

impl Underway {
    /// Notes that `mirror` is asked now. That ends when what is returned is dropped.
    pub(crate) fn ask(
        self: &Arc<Self>,
        mirror: &str,
        request: &Request,
        stats: &Arc<Stats>,
    ) -> Asking {
        let number = self.next.fetch_add(1, Ordering::Relaxed);
        let entry = Arc::new(Entry {
            mirror: mirror.to_owned(),
            path: request.path.clone(),
            part: request.part.clone(),
            asked: Instant::now(),
            got: AtomicU64::new(0),
            is_answered: AtomicBool::new(false),
        });
        self.entries().insert(number, Arc::clone(&entry));
        Asking {
            all: Arc::clone(self),
            number,
            entry,
            stats: Arc::clone(stats),
        }
    }

    /// How many there are, and how long ago the oldest was asked.
    pub(crate) fn pressure(&self) -> (usize, Duration) {
        let entries = self.entries();
        let oldest = entries.values().next();
        let age = oldest.map_or(Duration::ZERO, |oldest| oldest.asked.elapsed());
        (entries.len(), age)
    }

    /// The oldest of them, `most` at most.
    pub(crate) fn oldest(&self, most: usize) -> Vec<Asked> {
        let entries: Vec<_> = self.entries().values().take(most).cloned().collect();
        let asked = entries.into_iter().map(|entry| Asked {
            mirror: entry.mirror.clone(),
            path: entry.path.clone(),
            part: entry.part.clone(),
            age: entry.asked.elapsed(),
            got: entry.got.load(Ordering::Relaxed),
            is_answered: entry.is_answered.load(Ordering::Relaxed),
        });
        asked.collect()
    }

    fn entries(&self) -> MutexGuard<'_, BTreeMap<u64, Arc<Entry>>> {
        self.entries.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A request under way, until it is dropped.
#[derive(Debug)]
pub(crate) struct Asking {
    all: Arc<Underway>,
    number: u64,
    entry: Arc<Entry>,
    stats: Arc<Stats>,
}

impl Asking {
    /// Notes the head of its answer, and returns how long it was waited for.
    pub(crate) fn answered(&self) -> Duration {
        let waited = self.entry.asked.elapsed();
        self.stats.request_wait.head.record(waited);
        self.entry.is_answered.store(true, Ordering::Relaxed);
        waited
    }

    /// Notes bytes of the body.
    pub(crate) fn received(&self, bytes: u64) {
        self.entry.got.fetch_add(bytes, Ordering::Relaxed);
    }

    /// Notes that the body has ended as bodies should.
    pub(crate) fn ended(&self) {
        let whole = &self.stats.request_wait.whole;
        whole.record(self.entry.asked.elapsed());
    }
}

impl Drop for Asking {
    fn drop(&mut self) {
        self.all.entries().remove(&self.number);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fetch::Freshness;

    #[tokio::test(start_paused = true)]
    async fn a_request_is_seen_until_it_ends() {
        let (all, stats) = (Arc::new(Underway::default()), Arc::new(Stats::default()));
        let request = Request {
            path: "objects/ab".to_owned(),
            part: Part::Whole,
            freshness: Freshness::Any,
        };
        let asking = all.ask("the server", &request, &stats);
        tokio::time::advance(Duration::from_millis(50)).await;
        assert_eq!(asking.answered(), Duration::from_millis(50));
        asking.received(7);
        tokio::time::advance(Duration::from_millis(10)).await;
        let seen = all.oldest(5);
        assert_eq!((seen.len(), seen[0].got, seen[0].is_answered), (1, 7, true));
        assert_eq!(all.pressure(), (1, Duration::from_millis(60)));
        asking.ended();
        drop(asking);
        assert_eq!(all.pressure().0, 0);
        let waits = &stats.request_wait;
        assert_eq!(waits.head.counts().max_us(), 50_000);
        assert_eq!(waits.whole.counts().max_us(), 60_000);
    }
}
