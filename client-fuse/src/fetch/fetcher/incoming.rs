//! A body on its way: at a pace, and measured.

use bytes::Bytes;
use futures_util::StreamExt;

use crate::fetch::line::Body as Measured;
use crate::fetch::mirrors::{MirrorId, Mirrors};
use crate::fetch::pace::Pace;
use crate::fetch::underway::Asking;
use crate::fetch::{Body, FetchError, Request, Source};

/// An answer whose head is here.
pub(super) struct Incoming {
    path: String,
    pace: Pace,
    body: Body,
    got: u64,
    measured: Measured,
    asking: Asking,
}

impl Incoming {
    /// Asks a mirror, and waits for the head of its answer as long as for any part of it.
    pub(super) async fn open<S: Source>(
        mirrors: &Mirrors<S>,
        mirror: MirrorId,
        request: Request,
        asking: Asking,
    ) -> Result<Self, FetchError> {
        let (path, pace) = (request.path.clone(), Pace::begin());
        let opened = tokio::time::timeout_at(pace.until(0), mirrors.open(mirror, request));
        let Ok(body) = opened.await else {
            return Err(pace.too_slow(path, 0));
        };
        let body = body?;
        Ok(Self {
            path,
            pace,
            body,
            got: 0,
            measured: mirrors.meter().answered(asking.answered()),
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
        if let Some(part) = &part {
            self.got += part.len() as u64;
            self.measured.received(part.len() as u64);
            self.asking.received(part.len() as u64);
        } else {
            self.asking.ended();
        }
        Ok(part)
    }
}
