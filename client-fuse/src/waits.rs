//! What guests wait for: the reads under way, since when, and what each came to wait for so far.
//!
//! A read is registered when the kernel asks and taken out when it is answered, or given up. What it
//! waits for is noted from inside its task ([`note`]), so that the layers between know nothing of
//! this. Nothing is decided by what is noted here.
//!
//! Bounds: as many entries as the kernel has requests under way.

use std::collections::BTreeMap;
use std::future::Future;
use std::sync::atomic::{AtomicU8, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use image_format::trace::Origin;

use crate::stats::Stats;
use crate::stats::histogram::Histogram;

/// What a read has to wait for, the quickest first. A read is answered by the last of these that it
/// came to.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Layer {
    /// Nothing: all of it is in memory, or holes.
    Memory,
    /// The file of the overlay.
    Overlay,
    /// The disk cache.
    Disk,
    /// A page of the index, which says what there is to read.
    Index,
    /// A chunk that was on its way already.
    Flight,
    /// A frame of the boot pack.
    BootPack,
    /// A chunk that is fetched for this read.
    Demand,
}

impl Layer {
    /// All of them.
    pub const ALL: [Self; 7] = [
        Self::Memory,
        Self::Overlay,
        Self::Disk,
        Self::Index,
        Self::Flight,
        Self::BootPack,
        Self::Demand,
    ];

    fn of_number(number: u8) -> Self {
        let last = Self::ALL.len() - 1;
        Self::ALL[usize::from(number).min(last)]
    }

    /// What whoever waits is told.
    #[must_use]
    pub const fn told(self) -> &'static str {
        match self {
            Self::Memory => "its turn",
            Self::Overlay => "the overlay file",
            Self::Disk => "the disk cache",
            Self::Index => "a page of the index",
            Self::Flight => "a chunk that is on its way",
            Self::BootPack => "a frame of the boot pack",
            Self::Demand => "a chunk that is fetched for it",
        }
    }
}

impl From<Origin> for Layer {
    fn from(origin: Origin) -> Self {
        match origin {
            Origin::Memory => Self::Memory,
            Origin::Disk => Self::Disk,
            Origin::Index => Self::Index,
            Origin::Flight => Self::Flight,
            Origin::BootPack => Self::BootPack,
            Origin::Demand => Self::Demand,
        }
    }
}

tokio::task_local! {
    /// How far the read that this task carries out has come.
    static STAGE: Arc<AtomicU8>;
}

/// Notes that the read of this task has to wait for `layer`; elsewhere, nothing.
pub fn note(layer: impl Into<Layer>) {
    let number = layer.into() as u8;
    // What reads ahead, or for a writer, is no guest's read.
    let _ = STAGE.try_with(|stage| stage.fetch_max(number, Ordering::Relaxed));
}

/// The reads under way.
#[derive(Debug)]
pub struct Reads {
    next: AtomicU64,
    under_way: Mutex<BTreeMap<u64, Entry>>,
    stats: Arc<Stats>,
}

#[derive(Debug)]
struct Entry {
    offset: u64,
    len: u32,
    began: Instant,
    stage: Arc<AtomicU8>,
}

/// A read under way, as it looks from outside.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct UnderWay {
    /// Where it begins on the disk, in bytes.
    pub offset: u64,
    /// How many bytes it asks for.
    pub len: u32,
    /// How long ago the kernel asked.
    pub age: Duration,
    /// What it came to wait for so far.
    pub layer: Layer,
}

impl Reads {
    /// None yet; how long they took is counted in `stats`.
    #[must_use]
    pub fn new(stats: Arc<Stats>) -> Self {
        Self {
            next: AtomicU64::new(0),
            under_way: Mutex::default(),
            stats,
        }
    }

    /// Begins a read of `len` bytes at `offset`. It ends when what is returned is dropped.
    #[must_use]
    pub fn begin(self: &Arc<Self>, offset: u64, len: u32) -> Reading {
        let (number, stage) = (
            self.next.fetch_add(1, Ordering::Relaxed),
            Arc::new(AtomicU8::new(Layer::Memory as u8)),
        );
        let entry = Entry {
            offset,
            len,
            began: Instant::now(),
            stage: Arc::clone(&stage),
        };
        self.entries().insert(number, entry);
        Reading {
            registered: Some((Arc::clone(self), number)),
            stage,
            answered: false,
        }
    }

