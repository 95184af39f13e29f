//! Connections: accepts them, bounds them, and lets them finish at shutdown.
//!
//! - A permit is taken before a connection is accepted, so what is too much waits in the
//!   kernel's listen queue.
//! - The protocol is told by the first bytes: HTTP/1, or HTTP/2 with prior knowledge.
//! - [`guard`] bounds how long a connection may say or take nothing; hyper bounds the head.
//! - Out of file descriptors, accepting pauses instead of spinning: connections that end
//!   give some back.
//! - At shutdown nothing new is accepted, running answers finish within the drain time, and
//!   what is left then is dropped.

mod guard;

use std::convert::Infallible;
use std::future::{Future, poll_fn};
use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::task::Poll;
use std::time::Duration;

use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use hyper_util::server::conn::auto;
use hyper_util::server::graceful::{GracefulConnection, GracefulShutdown};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::task::{JoinError, JoinSet};
use tokio::time::{sleep, timeout};

use crate::config::Limits;
use crate::handle::Handler;
use guard::Guarded;

/// How long accepting pauses when the machine has no more descriptors or memory: short
/// beside a client's connect time-out, long beside a spin.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// Bytes of an HTTP/2 answer that may wait for the client's window: two pieces of a file, so
/// that the next one is read while the last one is sent.
const SEND_BUFFER_BYTES: usize = 512 << 10;

/// How often an HTTP/2 client is asked whether it is still there, and how long it may take
/// to answer.
const PING_INTERVAL: Duration = Duration::from_secs(30);

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
    listeners: Vec<TcpListener>,
    handler: Arc<Handler>,
    limits: Limits,
    shutdown: impl Future<Output = ()>,
) -> Drained {
    let protocol = protocol(&limits);
    let permits = Arc::new(Semaphore::new(limits.connections.get()));
    let graceful = GracefulShutdown::new();
    let mut connections = JoinSet::new();
    tokio::pin!(shutdown);
    loop {
        tokio::select! {
            () = &mut shutdown => break,
            Some(ended) = connections.join_next() => report(ended),
            accepted = accept(&listeners, &permits) => match accepted {
                Ok(accepted) => {
                    let connection = accepted.serve(&protocol, &handler, &limits);
                    connections.spawn(graceful.watcher().watch(connection));
                }
                Err(error) => pause_after(&error).await,
            },
        }
    }
    drop(listeners);
    tracing::info!(connections = connections.len(), "shutting down");
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
    permit: OwnedSemaphorePermit,
}

async fn accept(listeners: &[TcpListener], permits: &Arc<Semaphore>) -> io::Result<Accepted> {
    let permit = Arc::clone(permits).acquire_owned().await;
    let permit = permit.map_err(io::Error::other)?; // never closed
    let (stream, peer) = poll_fn(|cx| {
        let mut polled = listeners.iter().map(|listener| listener.poll_accept(cx));
        polled.find(Poll::is_ready).unwrap_or(Poll::Pending)
    })
    .await?;
    Ok(Accepted {
        stream,
        peer,
        permit,
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
    /// Makes the connection; the permit goes with its stream.
    fn serve(
        self,
        protocol: &auto::Builder<TokioExecutor>,
        handler: &Arc<Handler>,
        limits: &Limits,
    ) -> impl GracefulConnection<Output = Result<(), BoxError>, Error = BoxError> + Send + use<>
    {
        let Self {
            stream,
            peer,
            permit,
        } = self;
        // Answers are whole pieces already; waiting to fill a packet only delays their end.
        if let Err(error) = stream.set_nodelay(true) {
            tracing::debug!(%peer, "cannot turn off Nagle's algorithm: {error}");
        }
        let stream = Guarded::new(stream, permit, limits.head_timeout, limits.stall_timeout);
        let handler = Arc::clone(handler);
        let service = service_fn(move |request| {
            let handler = Arc::clone(&handler);
            async move { Ok::<_, Infallible>(handler.handle(request, peer).await) }
        });
        protocol
            .serve_connection(TokioIo::new(stream), service)
            .into_owned()
    }
}
