//! Talks HTTP: the [`Source`] that asks a real server.
//!
//! An answer to a range request is taken when it is `206` with exactly the range asked for. A `200`
//! with the whole object is taken, and cut, only when that object is small; a server that ignores
//! ranges would otherwise send a whole pack for each chunk. Which redirects are followed is decided in
//! [`redirect`], whom TLS believes and what is shown to a private store in [`identity`]. Nothing decodes a body on the way, and whoever reads it bounds and verifies it.
//!
//! What needs a file (name resolution apart, see [`resolve`](super::resolve)) is loaded when the source
//! is made; the certificates of a store behind plain HTTP when they are needed, or when that is
//! [asked for](HttpSource::load_authorities).

use std::io;
use std::ops::Range;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures_util::{Stream, StreamExt, stream};
use reqwest::header::{
    ACCEPT_ENCODING, AUTHORIZATION, CACHE_CONTROL, CONTENT_ENCODING, CONTENT_RANGE, DATE,
    HeaderMap, HeaderName, HeaderValue, PRAGMA, RANGE, RETRY_AFTER,
};
use reqwest::redirect::{Attempt, Policy};
use reqwest::{Client, ClientBuilder, NoProxy, Proxy, Response, StatusCode};
use url::Url;

use crate::config::proxies::Proxies;
use crate::config::{BaseUrl, NetworkConfig};
use crate::fetch::resolve::Resolver;
use crate::fetch::{Body, Freshness, Part, Request, Source, SourceError, Turn};

mod dial;
pub mod identity;
mod pools;
mod post;
pub mod redirect;
mod retry_after;
mod tls;

use identity::Identity;
use pools::Pools;
use tls::Judge;

/// An object up to this length may come whole when a part of it was asked for.
const WHOLE_BYTES_MAX: u64 = 1 << 20;

/// Longer than the gaps in the traffic of a booted machine, shorter than the 60 s and more after
/// which servers and middleboxes close idle connections.
const IDLE: Duration = Duration::from_secs(45);

/// What a server may send of one answer before we took any: more than 100 Mbit/s carry in 100 ms. The
/// 64 KiB of the standard would hold every answer to a round trip for each 64 KiB.
const HTTP2_STREAM_BYTES: u32 = 2 << 20;

/// The same for all answers of a connection: what 1 Gbit/s carries in 60 ms. It is memory that a server
/// can make us use, beside the bytes in flight.
const HTTP2_CONNECTION_BYTES: u32 = 8 << 20;

/// A store behind HTTP.
#[derive(Clone, Debug)]
pub struct HttpSource {
    pools: Pools,
    judge: Arc<Judge>,
    base: BaseUrl,
    authorization: Option<HeaderValue>,
    resolver: Resolver,
}