    /// How many are under way, and for how long the oldest is.
    #[must_use]
    pub fn pressure(&self) -> (usize, Duration) {
        let entries = self.entries();
        let oldest = entries.values().next();
        let age = oldest.map_or(Duration::ZERO, |oldest| oldest.began.elapsed());
        (entries.len(), age)
    }

    /// The oldest of them, `most` at most.
    #[must_use]
    pub fn oldest(&self, most: usize) -> Vec<UnderWay> {
        let entries = self.entries();
        let oldest = entries.values().take(most).map(|entry| UnderWay {
            offset: entry.offset,
            len: entry.len,
            age: entry.began.elapsed(),
            layer: Layer::of_number(entry.stage.load(Ordering::Relaxed)),
        });
        oldest.collect()
    }

    fn entries(&self) -> MutexGuard<'_, BTreeMap<u64, Entry>> {
        self.under_way
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
    }
}

/// A read under way; dropping it ends it.
#[derive(Debug)]
pub struct Reading {
    registered: Option<(Arc<Reads>, u64)>,
    stage: Arc<AtomicU8>,
    answered: bool,
}

impl Reading {
    /// A read that nobody counts.
    #[must_use]
    pub fn uncounted() -> Self {
        Self {
            registered: None,
            stage: Arc::default(),
            answered: false,
        }
    }

    /// Carries `read` out, which is this read.
    pub async fn of<T>(&self, read: impl Future<Output = T>) -> T {
        STAGE.scope(Arc::clone(&self.stage), read).await
    }

    /// Ends it: the bytes are with the kernel. One that is only dropped has failed.
    pub fn answered(mut self) {
        self.answered = true;
    }
}

impl Drop for Reading {
    fn drop(&mut self) {
        let Some((reads, number)) = self.registered.take() else {
            return;
        };
        let ended = reads.entries().remove(&number);
        let waits = &reads.stats.read_wait;
        let histogram: &Histogram = if self.answered {
            waits.of(Layer::of_number(self.stage.load(Ordering::Relaxed)))
        } else {
            &waits.failed
        };
        if let Some(entry) = ended {
            histogram.record(entry.began.elapsed());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_read_counts_by_the_slowest_layer_it_came_to() {
        let stats = Arc::new(Stats::default());
        let reads = Arc::new(Reads::new(Arc::clone(&stats)));
        let reading = reads.begin(4096, 512);
        let noting = async {
            note(Layer::Disk);
            note(Origin::BootPack);
            note(Layer::Memory);
        };
        reading.of(noting).await;
        let [seen] = reads.oldest(9)[..] else {
            panic!("one read is under way");
        };
        assert_eq!((seen.offset, seen.len), (4096, 512));
        assert_eq!(seen.layer, Layer::BootPack);
        reading.answered();
        assert_eq!(reads.pressure().0, 0);
        assert_eq!(stats.read_wait.boot_pack.counts().count(), 1);
        assert_eq!(stats.read_wait.all().count(), 1);
    }

    #[tokio::test]
    async fn a_read_that_is_given_up_has_failed() {
        let stats = Arc::new(Stats::default());
        let reads = Arc::new(Reads::new(Arc::clone(&stats)));
        drop(reads.begin(0, 1));
        assert_eq!(stats.read_wait.failed.counts().count(), 1);
        assert_eq!(reads.pressure(), (0, Duration::ZERO));
    }

    #[tokio::test]
    async fn what_is_no_guests_read_is_not_counted() {
        note(Layer::Demand);
        let reading = Reading::uncounted();
        reading.of(async { note(Layer::Demand) }).await;
        reading.answered();
    }

    #[test]
    fn every_layer_is_found_by_its_number() {
        for layer in Layer::ALL {
            assert_eq!(Layer::of_number(layer as u8), layer);
        }
    }
}
