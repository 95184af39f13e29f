//! A source without a network: serves a store from memory, with faults by request number.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use bytes::Bytes;
use client_fuse::config::Expiry;
use client_fuse::fetch::{Body, Freshness, Part, Request, Source, SourceError, Turn};
use client_fuse::trust::{Anchor, Trust};
use futures_util::{StreamExt, stream};

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
    /// A cache on the way has a copy that is too short, until it is told to ask the server.
    TooShort,
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
    /// Nothing ever comes.
    Silent,
    /// The body stops in the middle, and never ends.
    Stall,
    /// The answer is late by this.
    Late(Duration),
    /// Overloaded, and to be left alone for this long.
    Wait(Duration),
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
    /// Bytes of each body in a second; 0: all at once.
    rate: u64,
    /// How many requests came over a connection of their own.
    afresh: Arc<AtomicUsize>,
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
            rate: 0,
            afresh: Arc::default(),
        }
    }

    /// The same, so far away and with bodies of so many bytes a second; for clocks that tests move.
    pub(crate) fn at(self, trip: Duration, rate: u64) -> Self {
        Self { trip, rate, ..self }
    }

    /// How many requests came over a connection of their own.
    pub(crate) fn afresh(&self) -> usize {
        self.afresh.load(Ordering::Relaxed)
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
    async fn open_afresh(&self, request: Request, _: Turn) -> Result<Body, SourceError> {
        self.afresh.fetch_add(1, Ordering::Relaxed);
        self.open(request).await
    }

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
        let fault = (self.faults)(number, &request);
        match fault {
            Fault::Panic => panic!("injected"),
            Fault::Silent => std::future::pending().await,
            Fault::Late(late) => tokio::time::sleep(late).await,
            _ => {}
        }
        if let Some(refusal) = refusal(fault, &request) {
            return Err(refusal);
        }
        let url = request.path.clone();
        let missing = || SourceError::Missing { url: url.clone() };
        let body = self.bytes(&request).ok_or_else(missing)?;
        Ok(send(&body, fault, url, self.rate))
    }
}

/// What a request is refused with, if it is.
fn refusal(fault: Fault, request: &Request) -> Option<SourceError> {
    let url = request.path.clone();
    let busy = |url, retry_after| SourceError::Status {
        url,
        status: 503,
        retry_after,
    };
    Some(match fault {
        Fault::Refuse => SourceError::Unreachable {
            url,
            source: "injected".into(),
        },
        Fault::Unavailable => busy(url, None),
        Fault::Wait(wait) => busy(url, Some(wait)),
        Fault::Missing => SourceError::Missing { url },
        Fault::TooShort if request.freshness == Freshness::Any => SourceError::Status {
            url,
            status: 416,
            retry_after: None,
        },
        Fault::NoRanges => SourceError::NoRanges { url },
        Fault::WrongRange => SourceError::WrongRange {
            url,
            want: format!("{:?}", request.part),
            got: None,
        },
        _ => return None,
    })
}

/// A body that `fault` meets, with so many bytes a second.
fn send(body: &Bytes, fault: Fault, url: String, rate: u64) -> Body {
    let mut body = body.to_vec();
    let middle = body.len() / 2;
    match fault {
        Fault::Flip => body[middle] ^= 0x10,
        Fault::Truncate | Fault::Break | Fault::Stall => body.truncate(middle),
        _ => {}
    }
    // Parts of an odd length, as a network gives them.
    let mut parts: Vec<_> = body
        .chunks(10_007)
        .map(|part| Ok(Bytes::copy_from_slice(part)))
        .collect();
    if fault == Fault::Break {
        let source = "injected".into();
        parts.push(Err(SourceError::Broken { url, source }));
    }
    let parts = stream::iter(parts);
    match (fault, 1_000_000_000_u64.checked_div(rate)) {
        (Fault::Stall, _) => Box::pin(parts.chain(stream::pending())),
        (Fault::Endless, _) => {
            let noise = stream::repeat_with(|| Ok(Bytes::from_static(&[7; 4096])));
            Box::pin(parts.chain(noise))
        }
        (_, None) => Box::pin(parts),
        (_, Some(nanos)) => Box::pin(parts.then(
            move |part: Result<Bytes, SourceError>| async move {
                let bytes = part.as_ref().map_or(0, |part| part.len() as u64);
                tokio::time::sleep(Duration::from_nanos(nanos * bytes)).await;
                part
            },
        )),
    }
}
