//! Two requests for the same: a second one where the first lets wait, and the faster one counts.
//!
//! There are two reasons for a second one. A guest waits far longer than usual for the head of an
//! answer: that is a hedge, and few are made ([`hedge`](crate::fetch::hedge)). Or nothing comes any
//! more: that is a stall, and what waits must be had elsewhere, while the old one may still win. Either
//! goes to another mirror that answers, else to the same over a connection that is not one of those
//! that are there. Whoever is behind in the end is dropped.

use std::future::Future;
use std::pin::Pin;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::time::Instant;

use super::outage::{Helped, Seen};
use super::{Attempts, Fetcher};
use crate::fetch::hedge::Budget;
use crate::fetch::lanes::{Hurry, Priority, Spare};
use crate::fetch::mirrors::{MirrorId, Way};
use crate::fetch::retry::Blame;
use crate::fetch::{FetchError, Source, Turn};

/// One request of a race.
#[derive(Clone, Debug)]
pub(super) struct Try {
    /// Who is asked.
    pub(super) mirror: MirrorId,
    /// Over which connection.
    pub(super) way: Way,
    /// What came of it so far.
    pub(super) progress: Arc<Progress>,
}

impl Try {
    /// A request that goes out now.
    pub(super) fn begin(mirror: MirrorId, way: Way) -> Self {
        let progress = Progress {
            began: Instant::now(),
            heard: AtomicU64::new(0),
            bytes: AtomicU64::new(0),
            has_head: AtomicBool::new(false),
            has_ended: AtomicBool::new(false),
            has_failed: AtomicBool::new(false),
        };
        Self {
            mirror,
            way,
            progress: Arc::new(progress),
        }
    }
}

/// What came of a request so far.
#[derive(Debug)]
pub(super) struct Progress {
    began: Instant,
    /// When something came last, in microseconds since the beginning.
    heard: AtomicU64,
    bytes: AtomicU64,
    has_head: AtomicBool,
    has_ended: AtomicBool,
    has_failed: AtomicBool,
}

impl Progress {
    /// The head of the answer is here.
    pub(super) fn head(&self) {
        self.has_head.store(true, Ordering::Relaxed);
        self.received(0);
    }

    /// Bytes of the body came.
    pub(super) fn received(&self, bytes: u64) {
        let now = u64::try_from(self.began.elapsed().as_micros()).unwrap_or(u64::MAX);
        self.heard.store(now, Ordering::Relaxed);
        self.bytes.fetch_add(bytes, Ordering::Relaxed);
    }

    /// The body is here; what takes longer yet is ours.
    pub(super) fn end(&self) {
        self.has_ended.store(true, Ordering::Relaxed);
    }

    /// Whether the body is here, and was not found to be wrong.
    pub(super) fn has_ended(&self) -> bool {
        self.has_ended.load(Ordering::Relaxed) && !self.has_failed.load(Ordering::Relaxed)
    }

    /// When something came last; where nothing did, when it was asked for.
    pub(super) fn heard(&self) -> Instant {
        self.began + Duration::from_micros(self.heard.load(Ordering::Relaxed))
    }

    fn bytes(&self) -> u64 {
        self.bytes.load(Ordering::Relaxed)
    }

    /// Why it is given up though nothing failed.
    fn in_vain(&self, path: &str) -> FetchError {
        FetchError::Slow {
            path: path.to_owned(),
            got: self.bytes(),
            seconds: self.began.elapsed().as_secs(),
        }
    }

    /// Whether anything came.
    pub(super) fn has_head(&self) -> bool {
        self.has_head.load(Ordering::Relaxed)
    }
}

/// What a race is about.
#[derive(Clone, Copy, Debug)]
pub(super) struct Terms<'a> {
    /// What it is about, for messages.
    pub(super) path: &'a str,
    /// The tries of which this is one, which know until when somebody waits; `None`: for ever.
    pub(super) attempts: Option<&'a Attempts<'a>>,
    /// Who is asked first.
    pub(super) first: MirrorId,
    /// Whether another mirror may be asked.
    pub(super) elsewhere: bool,
    /// How many bytes are asked for.
    pub(super) bytes: u64,
    /// Who waits.
    pub(super) priority: Priority,
    /// Who may come to wait.
    pub(super) hurry: &'a Hurry,
    /// Whether nobody waits for it, so that silence is no outage.
    pub(super) at_a_glance: bool,
}

