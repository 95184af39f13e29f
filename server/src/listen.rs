//! Connections: accepts them, bounds them, and lets them finish at shutdown.
//!
//! - TLS is spoken first where a listener has a certificate; the handshake counts as part of the
//!   time that a request head may take.
//! - A permit is taken before a connection is accepted, so what is too much waits in the
//!   kernel's listen queue.
//! - The protocol is told by the first bytes: HTTP/1, or HTTP/2 with prior knowledge.
//! - [`guard`] bounds how long a connection may say or take nothing; hyper bounds the head; [`idle`] ends those that
//!   only answer pings.
//! - Out of file descriptors, accepting pauses instead of spinning: connections that end
//!   give some back.
//! - At shutdown nothing new is accepted, running answers finish within the drain time, and
//!   what is left then is dropped.

mod guard;
mod idle;

use std::convert::Infallible;
use std::future::{Future, poll_fn};
use std::io;
use std::net::SocketAddr;
use std::pin::pin;
use std::sync::{Arc, Mutex, PoisonError};
use std::task::Poll;
use std::time::Duration;

use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use hyper_util::server::conn::auto;
use hyper_util::server::graceful::{GracefulShutdown, Watcher};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, watch};
use tokio::task::{JoinError, JoinSet};
use tokio::time::{Instant, sleep, timeout};

use crate::config::Limits;
use crate::handle::{Handler, Peer};
use crate::tls::Tls;
use guard::Guarded;
use idle::Answers;
pub(crate) use idle::Busy;

/// How long accepting pauses when the machine has no more descriptors or memory: short
/// beside a client's connect time-out, long beside a spin.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// How often it is said that no more connections are taken.
const FULL_EVERY: Duration = Duration::from_secs(60);

/// So many times as long as HTTP/1 a connection of HTTP/2 may sit idle: what it was sent may be on its way still, on a
/// slow line for minutes.
const IDLE_TIMES: u32 = 5;

/// Bytes of an HTTP/2 answer that may wait for the client's window: two pieces of a file, so
/// that the next one is read while the last one is sent.
const SEND_BUFFER_BYTES: usize = 512 << 10;

/// How often an HTTP/2 client is asked whether it is still there, and how long it may take
/// to answer.
const PING_INTERVAL: Duration = Duration::from_secs(30);

/// Where connections come from.
#[derive(Debug)]
pub(crate) struct Listener {
    /// Takes them.
    pub(crate) socket: TcpListener,
    /// What they speak before HTTP, if anything.
    pub(crate) tls: Option<Tls>,
}

/// What all connections share.
struct Shared {
    protocol: auto::Builder<TokioExecutor>,
    handler: Arc<Handler>,
    limits: Limits,
}

/// How a shutdown went.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Drained {
    /// Every answer was finished.
    All,
    /// The drain time ran out; this many connections were dropped.
    Dropped(usize),
}

/// Serves the connections of all listeners until `shutdown` is ready, then drains.
///
/// # Cancel safety
/// Dropping the future drops all connections.
pub(crate) async fn serve(
    listeners: Vec<Listener>,
    handler: Arc<Handler>,
    limits: Limits,
    shutdown: impl Future<Output = ()>,
) -> Drained {
    let shared = Arc::new(Shared {
        protocol: protocol(&limits),
        handler,
        limits,
    });
    let (closing, closed) = watch::channel(false);
    let permits = Permits::new(limits.connections.get());
    let graceful = GracefulShutdown::new();
    let mut connections = JoinSet::new();
    tokio::pin!(shutdown);
    loop {
        tokio::select! {
            () = &mut shutdown => break,
            Some(ended) = connections.join_next() => report(ended),
            accepted = accept(&listeners, &permits) => match accepted {
                Ok(accepted) => {
                    let shared = Arc::clone(&shared);
                    let (watcher, closed) = (graceful.watcher(), closed.clone());
                    connections.spawn(accepted.serve(shared, watcher, closed));
                }
                Err(error) => pause_after(&error).await,
            },
        }
    }
    drop(listeners);
    tracing::info!(connections = connections.len(), "shutting down");
    let _ = closing.send(true);
    let drained = timeout(limits.drain_timeout, graceful.shutdown()).await;
    // What ended is taken away first, so that only what still runs is counted.
    while let Some(ended) = connections.try_join_next() {
        report(ended);
    }
    match drained {
        Ok(()) => Drained::All,
        Err(_elapsed) => Drained::Dropped(connections.len()),
    }
}

fn protocol(limits: &Limits) -> auto::Builder<TokioExecutor> {
    let head_bytes = usize::try_from(Limits::HEAD_BYTES_MAX).unwrap_or(usize::MAX);
    let mut builder = auto::Builder::new(TokioExecutor::new());
    builder
        .http1()
        .timer(TokioTimer::new())
        .header_read_timeout(limits.head_timeout)
        .max_buf_size(head_bytes)
        // A client may end its side after the request, as `nc -N` does.
        .half_close(true);
    builder
        .http2()
        .timer(TokioTimer::new())
        .max_header_list_size(Limits::HEAD_BYTES_MAX)
        .max_concurrent_streams(Limits::STREAMS_MAX)
        .max_send_buf_size(SEND_BUFFER_BYTES)
        .keep_alive_interval(PING_INTERVAL)
        .keep_alive_timeout(PING_INTERVAL);
    builder
}

/// A connection that was accepted, and the permit that it holds until it ends.
struct Accepted {
    stream: TcpStream,
    peer: SocketAddr,
    tls: Option<Tls>,
    permit: OwnedSemaphorePermit,
    since: Instant,
}

