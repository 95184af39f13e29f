//! Fetches files as a whole: metadata, tables, index pages.

use std::time::Duration;

use bytes::{Bytes, BytesMut};
use image_format::digest::{Digest, DigestMismatch, ObjectRef};

use super::race::{Raced, Terms, Try};
use super::{Attempts, Fetcher};
use crate::fetch::lanes::{Hurry, Priority};
use crate::fetch::mirrors::MirrorId;
use crate::fetch::{FetchError, Freshness, Part, Request, Source};
use crate::stats::Counter;

/// How long what a reader can do without is waited for.
const AT_BEST_MAX: Duration = Duration::from_secs(10);

/// A file to fetch as a whole.
#[derive(Clone, Debug)]
pub struct Whole {
    /// Path in the store.
    pub path: String,
    /// What is known of it beforehand.
    pub expect: Expect,
}

/// What is known of a file before it is fetched.
#[derive(Clone, Copy, Debug)]
pub enum Expect {
    /// Its digest and its length; no copy of it is ever out of date.
    Object(ObjectRef),
    /// Its digest and a bound.
    Digest(Digest, u64),
    /// A bound only; whoever reads it checks it. No copy of it is ever out of date.
    Fixed(u64),
    /// The same, but a cached copy may be out of date.
    Bound(u64),
    /// The same, and that there is no such file is an answer like any other.
    Optional(u64),
}

impl Whole {
    /// The object that `object` names.
    #[must_use]
    pub fn object(object: ObjectRef) -> Self {
        Self {
            path: object.digest.object_path(),
            expect: Expect::Object(object),
        }
    }

    /// The object that `digest` names, of at most `bytes_max` bytes.
    #[must_use]
    pub fn of(digest: Digest, bytes_max: usize) -> Self {
        Self {
            path: digest.object_path(),
            expect: Expect::Digest(digest, bytes_max as u64),
        }
    }

    pub(super) const fn bytes_max(&self) -> u64 {
        match self.expect {
            Expect::Object(object) => object.length,
            Expect::Digest(_, bytes_max)
            | Expect::Fixed(bytes_max)
            | Expect::Bound(bytes_max)
            | Expect::Optional(bytes_max) => bytes_max,
        }
    }

    pub(crate) const fn freshness(&self) -> Freshness {
        match self.expect {
            Expect::Object(_) | Expect::Digest(..) | Expect::Fixed(_) => Freshness::Any,
            Expect::Bound(_) | Expect::Optional(_) => Freshness::Revalidate,
        }
    }

    /// Whether the answer is good, though it is an error to the source.
    pub(crate) fn is_answered_by(&self, error: &FetchError) -> bool {
        matches!(self.expect, Expect::Optional(_)) && error.is_missing_or_forbidden()
    }

    /// What a race for it is about.
    fn terms<'a>(
        &'a self,
        first: MirrorId,
        elsewhere: bool,
        attempts: Option<&'a Attempts<'a>>,
        hurry: &'a Hurry,
    ) -> Terms<'a> {
        Terms {
            path: &self.path,
            attempts,
            first,
            elsewhere,
            bytes: self.bytes_max(),
            priority: Priority::Guest,
            hurry,
            at_a_glance: false,
        }
    }

    /// Checks what came.
    fn verify(&self, bytes: &[u8]) -> Result<(), FetchError> {
        let path = || self.path.clone();
        let got = bytes.len() as u64;
        let expected = match self.expect {
            Expect::Object(object) if got < object.length => {
                return Err(FetchError::Short {
                    path: path(),
                    want: object.length,
                    got,
                });
            }
            Expect::Object(object) => object.digest,
            Expect::Digest(digest, _) => digest,
            Expect::Fixed(_) | Expect::Bound(_) | Expect::Optional(_) => return Ok(()),
        };
        let actual = Digest::of(bytes);
        if actual != expected {
            let source = DigestMismatch { expected, actual };
            return Err(FetchError::Digest {
                path: path(),
                source,
            });
        }
        Ok(())
    }
}

impl<S: Source> Fetcher<S> {
    /// Fetches a whole file, verified if its digest is known; `counter` counts its bytes.
    ///
    /// # Errors
    ///
    /// When the policy gives up.
    ///
    /// # Cancel safety
    ///
    /// Dropping the future ends the fetch.
    pub async fn whole(&self, whole: &Whole, counter: &Counter) -> Result<Bytes, FetchError> {
        if let Some(kept) = self.recall(whole).await {
            return Ok(kept);
        }
        let mut attempts = self.attempts();
        let mut freshness = whole.freshness();
        loop {
            let first = self.choose(&attempts);
            let (priority, hurry) = (Priority::Guest, Hurry::new());
            let bytes = whole.bytes_max();
            let slot = self
                .enter_in_time(&mut attempts, &whole.path, priority, bytes, &hurry)
                .await?;
            let terms = whole.terms(first, true, Some(&attempts), &hurry);
            let raced = self.race_whole(terms, whole, freshness, counter).await;
            drop(slot);
            let error = match raced.outcome {
                Ok(bytes) => return Ok(bytes),
                Err(error) if whole.is_answered_by(&error) => return Err(error),
                Err(error) => error,
            };
            if let Some((mirror, error)) = raced.before {
                attempts.round.add(mirror, error);
            }
            freshness = Freshness::Revalidate;
            let turned = self.turn_or_wait(&mut attempts, raced.mirror, error).await;
            turned.inspect_err(|error| self.tell_if_gone(error))?;
        }
    }