impl Terms<'_> {
    fn is_waited_for(&self) -> bool {
        self.priority == Priority::Guest || self.hurry.is_called()
    }
}

/// Why a second request is made.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Cause {
    Late,
    Stall,
}

/// What a second request may take: room, and for a hedge a part of the budget.
struct Ticket<'a> {
    _spare: Spare<'a>,
    stake: Option<Stake<'a>>,
}

/// A part of the budget, which is given back when this is dropped.
struct Stake<'a> {
    budget: &'a Mutex<Budget>,
    bytes: u64,
    /// Bytes that came twice.
    twice: u64,
}

impl<'a> Stake<'a> {
    fn take(budget: &'a Mutex<Budget>, bytes: u64, fetched: u64) -> Option<Self> {
        let is_taken = lock(budget).take(bytes, fetched);
        is_taken.then(|| Self {
            budget,
            bytes,
            twice: 0,
        })
    }
}

impl Drop for Stake<'_> {
    fn drop(&mut self) {
        lock(self.budget).settle(self.bytes, self.twice);
    }
}

fn lock(budget: &Mutex<Budget>) -> MutexGuard<'_, Budget> {
    budget.lock().unwrap_or_else(PoisonError::into_inner)
}

/// How a race ended.
#[derive(Debug)]
pub(super) struct Raced<T> {
    /// Whose answer it is.
    pub(super) mirror: MirrorId,
    pub(super) outcome: Result<T, FetchError>,
    /// What went wrong before.
    pub(super) before: Option<(MirrorId, FetchError)>,
    /// When something came last.
    pub(super) heard: Instant,
    seen: Seen,
    helped: Helped,
}

impl<T> Raced<T> {
    /// There was no second one.
    fn alone(only: &Try, outcome: Result<T, FetchError>, seen: Seen) -> Self {
        Self {
            mirror: only.mirror,
            outcome,
            before: None,
            heard: only.progress.heard(),
            seen,
            helped: Helped::Retry,
        }
    }
}

/// Nothing came for so long.
#[derive(Clone, Copy, Debug, thiserror::Error)]
#[error("nothing came for {0:?}")]
struct Silence(Duration);

impl<S: Source> Fetcher<S> {
    /// Carries out what `start` makes of a try, once, and where that lets wait, twice.
    ///
    /// # Cancel safety
    ///
    /// Dropping the future ends both.
    pub(super) async fn race<T, Fut>(
        &self,
        terms: Terms<'_>,
        start: impl Fn(Try) -> Fut,
    ) -> Raced<T>
    where
        Fut: Future<Output = Result<T, FetchError>>,
    {
        let seen = self.outage.seen();
        let turn = self.mirrors.turn(terms.first);
        let first = Try::begin(terms.first, Way::Usual);
        if terms.is_waited_for() {
            lock(&self.hedges).asked();
        }
        let mut one = Box::pin(start(first.clone()));
        let waiting = self.wait_for_cause(&first, &terms);
        let (tries, began) = ([&first], Instant::now());
        let caused = tokio::select! {
            biased;
            outcome = &mut one => Err(outcome),
            () = self.cut(&terms, &tries, began) => Err(Err(self.overdue(terms.path))),
            cause = waiting => Ok(cause),
        };
        let (cause, mut ticket) = match caused {
            Ok(caused) => caused,
            Err(outcome) => return Raced::alone(&first, outcome, seen),
        };
        let second = self.begin_second(cause, &first, turn, &terms);
        let seen = self.outage.seen();
        let two = Box::pin(start(second.clone()));
        let tries = [&first, &second];
        let (second_won, outcome, before) = tokio::select! {
            biased;
            won = self.faster([(one, &first), (two, &second)], terms.path) => won,
            () = self.cut(&terms, &tries, began) => {
                let overdue = || self.overdue(terms.path);
                (false, Err(overdue()), Some(overdue()))
            }
        };
        let [winner, loser] = if second_won {
            [second.mirror, first.mirror]
        } else {
            [first.mirror, second.mirror]
        };
        let won = outcome.is_ok().then_some(second_won);
        let twice = self.settle(cause, &terms, [&first, &second], won);
        if let Some(stake) = &mut ticket.stake {
            stake.twice = twice;
        }
        drop(ticket);
        let helped = match (second_won, winner == loser) {
            (false, _) => Helped::Waiting,
            (true, true) => Helped::Connection,
            (true, false) => Helped::Mirror,
        };
        Raced {
            mirror: winner,
            outcome,
            before: before.map(|error| (loser, error)),
            heard: first.progress.heard().max(second.progress.heard()),
            seen,
            helped,
        }
    }