/// The places for connections.
struct Permits {
    free: Arc<Semaphore>,
    most: usize,
    /// When it was said last that there is none.
    told: Mutex<Option<Instant>>,
}

impl Permits {
    fn new(most: usize) -> Self {
        Self {
            free: Arc::new(Semaphore::new(most)),
            most,
            told: Mutex::new(None),
        }
    }

    /// Waits for one; that it has to is said now and then.
    async fn next(&self) -> io::Result<OwnedSemaphorePermit> {
        if let Ok(permit) = Arc::clone(&self.free).try_acquire_owned() {
            return Ok(permit);
        }
        self.tell();
        let permit = Arc::clone(&self.free).acquire_owned().await;
        permit.map_err(io::Error::other) // never closed
    }

    fn tell(&self) {
        let mut told = self.told.lock().unwrap_or_else(PoisonError::into_inner);
        if told.is_none_or(|told| told.elapsed() > FULL_EVERY) {
            *told = Some(Instant::now());
            let connections = self.most;
            tracing::warn!(
                connections,
                "all connections are taken: more wait (see --max-connections)"
            );
        }
    }
}

async fn accept(listeners: &[Listener], permits: &Permits) -> io::Result<Accepted> {
    let permit = permits.next().await?;
    let (accepted, tls) = poll_fn(|cx| {
        for listener in listeners {
            if let Poll::Ready(accepted) = listener.socket.poll_accept(cx) {
                return Poll::Ready((accepted, listener.tls.clone()));
            }
        }
        Poll::Pending
    })
    .await;
    let (stream, peer) = accepted?;
    Ok(Accepted {
        stream,
        peer,
        tls,
        permit,
        since: Instant::now(),
    })
}

async fn pause_after(error: &io::Error) {
    let gone = [
        io::ErrorKind::ConnectionAborted,
        io::ErrorKind::ConnectionReset,
    ];
    if !gone.contains(&error.kind()) {
        tracing::warn!("cannot accept a connection, waiting: {error}");
        sleep(ACCEPT_PAUSE).await;
    }
}

/// A panic in one connection ends that connection only; hyper's own errors are clients that
/// went away or spoke no HTTP.
fn report(ended: Result<Result<(), BoxError>, JoinError>) {
    match ended {
        Ok(Ok(())) => {}
        Ok(Err(error)) => tracing::debug!("connection ended: {error}"),
        Err(error) => tracing::error!("a connection's task stopped: {error}"),
    }
}

type BoxError = Box<dyn std::error::Error + Send + Sync>;

impl Accepted {
    /// Serves the connection to its end, its handshake included.
    async fn serve(
        self,
        shared: Arc<Shared>,
        watcher: Watcher,
        mut closed: watch::Receiver<bool>,
    ) -> Result<(), BoxError> {
        let Self {
            stream,
            peer,
            tls,
            permit,
            since,
        } = self;
        // Answers are whole pieces already; waiting to fill a packet only delays their end.
        if let Err(error) = stream.set_nodelay(true) {
            tracing::debug!(%peer, "cannot turn off Nagle's algorithm: {error}");
        }
        let left = || shared.limits.head_timeout.saturating_sub(since.elapsed());
        let Some(tls) = tls else {
            let peer = Peer {
                address: peer,
                scheme: "http",
            };
            let stream = Guarded::new(stream, permit, left(), shared.limits.stall_timeout);
            return speak(stream, peer, &shared, watcher, closed).await;
        };
        let handshake = async { Ok::<_, BoxError>(tls.acceptor().await?.accept(stream).await?) };
        let stream = tokio::select! {
            done = timeout(left(), handshake) => done??,
            // Nothing was asked yet, so nothing is left to be finished.
            _ = closed.wait_for(|closed| *closed) => return Ok(()),
        };
        let peer = Peer {
            address: peer,
            scheme: "https",
        };
        let stream = Guarded::new(stream, permit, left(), shared.limits.stall_timeout);
        speak(stream, peer, &shared, watcher, closed).await
    }
}

/// Speaks HTTP until the connection ends; the permit goes with its stream.
async fn speak<S>(
    stream: Guarded<S>,
    peer: Peer,
    shared: &Shared,
    watcher: Watcher,
    mut closed: watch::Receiver<bool>,
) -> Result<(), BoxError>
where
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let handler = Arc::clone(&shared.handler);
    let (turns, answers) = (Arc::new(handler.turns()), Arc::new(Answers::none()));
    let begun = Arc::clone(&answers);
    let service = service_fn(move |request| {
        let (handler, turns) = (Arc::clone(&handler), Arc::clone(&turns));
        let busy = begun.begin();
        async move {
            let answer = handler.handle(request, peer, &turns).await;
            Ok::<_, Infallible>(answer.map(|body| body.during(busy)))
        }
    });
    let connection = shared
        .protocol
        .serve_connection(TokioIo::new(stream), service)
        .into_owned();
    let mut connection = pin!(connection);
    let ended = tokio::select! {
        ended = connection.as_mut() => ended,
        () = left(&mut closed, &answers, shared.limits.head_timeout * IDLE_TIMES) => {
            // What is under way comes to its end.
            connection.as_mut().graceful_shutdown();
            connection.await
        }
    };
    // Whoever shuts down waits for this.
    drop(watcher);
    ended
}

/// Waits until a connection is of no more use: at shutdown, or when nobody has used it for `idle`.
async fn left(closed: &mut watch::Receiver<bool>, answers: &Answers, idle: Duration) {
    tokio::select! {
        _ = closed.wait_for(|closed| *closed) => {}
        () = answers.none_for(idle) => {}
    }
}
