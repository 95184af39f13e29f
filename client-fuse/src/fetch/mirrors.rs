//! Several servers of one store: which is asked first, and which last.
//!
//! Mirrors are asked in the order in which they were given until it is known how fast they are
//! ([`ranking`]). One that fails goes behind those that answer, until it answers again; one that sent
//! wrong bytes goes last for good. None is ever given up: where all others fail, a liar that tells the
//! truth this once still serves, because whoever reads verifies.
//!
//! [`Ranking`] decides and is pure; [`Mirrors`] keeps it beside the sources and a clock.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::time::Instant;

use crate::fetch::line::{Estimate, Meter};
use crate::fetch::retry::Blame;
use crate::fetch::{Body, FetchError, Request, Source, SourceError, Turn};
use crate::stats::mirrors::MirrorStats;

pub mod ranking;
pub mod score;
pub mod waits;

use ranking::Ranking;
pub use ranking::Standing;
use score::Score;

/// Names a mirror: its number in the order in which they were given.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct MirrorId(usize);

/// Which connection a request goes over.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Way {
    /// One that is there, if there is one.
    Usual,
    /// None of those that were used during this turn: they may be dead.
    Afresh(Turn),
}

/// One server.
#[derive(Debug)]
struct Server<S> {
    /// What it is called in messages.
    name: String,
    source: S,
    meter: Meter,
    /// When it was last heard of, in milliseconds since the beginning.
    heard: AtomicU64,
    stats: Arc<MirrorStats>,
}

/// The servers of one store.
#[derive(Debug)]
pub struct Mirrors<S> {
    servers: Vec<Server<S>>,
    ranking: Mutex<Ranking>,
    began: Instant,
}

impl<S> Mirrors<S> {
    /// A store with one server.
    pub fn one(source: S) -> Self {
        Self::of((String::from("the server"), source), Vec::new())
    }

    /// A store with several servers, each with what it is called in messages.
    pub fn of(first: (String, S), others: Vec<(String, S)>) -> Self {
        let server = |(name, source): (String, S)| Server {
            stats: Arc::new(MirrorStats::of(name.clone())),
            name,
            source,
            meter: Meter::new(),
            heard: AtomicU64::new(0),
        };
        let servers: Vec<_> = std::iter::once(first).chain(others).map(server).collect();
        let ranking = Mutex::new(Ranking::of(servers.len()));
        Self {
            servers,
            ranking,
            began: Instant::now(),
        }
    }

    /// What is known of the line to the one that is asked first.
    pub(crate) fn line(&self) -> Estimate {
        let first = self.ranking().first();
        self.server(first).meter.estimate()
    }

    /// What measures the line to one of them.
    pub(crate) fn meter(&self, mirror: MirrorId) -> &Meter {
        &self.server(mirror).meter
    }

    /// What each of them did.
    pub(crate) fn stats(&self) -> Vec<Arc<MirrorStats>> {
        let servers = self.servers.iter();
        servers.map(|server| Arc::clone(&server.stats)).collect()
    }

    /// What one of them did.
    pub(crate) fn stats_of(&self, mirror: MirrorId) -> &MirrorStats {
        &self.server(mirror).stats
    }

    /// Whether there is no other server to turn to.
    pub const fn is_single(&self) -> bool {
        self.servers.len() == 1
    }

    /// All mirrors, the one to ask first at the front.
    pub fn order(&self) -> Vec<MirrorId> {
        self.ranking().order()
    }

    /// The best mirror that was not `tried`.
    pub(crate) fn next(&self, tried: &[MirrorId]) -> Option<MirrorId> {
        self.ranking().next(tried)
    }

    /// Another mirror that answers, for a request that `mirror` lets wait.
    pub(crate) fn other(&self, mirror: MirrorId) -> Option<MirrorId> {
        self.ranking().other(mirror)
    }

    /// What a mirror is called in messages.
    pub fn name(&self, mirror: MirrorId) -> &str {
        &self.server(mirror).name
    }

    /// What each mirror is called and how it did so far, the one to ask first at the front.
    pub(crate) fn standings(&self) -> Vec<(String, Standing)> {
        let ranking = self.ranking();
        let order = ranking.order().into_iter();
        let standings =
            order.map(|mirror| (self.name(mirror).to_owned(), ranking.standing(mirror)));
        standings.collect()
    }