    /// Notes how a race ended. `is_answer`: an error that is as good as an answer.
    pub(super) fn note<T>(&self, raced: &Raced<T>, is_answer: impl Fn(&FetchError) -> bool) {
        if let Some((mirror, error)) = &raced.before {
            self.mirrors.failed(*mirror, error.blame(), error);
        }
        match &raced.outcome {
            Err(error) if !is_answer(error) => {
                self.mirrors.failed(raced.mirror, error.blame(), error);
            }
            _ => {
                let name = self.mirrors.name(raced.mirror);
                let faults = &self.stats.faults;
                self.outage.ended(raced.seen, name, raced.helped, faults);
                self.mirrors.answered(raced.mirror);
            }
        }
    }

    /// Waits until there is a reason for a second request, and room for it.
    async fn wait_for_cause(&self, first: &Try, terms: &Terms<'_>) -> (Cause, Ticket<'_>) {
        let mut may_hedge = true;
        loop {
            match self.alarm(first, terms, may_hedge).await {
                Cause::Stall => {
                    let _spare = self.lanes.spare(terms.bytes).await;
                    let stake = None;
                    return (Cause::Stall, Ticket { _spare, stake });
                }
                Cause::Late => {
                    let fetched = self.stats.fetched.bytes();
                    let take = || Stake::take(&self.hedges, terms.bytes, fetched);
                    if let Some(_spare) = self.lanes.spare_now(terms.bytes)
                        && let Some(stake) = take()
                    {
                        let stake = Some(stake);
                        return (Cause::Late, Ticket { _spare, stake });
                    }
                    may_hedge = false;
                }
            }
        }
    }

    /// Waits until a request lets wait for too long.
    async fn alarm(&self, first: &Try, terms: &Terms<'_>, may_hedge: bool) -> Cause {
        let progress = &first.progress;
        loop {
            if progress.has_ended() {
                return std::future::pending().await;
            }
            let now = Instant::now();
            let stall = self.stalls_at(first);
            if now >= stall {
                return Cause::Stall;
            }
            let late = (may_hedge && !progress.has_head())
                .then(|| self.mirrors.late(first.mirror))
                .flatten()
                .map(|late| progress.began + late);
            let waited_for = terms.is_waited_for();
            if waited_for && late.is_some_and(|late| now >= late) {
                return Cause::Late;
            }
            let wake = late.filter(|late| *late > now).unwrap_or(stall).min(stall);
            tokio::select! {
                () = tokio::time::sleep_until(wake) => {}
                () = terms.hurry.called(), if !waited_for && late.is_some() => {}
            }
        }
    }

    /// From when on it is a stall that nothing more came of a request.
    fn stalls_at(&self, attempt: &Try) -> Instant {
        let heard = attempt.progress.heard();
        self.mirrors.stalls_at(attempt.mirror, heard)
    }

    /// Waits until nothing has come of a request for too long.
    async fn stalls(&self, attempt: &Try) {
        while !attempt.progress.has_ended() {
            let stall = self.stalls_at(attempt);
            if stall <= Instant::now() {
                return;
            }
            tokio::time::sleep_until(stall).await;
        }
        std::future::pending::<()>().await;
    }

