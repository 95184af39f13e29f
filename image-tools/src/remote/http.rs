//! Talks HTTP to a server: reads files of its store, asks, uploads.
//!
//! Each request is tried again while the fault may pass. Redirects are not followed: a token goes
//! to the address that was typed, and nowhere else. Bodies are bounded by what they say they are.

mod download;
mod put;

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures_util::StreamExt as _;
use reqwest::header::{
    ACCEPT_ENCODING, CACHE_CONTROL, CONTENT_LENGTH, CONTENT_TYPE, HeaderValue, LOCATION,
};
use reqwest::redirect::Policy;
use reqwest::{Certificate, Client, Method, RequestBuilder, Response, StatusCode};

use super::address::{StoreUrl, Token};
use super::error::{Ask, Failure, HttpError, Said};
use super::retry::{self, RetryPolicy};

/// How long a connection may take to be made.
const CONNECT: Duration = Duration::from_secs(10);

/// How long a transfer may stand still: longer than a server takes to write and sync a file.
const STALL: Duration = Duration::from_secs(60);

/// How long a server may think about a question or a commit: it looks up each object.
const THINK: Duration = Duration::from_secs(600);

/// The longest body of an error that is read.
const ERROR_BYTES_MAX: usize = 64 * 1024;

/// What it takes to talk to a server.
#[derive(Clone, Debug)]
pub struct HttpConfig {
    /// Its address.
    pub url: StoreUrl,
    /// What opens it.
    pub token: Option<Token>,
    /// The certificates to trust, and no others; those of the system if there are none.
    pub authorities: Vec<Certificate>,
    /// When to try again.
    pub retry: RetryPolicy,
}

/// A connection to a server. Cheap to clone: clones share connections.
#[derive(Clone, Debug)]
pub struct Http {
    client: Client,
    config: Arc<HttpConfig>,
}

impl Http {
    /// Sets up a client; connects to nothing yet.
    ///
    /// # Errors
    /// TLS cannot be set up: the system has no certificates.
    pub fn new(config: HttpConfig) -> Result<Self, HttpError> {
        let mut builder = Client::builder()
            .user_agent(concat!("circular/", env!("CARGO_PKG_VERSION")))
            .connect_timeout(CONNECT)
            .tcp_nodelay(true)
            .referer(false)
            .redirect(Policy::none());
        if !config.authorities.is_empty() {
            builder = builder.tls_certs_only(config.authorities.iter().cloned());
        } else if config.url.is_http() {
            builder = builder.tls_certs_only([]);
        }
        Ok(Self {
            client: builder.build().map_err(HttpError::Setup)?,
            config: Arc::new(config),
        })
    }

    /// Returns the address of the store.
    pub fn url(&self) -> &StoreUrl {
        &self.config.url
    }

    /// Returns when requests are tried again.
    pub fn retry(&self) -> RetryPolicy {
        self.config.retry
    }

    /// Asks a question of the upload protocol.
    ///
    /// # Errors
    /// There is no answer, or one that is no success or longer than `max` bytes.
    pub async fn post(&self, path: &str, body: Bytes, max: usize) -> Result<Bytes, HttpError> {
        let mut tries = self.tries();
        loop {
            match self.post_once(path, body.clone(), max).await {
                Err(error) => tries.again(error).await?,
                answer => return answer,
            }
        }
    }

    async fn post_once(&self, path: &str, body: Bytes, max: usize) -> Result<Bytes, HttpError> {
        let request = self
            .request(Method::POST, path)
            .header(CONTENT_TYPE, HeaderValue::from_static("application/json"))
            .body(body);
        let response = self.send(Ask::Upload, path, request, THINK).await?;
        self.bounded(path, response, max).await
    }

    /// Reads a small file whole; `None` if there is none.
    ///
    /// # Errors
    /// There is no answer, or one that is longer than `max` bytes.
    pub async fn read(&self, path: &str, max: usize) -> Result<Option<Bytes>, HttpError> {
        let mut tries = self.tries();
        loop {
            match self.read_once(path, max).await {
                Err(error) if is_missing(&error) => return Ok(None),
                Err(error) => tries.again(error).await?,
                Ok(bytes) => return Ok(Some(bytes)),
            }
        }
    }

    async fn read_once(&self, path: &str, max: usize) -> Result<Bytes, HttpError> {
        let request = self.request(Method::GET, path);
        let response = self.send(Ask::Read, path, request, STALL).await?;
        self.bounded(path, response, max).await
    }

    /// Returns the length of a file, or `None` if there is none.
    ///
    /// # Errors
    /// There is no answer, or one that tells no length.
    pub async fn file_length(&self, path: &str) -> Result<Option<u64>, HttpError> {
        let mut tries = self.tries();
        loop {
            match self.ask_length(path).await {
                Err(error) => tries.again(error).await?,
                length => return length,
            }
        }
    }

