//! A proxy that notes every request before it passes it on: tests count with it.
//!
//! It changes nothing but what its plan of [`faults`] or its [`chaos`] says. A request is in the list before the server sees it,
//! so whoever has the answer also finds the request.

pub mod chaos;
pub mod faults;

use std::convert::Infallible;
use std::io;
use std::net::SocketAddr;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use anyhow::{Context, Result};
use bytes::Bytes;
use chaos::{Chaos, Fate};
use faults::{End, Fault, Plan, Rule, Step};
use futures_util::stream::{self, BoxStream};
use futures_util::{StreamExt, TryStreamExt};
use http_body_util::combinators::UnsyncBoxBody;
use http_body_util::{BodyExt, Full, StreamBody};
use hyper::body::{Frame, Incoming};
use hyper::header::{CONTENT_LENGTH, CONTENT_RANGE, HOST, HeaderMap, HeaderName, RANGE};
use hyper::service::service_fn;
use hyper::{Request, Response, StatusCode};
use hyper_util::rt::{TokioExecutor, TokioIo};
use hyper_util::server::conn::auto;
use nix::libc::linger;
use nix::sys::socket::{setsockopt, sockopt};
use tokio::net::TcpListener;
use tokio::runtime::Runtime;

/// One request and what came of it so far.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Exchange {
    /// `GET` or `HEAD`.
    pub method: String,
    /// Path and query.
    pub path: String,
    /// The `Range` header.
    pub range: Option<String>,
    /// Status of the answer, once there is one.
    pub status: Option<u16>,
    /// Bytes of the body that have passed.
    pub bytes: u64,
}

impl Exchange {
    /// Returns whether this asked for an object: a page, chunks of a pack, a manifest, a kernel.
    pub fn is_object(&self) -> bool {
        self.path.starts_with("/objects/")
    }
}

/// A running proxy.
#[derive(Debug)]
pub struct Proxy {
    url: String,
    exchanges: Exchanges,
    _runtime: Runtime,
}

impl Proxy {
    /// Listens on a free port and passes everything on to `upstream`, which ends in a slash.
    ///
    /// # Errors
    /// There is no port, no thread, or no client.
    pub fn start(upstream: &str) -> Result<Self> {
        Self::start_with(upstream, Vec::new())
    }

    /// Listens on a free port and passes everything on to `upstream`, except for what `rules` say.
    ///
    /// # Errors
    /// There is no port, no thread, or no client.
    pub fn start_with(upstream: &str, rules: Vec<Rule>) -> Result<Self> {
        Self::begin(upstream, rules, None)
    }

    /// Listens on a free port and passes everything on to `upstream`, except for what `chaos` does to it.
    ///
    /// # Errors
    /// There is no port, no thread, or no client.
    pub fn start_in(chaos: &Arc<Chaos>, upstream: &str) -> Result<Self> {
        Self::begin(upstream, Vec::new(), Some(Arc::clone(chaos)))
    }

    fn begin(upstream: &str, rules: Vec<Rule>, chaos: Option<Arc<Chaos>>) -> Result<Self> {
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(2)
            .enable_all()
            .build()
            .context("cannot start a runtime")?;
        let listener = runtime
            .block_on(TcpListener::bind("127.0.0.1:0"))
            .context("no free port")?;
        let address: SocketAddr = listener.local_addr()?;
        let exchanges = Exchanges::default();
        let relay = Relay {
            upstream: upstream.trim_end_matches('/').to_owned(),
            client: reqwest::Client::builder()
                .no_proxy()
                .build()
                .context("no HTTP client")?,
            exchanges: exchanges.clone(),
            plan: Arc::new(Plan::new(rules)),
            chaos,
        };
        runtime.spawn(accept(listener, relay));
        Ok(Self {
            url: format!("http://{address}/"),
            exchanges,
            _runtime: runtime,
        })
    }

    /// Returns the address to use in place of the server's.
    pub fn url(&self) -> &str {
        &self.url
    }

    /// Returns all requests since the start or the last [`Self::take`].
    pub fn exchanges(&self) -> Vec<Exchange> {
        self.exchanges.lock().clone()
    }

