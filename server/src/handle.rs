//! The request path: request → route → open → decide → response.
//!
//! This is the one place where the pure modules meet the store and the connection. It keeps no
//! state between requests but what [`crate::raw`] has open.

use std::error::Error as _;
use std::net::SocketAddr;
use std::num::NonZeroUsize;
use std::path::Path;
use std::sync::Arc;
use std::time::Instant;

use bytes::Bytes;
use http::header::{HOST, RANGE};
use http::{HeaderMap, Method, Request, Response, StatusCode};
use hyper::body::Body as HttpBody;
use image_format::ImageRef;
use image_format::marker::{MARKER_BYTES_MAX, Marker};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::timeout;

use crate::access_log::{AccessLog, Entry};
use crate::body::{Body, Source};
use crate::config::Limits;
use crate::decide::{self, Caching, ContentType, Decision, Refusal, Representation};
use crate::precondition::Validators;
use crate::raw::Images;
use crate::route::{Route, StorePath, route};
use crate::store::{OpenFile, StoreError, Tree};
use crate::{home, range};

/// Answers requests from one store.
#[derive(Debug)]
pub(crate) struct Handler {
    tree: Tree,
    images: Images,
    access_log: AccessLog,
    answers: Arc<Semaphore>,
    own_address: String,
}

/// What was found for a route.
struct Found {
    representation: Representation,
    source: Source,
}

impl Handler {
    /// Answers from the store in a directory.
    ///
    /// # Errors
    /// The directory holds no store that can be read.
    pub(crate) async fn open(
        root: &Path,
        access_log: AccessLog,
        answers: NonZeroUsize,
        own_address: String,
    ) -> Result<Self, image_store::StoreError> {
        Ok(Self {
            tree: Tree::new(root),
            images: Images::open(root).await?,
            access_log,
            answers: Arc::new(Semaphore::new(answers.get())),
            own_address,
        })
    }

    /// Answers one request. Never fails: what goes wrong is an answer too.
    pub(crate) async fn handle<B: HttpBody>(
        &self,
        request: Request<B>,
        peer: SocketAddr,
    ) -> Response<Body> {
        let mut entry = Entry::new(self.access_log, peer, &request, Instant::now());
        let permit = self.admit().await;
        let found = match permit {
            Some(_) => self.find(&request, &entry).await,
            None => Err(Refusal::Busy),
        };
        let (decision, source) = match found {
            Ok(found) => {
                hint_at_broken_ipxe(request.headers(), peer);
                let method = request.method();
                let decision = decide::respond(method, request.headers(), &found.representation);
                (decision, found.source)
            }
            Err(refusal) => (decide::refuse(&refusal), Source::Memory(Bytes::new())),
        };
        entry.status(decision.status);
        let Decision {
            status,
            headers,
            segments,
        } = decision.for_method(request.method());
        let mut response = Response::new(Body::new(segments, source, entry, permit));
        *response.status_mut() = status;
        *response.headers_mut() = headers;
        response
    }

    /// Waits for the turn of a request; nothing where that takes too long.
    async fn admit(&self) -> Option<OwnedSemaphorePermit> {
        let turn = Arc::clone(&self.answers).acquire_owned();
        timeout(Limits::ADMISSION_TIMEOUT, turn).await.ok()?.ok()
    }

    async fn find<B: HttpBody>(
        &self,
        request: &Request<B>,
        entry: &Entry,
    ) -> Result<Found, Refusal> {
        if !request.body().is_end_stream() {
            return Err(Refusal::Body);
        }
        if !matches!(*request.method(), Method::GET | Method::HEAD) {
            return Err(Refusal::Method);
        }
        let route = route(request.uri().path()).ok_or(Refusal::NoSuchAddress)?;
        let found = match route {
            Route::Home => self.home(request).await,
            Route::Health => return self.health().await,
            Route::File(path) => self.file(path).await,
            Route::Raw(image) => self.raw(&image).await,
        };
        found.map_err(|error| {
            let refusal = decide::refusal(&error);
            if decide::status(&error).is_server_error() {
                entry.failed(&error);
            }
            refusal
        })
    }

