//! Fetches a part of an object that is of use only as a whole: the head of a boot pack, a frame.
//!
//! Whoever asks can do without, so what is wrong is asked of each mirror, past every HTTP cache, and
//! then given up.

use std::ops::Range;
use std::sync::Arc;

use bytes::{Bytes, BytesMut};
use image_format::ObjectRef;
use image_format::manifest::BootPack;
use tokio::time::Instant;

use super::Fetcher;
use super::race::{Terms, Try};
use crate::cache::documents::Name;
use crate::fetch::lanes::{Hurry, Priority};
use crate::fetch::{FetchError, Freshness, Part, Request, Source};

/// Bytes of an object, and what they unpack to.
#[derive(Clone, Debug)]
pub struct ObjectPart {
    /// The object.
    pub object: ObjectRef,
    /// Which of its bytes.
    pub range: Range<u64>,
    /// How many bytes come of them.
    pub plain_bytes: u64,
}

/// What to do while nobody answers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Patience {
    /// Wait, as the policy says.
    Policy,
    /// Give up soon: there is another way to the same bytes, and it is the one that waits.
    Short,
}

type BoxedError = Arc<dyn std::error::Error + Send + Sync>;

impl<S: Source> Fetcher<S> {
    /// Fetches `part` and returns what `decode`, which may block, makes of its bytes.
    ///
    /// # Errors
    ///
    /// When the policy or the patience is at an end, or what comes is of no use twice.
    ///
    /// # Cancel safety
    ///
    /// Dropping the future ends the fetch.
    pub async fn part<T, E, D>(
        &self,
        part: &ObjectPart,
        priority: Priority,
        hurry: &Hurry,
        patience: Patience,
        decode: D,
    ) -> Result<T, FetchError>
    where
        T: Send + 'static,
        E: std::error::Error + Send + Sync + 'static,
        D: Fn(&[u8]) -> Result<T, E> + Clone + Send + 'static,
    {
        let mut attempts = self.attempts_since(Instant::now(), priority, hurry);
        let mut freshness = Freshness::Any;
        let path = part.object.digest.object_path();
        let bytes = part.range.end - part.range.start + part.plain_bytes;
        loop {
            let first = self.choose(&attempts);
            let slot = self
                .enter_in_time(&mut attempts, &path, priority, bytes, hurry)
                .await?;
            let terms = Terms {
                path: &path,
                attempts: Some(&attempts),
                first,
                elsewhere: true,
                bytes: part.range.end - part.range.start,
                priority,
                hurry,
                at_a_glance: false,
            };
            let start = |attempt| self.try_part(attempt, part, freshness, decode.clone());
            let raced = self.race(terms, start).await;
            drop(slot);
            self.note(&raced, |_| false);
            if let Some((mirror, error)) = raced.before {
                attempts.round.add(mirror, error);
            }
            let mirror = raced.mirror;
            let error = match raced.outcome {
                Ok(decoded) => return Ok(decoded),
                Err(error) => error,
            };
            if error.is_overdue() {
                return Err(error);
            }
            if error.is_outage() && patience == Patience::Policy {
                self.turn_or_wait(&mut attempts, mirror, error).await?;
                continue;
            }
            attempts.round.add(mirror, error.clone());
            let all_asked = self.mirrors.next(&attempts.round.tried()).is_none();
            if all_asked && freshness == Freshness::Revalidate {
                return Err(match attempts.is_over() {
                    true => self.overdue(&path),
                    false => error,
                });
            }
            self.stats.retries.increment();
            freshness = Freshness::Revalidate;
        }
    }

    /// Fetches the head of a boot pack, verified, once, on the chance that it will be wanted. `None` where that
    /// fails, and where it was kept: then nothing has to be fetched.
    ///
    /// # Cancel safety
    ///
    /// Dropping the future ends the fetch.
    pub(crate) async fn glance_head(&self, pack: &BootPack) -> Option<Bytes> {
        let head = pack.head;
        let name = Name::Head(pack.object.digest);
        if self.recall_document(name, head.length).await.is_some() {
            return None;
        }
        let part = ObjectPart {
            object: pack.object,
            range: 0..head.length,
            plain_bytes: 0,
        };
        let (priority, hurry) = (Priority::Guest, Hurry::new());
        let slot = self.enter(priority, head.length, &hurry).await;
        let path = pack.object.digest.object_path();
        let terms = Terms {
            path: &path,
            attempts: None,
            first: self.choose(&self.attempts()),
            elsewhere: true,
            bytes: head.length,
            priority,
            hurry: &hurry,
            at_a_glance: true,
        };
        let decode = move |bytes: &[u8]| {
            let verified = head.verify(bytes);
            verified.map(|()| Bytes::copy_from_slice(bytes))
        };
        let start = |attempt| self.try_part(attempt, &part, Freshness::Any, decode);
        let raced = self.race(terms, start).await;
        drop(slot);
        self.glanced(raced)
    }

    async fn try_part<T, E, D>(
        &self,
        attempt: Try,
        part: &ObjectPart,
        freshness: Freshness,
        decode: D,
    ) -> Result<T, FetchError>
    where
        T: Send + 'static,
        E: std::error::Error + Send + Sync + 'static,
        D: FnOnce(&[u8]) -> Result<T, E> + Send + 'static,
    {
        let path = part.object.digest.object_path();
        let bytes = self.receive_part(&attempt, part, &path, freshness).await?;
        let decoded = self.decoders.run(move || decode(&bytes)).await;
        let useless = |source| FetchError::Useless {
            path: path.clone(),
            source,
        };
        decoded
            .map_err(|error| useless(Arc::new(error) as BoxedError))?
            .map_err(|error| {
                self.stats.verify_failures.increment();
                useless(Arc::new(error) as BoxedError)
            })
    }

    async fn receive_part(
        &self,
        attempt: &Try,
        part: &ObjectPart,
        path: &str,
        freshness: Freshness,
    ) -> Result<Bytes, FetchError> {
        let request = Request {
            path: path.to_owned(),
            part: Part::Range {
                range: part.range.clone(),
                object_bytes: part.object.length,
            },
            freshness,
        };
        let want = part.range.end - part.range.start;
        let mut incoming = self.open(attempt, request).await?;
        // The head, which is verified, bounds it.
        let mut bytes = BytesMut::with_capacity(usize::try_from(want).unwrap_or(0));
        while let Some(more) = incoming.next().await? {
            self.stats.fetched.boot_pack_bytes.add(more.len() as u64);
            if (bytes.len() + more.len()) as u64 > want {
                return Err(FetchError::Long {
                    path: path.to_owned(),
                    limit: want,
                });
            }
            bytes.extend_from_slice(&more);
        }
        if (bytes.len() as u64) < want {
            return Err(FetchError::Short {
                path: path.to_owned(),
                want,
                got: bytes.len() as u64,
            });
        }
        Ok(bytes.freeze())
    }
}