    /// Fetches a whole file, once, on the chance that it is there. That it is not is no failure.
    ///
    /// # Cancel safety
    ///
    /// Dropping the future ends the fetch.
    pub async fn glance(&self, whole: &Whole, counter: &Counter) -> Option<Bytes> {
        let mirror = self.choose(&self.attempts());
        self.glance_from(mirror, true, whole, counter).await
    }

    /// The same, of one mirror.
    pub(crate) async fn glance_at(
        &self,
        mirror: MirrorId,
        whole: &Whole,
        counter: &Counter,
    ) -> Option<Bytes> {
        self.glance_from(mirror, false, whole, counter).await
    }

    async fn glance_from(
        &self,
        mirror: MirrorId,
        elsewhere: bool,
        whole: &Whole,
        counter: &Counter,
    ) -> Option<Bytes> {
        if let Some(kept) = self.recall(whole).await {
            return Some(kept);
        }
        let hurry = Hurry::new();
        let slot = self.enter(Priority::Guest, whole.bytes_max(), &hurry).await;
        let terms = Terms {
            at_a_glance: true,
            ..whole.terms(mirror, elsewhere, None, &hurry)
        };
        let start = |attempt| self.try_whole(attempt, whole, whole.freshness(), counter);
        let raced = self.race(terms, start).await;
        drop(slot);
        self.glanced(raced)
    }

    /// What came of a glance. Who fails to show what may not be there at all is not to blame.
    pub(super) fn glanced<T>(&self, raced: Raced<T>) -> Option<T> {
        if raced.outcome.is_ok() {
            self.note(&raced, |_| false);
        }
        raced
            .outcome
            .inspect_err(|error| tracing::debug!(%error, "not there at a glance"))
            .ok()
    }

    /// Fetches a whole file that its reader can do without: in one attempt, of two mirrors if one lets wait, and not for
    /// longer than [`AT_BEST_MAX`] or the deadline.
    ///
    /// # Cancel safety
    ///
    /// Dropping the future ends the fetch.
    pub(crate) async fn whole_at_best(&self, whole: &Whole, counter: &Counter) -> Option<Bytes> {
        if let Some(kept) = self.recall(whole).await {
            return Some(kept);
        }
        let fetching = async {
            let mut attempts = self.attempts();
            let first = self.choose(&attempts);
            let (priority, hurry) = (Priority::Guest, Hurry::new());
            let bytes = whole.bytes_max();
            let slot = self
                .enter_in_time(&mut attempts, &whole.path, priority, bytes, &hurry)
                .await?;
            let terms = whole.terms(first, true, Some(&attempts), &hurry);
            let raced = self.race_whole(terms, whole, whole.freshness(), counter);
            let outcome = raced.await.outcome;
            drop(slot);
            outcome
        };
        let fetched = tokio::time::timeout(AT_BEST_MAX, fetching).await.ok()?;
        fetched
            .inspect_err(|error| tracing::debug!(%error, "not had, and not needed"))
            .ok()
    }

    /// Asks one mirror for a whole file, once.
    pub(crate) async fn whole_of(
        &self,
        mirror: MirrorId,
        whole: &Whole,
        freshness: Freshness,
        counter: &Counter,
    ) -> Result<Bytes, FetchError> {
        let (priority, hurry) = (Priority::Guest, Hurry::new());
        let _slot = self.enter(priority, whole.bytes_max(), &hurry).await;
        let terms = whole.terms(mirror, false, None, &hurry);
        let raced = self.race_whole(terms, whole, freshness, counter);
        raced.await.outcome
    }

    /// Asks for a whole file once, or twice where that lets wait.
    async fn race_whole(
        &self,
        terms: Terms<'_>,
        whole: &Whole,
        freshness: Freshness,
        counter: &Counter,
    ) -> Raced<Bytes> {
        let start = |attempt| self.try_whole(attempt, whole, freshness, counter);
        let raced = self.race(terms, start).await;
        self.note(&raced, |error| whole.is_answered_by(error));
        raced
    }

    async fn try_whole(
        &self,
        attempt: Try,
        whole: &Whole,
        freshness: Freshness,
        counter: &Counter,
    ) -> Result<Bytes, FetchError> {
        let request = Request {
            path: whole.path.clone(),
            part: Part::Whole,
            freshness,
        };
        let mut incoming = self.open(&attempt, request).await?;
        let mut bytes = BytesMut::new();
        while let Some(part) = incoming.next().await? {
            counter.add(part.len() as u64);
            if (bytes.len() + part.len()) as u64 > whole.bytes_max() {
                return Err(FetchError::Long {
                    path: whole.path.clone(),
                    limit: whole.bytes_max(),
                });
            }
            bytes.extend_from_slice(&part);
        }
        whole
            .verify(&bytes)
            .inspect_err(|error| self.count_damage(error))?;
        let bytes = bytes.freeze();
        self.keep(whole, &bytes);
        Ok(bytes)
    }

    fn count_damage(&self, error: &FetchError) {
        if matches!(error, FetchError::Digest { .. }) {
            self.stats.verify_failures.increment();
        }
    }
}
