//! The request path: request → route → open → decide → response.
//!
//! This is the one place where the pure modules meet the store and the connection. It keeps no
//! state between requests but what [`crate::raw`] has open. Whether a request is let in is decided
//! here too, before anything is looked up for it.

use std::error::Error as _;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Instant;

use bytes::Bytes;
use http::header::{HOST, RANGE};
use http::{HeaderMap, Method, Request, Response, StatusCode};
use hyper::body::Body as HttpBody;
use image_format::ImageRef;
use image_format::marker::{MARKER_BYTES_MAX, Marker};
use tokio::sync::Semaphore;

use crate::access::Access;
use crate::access_log::{AccessLog, Entry};
use crate::body::{Body, Source};
use crate::config::Config;
use crate::credentials::{self, Denied};
use crate::decide::{self, Caching, ContentType, Decision, Refusal, Representation};
use crate::precondition::Validators;
use crate::raw::Images;
use crate::route::{Route, StorePath, route};
use crate::store::{OpenFile, StoreError, Tree};
use crate::tokens::Scope;
use crate::traces::{self, Traces};
use crate::turns::Turns;
use crate::upload::protocol::{Asked, Reply, UploadError, asked};
use crate::upload::{self, Uploads};
use crate::{home, range};

/// Who is at the other end of a connection.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Peer {
    /// Its address.
    pub(crate) address: SocketAddr,
    /// `http` or `https`: how it came.
    pub(crate) scheme: &'static str,
}

/// Answers requests from one store.
#[derive(Debug)]
pub(crate) struct Handler {
    tree: Tree,
    images: Images,
    access: Access,
    private: bool,
    writers: Writers,
    access_log: AccessLog,
    answers: Arc<Semaphore>,
    own_address: String,
}

