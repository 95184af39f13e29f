//! Where the disk of the cache is asked, and whether it answers.
//!
//! A disk that fails says so, and an error switches the cache off. One that hangs says nothing: who reads from it stays
//! there. So what is under way on it is looked at every [`LOOK_EVERY`], and what was there in [`LOOKS`] looks, one after
//! another, makes the disk *silent* until it returns. Looks are counted, not time: a process that was stopped, or a
//! machine that slept, does not hold that against the disk. Each call of the system counts for itself, so that work that
//! is long but gets on is none that hangs.
//!
//! A thread that hangs is lost until the disk answers. [`ask`] has [`THREADS`] of them, which nobody else is short of.
//!
//! There is one desk, because a process has one cache directory.

use std::collections::HashMap;
use std::future::Future;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{LazyLock, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::sync::{Semaphore, watch};
use tokio::task::JoinHandle;

/// Threads that may be in the disk of the cache at once; the runtime has as many more.
pub const THREADS: usize = 8;

/// How often somebody looks.
const LOOK_EVERY: Duration = Duration::from_secs(2);

/// Looks until a disk is silent: 10 s, in which most disks that sleep wake up.
const LOOKS: u32 = 5;

static DESK: LazyLock<Answers> = LazyLock::new(Answers::new);
static PLACES: Semaphore = Semaphore::const_new(THREADS);
static BEHIND: Semaphore = Semaphore::const_new(THREADS / 2);

/// A call of the system to the disk; it has returned when this is dropped.
#[derive(Debug)]
pub(super) struct Busy(u64);

/// A call begins.
pub(super) fn begin() -> Busy {
    Busy(DESK.begin())
}

impl Drop for Busy {
    fn drop(&mut self) {
        if DESK.end(self.0) {
            tracing::warn!("the disk of the cache answers again");
        }
    }
}

/// Does something that blocks on the disk of the cache, on a thread where it may. `None`: the disk does not answer, or
/// `work` failed.
///
/// # Cancel safety
///
/// Work that has begun goes on.
pub async fn ask<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> Option<T> {
    let asking = async {
        let place = PLACES.acquire().await.ok()?;
        let working = tokio::task::spawn_blocking(move || {
            let done = work();
            drop(place);
            done
        });
        working.await.ok()
    };
    tokio::select! {
        biased;
        done = asking => done,
        () = DESK.silence() => None,
    }
}

/// Work behind that of readers.
#[derive(Debug)]
pub struct Started<T>(Stage<T>);

#[derive(Debug)]
enum Stage<T> {
    Running(JoinHandle<T>),
    Queued(JoinHandle<Option<T>>),
}

/// Begins what [`ask`] does, but on half of the threads at most, so that who reads finds one: this is for what is written,
/// and may wait for whoever makes room. It is done even if nobody waits for it.
pub fn start<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> Started<T> {
    let (Ok(turn), Ok(place)) = (BEHIND.try_acquire(), PLACES.try_acquire()) else {
        return Started(Stage::Queued(tokio::spawn(async move {
            let _turn = BEHIND.acquire().await.ok()?;
            ask(work).await
        })));
    };
    Started(Stage::Running(tokio::task::spawn_blocking(move || {
        let done = work();
        drop((turn, place));
        done
    })))
}

impl<T: Send + 'static> Started<T> {
    /// Waits for it, as [`ask`] does.
    ///
    /// # Cancel safety
    ///
    /// As there.
    pub async fn end(self) -> Option<T> {
        let ending = async {
            match self.0 {
                Stage::Running(working) => working.await.ok(),
                Stage::Queued(working) => working.await.ok().flatten(),
            }
        };
        tokio::select! {
            biased;
            done = ending => done,
            () = DESK.silence() => None,
        }
    }
}

/// As [`ask`], for what no [`Busy`] watches; `None` also where it does not come back for as long as a disk may be silent.
///
/// # Cancel safety
///
/// As that of [`ask`].
pub async fn ask_patiently<T: Send + 'static>(
    work: impl FnOnce() -> T + Send + 'static,
) -> Option<T> {
    patiently(ask(work)).await.flatten()
}

/// Waits for `asking` as long as a disk may be silent; `None`: it did not come back.
///
/// # Cancel safety
///
/// As that of `asking`, which is dropped.
pub(crate) async fn patiently<T>(asking: impl Future<Output = T>) -> Option<T> {
    let looks = async {
        for _ in 0..LOOKS {
            tokio::time::sleep(LOOK_EVERY).await;
        }
    };
    tokio::select! {
        biased;
        answer = asking => Some(answer),
        () = looks => None,
    }
}