    /// Waits until nothing more is to be hoped for of `last`, the other one of two having failed: where there is a third
    /// mirror to ask, a stall is enough.
    async fn dries_up(&self, [first, second]: [&Try; 2], last: &Try) {
        self.stalls(last).await;
        let tried = [first.mirror, second.mirror];
        while self.mirrors.next(&tried).is_none() {
            let heard = last.progress.heard();
            let dry = self.mirrors.dries_up_at(last.mirror, heard);
            if dry <= Instant::now() {
                return;
            }
            tokio::time::sleep_until(dry).await;
        }
    }

    /// Finds where a second request goes; the first was made during `turn`.
    fn begin_second(&self, cause: Cause, first: &Try, turn: Turn, terms: &Terms<'_>) -> Try {
        let faults = &self.stats.faults;
        let other = self.mirrors.other(first.mirror).filter(|_| terms.elsewhere);
        match cause {
            Cause::Late => faults.hedges.increment(),
            Cause::Stall => {
                faults.rescues.increment();
                let silent = first.progress.heard().elapsed();
                let name = self.mirrors.name(first.mirror);
                if !terms.at_a_glance {
                    self.outage.silent(name, silent, faults);
                }
                if other.is_some() {
                    // Others shall not wait for it too.
                    let silence = Silence(silent);
                    self.mirrors.failed(first.mirror, Blame::Unable, &silence);
                }
            }
        }
        if other.is_some() {
            faults.failovers.increment();
        }
        tracing::debug!(?cause, ?other, "a second request");
        match other {
            Some(other) => Try::begin(other, Way::Usual),
            None => Try::begin(first.mirror, Way::Afresh(turn)),
        }
    }

    /// Counts what a race cost, and learns from it. `second_won`: `None`: nobody did. Returns how many
    /// bytes came twice.
    fn settle(
        &self,
        cause: Cause,
        terms: &Terms<'_>,
        [first, second]: [&Try; 2],
        second_won: Option<bool>,
    ) -> u64 {
        let faults = &self.stats.faults;
        let (one, two) = (first.progress.bytes(), second.progress.bytes());
        let twice = (one + two).saturating_sub(terms.bytes).min(two);
        faults.twice_bytes.add(twice);
        if cause == Cause::Late {
            faults.hedge_bytes.add(two);
        }
        let Some(second_won) = second_won else {
            return twice;
        };
        let waited = first.progress.began.elapsed();
        let in_vain = second_won && !first.progress.has_head();
        self.mirrors.measured(first.mirror, |score| {
            if in_vain {
                score.given_up(waited);
            }
            if cause == Cause::Stall {
                score.stalled(!second_won);
            }
        });
        if cause == Cause::Stall
            && second_won
            && let Way::Afresh(turn) = second.way
        {
            self.mirrors.leave(second.mirror, turn);
        }
        twice
    }

    /// The first of two that succeeds, or the last failure: whether it is that of the second, what it is,
    /// and how the other one failed before. When one has failed, the other one is not waited for once it lets wait
    /// too long: there may be a third to ask, or it is time to begin again.
    async fn faster<T, Fut>(
        &self,
        [(mut one, first), (mut two, second)]: [(Pin<Box<Fut>>, &Try); 2],
        path: &str,
    ) -> (bool, Result<T, FetchError>, Option<FetchError>)
    where
        Fut: Future<Output = Result<T, FetchError>>,
    {
        let mut before = None;
        let (mut is_one_on, mut is_two_on) = (true, true);
        loop {
            let last = if is_one_on { first } else { second };
            let (is_second, outcome) = tokio::select! {
                biased;
                outcome = &mut one, if is_one_on => {
                    is_one_on = false;
                    (false, outcome)
                }
                outcome = &mut two, if is_two_on => {
                    is_two_on = false;
                    (true, outcome)
                }
                () = self.dries_up([first, second], last), if !(is_one_on && is_two_on) => {
                    // How the other one failed says more.
                    let in_vain = || last.progress.in_vain(path);
                    let failed = before.unwrap_or_else(in_vain);
                    return (is_one_on, Err(failed), Some(in_vain()));
                }
            };
            match outcome {
                Err(error) if is_one_on || is_two_on => {
                    let failed = if is_second { second } else { first };
                    failed.progress.has_failed.store(true, Ordering::Relaxed);
                    before = Some(error);
                }
                outcome => return (is_second, outcome, before),
            }
        }
    }
}
