//! The body of an answer: segments in, bytes out, never more than a piece at a time.
//!
//! hyper asks for the next piece when it has sent the last one, so a slow client slows the
//! reading down and nothing else. A piece that cannot be read, or is shorter than it should
//! be, ends the body with an error: hyper then closes the connection (HTTP/1.1) or resets the
//! stream (HTTP/2), and the client sees that bytes are missing. It never gets other bytes.
//!
//! Bound: one piece for each answer that is being sent, see [`PIECE_BYTES`]; how many answers there may be is
//! [`Limits::answers`](crate::config::Limits::answers), and one for each connection.

use std::collections::VecDeque;
use std::fs::File;
use std::future::Future;
use std::io::{self, Read, Seek, SeekFrom};
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};

use bytes::Bytes;
use hyper::body::{Body as HttpBody, Frame, SizeHint};
use image_store::ImageReader;
use tokio::sync::OwnedSemaphorePermit;

use crate::access_log::Entry;
use crate::decide::Segment;
use crate::listen::Busy;
use crate::range::ByteRange;

/// Most bytes read at once: enough that the hop to a blocking thread (about 20 µs) is small beside
/// the copy, and that few chunks of a disk (28 KiB on average) are decoded for their edge only.
pub(crate) const PIECE_BYTES: u64 = 256 << 10;

/// Where the bytes of a representation come from.
#[derive(Clone, Debug)]
pub(crate) enum Source {
    /// A generated page.
    Memory(Bytes),
    /// An open file of the store.
    File(Arc<File>),
    /// An image, put together from its chunks.
    Disk(Arc<ImageReader>),
}

/// Why a piece of a body could not be had.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ReadError {
    #[error("cannot read {length} bytes at {offset}")]
    File {
        offset: u64,
        length: u64,
        source: io::Error,
    },
    #[error("cannot read {length} bytes of the disk at {offset}")]
    Disk {
        offset: u64,
        length: u64,
        source: image_store::ReadError,
    },
    #[error("read {got} bytes in place of {length} at {offset}")]
    Short { offset: u64, length: u64, got: u64 },
}

impl Source {
    /// Reads a piece; `range` is no longer than [`PIECE_BYTES`].
    pub(crate) async fn read(self, range: ByteRange) -> Result<Bytes, ReadError> {
        let (offset, length) = (range.start(), range.length());
        let bytes = match self {
            Self::Memory(bytes) => slice(&bytes, range),
            Self::File(file) => tokio::task::spawn_blocking(move || read_file(&file, range))
                .await
                .unwrap_or_else(|stopped| Err(io::Error::other(stopped)))
                .map_err(|source| ReadError::File {
                    offset,
                    length,
                    source,
                })?,
            Self::Disk(disk) => disk
                .read(offset, usize::try_from(length).unwrap_or(usize::MAX))
                .await
                .map_err(|source| ReadError::Disk {
                    offset,
                    length,
                    source,
                })?,
        };
        let got = bytes.len() as u64;
        if got == length {
            Ok(bytes)
        } else {
            Err(ReadError::Short {
                offset,
                length,
                got,
            })
        }
    }
}

fn slice(bytes: &Bytes, range: ByteRange) -> Bytes {
    let index = |at: u64| usize::try_from(at).map_or(bytes.len(), |at| at.min(bytes.len()));
    bytes.slice(index(range.start())..index(range.last().saturating_add(1)))
}

/// The body is the only one who uses the file, so its position is ours to move.
fn read_file(mut file: &File, range: ByteRange) -> io::Result<Bytes> {
    let mut piece = Vec::with_capacity(usize::try_from(range.length()).unwrap_or_default());
    file.seek(SeekFrom::Start(range.start()))?;
    file.take(range.length()).read_to_end(&mut piece)?;
    Ok(piece.into())
}

type Reading = Pin<Box<dyn Future<Output = Result<Bytes, ReadError>> + Send>>;

/// The body of one answer. Dropping it writes the line of the access log.
pub(crate) struct Body {
    segments: VecDeque<Segment>,
    source: Source,
    reading: Option<Reading>,
    remaining: u64,
    entry: Entry,
    _permit: Option<OwnedSemaphorePermit>,
    _busy: Option<Busy>,
}

impl Body {
    /// Makes a body of segments whose parts are parts of `source`. The permit, if it needed one,
    /// is given back when the body is dropped.
    pub(crate) fn new(
        segments: VecDeque<Segment>,
        source: Source,
        mut entry: Entry,
        permit: Option<OwnedSemaphorePermit>,
    ) -> Self {
        let remaining = segments.iter().map(Segment::length).sum();
        entry.expect(remaining);
        Self {
            segments,
            source,
            reading: None,
            remaining,
            entry,
            _permit: permit,
            _busy: None,
        }
    }

    /// The same; its connection counts as in use until it is dropped.
    pub(crate) fn during(self, busy: Busy) -> Self {
        Self {
            _busy: Some(busy),
            ..self
        }
    }

    fn emit(&mut self, bytes: Bytes) -> Poll<Option<Result<Frame<Bytes>, ReadError>>> {
        let length = bytes.len() as u64;
        self.remaining = self.remaining.saturating_sub(length);
        self.entry.sent(length);
        Poll::Ready(Some(Ok(Frame::data(bytes))))
    }

    /// Takes the first piece of a part; the rest goes back to the front of the queue.
    fn start(&mut self, range: ByteRange) -> Reading {
        let (piece, rest) = range.split(PIECE_BYTES);
        if let Some(rest) = rest {
            self.segments.push_front(Segment::Part(rest));
        }
        Box::pin(self.source.clone().read(piece))
    }
}

impl std::fmt::Debug for Body {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let mut body = f.debug_struct("Body");
        body.field("segments", &self.segments)
            .field("source", &self.source);
        body.field("remaining", &self.remaining)
            .finish_non_exhaustive()
    }
}

impl HttpBody for Body {
    type Data = Bytes;
    type Error = ReadError;

    fn poll_frame(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, ReadError>>> {
        let body = self.get_mut();
        if body.reading.is_none() {
            match body.segments.pop_front() {
                None => return Poll::Ready(None),
                Some(Segment::Literal(bytes)) => return body.emit(bytes),
                Some(Segment::Part(range)) => body.reading = Some(body.start(range)),
            }
        }
        let Some(reading) = body.reading.as_mut() else {
            return Poll::Ready(None);
        };
        let read = ready!(reading.as_mut().poll(cx));
        body.reading = None;
        match read {
            Ok(bytes) => body.emit(bytes),
            Err(error) => {
                body.segments.clear();
                body.entry.failed(&error);
                Poll::Ready(Some(Err(error)))
            }
        }
    }

    fn is_end_stream(&self) -> bool {
        self.remaining == 0 && self.reading.is_none() && self.segments.is_empty()
    }

    fn size_hint(&self) -> SizeHint {
        SizeHint::with_exact(self.remaining)
    }
}

#[cfg(test)]
mod tests;