    /// Notes that a mirror failed, and says so where that changes its place.
    pub(crate) fn failed(
        &self,
        mirror: MirrorId,
        blame: Blame,
        error: &(dyn std::error::Error + 'static),
    ) {
        self.stats_of(mirror).failures.increment();
        if self.is_single() {
            return;
        }
        let now = self.began.elapsed();
        let changed = self.ranking().failed(mirror, blame, now);
        let mirror = self.name(mirror);
        match changed {
            Some(Standing::Quarantined) => tracing::warn!(
                mirror,
                error,
                "this mirror sent wrong bytes: it is asked last from now on"
            ),
            Some(Standing::Failing) => {
                tracing::info!(mirror, error, "this mirror fails: others are asked first");
            }
            Some(Standing::Good) | None => {}
        }
    }

    /// Notes that a mirror answered right.
    pub(crate) fn answered(&self, mirror: MirrorId) {
        self.ranking().answered(mirror, self.began.elapsed());
    }

    /// Lets `note` change what is known of the speed of a mirror.
    pub(crate) fn measured(&self, mirror: MirrorId, note: impl FnOnce(&mut Score)) {
        let first = self.ranking().measured(mirror, note);
        if let Some(first) = first {
            let mirror = self.name(first);
            tracing::info!(
                mirror,
                "this mirror is faster: it is asked first from now on"
            );
        }
    }

    /// From when on an answer of a mirror takes far longer than usual; `None`: not known.
    pub(crate) fn late(&self, mirror: MirrorId) -> Option<Duration> {
        self.ranking().score(mirror).and_then(Score::late)
    }

    /// From when on it is a stall that a request heard nothing since `heard`, if the mirror keeps silent
    /// until then. Where it answers others of our requests, it is later: this one stands in a queue.
    pub(crate) fn stalls_at(&self, mirror: MirrorId, heard: Instant) -> Instant {
        let answered = Duration::from_millis(self.server(mirror).heard.load(Ordering::Relaxed));
        let ranking = self.ranking();
        let unknown = Score::default();
        let score = ranking.score(mirror).unwrap_or(&unknown);
        let idle = score.stall(false);
        // It is busy as long as it was heard of within half of that.
        let is_idle_at = self.began + answered + idle / 2;
        (heard + idle)
            .max(is_idle_at)
            .min(heard + score.stall(true))
    }

    /// When something came from any of them last.
    pub(crate) fn last_heard(&self) -> Instant {
        let heard = self
            .servers
            .iter()
            .map(|server| server.heard.load(Ordering::Relaxed));
        self.began + Duration::from_millis(heard.max().unwrap_or_default())
    }

    /// From when on nothing more is to be hoped for of a body that heard nothing since `heard`: the longest
    /// that it is given before it is asked for elsewhere.
    pub(crate) fn dries_up_at(&self, mirror: MirrorId, heard: Instant) -> Instant {
        let ranking = self.ranking();
        let unknown = Score::default();
        heard + ranking.score(mirror).unwrap_or(&unknown).stall(true)
    }

    /// Notes that something came from a mirror.
    pub(crate) fn heard(&self, mirror: MirrorId) {
        let now = u64::try_from(self.began.elapsed().as_millis()).unwrap_or(u64::MAX);
        self.server(mirror)
            .heard
            .store(now.max(1), Ordering::Relaxed);
    }

    /// A mirror that is to be looked at now, which is noted.
    pub(crate) fn look(&self) -> Option<MirrorId> {
        if self.is_single() {
            return None;
        }
        let now = self.began.elapsed();
        let mut ranking = self.ranking();
        let due = ranking.due(now)?;
        ranking.looked_at(due, now);
        Some(due)
    }

    /// Notes that the look at a mirror is over.
    pub(super) fn looked(&self, mirror: MirrorId) {
        self.ranking().was_looked_at(mirror);
    }

    fn server(&self, mirror: MirrorId) -> &Server<S> {
        self.servers.get(mirror.0).unwrap_or(&self.servers[0])
    }

    fn ranking(&self) -> MutexGuard<'_, Ranking> {
        self.ranking.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl<S: Source> Mirrors<S> {
    /// Asks one of them.
    pub(crate) async fn open(
        &self,
        mirror: MirrorId,
        way: Way,
        request: Request,
    ) -> Result<Body, SourceError> {
        let server = self.server(mirror);
        server.stats.requests.increment();
        match way {
            Way::Usual => server.source.open(request).await,
            Way::Afresh(turn) => server.source.open_afresh(request, turn).await,
        }
    }

    /// Which connections to a mirror are used now.
    pub(crate) fn turn(&self, mirror: MirrorId) -> Turn {
        self.server(mirror).source.turn()
    }

    /// Leaves the connections to a mirror that were used during `turn`: another one helped.
    pub(crate) fn leave(&self, mirror: MirrorId, turn: Turn) {
        self.server(mirror).source.leave(turn);
    }
}

/// What a round over the mirrors came to: each is asked once before anybody waits.
#[derive(Debug, Default)]
pub(crate) struct Round {
    failures: Vec<(MirrorId, FetchError)>,
}

impl Round {
    /// The mirrors that were asked.
    pub(crate) fn tried(&self) -> Vec<MirrorId> {
        self.failures.iter().map(|(mirror, _)| *mirror).collect()
    }

    /// Notes a failure.
    pub(crate) fn add(&mut self, mirror: MirrorId, error: FetchError) {
        self.failures.push((mirror, error));
    }

    /// How long every server wants to be left alone, if each of them said so.
    pub(crate) fn retry_after(&self) -> Option<Duration> {
        let told_by = |mirror: MirrorId| {
            let its = self.failures.iter().filter(move |(of, _)| *of == mirror);
            its.filter_map(|(_, error)| error.retry_after()).min()
        };
        let mut told = self.failures.iter().map(|(mirror, _)| told_by(*mirror));
        let first = told.next()??;
        told.try_fold(first, |least, told| told.map(|told| told.min(least)))
    }

    /// Ends the round: the error of all of it.
    pub(crate) fn finish<S>(&mut self, mirrors: &Mirrors<S>, last: FetchError) -> FetchError {
        let failures = std::mem::take(&mut self.failures);
        // One that was asked twice is one.
        if failures.iter().all(|(mirror, _)| *mirror == failures[0].0) {
            return last;
        }
        let named = |(mirror, error): (MirrorId, FetchError)| {
            let name = mirrors.name(mirror).to_owned();
            (name, error)
        };
        FetchError::Everywhere {
            failures: failures.into_iter().map(named).collect(),
        }
    }
}