    async fn open_file(&self, path: StorePath) -> Result<OpenFile, StoreError> {
        let tree = self.tree.clone();
        tokio::task::spawn_blocking(move || tree.open(&path))
            .await
            .map_err(StoreError::Stopped)?
    }

    async fn file(&self, path: StorePath) -> Result<Found, StoreError> {
        let OpenFile {
            representation,
            file,
        } = self.open_file(path).await?;
        Ok(Found {
            representation,
            source: Source::File(Arc::new(file)),
        })
    }

    async fn raw(&self, image: &ImageRef) -> Result<Found, StoreError> {
        let (disk, tag) = self.images.disk(image).await?;
        let caching = match image.version {
            Some(_) => Caching::Immutable,
            None => Caching::Revalidate,
        };
        let representation = Representation {
            length: disk.length(),
            validators: Validators {
                tag: Some(tag),
                modified: None,
                immutable: caching == Caching::Immutable,
            },
            content_type: ContentType::Binary,
            caching,
        };
        Ok(Found {
            representation,
            source: Source::Disk(disk),
        })
    }

    async fn home<B>(&self, request: &Request<B>) -> Result<Found, StoreError> {
        let (catalogues, n_more) = self.images.list(home::IMAGES_MAX).await?;
        let host = request.uri().authority().map(http::uri::Authority::as_str);
        let header = request.headers().get(HOST);
        let host = host.or_else(|| header.and_then(|value| value.to_str().ok()));
        let host = host.and_then(home::parse_host).unwrap_or(&self.own_address);
        let page = home::page(host, &catalogues, n_more);
        Ok(generated(page, ContentType::Html, Caching::Revalidate))
    }

    async fn health(&self) -> Result<Found, Refusal> {
        match self.read_marker().await {
            Ok(_) => Ok(generated(
                "ok\n".to_owned(),
                ContentType::Text,
                Caching::Never,
            )),
            Err(reason) => Err(Refusal::Store {
                status: StatusCode::SERVICE_UNAVAILABLE,
                reason,
            }),
        }
    }

    /// Reads the marker anew, so that health means: the directory is still there, and a store.
    async fn read_marker(&self) -> Result<Marker, String> {
        let opened = self.open_file(StorePath::Marker).await;
        let OpenFile {
            representation,
            file,
        } = opened.map_err(|error| match error {
            StoreError::NotFound => "the store has no circular.json".to_owned(),
            error => error
                .source()
                .map_or_else(|| error.to_string(), |why| format!("circular.json: {why}")),
        })?;
        let whole = range::ByteRange::new(0, representation.length.min(MARKER_BYTES_MAX as u64))
            .ok_or_else(|| "circular.json is empty".to_owned())?;
        let read = Source::File(Arc::new(file)).read(whole).await;
        let bytes = read.map_err(|error| error.to_string())?;
        Marker::decode(&bytes).map_err(|error| error.to_string())
    }
}

fn generated(text: String, content_type: ContentType, caching: Caching) -> Found {
    let bytes = Bytes::from(text);
    Found {
        representation: Representation {
            length: bytes.len() as u64,
            validators: Validators::default(),
            content_type,
            caching,
        },
        source: Source::Memory(bytes),
    }
}

fn hint_at_broken_ipxe(headers: &HeaderMap, peer: SocketAddr) {
    let asked = headers.get(RANGE).and_then(|value| value.to_str().ok());
    if asked.is_some_and(range::is_from_broken_ipxe) {
        tracing::warn!(
            %peer,
            "this machine's iPXE asks for `bytes=u-u`, a known bug of some builds: sanboot will \
             not work with it; use another iPXE, for example from boot.ipxe.org"
        );
    }
}
