//! Whether the disk of a cache answers.
//!
//! A disk that fails says so, and an error switches the cache off. One that hangs says nothing: who reads from it stays
//! there. So what is under way on it is looked at every [`LOOK_EVERY`], and what was there in [`LOOKS`] looks, one after
//! another, makes the disk *silent* until it returns. Looks are counted, not time: a process that was stopped, or a
//! machine that slept, does not hold that against the disk.

use std::collections::HashMap;
use std::future::Future;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::sync::watch;

/// How often somebody looks.
pub(in crate::cache) const LOOK_EVERY: Duration = Duration::from_secs(2);

/// Looks until a disk is silent: 10 s, in which most disks that sleep wake up.
const LOOKS: u32 = 5;

/// What is under way on a disk.
#[derive(Debug)]
pub(super) struct Answers {
    under_way: Mutex<UnderWay>,
    silent: watch::Sender<bool>,
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
    pub(super) fn new() -> Self {
        Self {
            under_way: Mutex::default(),
            silent: watch::Sender::new(false),
        }
    }

    /// An operation begins; returns its number.
    pub(super) fn begin(&self) -> u64 {
        let mut under_way = self.under_way();
        let number = under_way.next;
        under_way.next += 1;
        under_way.seen.insert(number, 0);
        number
    }

    /// The operation `number` returned. Whether the disk, which was silent, answers again by that.
    pub(super) fn end(&self, number: u64) -> bool {
        let mut under_way = self.under_way();
        under_way.seen.remove(&number);
        self.is_silent() && !under_way.is_stuck() && self.silent.send_replace(false)
    }

    /// Looks at what is under way. Whether the disk turns out to be silent, which it was not before.
    pub(super) fn look(&self) -> bool {
        let mut under_way = self.under_way();
        for looks in under_way.seen.values_mut() {
            *looks = looks.saturating_add(1);
        }
        under_way.is_stuck() && !self.silent.send_replace(true)
    }

    /// Whether something does not come back.
    pub(super) fn is_silent(&self) -> bool {
        *self.silent.borrow()
    }

    /// Returns once something does not come back.
    pub(super) async fn silence(&self) {
        let mut silent = self.silent.subscribe();
        // The sender lives as long as this borrow.
        let _ = silent.wait_for(|silent| *silent).await;
    }

    fn under_way(&self) -> MutexGuard<'_, UnderWay> {
        self.under_way
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
    }
}

/// Waits for what asks a disk as long as one may be silent; `None`: it did not come back. For what is
/// asked before there is a cache file.
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
