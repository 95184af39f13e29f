//! Getting bytes from the server: the seam ([`Source`]), what can go wrong, and the parts that
//! carry it out.
//!
//! [`plan`] joins wanted chunks into range requests, [`lanes`] lets guest reads go before
//! read-ahead, [`fetcher`] carries requests out, verifies and delivers, [`retry`] decides what
//! happens after a failure, [`mirrors`] which server is asked, [`hedge`] how often a second one is,
//! [`mod@line`] measures the line, [`pace`] how slow an answer may be, [`split`] cuts a body into chunks while it arrives, and
//! [`http`] is the source that talks to a server. Nothing leaves this module unverified.

use std::future::Future;
use std::ops::Range;
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures_util::Stream;
use image_format::digest::DigestMismatch;
use image_format::frame::FrameError;

use crate::fetch::retry::{Blame, Fault};

pub mod decoders;
pub mod fetcher;
pub mod hedge;
pub mod http;
pub mod lanes;
pub mod line;
pub mod mirrors;
pub mod pace;
pub mod plan;
pub mod resolve;
pub mod retry;
pub mod split;
pub(crate) mod underway;

/// Serves the files of a store.
///
/// A source is not trusted: whoever reads a body bounds and verifies it.
pub trait Source: Send + Sync + 'static {
    /// Asks for a file or a part of it and returns its bytes as they arrive.
    ///
    /// Dropping the future or the body ends the request; the source stays usable.
    fn open(&self, request: Request) -> impl Future<Output = Result<Body, SourceError>> + Send;

    /// The same, over none of the connections that `open` used during `turn`: they may be dead.
    fn open_afresh(
        &self,
        request: Request,
        turn: Turn,
    ) -> impl Future<Output = Result<Body, SourceError>> + Send {
        let _ = turn;
        self.open(request)
    }

    /// Which connections `open` uses now.
    fn turn(&self) -> Turn {
        Turn::default()
    }

    /// Leaves the connections that were used during `turn`, because they are dead; once, however often it is said.
    fn leave(&self, turn: Turn) {
        let _ = turn;
    }
}

/// How often connections were left for new ones.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Turn(u64);

impl Turn {
    /// The one after.
    #[must_use]
    pub const fn next(self) -> Self {
        Self(self.0.wrapping_add(1))
    }
}

/// The bytes of an answer.
pub type Body = Pin<Box<dyn Stream<Item = Result<Bytes, SourceError>> + Send>>;

/// What is asked of a [`Source`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Request {
    /// Path below the base address.
    pub path: String,
    /// Which bytes.
    pub part: Part,
    /// Whether an HTTP cache may answer.
    pub freshness: Freshness,
}

/// Which bytes of a file are asked for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Part {
    /// All of them.
    Whole,
    /// Some of a file whose whole length is known.
    Range {
        /// The bytes.
        range: Range<u64>,
        /// The length of the file.
        object_bytes: u64,
    },
}

/// Whether an HTTP cache on the way may answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Freshness {
    /// It may: the file never changes.
    Any,
    /// It must ask the server: the file may have changed, or a cached copy was wrong.
    Revalidate,
}

/// Why a source has no bytes to give.
#[derive(Debug, thiserror::Error)]
#[expect(missing_docs, reason = "the messages are the docs")]
pub enum SourceError {
    #[error("cannot reach {url}")]
    Unreachable {
        url: String,
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    #[error(
        "the certificate behind {url} is not believed; name the authority that signed it with --ca FILE, and check the clock of this machine"
    )]
    Certificate {
        url: String,
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    #[error("{url} cannot be asked for")]
    Unaskable {
        url: String,
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    #[error("there is no {url}")]
    Missing { url: String },
    #[error("{url} is answered with HTTP status {status}")]
    Status {
        url: String,
        status: u16,
        /// How long the server wants to be left alone.
        retry_after: Option<Duration>,
    },
    #[error(
        "{url} is answered with HTTP status {status}: the store is private, and wants a token; give one with --token-file"
    )]
    NoToken { url: String, status: u16 },
    #[error(
        "{url} is answered with HTTP status {status}: the store does not take the token of --token-file; ask its operator for one that may read"
    )]
    BadToken { url: String, status: u16 },
    #[error(
        "{url} leads to {host}, which answers with HTTP status {status}: a token is not taken along to another address; give the address where the store really is"
    )]
    TokenNotTaken {
        url: String,
        status: u16,
        host: String,
    },
    #[error(
        "the proxy on the way to {url} wants a password; give it as http://USER:PASSWORD@PROXY in http_proxy or https_proxy"
    )]
    ProxyPassword { url: String },
    #[error(
        "the server ignores range requests for {url}; serve the store with circular-server, nginx or S3"
    )]
    NoRanges { url: String },
    #[error("the answer for {url} has bytes {got:?} where {want} were asked for")]
    WrongRange {
        url: String,
        want: String,
        got: Option<String>,
    },
    #[error("the answer for {url} is {encoding}-encoded; a proxy on the way changes content")]
    Encoded { url: String, encoding: String },
    #[error("the connection broke while {url} was read")]
    Broken {
        url: String,
        source: Box<dyn std::error::Error + Send + Sync>,
    },
}