/// Whether the disk does not answer, for which all that is cached is off until it does.
pub(crate) fn is_silent() -> bool {
    DESK.is_silent()
}

/// How often it came to be silent.
pub(crate) fn silences() -> u64 {
    DESK.silences.load(Ordering::Relaxed)
}

/// Waits until the disk answers.
///
/// # Cancel safety
///
/// Nothing is lost.
pub(crate) async fn answered() {
    DESK.wait_until(false).await;
}

/// Looks whether the disk answers, for ever.
pub async fn look_after() {
    loop {
        tokio::time::sleep(LOOK_EVERY).await;
        if DESK.look() {
            tracing::warn!(
                "the disk of the cache does not answer; reads go on without it until it does"
            );
        }
    }
}

/// What is under way on a disk.
#[derive(Debug)]
struct Answers {
    under_way: Mutex<UnderWay>,
    silent: watch::Sender<bool>,
    silences: AtomicU64,
}

#[derive(Debug, Default)]
struct UnderWay {
    next: u64,
    /// How often each operation was seen.
    seen: HashMap<u64, u32>,
}

impl UnderWay {
    fn is_stuck(&self) -> bool {
        self.seen.values().any(|looks| *looks >= LOOKS)
    }
}

impl Answers {
    fn new() -> Self {
        Self {
            under_way: Mutex::default(),
            silent: watch::Sender::new(false),
            silences: AtomicU64::new(0),
        }
    }

    /// An operation begins; returns its number.
    fn begin(&self) -> u64 {
        let mut under_way = self.under_way();
        let number = under_way.next;
        under_way.next += 1;
        under_way.seen.insert(number, 0);
        number
    }

    /// The operation `number` returned. Whether the disk, which was silent, answers again by that.
    fn end(&self, number: u64) -> bool {
        let mut under_way = self.under_way();
        under_way.seen.remove(&number);
        self.is_silent() && !under_way.is_stuck() && self.silent.send_replace(false)
    }

    /// Looks at what is under way. Whether the disk turns out to be silent, which it was not before.
    fn look(&self) -> bool {
        let mut under_way = self.under_way();
        for looks in under_way.seen.values_mut() {
            *looks = looks.saturating_add(1);
        }
        let is_news = under_way.is_stuck() && !self.silent.send_replace(true);
        self.silences
            .fetch_add(u64::from(is_news), Ordering::Relaxed);
        is_news
    }

    /// Whether something does not come back.
    fn is_silent(&self) -> bool {
        *self.silent.borrow()
    }

    /// Returns once something does not come back.
    async fn silence(&self) {
        self.wait_until(true).await;
    }

    async fn wait_until(&self, silent: bool) {
        let mut told = self.silent.subscribe();
        // The sender lives as long as this borrow.
        let _ = told.wait_for(|told| *told == silent).await;
    }

    fn under_way(&self) -> MutexGuard<'_, UnderWay> {
        self.under_way
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_disk_is_silent_when_an_operation_is_seen_too_often_and_until_it_returns() {
        let answers = Answers::new();
        let (first, second) = (answers.begin(), answers.begin());
        for _ in 1..LOOKS {
            assert!(!answers.look());
        }
        assert!(!answers.end(first), "nobody said that it is silent");
        assert!(answers.look() && answers.is_silent());
        assert!(!answers.look(), "said once");
        let third = answers.begin();
        assert!(!answers.end(third), "another one still waits");
        assert!(answers.end(second) && !answers.is_silent());
    }

    #[test]
    fn a_disk_that_is_slow_is_not_silent() {
        let answers = Answers::new();
        for _ in 0..10 * LOOKS {
            let number = answers.begin();
            for _ in 1..LOOKS {
                assert!(!answers.look());
            }
            assert!(!answers.end(number));
        }
    }

    #[tokio::test(start_paused = true)]
    async fn silence_is_waited_for_and_what_does_not_come_back_is_left() {
        let answers = Answers::new();
        answers.begin();
        let looking = async {
            for _ in 0..LOOKS {
                tokio::task::yield_now().await;
                answers.look();
            }
        };
        tokio::join!(answers.silence(), looking);
        assert_eq!(patiently(std::future::pending::<()>()).await, None);
        assert_eq!(patiently(async { 1 }).await, Some(1));
    }
}
