//! Looks at mirrors that are not asked first: how fast they are, and whether they are back.
//!
//! A look is a small request behind one that has ended, for chunks that were just read, so that no guest
//! waits for it and what comes can be verified. One goes on at a time at each mirror; what they bring is bounded.

use std::sync::Arc;
use std::time::Duration;

use super::Fetcher;
use super::incoming::Incoming;
use super::race::Try;
use crate::fetch::mirrors::{MirrorId, Way};
use crate::fetch::retry::Blame;
use crate::fetch::split::Splitter;
use crate::fetch::{FetchError, Freshness, Part, Request, Source};
use crate::place::Place;

/// As much tells latency and rate apart. A chunk that is longer is still one.
const BYTES_MAX: u64 = 32 << 10;

/// What looks may bring at first: two at each of a few mirrors, of long chunks at one or two.
const FREE_BYTES: u64 = 512 << 10;

/// Beyond that, one byte in so many.
const SHARE: u64 = 100;

/// Who takes longer is not what is looked for.
const TIME_MAX: Duration = Duration::from_secs(5);

/// A look at a mirror that goes on; the next one may begin when it is dropped.
struct Looking<S: Source> {
    fetcher: Arc<Fetcher<S>>,
    mirror: MirrorId,
}

impl<S: Source> Drop for Looking<S> {
    fn drop(&mut self) {
        self.fetcher.mirrors.looked(self.mirror);
    }
}

impl<S: Source> Fetcher<S> {
    /// Looks at a mirror if one is due; `places` were just read. Does not wait.
    pub(super) fn look_around(self: &Arc<Self>, places: &[Place]) {
        if self.mirrors.is_single() {
            return;
        }
        let Some(places) = head_of(places) else {
            return;
        };
        let range = places[0].stored().start..places[places.len() - 1].stored().end;
        let looks = self.stats.faults.look_bytes.count() + range.end - range.start;
        if looks > FREE_BYTES + self.stats.fetched.bytes() / SHARE {
            return;
        }
        if let Some(mirror) = self.mirrors.look() {
            let fetcher = Arc::clone(self);
            let looking = Looking { fetcher, mirror };
            let part = Part::Range {
                range,
                object_bytes: places[0].pack().length,
            };
            tokio::spawn(async move { looking.fetcher.look(mirror, part, places).await });
        }
    }

    async fn look(&self, mirror: MirrorId, part: Part, places: Vec<Place>) {
        self.stats.faults.looks.increment();
        let looked = tokio::time::timeout(TIME_MAX, self.try_look(mirror, part, places)).await;
        let name = self.mirrors.name(mirror);
        match looked {
            Ok(Ok(())) => {
                tracing::debug!(mirror = name, "looked at another mirror");
                self.mirrors.answered(mirror);
            }
            Ok(Err(error)) => self.mirrors.failed(mirror, error.blame(), &error),
            Err(error) => {
                self.mirrors
                    .measured(mirror, |score| score.given_up(TIME_MAX));
                self.mirrors.failed(mirror, Blame::Unable, &error);
            }
        }
    }

    async fn try_look(
        &self,
        mirror: MirrorId,
        part: Part,
        places: Vec<Place>,
    ) -> Result<(), FetchError> {
        let path = places[0].pack().digest.object_path();
        let (start, want) = match &part {
            Part::Range { range, .. } => (range.start, range.end - range.start),
            Part::Whole => (0, 0),
        };
        let request = Request {
            path: path.clone(),
            part,
            freshness: Freshness::Any,
        };
        let attempt = Try::begin(mirror, Way::Usual);
        let name = self.mirrors.name(mirror);
        let asking = self.underway.ask(name, &request, &self.stats);
        let mut incoming = Incoming::open(&self.mirrors, &attempt, request, asking).await?;
        let (mut splitter, mut got, mut complete) = (Splitter::new(start, places), 0, Vec::new());
        while let Some(part) = incoming.next().await? {
            got += part.len() as u64;
            self.stats.faults.look_bytes.add(part.len() as u64);
            complete.extend(splitter.push(&part));
            if got > want {
                return Err(FetchError::Long { path, limit: want });
            }
        }
        if got < want {
            return Err(FetchError::Short { path, want, got });
        }
        let decoding = self.decoders.run(move || {
            let decode = |(place, stored): (Place, bytes::Bytes)| place.decode(&stored).map(drop);
            complete.into_iter().try_for_each(decode)
        });
        match decoding.await {
            Ok(Err(error)) => {
                self.stats.verify_failures.increment();
                let source = Arc::new(error);
                Err(FetchError::Chunk { path, source })
            }
            _ => Ok(()),
        }
    }
}

/// The first few of `places`, as they lie in their pack; one at least.
fn head_of(places: &[Place]) -> Option<Vec<Place>> {
    let (first, rest) = places.split_first()?;
    let start = first.stored().start;
    let fits = |place: &&Place| place.stored().end - start <= BYTES_MAX;
    let rest = rest.iter().take_while(fits);
    Some(std::iter::once(first).chain(rest).copied().collect())
}
