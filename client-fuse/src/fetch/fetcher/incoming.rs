//! A body on its way: at a pace, and measured.

use bytes::Bytes;
use futures_util::StreamExt;
use tokio::time::Instant;

use super::race::Try;
use crate::fetch::line::Body as Measured;
use crate::fetch::mirrors::Mirrors;
use crate::fetch::pace::Pace;
use crate::fetch::underway::Asking;
use crate::fetch::{Body, FetchError, Request, Source};

/// An answer whose head is here.
pub(super) struct Incoming<'a, S> {
    mirrors: &'a Mirrors<S>,
    attempt: &'a Try,
    path: String,
    pace: Pace,
    body: Body,
    got: u64,
    /// When the head was here.
    began: Instant,
    measured: Measured,
    asking: Asking,
}

impl<'a, S: Source> Incoming<'a, S> {
    /// Asks a mirror, and waits for the head of its answer as long as for any part of it.
    pub(super) async fn open(
        mirrors: &'a Mirrors<S>,
        attempt: &'a Try,
        request: Request,
        asking: Asking,
    ) -> Result<Self, FetchError> {
        let (path, pace) = (request.path.clone(), Pace::begin());
        let opening = mirrors.open(attempt.mirror, attempt.way, request);
        let opened = tokio::time::timeout_at(pace.until(0), opening);
        let Ok(body) = opened.await else {
            return Err(pace.too_slow(path, 0));
        };
        let body = body?;
        let (began, mirror, waited) = (Instant::now(), attempt.mirror, asking.answered());
        mirrors.measured(mirror, |score| score.answered(waited));
        mirrors.heard(mirror);
        attempt.progress.head();
        Ok(Self {
            mirrors,
            attempt,
            path,
            pace,
            body,
            got: 0,
            began,
            measured: mirrors.meter(mirror).answered(waited),
            asking,
        })
    }

    /// The next part; `None`: the body has ended.
    pub(super) async fn next(&mut self) -> Result<Option<Bytes>, FetchError> {
        let next = tokio::time::timeout_at(self.pace.until(self.got), self.body.next());
        let Ok(part) = next.await else {
            return Err(self.pace.too_slow(self.path.clone(), self.got));
        };
        let part = part.transpose()?;
        let (mirrors, mirror) = (self.mirrors, self.attempt.mirror);
        if let Some(part) = &part {
            let bytes = part.len() as u64;
            self.got += bytes;
            self.measured.received(bytes);
            self.asking.received(bytes);
            self.attempt.progress.received(bytes);
            mirrors.heard(mirror);
            mirrors.stats_of(mirror).bytes.add(bytes);
        } else {
            self.asking.ended();
            self.attempt.progress.end();
            let time = self.began.elapsed();
            mirrors.measured(mirror, |score| score.received(self.got, time));
        }
        Ok(part)
    }
}
