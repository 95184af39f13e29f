//! A source without a network: serves a store from memory, with faults by request number.

use std::sync::{Arc, Mutex};
use std::time::Duration;

use bytes::Bytes;
use client_fuse::config::Expiry;
use client_fuse::fetch::{Body, Part, Request, Source, SourceError};
use client_fuse::trust::{Anchor, Trust};
use futures_util::stream;

use crate::store::Store;

/// The time in tests.
pub(crate) const NOW: &str = "2027-01-01T00:00:00Z";

/// What goes wrong with one request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Fault {
    None,
    /// Nobody answers.
    Refuse,
    /// Overloaded.
    Unavailable,
    /// No such file.
    Missing,
    /// The body breaks off in the middle, with an error.
    Break,
    /// The body ends in the middle, without an error.
    Truncate,
    /// One bit of the body is wrong.
    Flip,
    /// The answer is for another range.
    WrongRange,
    /// The server ignores ranges.
    NoRanges,
    /// The body has more bytes than were asked for, without end.
    Endless,
    /// Whoever asks panics.
    Panic,
}

/// Decides what happens to a request, by its number from 0.
pub(crate) type Faults = Arc<dyn Fn(usize, &Request) -> Fault + Send + Sync>;

/// Serves `store`; clones share the record of requests.
#[derive(Clone)]
pub(crate) struct MemorySource {
    store: Arc<Store>,
    faults: Faults,
    requests: Arc<Mutex<Vec<Request>>>,
    /// How long the head of an answer takes.
    trip: Duration,
}

impl MemorySource {
    pub(crate) fn new(store: &Arc<Store>) -> Self {
        Self::faulty(store, Arc::new(|_, _| Fault::None))
    }

    pub(crate) fn faulty(store: &Arc<Store>, faults: Faults) -> Self {
        Self {
            store: Arc::clone(store),
            faults,
            requests: Arc::default(),
            trip: Duration::ZERO,
        }
    }

    /// A source that is a round trip of `trip` away; for clocks that tests move.
    pub(crate) fn far(store: &Arc<Store>, trip: Duration) -> Self {
        let near = Self::new(store);
        Self { trip, ..near }
    }

    /// The root of the store, trusted; nothing is remembered.
    pub(crate) fn trust(&self) -> Trust {
        Trust {
            anchor: Anchor::Given(self.store.first_root()),
            state: None,
            minimum: None,
            expiry: Expiry::Enforce,
            now: NOW.parse().unwrap(),
        }
    }

    pub(crate) fn requests(&self) -> Vec<Request> {
        self.requests.lock().unwrap().clone()
    }

    fn bytes(&self, request: &Request) -> Option<Bytes> {
        let whole = self.store.files.get(&request.path)?;
        Some(match &request.part {
            Part::Whole => whole.clone(),
            Part::Range {
                range,
                object_bytes,
            } => {
                assert_eq!(
                    *object_bytes,
                    whole.len() as u64,
                    "the client knows the length of the object"
                );
                whole.slice(
                    usize::try_from(range.start).unwrap()..usize::try_from(range.end).unwrap(),
                )
            }
        })
    }
}

impl Source for MemorySource {
    async fn open(&self, request: Request) -> Result<Body, SourceError> {
        let number = {
            let mut requests = self.requests.lock().unwrap();
            requests.push(request.clone());
            requests.len() - 1
        };
        if self.trip.is_zero() {
            tokio::task::yield_now().await;
        } else {
            tokio::time::sleep(self.trip).await;
        }
        let url = request.path.clone();
        let fault = (self.faults)(number, &request);
        let lost = || "injected".into();
        let bytes = match fault {
            Fault::Refuse => {
                return Err(SourceError::Unreachable {
                    url,
                    source: lost(),
                });
            }
            Fault::Panic => panic!("injected"),
            Fault::Unavailable => return Err(SourceError::Status { url, status: 503 }),
            Fault::Missing => return Err(SourceError::Missing { url }),
            Fault::NoRanges => return Err(SourceError::NoRanges { url }),
            Fault::WrongRange => {
                let want = format!("{:?}", request.part);
                return Err(SourceError::WrongRange {
                    url,
                    want,
                    got: None,
                });
            }
            _ => self
                .bytes(&request)
                .ok_or(SourceError::Missing { url: url.clone() })?,
        };
        let mut body = bytes.to_vec();
        let middle = body.len() / 2;
        match fault {
            Fault::Flip => body[middle] ^= 0x10,
            Fault::Truncate | Fault::Break => body.truncate(middle),
            _ => {}
        }
        // Parts of an odd length, as a network gives them.
        let mut parts: Vec<_> = body
            .chunks(10_007)
            .map(|part| Ok(Bytes::copy_from_slice(part)))
            .collect();
        match fault {
            Fault::Break => parts.push(Err(SourceError::Broken {
                url,
                source: lost(),
            })),
            Fault::Endless => {
                let noise = stream::repeat_with(|| Ok(Bytes::from_static(&[7; 4096])));
                return Ok(Box::pin(futures_util::StreamExt::chain(
                    stream::iter(parts),
                    noise,
                )));
            }
            _ => {}
        }
        Ok(Box::pin(stream::iter(parts)))
    }
}