/// Who takes what a request brings.
enum Writer<'a> {
    Uploads(&'a Uploads, Asked),
    Traces(&'a Traces),
}

/// What takes something in, where that was asked for.
#[derive(Debug)]
pub(crate) struct Writers {
    /// Of what is published.
    pub(crate) uploads: Option<Uploads>,
    /// Of recorded boots.
    pub(crate) traces: Option<Traces>,
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
        config: &Config,
        access: Access,
        writers: Writers,
        own_address: String,
    ) -> Result<Self, image_store::StoreError> {
        Ok(Self {
            tree: Tree::new(&config.store),
            images: Images::open(&config.store).await?,
            access,
            private: config.private,
            writers,
            access_log: config.access_log,
            answers: Arc::new(Semaphore::new(config.limits.answers.get())),
            own_address,
        })
    }

    /// Answers one request. Never fails: what goes wrong is an answer too.
    pub(crate) async fn handle<B>(
        &self,
        request: Request<B>,
        peer: Peer,
        turns: &Turns,
    ) -> Response<Body>
    where
        B: HttpBody<Data = Bytes> + Send + Unpin + 'static,
    {
        let mut entry = Entry::new(self.access_log, peer.address, &request, Instant::now());
        let method = request.method().clone();
        let permit = turns.next().await;
        let admitted = permit.is_some();
        let (decision, source) = match self.writer(&request) {
            Some(writer) => {
                let answer = match admitted {
                    true => self.write(writer, request, &mut entry).await,
                    false => Err(UploadError::Busy),
                };
                (decide_upload(&answer, &entry), Source::Memory(Bytes::new()))
            }
            None => self.serve(request, peer, admitted, &mut entry).await,
        };
        let decision = match self.private {
            true => decision.keep_private(),
            false => decision,
        };
        entry.status(decision.status);
        let Decision {
            status,
            headers,
            segments,
        } = decision.for_method(&method);
        let mut response = Response::new(Body::new(segments, source, entry, permit));
        *response.status_mut() = status;
        *response.headers_mut() = headers;
        response
    }

    async fn serve<B>(
        &self,
        request: Request<B>,
        peer: Peer,
        admitted: bool,
        entry: &mut Entry,
    ) -> (Decision, Source)
    where
        B: HttpBody<Data = Bytes> + Send + Unpin + 'static,
    {
        let found = match admitted {
            true => self.find(&request, peer, entry).await,
            false => Err(Refusal::Busy),
        };
        match found {
            Ok(found) => {
                hint_at_broken_ipxe(request.headers(), peer.address);
                let method = request.method();
                let decision = decide::respond(method, request.headers(), &found.representation);
                (decision, found.source)
            }
            Err(refusal) => (decide::refuse(&refusal), Source::Memory(Bytes::new())),
        }
    }

    /// Returns what a request is for that brings something.
    fn writer<B>(&self, request: &Request<B>) -> Option<Writer<'_>> {
        let path = request.uri().path();
        match (&self.writers.traces, &self.writers.uploads) {
            (Some(traces), _) if path == traces::PATH => Some(Writer::Traces(traces)),
            (_, Some(uploads)) => {
                asked(request.method(), path).map(|asked| Writer::Uploads(uploads, asked))
            }
            (_, None) => None,
        }
    }

    async fn write<B>(
        &self,
        writer: Writer<'_>,
        request: Request<B>,
        entry: &mut Entry,
    ) -> Result<Reply, UploadError>
    where
        B: HttpBody<Data = Bytes> + Send + Unpin + 'static,
    {
        let needed = match writer {
            Writer::Uploads(..) => Some(Scope::Publish),
            Writer::Traces(_) => self.private.then_some(Scope::Read),
        };
        match self.let_in(request.headers(), needed, entry).await {
            Ok(()) => match writer {
                Writer::Uploads(uploads, asked) => uploads.answer(asked, request).await,
                Writer::Traces(traces) => traces.answer(request).await,
            },
            Err(denied) => {
                let (head, body) = request.into_parts();
                upload::discard(&head.headers, body);
                Err(match denied {
                    Denied::Unknown => UploadError::Unauthorized,
                    Denied::Scope => UploadError::Forbidden,
                })
            }
        }
    }

    /// Decides whether a request is let in, by the token that it brings.
    async fn let_in(
        &self,
        headers: &HeaderMap,
        needed: Option<Scope>,
        entry: &mut Entry,
    ) -> Result<(), Denied> {
        let grant = self.access.identify(headers).await;
        if let Some(grant) = &grant {
            entry.token(grant.name.to_string());
        }
        credentials::check(grant.as_ref(), needed)
    }

    /// Begins a connection.
    pub(crate) fn turns(&self) -> Turns {
        Turns::new(&self.answers)
    }

    async fn find<B: HttpBody>(
        &self,
        request: &Request<B>,
        peer: Peer,
        entry: &mut Entry,
    ) -> Result<Found, Refusal> {
        let route = route(request.uri().path());
        let needed = match route {
            Some(Route::Health) => None,
            _ => self.private.then_some(Scope::Read),
        };
        self.let_in(request.headers(), needed, entry)
            .await
            .map_err(|denied| match denied {
                Denied::Unknown => Refusal::Unauthorized,
                Denied::Scope => Refusal::Forbidden,
            })?;
        if !matches!(*request.method(), Method::GET | Method::HEAD) {
            return Err(Refusal::Method("GET, HEAD"));
        }
        if !request.body().is_end_stream() {
            return Err(Refusal::Body);
        }
        let found = match route.ok_or(Refusal::NoSuchAddress)? {
            Route::Home => self.home(request, peer).await,
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

    async fn home<B>(&self, request: &Request<B>, peer: Peer) -> Result<Found, StoreError> {
        let listing = self.images.list(home::IMAGES_MAX).await?;
        let host = request.uri().authority().map(http::uri::Authority::as_str);
        let header = request.headers().get(HOST);
        let host = host.or_else(|| header.and_then(|value| value.to_str().ok()));
        let host = host.and_then(home::parse_host).unwrap_or(&self.own_address);
        let n_more = listing.n_names.saturating_sub(home::IMAGES_MAX);
        let page = home::page(peer.scheme, host, &listing.catalogues, n_more);
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

fn decide_upload(answer: &Result<Reply, UploadError>, entry: &Entry) -> Decision {
    match answer {
        Ok(reply) => {
            let (status, body) = reply.render();
            decide::json(status, body)
        }
        Err(UploadError::Method(allowed)) => decide::refuse(&Refusal::Method(allowed)),
        Err(error) => {
            let status = error.status();
            if status.is_server_error() && status != StatusCode::SERVICE_UNAVAILABLE {
                entry.failed(error);
            }
            decide::json(status, error.render())
        }
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
