//! A connection that may not stall for ever.
//!
//! Two clocks that hyper does not have: until the first bytes have told the protocol (a client
//! that connects and says nothing, or three letters), and while a client takes no byte of what
//! is written to it. Either ends the connection with [`io::ErrorKind::TimedOut`]. The permit
//! of the connection lives and dies here.

use std::future::Future;
use std::io::{self, IoSlice};
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::sync::OwnedSemaphorePermit;
use tokio::time::{Sleep, sleep};

/// Bytes after which HTTP/1 and HTTP/2 can be told apart: the length of HTTP/2's preface.
const OPENING_BYTES: usize = 24;

/// A stream with the two clocks.
#[derive(Debug)]
pub(super) struct Guarded<S> {
    stream: S,
    _permit: OwnedSemaphorePermit,
    opening: Opening,
    stall_timeout: Duration,
    write_stalled: Stalled,
    flush_stalled: Stalled,
}

/// Runs while something waits for the client to take bytes.
type Stalled = Option<Pin<Box<Sleep>>>;

#[derive(Debug)]
enum Opening {
    Awaited { seen: usize, until: Pin<Box<Sleep>> },
    Over,
}

impl<S> Guarded<S> {
    /// Starts the clock of the opening.
    pub(super) fn new(
        stream: S,
        permit: OwnedSemaphorePermit,
        opening_timeout: Duration,
        stall_timeout: Duration,
    ) -> Self {
        Self {
            stream,
            _permit: permit,
            opening: Opening::Awaited {
                seen: 0,
                until: Box::pin(sleep(opening_timeout)),
            },
            stall_timeout,
            write_stalled: None,
            flush_stalled: None,
        }
    }
}

/// Passes on what a write or a flush came to; time runs while it comes to nothing.
fn watch<T>(
    stalled: &mut Stalled,
    stall_timeout: Duration,
    cx: &mut Context<'_>,
    polled: Poll<io::Result<T>>,
) -> Poll<io::Result<T>> {
    if polled.is_ready() {
        *stalled = None;
        return polled;
    }
    let stalled = stalled.get_or_insert_with(|| Box::pin(sleep(stall_timeout)));
    match stalled.as_mut().poll(cx) {
        Poll::Ready(()) => Poll::Ready(Err(timed_out("the client takes no bytes"))),
        Poll::Pending => Poll::Pending,
    }
}

fn timed_out(why: &'static str) -> io::Error {
    io::Error::new(io::ErrorKind::TimedOut, why)
}

impl<S: AsyncRead + Unpin> AsyncRead for Guarded<S> {
    fn poll_read(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let guarded = self.get_mut();
        let before = buf.filled().len();
        let polled = Pin::new(&mut guarded.stream).poll_read(cx, buf);
        let Opening::Awaited { seen, until } = &mut guarded.opening else {
            return polled;
        };
        if polled.is_pending() {
            return match until.as_mut().poll(cx) {
                Poll::Ready(()) => Poll::Ready(Err(timed_out("the client says nothing"))),
                Poll::Pending => Poll::Pending,
            };
        }
        *seen += buf.filled().len() - before;
        if *seen >= OPENING_BYTES {
            guarded.opening = Opening::Over;
        }
        polled
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Guarded<S> {
    fn poll_write(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &[u8],
    ) -> Poll<io::Result<usize>> {
        let guarded = self.get_mut();
        // Whoever is answered has said what it wants.
        guarded.opening = Opening::Over;
        let polled = Pin::new(&mut guarded.stream).poll_write(cx, buf);
        watch(
            &mut guarded.write_stalled,
            guarded.stall_timeout,
            cx,
            polled,
        )
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let guarded = self.get_mut();
        guarded.opening = Opening::Over;
        let polled = Pin::new(&mut guarded.stream).poll_write_vectored(cx, bufs);
        watch(
            &mut guarded.write_stalled,
            guarded.stall_timeout,
            cx,
            polled,
        )
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let guarded = self.get_mut();
        // TLS keeps bytes back until here.
        let polled = Pin::new(&mut guarded.stream).poll_flush(cx);
        watch(
            &mut guarded.flush_stalled,
            guarded.stall_timeout,
            cx,
            polled,
        )
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let guarded = self.get_mut();
        let polled = Pin::new(&mut guarded.stream).poll_shutdown(cx);
        watch(
            &mut guarded.flush_stalled,
            guarded.stall_timeout,
            cx,
            polled,
        )
    }
}

#[cfg(test)]
mod tests {
    use std::io::ErrorKind;
    use std::sync::Arc;
    use std::time::Duration;

    use super::Guarded;
    use tokio::io::{AsyncReadExt, AsyncWriteExt, DuplexStream, duplex};
    use tokio::sync::Semaphore;

    const OPENING: Duration = Duration::from_millis(20);
    const STALL: Duration = Duration::from_millis(20);

    fn guarded(permits: &Arc<Semaphore>) -> (DuplexStream, Guarded<DuplexStream>) {
        let (client, server) = duplex(64);
        let permit = Arc::clone(permits).try_acquire_owned().unwrap();
        (client, Guarded::new(server, permit, OPENING, STALL))
    }

    #[tokio::test]
    async fn a_client_that_says_three_letters_is_dropped() {
        let permits = Arc::new(Semaphore::new(1));
        let (mut client, mut server) = guarded(&permits);
        client.write_all(b"PRI").await.unwrap();
        let error = server.read_exact(&mut [0; 24]).await.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::TimedOut);
        assert_eq!(permits.available_permits(), 0);
        drop(server);
        assert_eq!(permits.available_permits(), 1);
    }

    #[tokio::test]
    async fn a_client_that_takes_no_bytes_is_dropped() {
        let (_client, mut server) = guarded(&Arc::new(Semaphore::new(1)));
        let error = server.write_all(&[0; 65]).await.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::TimedOut);
    }
}
