//! Decides whether the kernel may read the cache file without asking us, which is as fast as a local file.
//!
//! What it reads so is not verified when it is read. So all of the file must have been verified in
//! this run, not long ago ([`Disk::keep_proven`](crate::disk::Disk::keep_proven)), nobody may take
//! data out of it, and nothing may depend on seeing the reads. Where any of that does not hold, the
//! disk is served as ever: this is an acceleration, nothing waits for it and nothing fails for it.
//!
//! The kernel's rule: while a file is open, all its opens are of one kind. The first one decides
//! ([`Openings`]).

use std::fs::File;
use std::io;
use std::sync::atomic::{AtomicU8, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use serde::Serialize;
use tokio::sync::watch;

use crate::cache::{Caches, desk};
use crate::stats::Stats;

/// Whether the kernel may read the cache file itself, or why not.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Standing {
    /// It was told not to, or nothing would come of it.
    Unwanted,
    /// The disk has an overlay, which is not in the file.
    Writable,
    /// What is read is recorded, and nobody would see it.
    Recorded,
    /// There is no disk cache.
    NoCache,
    /// The file is longer than the disk: it has whole blocks.
    OddLength,
    /// Only root may ask for it.
    NotRoot,
    /// The kernel, or the file system of the cache, does not do it.
    Unsupported,
    /// The cache lacks some of the disk.
    #[default]
    Incomplete,
    /// All of the disk is there, but not verified yet, or no more.
    Unverified,
    /// The next open, if there is none now.
    Ready,
}

impl Standing {
    const ALL: [Self; 10] = [
        Self::Unwanted,
        Self::Writable,
        Self::Recorded,
        Self::NoCache,
        Self::OddLength,
        Self::NotRoot,
        Self::Unsupported,
        Self::Incomplete,
        Self::Unverified,
        Self::Ready,
    ];

    /// In words, for `.circular/stats.json`.
    #[must_use]
    pub const fn words(self) -> &'static str {
        match self {
            Self::Unwanted => {
                "off: not wanted (--no-passthrough, --supervise or --nbd; or a root disk)"
            }
            Self::Writable => "off: the disk can be written to",
            Self::Recorded => "off: what is read is recorded",
            Self::NoCache => "off: there is no disk cache",
            Self::OddLength => "off: the length of the disk is no multiple of 4096",
            Self::NotRoot => "off: only root may",
            Self::Unsupported => "off: the kernel or the file system of the cache cannot",
            Self::Incomplete => "off: not all of the disk is in the cache",
            Self::Unverified => "off: the cache file is not verified",
            Self::Ready => "ready",
        }
    }
}

/// What is known of the cache file as a whole.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Content {
    /// It lacks some of the disk, as far as we know.
    #[default]
    Incomplete,
    /// It has something everywhere.
    Unverified,
    /// It was verified, and nothing happened since that gives reason to doubt it.
    Verified,
}

/// What the decision depends on.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Facts {
    /// The user did not forbid it.
    pub wanted: bool,
    /// The disk has an overlay.
    pub writable: bool,
    /// What is read first is recorded.
    pub recorded: bool,
    /// There is a disk cache.
    pub cached: bool,
    /// The disk consists of whole blocks.
    pub whole_blocks: bool,
    /// We are root.
    pub root: bool,
    /// The kernel can, and has not refused yet.
    pub supported: bool,
    /// What is in the cache file.
    pub content: Content,
}

/// Decides; of several reasons against it, the one that lasts longest is told.
#[must_use]
pub const fn standing(facts: &Facts) -> Standing {
    if !facts.wanted {
        return Standing::Unwanted;
    }
    if facts.writable {
        return Standing::Writable;
    }
    if facts.recorded {
        return Standing::Recorded;
    }
    if !facts.cached {
        return Standing::NoCache;
    }
    if !facts.whole_blocks {
        return Standing::OddLength;
    }
    if !facts.root {
        return Standing::NotRoot;
    }
    if !facts.supported {
        return Standing::Unsupported;
    }
    match facts.content {
        Content::Incomplete => Standing::Incomplete,
        Content::Unverified => Standing::Unverified,
        Content::Verified => Standing::Ready,
    }
}