    /// Returns all requests and starts counting anew.
    pub fn take(&self) -> Vec<Exchange> {
        self.exchanges.restart()
    }

    /// Returns how many bytes of bodies have passed.
    pub fn bytes(&self) -> u64 {
        self.exchanges
            .lock()
            .iter()
            .map(|exchange| exchange.bytes)
            .sum()
    }
}

/// The list, and how often it was restarted: answers to requests of an earlier list go nowhere.
#[derive(Clone, Debug, Default)]
struct Exchanges {
    list: Arc<Mutex<Vec<Exchange>>>,
    generation: Arc<Mutex<u64>>,
}

/// The place of one exchange in its list.
#[derive(Clone, Copy, Debug)]
struct Place {
    generation: u64,
    index: usize,
}

impl Exchanges {
    fn lock(&self) -> MutexGuard<'_, Vec<Exchange>> {
        self.list.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn generation(&self) -> MutexGuard<'_, u64> {
        self.generation
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
    }

    fn restart(&self) -> Vec<Exchange> {
        *self.generation() += 1;
        std::mem::take(&mut *self.lock())
    }

    fn push(&self, exchange: Exchange) -> Place {
        let generation = *self.generation();
        let mut list = self.lock();
        list.push(exchange);
        Place {
            generation,
            index: list.len() - 1,
        }
    }

    fn update(&self, place: Place, change: impl FnOnce(&mut Exchange)) {
        if *self.generation() == place.generation
            && let Some(exchange) = self.lock().get_mut(place.index)
        {
            change(exchange);
        }
    }
}

#[derive(Clone, Debug)]
struct Relay {
    upstream: String,
    client: reqwest::Client,
    exchanges: Exchanges,
    plan: Arc<Plan>,
    chaos: Option<Arc<Chaos>>,
}

/// The socket of one connection, to be reset.
type Socket = Arc<OwnedFd>;

type Body = UnsyncBoxBody<Bytes, io::Error>;

async fn accept(listener: TcpListener, relay: Relay) {
    while let Ok((stream, _)) = listener.accept().await {
        let relay = relay.clone();
        let Ok(socket) = stream.as_fd().try_clone_to_owned().map(Arc::new) else {
            return;
        };
        tokio::spawn(async move {
            let service = service_fn(move |request| {
                let (relay, socket) = (relay.clone(), socket.clone());
                async move { Ok::<_, Infallible>(relay.pass(request, socket).await) }
            });
            // A connection that breaks is the client's to notice.
            let _ = auto::Builder::new(TokioExecutor::new())
                .serve_connection(TokioIo::new(stream), service)
                .await;
        });
    }
}

impl Relay {
    /// Passes one request on and its answer back.
    async fn pass(&self, request: Request<Incoming>, socket: Socket) -> Response<Body> {
        let path = request
            .uri()
            .path_and_query()
            .map_or("/", |path| path.as_str())
            .to_owned();
        let range = request.headers().get(RANGE);
        let place = self.exchanges.push(Exchange {
            method: request.method().to_string(),
            path: path.clone(),
            range: range.map(|range| String::from_utf8_lossy(range.as_bytes()).into_owned()),
            status: None,
            bytes: 0,
        });
        let fault = self.plan.next(&path);
        let fate = self.chaos.as_ref().and_then(|chaos| chaos.fate());
        let status = match (fault, fate) {
            (Some(Fault::Status(status)), _) | (None, Some(Fate::Status(status))) => Some(status),
            _ => None,
        };
        if let Some(status) = status {
            self.exchanges
                .update(place, |exchange| exchange.status = Some(status));
            let status = StatusCode::from_u16(status).unwrap_or(StatusCode::BAD_GATEWAY);
            return status_only(status, "");
        }
        let mut headers = request.headers().clone();
        headers.remove(HOST);
        let sent = self
            .client
            .request(request.method().clone(), format!("{}{path}", self.upstream))
            .headers(headers)
            .send()
            .await;
        let (status, answer) = match sent {
            Ok(answer) => {
                let fault = fault.or_else(|| self.befallen(fate?, &answer));
                let status = answer.status();
                (status, self.answer(place, &path, answer, fault, socket))
            }
            Err(error) => {
                let status = StatusCode::BAD_GATEWAY;
                (status, status_only(status, &format!("{error:?}\n")))
            }
        };
        self.exchanges
            .update(place, |exchange| exchange.status = Some(status.as_u16()));
        answer
    }

