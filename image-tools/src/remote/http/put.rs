//! Sends a file, watches that it moves, and sends no byte twice that the server has.

use std::path::Path;
use std::pin::pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use bytes::{Bytes, BytesMut};
use futures_util::Stream;
use futures_util::stream;
use indicatif::ProgressBar;
use reqwest::header::CONTENT_LENGTH;
use reqwest::{Body, Method};
use tokio::fs::File;
use tokio::io::AsyncReadExt as _;

use super::{Http, STALL};
use crate::remote::error::{Ask, HttpError};

/// How much of a file is read at once.
const PART_BYTES: usize = 256 * 1024;

impl Http {
    /// Uploads `file`, of `length` bytes, as the file `path` of the store; `bar` shows it.
    ///
    /// # Errors
    /// The file cannot be read, or the server does not take it.
    pub async fn put(
        &self,
        path: &str,
        file: &Path,
        length: u64,
        bar: &ProgressBar,
    ) -> Result<(), HttpError> {
        let mut tries = self.tries();
        loop {
            let sent = Sent {
                bytes: Arc::default(),
                bar,
            };
            match self.put_once(path, file, length, &sent).await {
                Ok(()) => {
                    sent.keep();
                    return Ok(());
                }
                Err(error) => {
                    drop(sent);
                    tries.again(error).await?;
                }
            }
            // The server may have taken it although its answer was lost, or have got it from
            // another publisher and hung up.
            if matches!(self.ask_length(path).await, Ok(Some(there)) if there == length) {
                bar.inc(length);
                return Ok(());
            }
        }
    }

    async fn put_once(
        &self,
        path: &str,
        file: &Path,
        length: u64,
        sent: &Sent<'_>,
    ) -> Result<(), HttpError> {
        let unreadable = |source| HttpError::File {
            path: file.to_owned(),
            source,
        };
        let open = File::open(file).await.map_err(unreadable)?;
        let counter = (sent.bytes.clone(), sent.bar.clone());
        let request = self
            .request(Method::PUT, path)
            .header(CONTENT_LENGTH, length)
            .body(Body::wrap_stream(parts(open, counter)));
        let mut request = pin!(request.send());
        let mut before = 0;
        let response = loop {
            match tokio::time::timeout(STALL, &mut request).await {
                Ok(response) => break response,
                Err(_) => match sent.bytes.load(Ordering::Relaxed) {
                    now if now == before => return Err(self.stalled(path, STALL)),
                    now => before = now,
                },
            }
        };
        let response = response.map_err(|source| self.unreachable(path, source))?;
        self.success(Ask::Upload, path, response).await.map(drop)
    }
}

/// Bytes of one try that the bar shows; a try that failed takes them back.
#[derive(Debug)]
struct Sent<'a> {
    bytes: Arc<AtomicU64>,
    bar: &'a ProgressBar,
}

impl Sent<'_> {
    fn keep(&self) {
        self.bytes.store(0, Ordering::Relaxed);
    }
}

impl Drop for Sent<'_> {
    fn drop(&mut self) {
        self.bar.dec(self.bytes.load(Ordering::Relaxed));
    }
}

fn parts(
    file: File,
    counter: (Arc<AtomicU64>, ProgressBar),
) -> impl Stream<Item = std::io::Result<Bytes>> {
    stream::try_unfold((file, counter), async |(mut file, (bytes, bar))| {
        let mut part = BytesMut::with_capacity(PART_BYTES);
        let count = file.read_buf(&mut part).await? as u64;
        bytes.fetch_add(count, Ordering::Relaxed);
        bar.inc(count);
        Ok(match count {
            0 => None,
            _ => Some((part.freeze(), (file, (bytes, bar)))),
        })
    })
}