/// Why there can be no HTTP client.
#[derive(Debug, thiserror::Error)]
#[expect(missing_docs, reason = "the messages are the docs")]
pub enum SetupError {
    #[error("cannot set up the HTTP client")]
    Client(#[from] reqwest::Error),
    #[error("cannot set up TLS")]
    Tls(#[from] rustls::Error),
}

impl HttpSource {
    /// A source for the store at `base`, for everybody.
    ///
    /// # Errors
    ///
    /// When TLS cannot be set up, for instance because an https store is asked for and the system
    /// has no certificates.
    pub fn new(base: BaseUrl, network: &NetworkConfig) -> Result<Self, SetupError> {
        Self::with(base, network, &Identity::default())
    }

    /// A source for the store at `base`, with authorities and a token.
    ///
    /// # Errors
    ///
    /// As [`Self::new`].
    pub fn with(
        base: BaseUrl,
        network: &NetworkConfig,
        identity: &Identity,
    ) -> Result<Self, SetupError> {
        Self::resolving(base, network, identity, &Resolver::default())
    }

    /// The same, by the addresses that `resolver` says.
    ///
    /// # Errors
    ///
    /// As [`Self::new`].
    pub fn resolving(
        base: BaseUrl,
        network: &NetworkConfig,
        identity: &Identity,
        resolver: &Resolver,
    ) -> Result<Self, SetupError> {
        let judge = Judge::new(identity.believed());
        if judge.is_asked_for() || base.as_url().scheme() == "https" {
            judge.prepare()?;
        }
        let tls = judge.client()?;
        let (network, known) = (network.clone(), resolver.clone());
        let make = move || {
            let builder = builder(&network, &known)?;
            builder.tls_backend_preconfigured(tls.clone()).build()
        };
        Ok(Self {
            pools: Pools::new(Arc::new(make))?,
            judge,
            base,
            authorization: identity.authorization(),
            resolver: resolver.clone(),
        })
    }

    /// What remembers where its servers and those of its mirrors are.
    #[must_use]
    pub const fn resolver(&self) -> &Resolver {
        &self.resolver
    }

    /// Reads now whom TLS believes, which may be needed when the files are no more. Without authorities
    /// a store behind plain HTTP can still be used; redirects to https will fail.
    pub fn load_authorities(&self) {
        if let Err(error) = self.judge.prepare() {
            tracing::debug!(%error, "no certificates; https redirects will fail");
        }
    }

    /// A source for a mirror at `base`, which is shown the same token.
    #[must_use]
    pub fn mirror(&self, base: BaseUrl) -> Self {
        if base.as_url().scheme() == "https" {
            self.load_authorities();
        }
        Self {
            base,
            pools: self.pools.apart(),
            ..self.clone()
        }
    }
}

fn builder(network: &NetworkConfig, resolver: &Resolver) -> reqwest::Result<ClientBuilder> {
    let builder = Client::builder()
        .user_agent(concat!("circular-mount/", env!("CARGO_PKG_VERSION")))
        .connect_timeout(network.timeout)
        .read_timeout(network.timeout)
        .tcp_nodelay(true)
        .tcp_keepalive(network.timeout)
        .pool_idle_timeout(IDLE)
        .pool_max_idle_per_host(usize::from(network.connections))
        .http2_keep_alive_interval(network.timeout)
        .http2_keep_alive_timeout(network.timeout)
        .http2_initial_stream_window_size(HTTP2_STREAM_BYTES)
        .http2_initial_connection_window_size(HTTP2_CONNECTION_BYTES)
        .referer(false)
        .redirect(Policy::custom(follow))
        .dns_resolver(resolver.clone())
        // The environment was read before.
        .no_proxy();
    let Proxies {
        http,
        https,
        except,
    } = &network.proxies;
    let except = NoProxy::from_string(except);
    let http = http.as_ref().map(|url| Proxy::http(url.as_url().clone()));
    let https = https.as_ref().map(|url| Proxy::https(url.as_url().clone()));
    let mut proxies = [http, https].into_iter().flatten();
    proxies.try_fold(builder, |builder, proxy| {
        Ok(builder.proxy(proxy?.no_proxy(except.clone())))
    })
}

fn follow(attempt: Attempt<'_>) -> reqwest::redirect::Action {
    match redirect::judge(attempt.previous(), attempt.url()) {
        Ok(()) => attempt.follow(),
        Err(refusal) => attempt.error(refusal),
    }
}

impl Source for HttpSource {
    async fn open(&self, request: Request) -> Result<Body, SourceError> {
        self.ask(&self.pools.usual(), request).await
    }

    async fn open_afresh(&self, request: Request, turn: Turn) -> Result<Body, SourceError> {
        self.ask(&self.pools.other_than(turn), request).await
    }

    fn turn(&self) -> Turn {
        self.pools.now_is()
    }

    fn leave(&self, turn: Turn) {
        self.pools.leave(turn);
    }
}

impl HttpSource {
    async fn ask(&self, client: &Client, request: Request) -> Result<Body, SourceError> {
        let url = self
            .base
            .join(&request.path)
            .map_err(|error| SourceError::Unaskable {
                url: request.path.clone(),
                source: error.into(),
            })?;
        let mut headers = headers(&request);
        headers.extend(self.authorization.clone().map(|it| (AUTHORIZATION, it)));
        let sent = client.get(url.clone()).headers(headers).send().await;
        let response = sent.map_err(|error| reach_error(url.as_str(), error))?;
        self.check_refused(&url, &response)?;
        let url = url.to_string();
        let skip = check(&url, &request.part, &response)?;
        let bytes = response.bytes_stream().map(move |part| {
            part.map_err(|error| SourceError::Broken {
                url: url.clone(),
                source: error.without_url().into(),
            })
        });
        Ok(match skip {
            None => Box::pin(bytes),
            Some(range) => Box::pin(cut(bytes, range)),
        })
    }

    /// Says what to do where the server wants to know who asks.
    fn check_refused(&self, url: &Url, response: &Response) -> Result<(), SourceError> {
        let status = response.status();
        if !matches!(status, StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN) {
            return Ok(());
        }
        let (status, asked, answered) = (status.as_u16(), url.clone(), response.url());
        let moved = asked.origin() != answered.origin();
        let url = asked.to_string();
        Err(match (&self.authorization, moved) {
            (None, _) => SourceError::NoToken { url, status },
            (Some(_), false) => SourceError::BadToken { url, status },
            (Some(_), true) => SourceError::TokenNotTaken {
                url,
                status,
                host: answered.authority().to_owned(),
            },
        })
    }
}

fn headers(request: &Request) -> HeaderMap {
    let mut headers = HeaderMap::new();
    headers.insert(ACCEPT_ENCODING, HeaderValue::from_static("identity"));
    if let Part::Range { range, .. } = &request.part {
        let value = format!("bytes={}-{}", range.start, range.end.saturating_sub(1));
        headers.extend(
            HeaderValue::try_from(value)
                .ok()
                .map(|value| (RANGE, value)),
        );
    }
    if request.freshness == Freshness::Revalidate {
        headers.insert(CACHE_CONTROL, HeaderValue::from_static("no-cache"));
        headers.insert(PRAGMA, HeaderValue::from_static("no-cache"));
    }
    headers
}

fn reach_error(url: &str, error: reqwest::Error) -> SourceError {
    let (url, refused) = (url.to_owned(), error.is_redirect() || error.is_builder());
    let disbelieved = is_certificate_refused(&error);
    let source = error.without_url().into();
    if disbelieved {
        SourceError::Certificate { url, source }
    } else if refused {
        SourceError::Unaskable { url, source }
    } else {
        SourceError::Unreachable { url, source }
    }
}

/// Tells whether the certificate of the server is the reason. An `io::Error` hides what it wraps
/// from [`source`](std::error::Error::source), so it is opened.
fn is_certificate_refused(error: &reqwest::Error) -> bool {
    let mut cause: Option<&(dyn std::error::Error + 'static)> = Some(error);
    while let Some(error) = cause {
        if let Some(rustls::Error::InvalidCertificate(_)) = error.downcast_ref() {
            return true;
        }
        cause = match error
            .downcast_ref::<io::Error>()
            .and_then(io::Error::get_ref)
        {
            Some(wrapped) => Some(wrapped),
            None => error.source(),
        };
    }
    false
}

/// Checks the head of an answer. `Some`: the body is the whole object, of which this is wanted.
fn check(url: &str, part: &Part, response: &Response) -> Result<Option<Range<u64>>, SourceError> {
    let url = || url.to_owned();
    match response.status() {
        StatusCode::OK | StatusCode::PARTIAL_CONTENT => {}
        StatusCode::NOT_FOUND | StatusCode::GONE => {
            return Err(SourceError::Missing { url: url() });
        }
        StatusCode::PROXY_AUTHENTICATION_REQUIRED => {
            return Err(SourceError::ProxyPassword { url: url() });
        }
        status => {
            return Err(SourceError::Status {
                url: url(),
                status: status.as_u16(),
                retry_after: told_wait(response),
            });
        }
    }
    if let Some(encoding) =
        text(response, CONTENT_ENCODING).filter(|encoding| encoding != "identity")
    {
        return Err(SourceError::Encoded {
            url: url(),
            encoding,
        });
    }
    match (part, response.status()) {
        (Part::Whole, StatusCode::OK) => Ok(None),
        (
            Part::Range {
                range,
                object_bytes,
            },
            StatusCode::PARTIAL_CONTENT,
        ) => {
            let got = text(response, CONTENT_RANGE);
            if got
                .as_deref()
                .is_some_and(|got| is_range(got, range, *object_bytes))
            {
                return Ok(None);
            }
            let want = format!(
                "bytes {}-{}/{object_bytes}",
                range.start,
                range.end.saturating_sub(1)
            );
            Err(SourceError::WrongRange {
                url: url(),
                want,
                got,
            })
        }
        (
            Part::Range {
                range,
                object_bytes,
            },
            _,
        ) if *object_bytes <= WHOLE_BYTES_MAX => Ok(Some(range.clone())),
        (Part::Range { .. }, _) => Err(SourceError::NoRanges { url: url() }),
        (Part::Whole, status) => Err(SourceError::Status {
            url: url(),
            status: status.as_u16(),
            retry_after: None,
        }),
    }
}

/// How long the server wants to be left alone, if it says so.
fn told_wait(response: &Response) -> Option<Duration> {
    let value = text(response, RETRY_AFTER)?;
    let date = text(response, DATE);
    retry_after::parse(&value, date.as_deref(), jiff::Timestamp::now())
}

fn text(response: &Response, name: HeaderName) -> Option<String> {
    let value = response.headers().get(name)?;
    Some(String::from_utf8_lossy(value.as_bytes()).into_owned())
}

/// Whether a Content-Range says just this.
fn is_range(value: &str, range: &Range<u64>, object_bytes: u64) -> bool {
    let parse = || {
        let (unit, rest) = value.trim().split_once(' ')?;
        let (bytes, total) = rest.trim().split_once('/')?;
        let (first, last) = bytes.split_once('-')?;
        let total_fits = total == "*" || total.parse() == Ok(object_bytes);
        let first: u64 = first.parse().ok()?;
        let last: u64 = last.parse().ok()?;
        Some(
            unit.eq_ignore_ascii_case("bytes")
                && total_fits
                && first == range.start
                && last.checked_add(1)? == range.end,
        )
    };
    parse().unwrap_or(false)
}

/// Only the bytes `range` of a body; stops reading behind them.
fn cut(
    body: impl Stream<Item = Result<Bytes, SourceError>> + Send + 'static,
    range: Range<u64>,
) -> impl Stream<Item = Result<Bytes, SourceError>> + Send {
    let state = (Box::pin(body), 0_u64);
    stream::unfold(state, move |(mut body, mut position)| {
        let range = range.clone();
        async move {
            while position < range.end {
                let bytes = match body.next().await? {
                    Ok(bytes) => bytes,
                    Err(error) => return Some((Err(error), (body, range.end))),
                };
                let part = overlap(position, &bytes, &range);
                position += bytes.len() as u64;
                if !part.is_empty() {
                    return Some((Ok(part), (body, position)));
                }
            }
            None
        }
    })
}

/// What of `bytes`, which begin at `position`, lies in `range`.
fn overlap(position: u64, bytes: &Bytes, range: &Range<u64>) -> Bytes {
    let within = |at: u64| {
        let at = usize::try_from(at.saturating_sub(position)).unwrap_or(usize::MAX);
        at.min(bytes.len())
    };
    bytes.slice(within(range.start)..within(range.end))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn only_the_exact_content_range_is_taken() {
        let is = |value| is_range(value, &(10..20), 100);
        assert!(is("bytes 10-19/100") && is("bytes 10-19/*") && is("Bytes 10-19/100"));
        for wrong in [
            "",
            "bytes",
            "bytes 10-19",
            "bytes 10-20/100",
            "bytes 9-19/100",
            "bytes 10-19/99",
            "10-19/100",
            "bytes */100",
        ] {
            assert!(!is(wrong), "{wrong}");
        }
    }

    proptest! {
        /// Cutting a whole body gives the range, however the body is divided.
        #[test]
        fn cut_is_slice(len in 1..200_usize, step in 1..50_usize, ends in (0..200_usize, 0..200_usize)) {
            let whole: Vec<u8> = (0..=255).cycle().take(len).collect();
            let (start, end) = (ends.0.min(ends.1).min(len), ends.0.max(ends.1).min(len));
            let parts: Vec<_> = whole.chunks(step).map(|part| Ok(Bytes::copy_from_slice(part))).collect();
            let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
            let got: Vec<_> = runtime.block_on(cut(stream::iter(parts), start as u64..end as u64).collect());
            let got: Vec<u8> = got.into_iter().flat_map(Result::unwrap).collect();
            prop_assert_eq!(&got[..], &whole[start..end]);
        }
    }
}
