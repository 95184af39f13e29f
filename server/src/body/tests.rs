//! Bodies over a disk that fails where it is told to, and over a real file.

use std::collections::VecDeque;
use std::fs::File;
use std::future::poll_fn;
use std::io::Write;
use std::pin::Pin;
use std::sync::Arc;

use bytes::Bytes;
use http::Request;
use hyper::body::Body as _;

use super::{Body, ReadError, Source};
use crate::access_log::{AccessLog, Entry};
use crate::decide::Segment;
use crate::range::ByteRange;

fn entry() -> Entry {
    let peer = "127.0.0.1:1".parse().unwrap();
    Entry::new(
        AccessLog::Off,
        peer,
        &Request::new(()),
        std::time::Instant::now(),
    )
}

fn part(start: u64, end: u64) -> Segment {
    Segment::Part(ByteRange::new(start, end).unwrap())
}

fn body(segments: impl Into<VecDeque<Segment>>, source: Source) -> Body {
    Body::new(segments.into(), source, entry(), None)
}

async fn next(body: &mut Body) -> Option<Result<Bytes, ReadError>> {
    let frame = poll_fn(|cx| Pin::new(&mut *body).poll_frame(cx)).await?;
    Some(frame.map(|frame| frame.into_data().unwrap()))
}

async fn collect(mut body: Body) -> Result<Vec<Bytes>, ReadError> {
    let mut pieces = Vec::new();
    while let Some(piece) = next(&mut body).await {
        pieces.push(piece?);
    }
    assert!(body.is_end_stream());
    Ok(pieces)
}

fn file(bytes: &[u8]) -> Source {
    let mut file = tempfile::tempfile().unwrap();
    file.write_all(bytes).unwrap();
    Source::File(Arc::new(file))
}

#[tokio::test]
async fn a_file_comes_in_pieces_in_order() {
    let flat: Vec<u8> = (0..600_000_u32).map(|at| at.to_le_bytes()[1]).collect();
    let pieces = collect(body([part(1000, 600_000)], file(&flat)))
        .await
        .unwrap();
    assert!(pieces.len() > 1 && pieces.iter().all(|piece| piece.len() <= 256 << 10));
    assert_eq!(pieces.concat(), flat[1000..]);
}

#[tokio::test]
async fn literals_and_parts_come_in_order() {
    let segments = [
        Segment::Literal(Bytes::from_static(b"<")),
        part(2, 4),
        Segment::Literal(Bytes::from_static(b"|")),
        part(0, 1),
    ];
    let body = body(segments, Source::Memory(Bytes::from_static(b"abcdef")));
    assert_eq!(body.size_hint().exact(), Some(5));
    assert_eq!(collect(body).await.unwrap().concat(), b"<cd|a");
}

#[tokio::test]
async fn an_empty_body_ends_at_once() {
    let body = body([], Source::Memory(Bytes::new()));
    assert!(body.is_end_stream());
    assert!(collect(body).await.unwrap().is_empty());
}

#[tokio::test]
async fn a_file_that_lost_its_end_is_an_error_not_fewer_bytes() {
    let error = collect(body([part(0, 7)], file(b"abc"))).await.unwrap_err();
    assert!(
        matches!(
            error,
            ReadError::Short {
                length: 7,
                got: 3,
                ..
            }
        ),
        "{error:?}"
    );
}

#[tokio::test]
async fn a_file_that_cannot_be_read_ends_the_body() {
    let directory = File::open("/").unwrap();
    let segments = [part(0, 7), part(0, 7)];
    let mut body = body(segments, Source::File(Arc::new(directory)));
    let error = next(&mut body).await.unwrap().unwrap_err();
    assert!(matches!(error, ReadError::File { .. }), "{error:?}");
    assert!(next(&mut body).await.is_none());
}
