//! Carries requests out: asks the source, bounds and verifies what comes, tries again, delivers.
//!
//! [`Whole`] files, [`part`]s that are of use only as a whole, and ranges of packs whose chunks are
//! delivered one by one. A request belongs to a task, not to a reader.
//!
//! Bounds: requests and bytes in flight by [`Lanes`], the length of every answer before it is asked
//! for, tries and time by [`RetryPolicy`].

use std::sync::{Arc, Mutex};
use std::time::Duration;

use tokio::task::JoinError;
use tokio::time::Instant;

use crate::cache::Caches;
use crate::cache::documents::Documents;
use crate::fetch::decoders::Decoders;
use crate::fetch::hedge::Budget;
use crate::fetch::lanes::{Hurry, Lanes, Priority, Slot};
use crate::fetch::line::Estimate;
use crate::fetch::mirrors::{MirrorId, Mirrors};
use crate::fetch::plan::PlanLimits;
use crate::fetch::retry::{Fault, Next, RetryPolicy};
use crate::fetch::underway::Underway;
use crate::fetch::{FetchError, Request, Source};
use crate::stats::Stats;

mod attempts;
mod deadline;
mod gone;
mod incoming;
mod kept;
mod look;
mod outage;
pub mod part;
mod race;
mod range;
mod whole;

pub(crate) use attempts::Attempts;
use gone::Gone;
use incoming::Incoming;
use outage::Outage;
use race::Try;
pub(crate) use range::land_all;
pub use range::{Delivery, Wanted};
pub use whole::{Expect, Whole};

/// How long those may still wait, of all who waited, when an outage is over.
const WOKEN_MAX: Duration = Duration::from_millis(250);

/// Fetches from one store.
#[derive(Debug)]
pub struct Fetcher<S> {
    mirrors: Arc<Mirrors<S>>,
    caches: Arc<Caches>,
    lanes: Arc<Lanes>,
    policy: RetryPolicy,
    outage: Arc<Outage>,
    hedges: Arc<Mutex<Budget>>,
    gone: Gone,
    documents: Arc<Documents>,
    underway: Arc<Underway>,
    decoders: Decoders,
    stats: Arc<Stats>,
}

impl<S: Source> Fetcher<S> {
    /// Fetches from `source` over at most `connections` requests at once.
    #[must_use]
    pub fn new(
        source: S,
        connections: u16,
        policy: RetryPolicy,
        caches: Arc<Caches>,
        stats: Arc<Stats>,
    ) -> Self {
        let mirrors = Arc::new(Mirrors::one(source));
        Self::over(mirrors, connections, policy, caches, stats)
    }

    /// Fetches from `mirrors` over at most `connections` requests at once.
    #[must_use]
    pub fn over(
        mirrors: Arc<Mirrors<S>>,
        connections: u16,
        policy: RetryPolicy,
        caches: Arc<Caches>,
        stats: Arc<Stats>,
    ) -> Self {
        stats.mirrors.name(mirrors.stats());
        Self {
            mirrors,
            caches,
            lanes: Arc::new(Lanes::new(connections)),
            policy,
            outage: Arc::new(Outage::new()),
            hedges: Arc::new(Mutex::new(Budget::new())),
            gone: Gone::default(),
            documents: Arc::default(),
            underway: Arc::default(),
            decoders: Decoders::new(),
            stats,
        }
    }

    /// One that fetches into other caches, and has everything else in common with this one: what is in
    /// flight for both is bounded together.
    #[must_use]
    pub fn into_caches(&self, caches: Arc<Caches>) -> Self {
        Self {
            mirrors: Arc::clone(&self.mirrors),
            caches,
            lanes: Arc::clone(&self.lanes),
            policy: self.policy,
            outage: Arc::clone(&self.outage),
            hedges: Arc::clone(&self.hedges),
            gone: Gone::default(),
            documents: Arc::clone(&self.documents),
            underway: Arc::clone(&self.underway),
            decoders: self.decoders.clone(),
            stats: Arc::clone(&self.stats),
        }
    }

    /// The counters.
    pub const fn stats(&self) -> &Arc<Stats> {
        &self.stats
    }

    /// The servers.
    pub(crate) fn mirrors(&self) -> &Mirrors<S> {
        &self.mirrors
    }