    async fn ask_length(&self, path: &str) -> Result<Option<u64>, HttpError> {
        let request = self.request(Method::HEAD, path);
        match self.send(Ask::Read, path, request, STALL).await {
            Ok(response) => self.length(path, &response).map(Some),
            Err(error) if is_missing(&error) => Ok(None),
            Err(error) => Err(error),
        }
    }

    fn tries(&self) -> Tries {
        Tries {
            policy: self.config.retry,
            failed: 0,
        }
    }

    fn request(&self, method: Method, path: &str) -> RequestBuilder {
        let request = self
            .client
            .request(method, self.config.url.file(path))
            .header(ACCEPT_ENCODING, HeaderValue::from_static("identity"))
            .header(CACHE_CONTROL, HeaderValue::from_static("no-cache"));
        match &self.config.token {
            Some(token) => request.bearer_auth(token.reveal()),
            None => request,
        }
    }

    /// Sends a request and takes an answer that is a success.
    async fn send(
        &self,
        ask: Ask,
        path: &str,
        request: RequestBuilder,
        patience: Duration,
    ) -> Result<Response, HttpError> {
        match tokio::time::timeout(patience, request.send()).await {
            Ok(sent) => {
                let response = sent.map_err(|source| self.unreachable(path, source))?;
                self.success(ask, path, response).await
            }
            Err(_) => Err(self.stalled(path, patience)),
        }
    }

    async fn success(
        &self,
        ask: Ask,
        path: &str,
        response: Response,
    ) -> Result<Response, HttpError> {
        let status = response.status();
        if status.is_success() {
            return Ok(response);
        }
        let location = response.headers().get(LOCATION);
        let location = location.map(|to| String::from_utf8_lossy(to.as_bytes()).into_owned());
        let body = self.bounded(path, response, ERROR_BYTES_MAX).await;
        Err(Failure {
            ask,
            url: self.show(path),
            status,
            with_token: self.config.token.is_some(),
            location,
            said: Said::from_body(&body.unwrap_or_default()),
        }
        .into())
    }

    /// Reads a body of at most `max` bytes.
    async fn bounded(
        &self,
        path: &str,
        response: Response,
        max: usize,
    ) -> Result<Bytes, HttpError> {
        let mut body = Vec::new();
        let mut parts = response.bytes_stream();
        loop {
            match tokio::time::timeout(STALL, parts.next()).await {
                Err(_) => return Err(self.stalled(path, STALL)),
                Ok(None) => return Ok(body.into()),
                Ok(Some(part)) => {
                    body.extend_from_slice(&part.map_err(|source| self.broken(path, source))?);
                }
            }
            if body.len() > max {
                return Err(self.senseless(path, "it is too long"));
            }
        }
    }

    fn length(&self, path: &str, response: &Response) -> Result<u64, HttpError> {
        response
            .headers()
            .get(CONTENT_LENGTH)
            .and_then(|length| length.to_str().ok()?.parse().ok())
            .ok_or_else(|| self.senseless(path, "it tells no length"))
    }

    fn show(&self, path: &str) -> String {
        self.config.url.file(path).to_string()
    }

    fn unreachable(&self, path: &str, source: reqwest::Error) -> HttpError {
        let url = self.show(path);
        let source = source.without_url();
        HttpError::of_request(url, source)
    }

    fn broken(&self, path: &str, source: reqwest::Error) -> HttpError {
        let url = self.show(path);
        let source = source.without_url();
        HttpError::Broken { url, source }
    }

    fn stalled(&self, path: &str, after: Duration) -> HttpError {
        let url = self.show(path);
        HttpError::Stalled { url, after }
    }

    fn senseless(&self, path: &str, reason: &'static str) -> HttpError {
        let url = self.show(path);
        HttpError::Answer { url, reason }
    }
}

/// The tries of one request.
#[derive(Debug)]
struct Tries {
    policy: RetryPolicy,
    failed: u32,
}

impl Tries {
    /// Waits until a request that failed may be tried again.
    ///
    /// # Errors
    /// That very error, if no other try will help.
    async fn again(&mut self, error: HttpError) -> Result<(), HttpError> {
        self.failed += 1;
        match self.policy.wait(self.failed, retry::random()) {
            Some(wait) if error.is_transient() => {
                tracing::debug!(%error, tries = self.failed, ?wait, "trying again");
                tokio::time::sleep(wait).await;
                Ok(())
            }
            _ => Err(error),
        }
    }
}

fn is_missing(error: &HttpError) -> bool {
    matches!(error, HttpError::Status { status, .. } if matches!(*status, StatusCode::NOT_FOUND | StatusCode::GONE))
}
