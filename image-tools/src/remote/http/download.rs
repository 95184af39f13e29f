//! Reads a file, or part of one, as a stream that goes on where it broke off.
//!
//! Going on is safe: what is long enough to break is named by its digest, and whoever reads it
//! checks that.

use std::ops::Range;

use bytes::Bytes;
use futures_util::StreamExt as _;
use futures_util::stream::{self, BoxStream};
use image_format::Digest;
use image_store::{Remote, RemoteError, RemoteFile};
use reqwest::header::{CONTENT_RANGE, RANGE};
use reqwest::{Method, Response, StatusCode};

use futures_util::future::{BoxFuture, FutureExt as _};

use super::{Http, STALL, Tries, is_missing};
use crate::remote::error::{Ask, HttpError};
use crate::remote::upload;

impl Http {
    async fn open_file(
        &self,
        path: &str,
        range: Option<Range<u64>>,
    ) -> Result<Option<RemoteFile>, HttpError> {
        let opened = match &range {
            None => self.whole(path).await,
            Some(range) => self.part(path, range).await,
        };
        let (response, length) = match opened {
            Ok(opened) => opened,
            Err(error) if is_missing(&error) => return Ok(None),
            Err(error) => return Err(error),
        };
        // No part reaches past the end: whoever asked checks what came.
        let range = range.map_or(0..length, |range| range.start..range.end.min(length));
        Ok(Some(RemoteFile {
            length,
            range: range.clone(),
            bytes: self.clone().resumed(path.to_owned(), range, response),
        }))
    }

    async fn whole(&self, path: &str) -> Result<(Response, u64), HttpError> {
        let mut tries = self.tries();
        loop {
            match self.whole_once(path).await {
                Err(error) => tries.again(error).await?,
                opened => return opened,
            }
        }
    }

    async fn whole_once(&self, path: &str) -> Result<(Response, u64), HttpError> {
        let request = self.request(Method::GET, path);
        let response = self.send(Ask::Read, path, request, STALL).await?;
        if response.status() != StatusCode::OK {
            return Err(self.senseless(path, "it is no whole file"));
        }
        let length = self.length(path, &response)?;
        Ok((response, length))
    }

    async fn part(&self, path: &str, range: &Range<u64>) -> Result<(Response, u64), HttpError> {
        let mut tries = self.tries();
        loop {
            match self.part_once(path, range).await {
                Err(error) => tries.again(error).await?,
                opened => return opened,
            }
        }
    }

    async fn part_once(
        &self,
        path: &str,
        range: &Range<u64>,
    ) -> Result<(Response, u64), HttpError> {
        let wanted = format!("bytes={}-{}", range.start, range.end.saturating_sub(1));
        let request = self.request(Method::GET, path).header(RANGE, &wanted);
        let response = self.send(Ask::Read, path, request, STALL).await?;
        let got = response.headers().get(CONTENT_RANGE);
        let length = got
            .filter(|_| response.status() == StatusCode::PARTIAL_CONTENT)
            .and_then(|got| file_length(got.to_str().ok()?, range))
            .ok_or_else(|| self.senseless(path, "it is not the range that was asked for"))?;
        Ok((response, length))
    }

    /// Returns the bytes `range` of a file, of which `response` is the first try.
    fn resumed(
        self,
        path: String,
        range: Range<u64>,
        response: Response,
    ) -> BoxStream<'static, Result<Bytes, RemoteError>> {
        let parts = response.bytes_stream().boxed();
        let body = Body {
            tries: self.tries(),
            http: self,
            path,
            left: range,
            parts,
        };
        stream::try_unfold(body, |mut body| async move {
            Ok(body.next().await?.map(|part| (part, body)))
        })
        .map(|part| part.map_err(|error: HttpError| RemoteError(error.into())))
        .boxed()
    }
}

/// What is left of a file that is being read.
struct Body {
    http: Http,
    tries: Tries,
    path: String,
    left: Range<u64>,
    parts: BoxStream<'static, reqwest::Result<Bytes>>,
}

impl Body {
    async fn next(&mut self) -> Result<Option<Bytes>, HttpError> {
        while !self.left.is_empty() {
            let error = match tokio::time::timeout(STALL, self.parts.next()).await {
                Ok(Some(Ok(part))) if part.len() as u64 > self.left.end - self.left.start => {
                    self.http.senseless(&self.path, "it is longer than it said")
                }
                Ok(Some(Ok(part))) => {
                    self.left.start += part.len() as u64;
                    return Ok(Some(part));
                }
                Ok(Some(Err(source))) => self.http.broken(&self.path, source),
                Ok(None) => self
                    .http
                    .senseless(&self.path, "it is shorter than it said"),
                Err(_) => self.http.stalled(&self.path, STALL),
            };
            self.tries.again(error).await?;
            let (response, _) = self.http.part(&self.path, &self.left).await?;
            self.parts = response.bytes_stream().boxed();
        }
        Ok(None)
    }
}

/// Reads `bytes FIRST-LAST/LENGTH`; `None` unless it is `wanted`, or as much of it as there is.
fn file_length(value: &str, wanted: &Range<u64>) -> Option<u64> {
    let (bytes, length) = value.strip_prefix("bytes ")?.split_once('/')?;
    let (first, last) = bytes.split_once('-')?;
    let length: u64 = length.parse().ok()?;
    let got = first.parse().ok()?..last.parse::<u64>().ok()?.checked_add(1)?;
    (got == (wanted.start..wanted.end.min(length))).then_some(length)
}

impl Remote for Http {
    fn open<'a>(
        &'a self,
        path: &'a str,
        range: Option<Range<u64>>,
    ) -> BoxFuture<'a, Result<Option<RemoteFile>, RemoteError>> {
        async { self.open_file(path, range).await.map_err(said) }.boxed()
    }

    fn length<'a>(&'a self, path: &'a str) -> BoxFuture<'a, Result<Option<u64>, RemoteError>> {
        async { self.file_length(path).await.map_err(said) }.boxed()
    }

    fn missing<'a>(
        &'a self,
        objects: &'a [Digest],
    ) -> BoxFuture<'a, Result<Vec<Digest>, RemoteError>> {
        async { upload::missing_objects(self, objects).await.map_err(said) }.boxed()
    }
}

fn said(error: HttpError) -> RemoteError {
    RemoteError(error.into())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_range_asked_for_is_taken() {
        assert_eq!(file_length("bytes 10-19/100", &(10..20)), Some(100));
        assert_eq!(file_length("bytes 90-99/100", &(90..120)), Some(100));
        for wrong in [
            "",
            "bytes 10-19",
            "bytes 10-19/*",
            "bytes 10-18/100",
            "bytes 9-19/100",
            "10-19/100",
            "bytes 10-18446744073709551615/100",
        ] {
            assert_eq!(file_length(wrong, &(10..20)), None, "{wrong}");
        }
    }
}