    /// Returns what chaos does to an answer.
    fn befallen(&self, fate: Fate, answer: &reqwest::Response) -> Option<Fault> {
        let length = number(answer.headers(), CONTENT_LENGTH, str::to_owned);
        self.chaos.as_ref()?.fault(fate, length)
    }

    fn answer(
        &self,
        place: Place,
        path: &str,
        answer: reqwest::Response,
        fault: Option<Fault>,
        socket: Socket,
    ) -> Response<Body> {
        let exchanges = self.exchanges.clone();
        let (status, headers) = (answer.status(), answer.headers().clone());
        let bytes = answer.bytes_stream().map_err(io::Error::other).boxed();
        let bytes = match fault {
            None => bytes,
            Some(fault) => faulty(bytes, fault, socket),
        };
        let bytes = match self.chaos.clone() {
            None => bytes,
            Some(chaos) => {
                let mut at = number(&headers, CONTENT_RANGE, first_of_range);
                let path = path.to_owned();
                let damage = move |piece: Bytes| {
                    let begin = at;
                    at += piece.len() as u64;
                    chaos.damage(&path, begin, piece)
                };
                bytes.map_ok(damage).boxed()
            }
        };
        let frames = bytes.map_ok(move |bytes| {
            exchanges.update(place, |exchange| exchange.bytes += bytes.len() as u64);
            Frame::data(bytes)
        });
        let mut response = Response::new(BodyExt::boxed_unsync(StreamBody::new(frames)));
        *response.status_mut() = status;
        *response.headers_mut() = headers;
        response
    }
}

/// The number in a header, after `pick` took it out; 0 if there is none.
fn number(headers: &HeaderMap, name: HeaderName, pick: impl Fn(&str) -> String) -> u64 {
    let value = headers.get(name).and_then(|value| value.to_str().ok());
    value
        .and_then(|value| pick(value).parse().ok())
        .unwrap_or_default()
}

/// `bytes 10-19/100`: 10.
fn first_of_range(value: &str) -> String {
    let digits = value.trim_start_matches("bytes ").chars();
    digits.take_while(char::is_ascii_digit).collect()
}

/// Lets a body meet `fault`; what cannot go on ends in an error, upon which the connection is closed.
fn faulty(
    body: BoxStream<'static, io::Result<Bytes>>,
    fault: Fault,
    socket: Socket,
) -> BoxStream<'static, io::Result<Bytes>> {
    let start = (body, 0, None);
    stream::try_unfold(start, move |(mut body, passed, end)| {
        let socket = socket.clone();
        async move {
            if let Some(end) = end {
                return Err(ended(end, &socket).await);
            }
            let Some(piece) = body.try_next().await? else {
                return Ok(None);
            };
            let length = piece.len() as u64;
            let (bytes, end) = match fault.step(passed, piece) {
                Step::Pass(bytes, pause) => {
                    tokio::time::sleep(pause).await;
                    (bytes, None)
                }
                Step::Last(bytes, end) => (bytes, Some(end)),
            };
            Ok(Some((bytes, (body, passed + length, end))))
        }
    })
    .boxed()
}

/// Ends a body before its time.
async fn ended(end: End, socket: &OwnedFd) -> io::Error {
    // What has come so far is sent while nothing more is there.
    tokio::task::yield_now().await;
    match end {
        End::Close => {}
        End::Silence => std::future::pending().await,
        End::Reset => {
            // Closing a socket that lingers for no time at all resets the connection.
            let at_once = linger {
                l_onoff: 1,
                l_linger: 0,
            };
            if let Err(error) = setsockopt(socket, sockopt::Linger, &at_once) {
                return error.into();
            }
        }
    }
    io::Error::other("the plan says so")
}

fn status_only(status: StatusCode, text: &str) -> Response<Body> {
    let text = Full::from(text.to_owned()).map_err(|never| match never {});
    let mut response = Response::new(text.boxed_unsync());
    *response.status_mut() = status;
    response
}
