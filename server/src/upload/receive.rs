//! Takes bodies off the wire: into a staged file, or into memory.
//!
//! Bounds: two pieces of [`PIECE_BYTES`] for each file, one being received and one being written;
//! a document is bounded by its caller. A client that sends nothing for too long is given up.

use std::path::{Path, PathBuf};
use std::time::Duration;

use bytes::{Buf, Bytes};
use http_body_util::BodyExt as _;
use hyper::body::Body as HttpBody;
use tokio::task::spawn_blocking;
use tokio::time::timeout;

use super::protocol::UploadError;
use super::staging::Staged;

/// Bytes that are hashed and written at once, on a blocking thread.
const PIECE_BYTES: usize = 256 << 10;

/// Most bytes of an unwanted body that are taken and dropped, and for how long: a client that is
/// still sending should read why it is refused before its connection ends.
const DISCARD_BYTES_MAX: usize = 1 << 20;
const DISCARD_TIME_MAX: Duration = Duration::from_secs(2);

/// How long a document may take, however steadily it trickles: few are received at once, and the
/// longest one takes as long at 0.6 Mbit/s.
const DOCUMENT_TIME_MAX: Duration = Duration::from_secs(120);

/// Receives a file of `length` bytes.
///
/// # Cancel safety
/// Dropped, it leaves nothing behind.
pub(super) async fn file<B: HttpBody<Data = Bytes> + Unpin>(
    body: &mut B,
    length: u64,
    directory: &Path,
    stall_timeout: Duration,
) -> Result<Staged, UploadError> {
    let directory: PathBuf = directory.to_owned();
    let mut writing = spawn_blocking(move || Staged::create(&directory, length));
    let mut left = length;
    loop {
        let mut piece = Vec::new();
        let filled = fill(body, &mut piece, PIECE_BYTES, stall_timeout).await;
        // Also where the body broke off: what was staged is gone before that is said.
        let mut staged = writing.await?.map_err(UploadError::Write)?;
        let more = filled?;
        // hyper holds a body to its length too.
        left = left
            .checked_sub(piece.len() as u64)
            .ok_or(UploadError::TooLong { max: length })?;
        match (more, left) {
            (false, 0) if piece.is_empty() => return Ok(staged),
            (false, 1..) => return Err(UploadError::Gone),
            _ => writing = spawn_blocking(move || staged.write(&piece).map(|()| staged)),
        }
    }
}

/// Receives a document of at most `max` bytes.
pub(crate) async fn document<B: HttpBody<Data = Bytes> + Unpin>(
    body: &mut B,
    max: u64,
    stall_timeout: Duration,
) -> Result<Vec<u8>, UploadError> {
    let too_long = UploadError::TooLong { max };
    if body.size_hint().lower() > max {
        return Err(too_long);
    }
    let mut document = Vec::new();
    let bound = usize::try_from(max).unwrap_or(usize::MAX);
    let filling = fill(body, &mut document, bound.saturating_add(1), stall_timeout);
    match timeout(DOCUMENT_TIME_MAX, filling).await {
        Ok(filled) => filled?,
        Err(_elapsed) => return Err(UploadError::Stalled),
    };
    match document.len() > bound {
        true => Err(too_long),
        false => Ok(document),
    }
}

/// Takes and drops what a client still sends, in the background and within bounds.
pub(super) fn discard<B>(mut body: B)
where
    B: HttpBody<Data = Bytes> + Send + Unpin + 'static,
{
    if body.is_end_stream() {
        return;
    }
    tokio::spawn(timeout(DISCARD_TIME_MAX, async move {
        let mut left = DISCARD_BYTES_MAX;
        while let Some(Ok(frame)) = body.frame().await {
            let length = frame.data_ref().map_or(0, Buf::remaining);
            match left.checked_sub(length) {
                Some(rest) => left = rest,
                None => break,
            }
        }
    }));
}

/// Appends frames until there are `enough` bytes; tells whether there may be more.
async fn fill<B: HttpBody<Data = Bytes> + Unpin>(
    body: &mut B,
    bytes: &mut Vec<u8>,
    enough: usize,
    stall_timeout: Duration,
) -> Result<bool, UploadError> {
    while bytes.len() < enough {
        match timeout(stall_timeout, body.frame()).await {
            Err(_elapsed) => return Err(UploadError::Stalled),
            Ok(None) => return Ok(false),
            Ok(Some(Err(_broken))) => return Err(UploadError::Gone),
            Ok(Some(Ok(frame))) => {
                if let Ok(data) = frame.into_data() {
                    bytes.extend_from_slice(&data);
                }
            }
        }
    }
    Ok(true)
}

#[cfg(test)]
mod tests {
    use futures_util::stream;
    use http_body_util::StreamBody;
    use hyper::body::Frame;

    use super::*;

    #[tokio::test(start_paused = true)]
    async fn a_document_that_trickles_in_is_given_up() {
        let trickle = stream::unfold((), |()| async {
            tokio::time::sleep(Duration::from_secs(1)).await;
            Some((
                Ok::<_, UploadError>(Frame::data(Bytes::from_static(b" "))),
                (),
            ))
        });
        let mut body = StreamBody::new(Box::pin(trickle));
        let stall_timeout = Duration::from_secs(5);
        let received = document(&mut body, 1 << 20, stall_timeout).await;
        assert!(matches!(received, Err(UploadError::Stalled)));
    }
}