    /// The tries of something that begins now.
    pub(crate) fn attempts(&self) -> Attempts<'static> {
        Attempts::begin(self.policy, Instant::now(), None)
    }

    /// The tries of something that is waited for since `began`, or since `hurry` rings.
    fn attempts_since<'a>(
        &self,
        began: Instant,
        priority: Priority,
        hurry: &'a Hurry,
    ) -> Attempts<'a> {
        let awaited = (priority == Priority::Ahead).then_some(hurry);
        Attempts::begin(self.policy, began, awaited)
    }

    /// The requests under way.
    pub(crate) const fn underway(&self) -> &Arc<Underway> {
        &self.underway
    }

    /// What is known of the line.
    pub fn line(&self) -> Estimate {
        self.mirrors.line()
    }

    /// Whether there is nobody else to ask.
    #[must_use]
    pub fn has_one_server(&self) -> bool {
        self.mirrors.is_single()
    }

    /// How chunks are to be joined into requests on this line.
    pub fn limits(&self) -> PlanLimits {
        PlanLimits::of(self.line(), self.lanes.connections())
    }

    /// Waits until a request may go.
    async fn enter(&self, priority: Priority, bytes: u64, hurry: &Hurry) -> Slot<'_> {
        if priority == Priority::Ahead {
            self.lanes.fit(self.line());
        }
        self.lanes.enter(priority, bytes, hurry).await
    }

    /// Does what takes a CPU its time in the next turn at that.
    ///
    /// # Errors
    ///
    /// `decode` failed.
    pub(crate) async fn decode<T: Send + 'static>(
        &self,
        decode: impl FnOnce() -> T + Send + 'static,
    ) -> Result<T, JoinError> {
        self.decoders.run(decode).await
    }

    /// Asks a mirror, and waits for the head of its answer as long as for any part of it.
    async fn open<'a>(
        &'a self,
        attempt: &'a Try,
        request: Request,
    ) -> Result<Incoming<'a, S>, FetchError> {
        self.stats.requests.increment();
        let name = self.mirrors.name(attempt.mirror);
        let asking = self.underway.ask(name, &request, &self.stats);
        Incoming::open(&self.mirrors, attempt, request, asking).await
    }

    /// The mirror for the next try.
    fn choose(&self, attempts: &Attempts<'_>) -> MirrorId {
        let next = self.mirrors.next(&attempts.round.tried());
        next.unwrap_or_else(|| self.mirrors.order()[0])
    }

    /// Turns to the next mirror; where all were asked, waits before the next round, or returns the
    /// error for good.
    async fn turn_or_wait(
        &self,
        attempts: &mut Attempts<'_>,
        mirror: MirrorId,
        error: FetchError,
    ) -> Result<(), FetchError> {
        attempts.round.add(mirror, error.clone());
        if error.is_overdue() {
            let error = attempts.round.finish(&self.mirrors, error);
            return Err(attempts.in_vain(error));
        }
        if self.mirrors.next(&attempts.round.tried()).is_some() {
            self.stats.retries.increment();
            self.stats.faults.failovers.increment();
            tracing::debug!(%error, "asking another mirror");
            return Ok(());
        }
        let told = attempts.round.retry_after();
        let error = attempts.round.finish(&self.mirrors, error);
        attempts.note(&error);
        if self
            .wait_as_told(attempts, error.fault(), told, &error)
            .await
        {
            return Ok(());
        }
        Err(error)
    }

    /// Waits before the next try; `false`: there is to be none.
    pub(crate) async fn wait(
        &self,
        attempts: &mut Attempts<'_>,
        fault: Fault,
        error: &(dyn std::error::Error + Sync + 'static),
    ) -> bool {
        self.wait_as_told(attempts, fault, None, error).await
    }

    /// The same, not before the time that every server told, if they did.
    async fn wait_as_told(
        &self,
        attempts: &mut Attempts<'_>,
        fault: Fault,
        told: Option<Duration>,
        error: &(dyn std::error::Error + Sync + 'static),
    ) -> bool {
        match attempts.failed(fault, told) {
            Next::Stop => false,
            Next::Wait(wait) => {
                self.stats.retries.increment();
                self.outage.began(fault, error, &self.stats.faults);
                tracing::debug!(%error, ?wait, "trying again");
                let over = self.outage.over();
                // Who wants to be left alone is.
                let may_be_woken = told.is_none() && attempts.may_be_woken(fault);
                tokio::select! {
                    () = tokio::time::sleep(wait) => {}
                    // Others are answered: not all at once, though.
                    () = over, if may_be_woken => tokio::time::sleep(wait.min(WOKEN_MAX)).await,
                    // Somebody waits now.
                    () = attempts.called(), if told.is_none() => {}
                }
                !attempts.is_over()
            }
        }
    }
}