/// The opens of one file, which are all of one kind.
#[derive(Debug, Default)]
pub enum Openings<B> {
    /// Nobody has it open.
    #[default]
    Closed,
    /// So many have it open, and we serve them.
    Served(u64),
    /// So many have it open, and the kernel reads what `B` stands for.
    Passed(u64, B),
}

impl<B> Openings<B> {
    /// Counts an open: like those that there are, or the first one, which gets what `pass` gives.
    /// Returns what the kernel reads, `None`: we serve.
    pub fn open(&mut self, pass: impl FnOnce() -> Option<B>) -> Option<&B> {
        match self {
            Self::Closed => {
                *self = match pass() {
                    Some(backing) => Self::Passed(1, backing),
                    None => Self::Served(1),
                }
            }
            Self::Served(count) | Self::Passed(count, _) => *count += 1,
        }
        self.backing()
    }

    /// Counts a close. What the kernel read is dropped with the last one.
    pub fn close(&mut self) {
        match self {
            Self::Served(count) | Self::Passed(count, _) if *count > 1 => *count -= 1,
            _ => *self = Self::Closed,
        }
    }

    /// What the kernel reads; `None`: we serve, or nobody has it open.
    pub const fn backing(&self) -> Option<&B> {
        match self {
            Self::Passed(_, backing) => Some(backing),
            Self::Closed | Self::Served(_) => None,
        }
    }
}

/// What `.circular/stats.json` says.
#[derive(Debug, Default)]
pub struct State {
    standing: AtomicU8,
    on: AtomicU8,
}

impl State {
    fn say(&self, standing: Standing) {
        let number = Standing::ALL.iter().position(|each| *each == standing);
        let number = number.and_then(|number| u8::try_from(number).ok());
        self.standing
            .store(number.unwrap_or_default(), Ordering::Relaxed);
    }
}

impl Serialize for State {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        if self.on.load(Ordering::Relaxed) > 0 {
            return serializer.serialize_str("on");
        }
        let number = usize::from(self.standing.load(Ordering::Relaxed));
        let standing = Standing::ALL.get(number).copied().unwrap_or_default();
        serializer.serialize_str(standing.words())
    }
}

/// Collects the facts of a mount, and lends its cache file.
#[derive(Debug)]
pub struct Lender {
    facts: Mutex<Facts>,
    /// Whether the kernel can; `None` until it has said so.
    kernel: watch::Sender<Option<bool>>,
    caches: Arc<Caches>,
    stats: Arc<Stats>,
}

impl Lender {
    /// A lender of the disk cache of `caches`. `facts` are those that do not change; what the kernel can,
    /// and what is in the cache, is told later.
    #[must_use]
    pub fn new(facts: Facts, caches: Arc<Caches>, stats: Arc<Stats>) -> Self {
        let facts = Facts {
            cached: caches.disk.is_on(),
            root: nix::unistd::geteuid().is_root(),
            supported: false,
            content: Content::Incomplete,
            ..facts
        };
        stats.passthrough.state.say(standing(&facts));
        Self {
            facts: Mutex::new(facts),
            kernel: watch::Sender::new(None),
            caches,
            stats,
        }
    }

    /// A lender that never opens.
    #[must_use]
    pub fn shut(caches: Arc<Caches>, stats: Arc<Stats>) -> Self {
        Self::new(Facts::default(), caches, stats)
    }

    /// Whether it may open in this run, if the kernel can.
    #[must_use]
    pub fn may_open(&self) -> bool {
        let facts = Facts {
            supported: true,
            content: Content::Verified,
            ..*self.facts()
        };
        standing(&facts) == Standing::Ready
    }

    /// Says whether the kernel can.
    pub fn tell_kernel(&self, supported: bool) {
        self.change(|facts| facts.supported = supported);
        self.kernel.send_replace(Some(supported));
    }

    /// Waits until it is known whether the kernel can.
    pub async fn kernel_can(&self) -> bool {
        let mut kernel = self.kernel.subscribe();
        let told = kernel.wait_for(Option::is_some).await;
        told.is_ok_and(|told| *told == Some(true))
    }

    /// Says what is in the cache file.
    pub fn tell_content(&self, content: Content) {
        self.change(|facts| facts.content = content);
    }