impl SourceError {
    /// What the retry policy should make of it.
    #[must_use]
    pub const fn fault(&self) -> Fault {
        match self {
            // A disk in use outlives a certificate that was not renewed in time.
            Self::Unreachable { .. } | Self::Certificate { .. } | Self::Broken { .. } => {
                Fault::Transient
            }
            Self::Status {
                status: 408 | 425 | 429 | 500..=599,
                ..
            } => Fault::Transient,
            // A cache on the way may have a copy that is too short for what is asked for.
            Self::Missing { .. }
            | Self::WrongRange { .. }
            | Self::Encoded { .. }
            | Self::Status { status: 416, .. } => Fault::Wrong,
            Self::Status { .. }
            | Self::NoToken { .. }
            | Self::BadToken { .. }
            | Self::TokenNotTaken { .. }
            | Self::ProxyPassword { .. }
            | Self::Unaskable { .. }
            | Self::NoRanges { .. } => Fault::Permanent,
        }
    }
}

/// Why verified bytes could not be had. Cheap to clone: all readers of a chunk get the same one.
#[derive(Clone, Debug, thiserror::Error)]
#[expect(missing_docs, reason = "the messages are the docs")]
pub enum FetchError {
    #[error(transparent)]
    Source(#[from] Arc<SourceError>),
    #[error("the answer for {path} ended after {got} of {want} bytes")]
    Short { path: String, want: u64, got: u64 },
    #[error("the answer for {path} is longer than {limit} bytes")]
    Long { path: String, limit: u64 },
    #[error("the answer for {path} came too slowly: {got} bytes in {seconds} s")]
    Slow {
        path: String,
        got: u64,
        seconds: u64,
    },
    #[error("nothing more of {path} came for {seconds} s, and no reader waits longer (--deadline)")]
    Overdue { path: String, seconds: u64 },
    #[error("{path} is not what its name says")]
    Digest {
        path: String,
        source: DigestMismatch,
    },
    #[error("a chunk in {path} is damaged")]
    Chunk {
        path: String,
        source: Arc<FrameError>,
    },
    #[error("{path} is of no use")]
    Useless {
        path: String,
        source: Arc<dyn std::error::Error + Send + Sync>,
    },
    #[error("the fetch of {path} was given up by a failed task")]
    Abandoned { path: String },
    #[error("every mirror failed: {}", each(.failures))]
    Everywhere { failures: Arc<[(String, Self)]> },
}

/// What each mirror said, with the causes: there is more than one chain of them.
pub(crate) fn each<E: std::error::Error>(failures: &[(String, E)]) -> String {
    let one = |(mirror, error): &(String, E)| {
        let mut text = format!("{mirror}: {error}");
        let mut cause = error.source();
        while let Some(error) = cause {
            text = format!("{text}: {error}");
            cause = error.source();
        }
        text
    };
    failures.iter().map(one).collect::<Vec<_>>().join("; ")
}

impl FetchError {
    /// What the retry policy should make of it.
    #[must_use]
    pub fn fault(&self) -> Fault {
        match self {
            Self::Source(error) => error.fault(),
            Self::Short { .. } | Self::Slow { .. } | Self::Overdue { .. } => Fault::Transient,
            Self::Long { .. } | Self::Digest { .. } | Self::Chunk { .. } | Self::Useless { .. } => {
                Fault::Wrong
            }
            Self::Abandoned { .. } => Fault::Permanent,
            Self::Everywhere { failures } => {
                let faults = failures.iter().map(|(_, error)| error.fault());
                faults.min().unwrap_or(Fault::Permanent)
            }
        }
    }

    /// How long the server wants to be left alone, if it said so.
    #[must_use]
    pub fn retry_after(&self) -> Option<Duration> {
        match self {
            Self::Source(error) => match **error {
                SourceError::Status { retry_after, .. } => retry_after,
                _ => None,
            },
            _ => None,
        }
    }

    /// What is to be thought of the server that it came from.
    #[must_use]
    pub fn blame(&self) -> Blame {
        let lying = match self {
            Self::Long { .. } | Self::Digest { .. } | Self::Chunk { .. } | Self::Useless { .. } => {
                true
            }
            Self::Source(error) => matches!(
                **error,
                SourceError::WrongRange { .. } | SourceError::Encoded { .. }
            ),
            _ => false,
        };
        if lying { Blame::Lying } else { Blame::Unable }
    }

    /// Whether nobody answers, or only to say that he cannot now: other ranges would fare no better.
    #[must_use]
    pub fn is_outage(&self) -> bool {
        let broken =
            matches!(self, Self::Source(error) if matches!(**error, SourceError::Broken { .. }));
        matches!(self, Self::Source(_)) && self.fault() == Fault::Transient && !broken
    }

    /// Whether the time of whoever waits is over.
    pub(crate) const fn is_overdue(&self) -> bool {
        matches!(self, Self::Overdue { .. })
    }

    /// Whether the server says that there is no such file.
    #[must_use]
    pub fn is_missing(&self) -> bool {
        match self {
            Self::Source(error) => matches!(**error, SourceError::Missing { .. }),
            Self::Everywhere { failures } => failures.iter().all(|(_, error)| error.is_missing()),
            _ => false,
        }
    }

    /// Whether the server says that there is no such file, or that it is not for us: some storage
    /// says 403 for both, so as not to tell which files there are.
    #[must_use]
    pub fn is_missing_or_forbidden(&self) -> bool {
        let forbidden = matches!(self, Self::Source(error) if matches!(
            **error,
            SourceError::NoToken { status: 403, .. }
                | SourceError::BadToken { status: 403, .. }
                | SourceError::TokenNotTaken { status: 403, .. }
        ));
        forbidden || self.is_missing()
    }
}

impl From<SourceError> for FetchError {
    fn from(error: SourceError) -> Self {
        Self::Source(Arc::new(error))
    }
}
