//! One line for each request, written when its answer has been sent or given up.
//!
//! The line goes to the tracing target [`TARGET`], so it can be filtered apart from the rest.
//! `sent` counts the bytes handed to the connection; where it is less than `length` the
//! client went away, or the log has the reason just before.

use std::error::Error;
use std::net::SocketAddr;
use std::time::Instant;

use http::header::{RANGE, USER_AGENT};
use http::{HeaderName, Request, StatusCode};

/// The tracing target of the lines.
pub const TARGET: &str = "circular_server::access";

/// Whether requests are logged.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum AccessLog {
    /// One line a request.
    On,
    /// Only failures, from other modules.
    Off,
}

/// The line of one request, as far as it is known; written on drop.
#[derive(Debug)]
pub(crate) struct Entry {
    log: AccessLog,
    started: Instant,
    peer: SocketAddr,
    request: String,
    token: String,
    agent: String,
    range: String,
    status: StatusCode,
    length: u64,
    sent: u64,
}

impl Entry {
    /// Notes what was asked, by whom, at what time.
    pub(crate) fn new<B>(
        log: AccessLog,
        peer: SocketAddr,
        request: &Request<B>,
        now: Instant,
    ) -> Self {
        let header = |name: HeaderName| {
            let value = request.headers().get(name);
            value.map_or_else(String::new, |value| {
                String::from_utf8_lossy(value.as_bytes()).into_owned()
            })
        };
        Self {
            log,
            started: now,
            peer,
            // Not the whole target: a user's name and password may stand in its authority.
            request: format!(
                "{} {} {:?}",
                request.method(),
                request
                    .uri()
                    .path_and_query()
                    .map_or("*", |path| path.as_str()),
                request.version()
            ),
            token: String::new(),
            agent: header(USER_AGENT),
            range: header(RANGE),
            status: StatusCode::OK,
            length: 0,
            sent: 0,
        }
    }

    /// Notes the name of the token that the request brought; never the token.
    pub(crate) fn token(&mut self, name: String) {
        self.token = name;
    }

    /// Notes the status.
    pub(crate) fn status(&mut self, status: StatusCode) {
        self.status = status;
    }

    /// Notes how long the body is to be.
    pub(crate) fn expect(&mut self, length: u64) {
        self.length = length;
    }

    /// Notes that bytes were handed to the connection.
    pub(crate) fn sent(&mut self, bytes: u64) {
        self.sent += bytes;
    }

    /// Logs why the answer ends here, whether or not requests are logged.
    pub(crate) fn failed(&self, error: &dyn Error) {
        let mut chain = error.to_string();
        let mut source = error.source();
        while let Some(cause) = source {
            chain = format!("{chain}: {cause}");
            source = cause.source();
        }
        tracing::error!(request = ?self.request, "{chain}");
    }
}

impl Drop for Entry {
    fn drop(&mut self) {
        if self.log == AccessLog::Off {
            return;
        }
        let milliseconds = self.started.elapsed().as_secs_f64() * 1e3;
        // Debug form where strangers choose the text: quoted and escaped, one line whatever it is.
        tracing::info!(
            target: TARGET,
            peer = %self.peer,
            request = ?self.request,
            token = ?self.token,
            status = self.status.as_u16(),
            sent = self.sent,
            length = self.length,
            range = ?self.range,
            agent = ?self.agent,
            ms = %format_args!("{milliseconds:.1}"),
        );
    }
}