    /// The cache file, if the kernel may read it now. Nobody takes data out of it before it is closed.
    pub fn lend(&self) -> Option<File> {
        if standing(&self.facts()) != Standing::Ready {
            return None;
        }
        match self.caches.disk.lend() {
            Ok(Some(file)) => Some(file),
            Ok(None) => {
                // Or somebody has it for a moment, to make room in it.
                if !desk::is_silent() && !self.caches.disk.is_proven() {
                    self.tell_content(Content::Unverified);
                }
                None
            }
            Err(error) => {
                tracing::debug!(%error, "the cache file is not lent to the kernel");
                None
            }
        }
    }

    /// The kernel refused to read what was lent; it is not asked again.
    pub fn refused(&self, error: &io::Error) {
        tracing::info!(%error, "the kernel does not read the cache file itself; the disk is served as before");
        self.tell_kernel(false);
    }

    /// Counts an open that the kernel serves itself.
    pub fn passed(&self) {
        let told = &self.stats.passthrough;
        told.opens.increment();
        if told.state.on.swap(1, Ordering::Relaxed) == 0 {
            // What is read from now on nobody sees: all of it counts as used.
            self.caches.disk.touch_all();
            tracing::debug!("the kernel reads the cache file itself");
        }
    }

    /// Says that the file is not open any more.
    pub fn closed(&self) {
        self.stats.passthrough.state.on.store(0, Ordering::Relaxed);
    }

    /// The counters.
    #[must_use]
    pub const fn stats(&self) -> &Arc<Stats> {
        &self.stats
    }

    fn change(&self, change: impl FnOnce(&mut Facts)) {
        let mut facts = self.facts();
        change(&mut facts);
        self.stats.passthrough.state.say(standing(&facts));
    }

    fn facts(&self) -> MutexGuard<'_, Facts> {
        self.facts.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use proptest::collection::vec;
    use proptest::prelude::*;

    use super::*;

    const GOOD: Facts = Facts {
        wanted: true,
        writable: false,
        recorded: false,
        cached: true,
        whole_blocks: true,
        root: true,
        supported: true,
        content: Content::Verified,
    };

    type Spoil = fn(&mut Facts);

    /// What is wrong, and what is then told; the first of several.
    const TABLE: [(Standing, Spoil); 9] = [
        (Standing::Unwanted, |facts| facts.wanted = false),
        (Standing::Writable, |facts| facts.writable = true),
        (Standing::Recorded, |facts| facts.recorded = true),
        (Standing::NoCache, |facts| facts.cached = false),
        (Standing::OddLength, |facts| facts.whole_blocks = false),
        (Standing::NotRoot, |facts| facts.root = false),
        (Standing::Unsupported, |facts| facts.supported = false),
        (Standing::Incomplete, |facts| {
            facts.content = Content::Incomplete;
        }),
        (Standing::Unverified, |facts| {
            facts.content = Content::Unverified;
        }),
    ];

    #[test]
    fn any_one_reason_is_enough_and_the_longest_is_told() {
        assert_eq!(standing(&GOOD), Standing::Ready);
        for (number, (expected, spoil)) in TABLE.iter().enumerate() {
            let mut facts = GOOD;
            spoil(&mut facts);
            assert_eq!(standing(&facts), *expected);
            for (_, spoil) in TABLE.iter().skip(number + 1) {
                spoil(&mut facts);
                assert_ne!(standing(&facts), Standing::Ready);
            }
        }
        let told: Vec<_> = TABLE.iter().map(|(standing, _)| *standing).collect();
        assert_eq!(told, Standing::ALL[..9]);
    }

    proptest! {
        /// The kernel's rule: while a file is open, no open is of another kind; and nothing that the
        /// kernel may still read is dropped.
        #[test]
        fn opens_agree_until_the_last_close(steps in vec((any::<bool>(), any::<bool>()), 1..60)) {
            let mut openings = Openings::default();
            let (mut kinds, mut lent): (Vec<bool>, _) = (Vec::new(), Arc::new(()));
            for (opens, may_pass) in steps {
                if opens {
                    let passed = openings.open(|| may_pass.then(|| Arc::clone(&lent))).is_some();
                    prop_assert!(kinds.first().is_none_or(|first| *first == passed));
                    prop_assert!(!kinds.is_empty() || passed == may_pass);
                    kinds.push(passed);
                } else if kinds.pop().is_some() {
                    openings.close();
                }
                let kept = Arc::get_mut(&mut lent).is_none();
                prop_assert_eq!(kept, kinds.first().copied().unwrap_or(false));
            }
        }
    }
}
