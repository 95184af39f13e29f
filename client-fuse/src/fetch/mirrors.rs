//! Several servers of one store: which is asked first, and which last.
//!
//! Mirrors are asked in the order in which they were given. One that fails goes behind those that
//! answer, until it answers again; one that sent wrong bytes goes last for good. None is ever given
//! up: where all others fail, a liar that tells the truth this once still serves, because whoever
//! reads verifies.
//!
//! [`Ranking`] decides and is pure; [`Mirrors`] keeps it beside the sources.

use std::sync::{Mutex, MutexGuard, PoisonError};

use crate::fetch::line::Meter;
use crate::fetch::retry::Blame;
use crate::fetch::{Body, FetchError, Request, Source, SourceError};

/// Names a mirror: its number in the order in which they were given.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct MirrorId(usize);

/// How a mirror did so far; the better goes first.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Standing {
    /// It answers, or was not asked yet.
    Good,
    /// It did not answer when it was last asked, or had not what others may have.
    Failing,
    /// It sent wrong bytes.
    Quarantined,
}

/// Decides which mirror is asked next.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Ranking(Vec<Standing>);

impl Ranking {
    /// A ranking of `n` mirrors, at least one, of which nothing is known.
    #[must_use]
    pub fn of(n: usize) -> Self {
        Self(vec![Standing::Good; n.max(1)])
    }

    /// All mirrors, the one to ask first at the front.
    #[must_use]
    pub fn order(&self) -> Vec<MirrorId> {
        let mut order: Vec<_> = (0..self.0.len()).map(MirrorId).collect();
        order.sort_by_key(|mirror| self.standing(*mirror));
        order
    }

    /// The best mirror that was not `tried`.
    #[must_use]
    pub fn next(&self, tried: &[MirrorId]) -> Option<MirrorId> {
        let mut order = self.order().into_iter();
        order.find(|mirror| !tried.contains(mirror))
    }

    /// Where a mirror stands.
    #[must_use]
    pub fn standing(&self, mirror: MirrorId) -> Standing {
        self.0.get(mirror.0).copied().unwrap_or(Standing::Good)
    }

    /// Notes that a mirror failed. Returns its new standing, if that is another one.
    pub fn failed(&mut self, mirror: MirrorId, blame: Blame) -> Option<Standing> {
        let standing = self.0.get_mut(mirror.0)?;
        let now = (*standing).max(match blame {
            Blame::Unable => Standing::Failing,
            Blame::Lying => Standing::Quarantined,
        });
        (std::mem::replace(standing, now) != now).then_some(now)
    }

    /// Notes that a mirror answered right. What sent wrong bytes once is not believed to mend.
    pub fn answered(&mut self, mirror: MirrorId) {
        if let Some(standing) = self.0.get_mut(mirror.0)
            && *standing == Standing::Failing
        {
            *standing = Standing::Good;
        }
    }
}

/// The servers of one store.
#[derive(Debug)]
pub struct Mirrors<S> {
    /// Each with what it is called in messages.
    sources: Vec<(String, S)>,
    ranking: Mutex<Ranking>,
    meter: Meter,
}

impl<S> Mirrors<S> {
    /// A store with one server.
    pub fn one(source: S) -> Self {
        Self::of((String::from("the server"), source), Vec::new())
    }

    /// A store with several servers, each with what it is called in messages.
    pub fn of(first: (String, S), others: Vec<(String, S)>) -> Self {
        let sources: Vec<_> = std::iter::once(first).chain(others).collect();
        let ranking = Mutex::new(Ranking::of(sources.len()));
        Self {
            sources,
            ranking,
            meter: Meter::new(),
        }
    }

    /// What measures the line to them.
    pub(crate) const fn meter(&self) -> &Meter {
        &self.meter
    }

    /// Whether there is no other server to turn to.
    pub const fn is_single(&self) -> bool {
        self.sources.len() == 1
    }

    /// All mirrors, the one to ask first at the front.
    pub fn order(&self) -> Vec<MirrorId> {
        self.ranking().order()
    }

    /// The best mirror that was not `tried`.
    pub(crate) fn next(&self, tried: &[MirrorId]) -> Option<MirrorId> {
        self.ranking().next(tried)
    }

    /// What a mirror is called in messages.
    pub fn name(&self, mirror: MirrorId) -> &str {
        self.sources
            .get(mirror.0)
            .map_or("the server", |(name, _)| name)
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
        if self.is_single() {
            return;
        }
        let changed = self.ranking().failed(mirror, blame);
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
        self.ranking().answered(mirror);
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
        request: Request,
    ) -> Result<Body, SourceError> {
        let (_, source) = self.sources.get(mirror.0).unwrap_or(&self.sources[0]);
        source.open(request).await
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

    /// Ends the round: the error of all of it.
    pub(crate) fn finish<S>(&mut self, mirrors: &Mirrors<S>, last: FetchError) -> FetchError {
        let failures = std::mem::take(&mut self.failures);
        if failures.len() < 2 {
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

#[cfg(test)]
mod tests {
    use proptest::collection::vec;
    use proptest::prelude::*;

    use super::*;

    fn order(ranking: &Ranking) -> Vec<usize> {
        ranking.order().into_iter().map(|mirror| mirror.0).collect()
    }

    #[test]
    fn the_order_given_counts_until_something_fails() {
        let mut ranking = Ranking::of(3);
        assert_eq!(order(&ranking), [0, 1, 2]);
        assert_eq!(
            ranking.failed(MirrorId(0), Blame::Unable),
            Some(Standing::Failing)
        );
        assert_eq!(order(&ranking), [1, 2, 0]);
        ranking.answered(MirrorId(0));
        assert_eq!(order(&ranking), [0, 1, 2]);
    }

    #[test]
    fn a_liar_goes_last_for_good_and_is_told_once() {
        let mut ranking = Ranking::of(3);
        let told = ranking.failed(MirrorId(0), Blame::Lying);
        assert_eq!(told, Some(Standing::Quarantined));
        assert_eq!(ranking.failed(MirrorId(0), Blame::Lying), None);
        assert_eq!(ranking.failed(MirrorId(0), Blame::Unable), None);
        ranking.answered(MirrorId(0));
        ranking.failed(MirrorId(1), Blame::Unable);
        assert_eq!(order(&ranking), [2, 1, 0]);
    }

    proptest! {
        /// Whatever happened, every mirror is asked once before one is asked again.
        #[test]
        fn a_round_asks_every_mirror_once(n in 1..6_usize, events in vec((0..6_usize, 0..3_u8), 0..30)) {
            let mut ranking = Ranking::of(n);
            for (mirror, event) in events {
                match event {
                    0 => ranking.answered(MirrorId(mirror)),
                    1 => drop(ranking.failed(MirrorId(mirror), Blame::Unable)),
                    _ => drop(ranking.failed(MirrorId(mirror), Blame::Lying)),
                }
            }
            let mut tried = Vec::new();
            while let Some(mirror) = ranking.next(&tried) {
                tried.push(mirror);
            }
            prop_assert_eq!(tried.len(), n);
            prop_assert_eq!(&tried, &ranking.order());
        }
    }
}
