//! The answer to a request, as a value: status, headers and what the body is made of.
//!
//! Pure. [`respond`] answers for a [`Representation`] that was found, [`refuse`] for all else;
//! [`crate::handle`] opens, asks here, and sends. What every answer has in common:
//!
//! - `Content-Length`, always: boot firmware hangs at 99 % or gives up without it;
//! - a HEAD is the GET without its body (a HEAD has no ranges, RFC 9110, 14.2);
//! - `Cache-Control`, always: immutable for a year, `no-cache`, and `no-store` for refusals.

use std::collections::VecDeque;

use bytes::Bytes;
use http::header::{
    ACCEPT_RANGES, ALLOW, CACHE_CONTROL, CONNECTION, CONTENT_LENGTH, CONTENT_RANGE,
    CONTENT_SECURITY_POLICY, CONTENT_TYPE, ETAG, LAST_MODIFIED, RANGE, RETRY_AFTER,
    WWW_AUTHENTICATE, X_CONTENT_TYPE_OPTIONS,
};
use http::{HeaderMap, HeaderName, HeaderValue, Method, StatusCode};

use crate::precondition::{self, Validators, Verdict};
use crate::range::{self, ByteRange, Selection};
use crate::store::StoreError;

/// How long what stands at an address may be kept.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Caching {
    /// For ever: the bytes at this address never change.
    Immutable,
    /// Ask each time whether it changed.
    Revalidate,
    /// Never kept: health, refusals.
    Never,
}

impl Caching {
    fn header(self) -> &'static str {
        match self {
            Self::Immutable => "public, max-age=31536000, immutable",
            Self::Revalidate => "no-cache",
            Self::Never => "no-store",
        }
    }
}

/// What the bytes are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum ContentType {
    Binary,
    Json,
    Text,
    Html,
}

impl ContentType {
    fn header(self) -> &'static str {
        match self {
            Self::Binary => "application/octet-stream",
            Self::Json => "application/json",
            Self::Text => "text/plain; charset=utf-8",
            Self::Html => "text/html; charset=utf-8",
        }
    }
}

/// All that is known of the bytes at an address before they are read.
#[derive(Clone, Debug)]
pub(crate) struct Representation {
    /// Bytes.
    pub(crate) length: u64,
    /// What conditional requests are compared with.
    pub(crate) validators: Validators,
    /// What the bytes are.
    pub(crate) content_type: ContentType,
    /// How long they may be kept.
    pub(crate) caching: Caching,
}

/// A stretch of the body.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Segment {
    /// These bytes.
    Literal(Bytes),
    /// These bytes of the representation.
    Part(ByteRange),
}

impl Segment {
    /// Bytes.
    pub(crate) fn length(&self) -> u64 {
        match self {
            Self::Literal(bytes) => bytes.len() as u64,
            Self::Part(range) => range.length(),
        }
    }
}

/// An answer to a GET; [`Decision::for_method`] makes it one to a HEAD.
#[derive(Clone, Debug)]
pub(crate) struct Decision {
    /// The status.
    pub(crate) status: StatusCode,
    /// All headers but `Date`.
    pub(crate) headers: HeaderMap,
    /// What the body is made of.
    pub(crate) segments: VecDeque<Segment>,
}

impl Decision {
    fn new(status: StatusCode, caching: Caching) -> Self {
        let mut decision = Self {
            status,
            headers: HeaderMap::new(),
            segments: VecDeque::new(),
        };
        decision.set(CACHE_CONTROL, caching.header());
        decision.set(ACCEPT_RANGES, "bytes");
        decision.set(X_CONTENT_TYPE_OPTIONS, "nosniff");
        decision
    }

    /// Keeps the answer out of caches that are shared: it is for this client only (RFC 9111, 5.2.2.7).
    pub(crate) fn keep_private(mut self) -> Self {
        let value = self.headers.get(CACHE_CONTROL);
        let value = value
            .and_then(|value| value.to_str().ok())
            .unwrap_or("no-store");
        let value = format!("private, {}", value.trim_start_matches("public, "));
        self.set_text(CACHE_CONTROL, &value);
        self
    }

    /// Says how to bring a token (RFC 9110, 11.6.1). Firmware and browsers only know Basic.
    fn challenge(mut self, basic: bool) -> Self {
        self.set(WWW_AUTHENTICATE, "Bearer realm=\"circular\"");
        if basic {
            let value = HeaderValue::from_static("Basic realm=\"circular\"");
            self.headers.append(WWW_AUTHENTICATE, value);
        }
        self
    }

    fn set(&mut self, name: HeaderName, value: &'static str) {
        self.headers.insert(name, HeaderValue::from_static(value));
    }

    fn set_text(&mut self, name: HeaderName, value: &str) {
        // Everything formatted here is ASCII without control characters.
        if let Ok(value) = HeaderValue::from_str(value) {
            self.headers.insert(name, value);
        }
    }

    fn with_segments(mut self, segments: impl IntoIterator<Item = Segment>) -> Self {
        self.segments.extend(segments);
        let length: u64 = self.segments.iter().map(Segment::length).sum();
        self.headers
            .insert(CONTENT_LENGTH, HeaderValue::from(length));
        self
    }

    /// Leaves out the body, not its length, in answer to HEAD.
    pub(crate) fn for_method(mut self, method: &Method) -> Self {
        if method == Method::HEAD {
            self.segments.clear();
        }
        self
    }
}

/// Decides the answer to a GET or HEAD for what was found.
pub(crate) fn respond(method: &Method, headers: &HeaderMap, found: &Representation) -> Decision {
    match precondition::evaluate(headers, &found.validators) {
        Verdict::NotModified => {
            let mut decision = Decision::new(StatusCode::NOT_MODIFIED, found.caching);
            describe(&mut decision, found);
            return decision;
        }
        Verdict::Failed => return text(StatusCode::PRECONDITION_FAILED, "precondition failed\n"),
        Verdict::Proceed => {}
    }
    let asked = headers.get(RANGE).and_then(|value| value.to_str().ok());
    let selection = match asked {
        Some(asked)
            if method == Method::GET && precondition::range_applies(headers, &found.validators) =>
        {
            range::select(asked, found.length)
        }
        _ => Selection::Whole,
    };
    match selection {
        Selection::Whole => {
            let mut decision = success(StatusCode::OK, found);
            decision.set(CONTENT_TYPE, found.content_type.header());
            decision.with_segments(ByteRange::new(0, found.length).map(Segment::Part))
        }
        Selection::One(range) => {
            let mut decision = success(StatusCode::PARTIAL_CONTENT, found);
            decision.set(CONTENT_TYPE, found.content_type.header());
            decision.set_text(CONTENT_RANGE, &content_range(range, found.length));
            decision.with_segments([Segment::Part(range)])
        }
        Selection::Many(ranges) => multipart(found, &ranges),
        Selection::Unsatisfiable => {
            let mut decision = text(StatusCode::RANGE_NOT_SATISFIABLE, "no such range\n");
            decision.set_text(CONTENT_RANGE, &format!("bytes */{}", found.length));
            decision
        }
    }
}

/// Why a request is not answered with what it asks for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Refusal {
    /// The method is not one of these, as an `Allow` header lists them.
    Method(&'static str),
    /// There is no token that the server knows.
    Unauthorized,
    /// The token is not for this.
    Forbidden,
    /// The request has a body; nothing here reads one, so the connection ends too.
    Body,
    /// There are as many answers under way as there may be.
    Busy,
    /// The address names nothing that a store may hold.
    NoSuchAddress,
    /// A well-formed address; the status and what to say come from [`refusal`].
    Store {
        /// What went wrong, as a status.
        status: StatusCode,
        /// What went wrong, for whoever asked.
        reason: String,
    },
}

/// Decides the answer to what cannot be served.
pub(crate) fn refuse(refusal: &Refusal) -> Decision {
    match refusal {
        Refusal::Method(allowed) => {
            let body = format!("only {}\n", allowed.replace(", ", " and "));
            let mut decision = text(StatusCode::METHOD_NOT_ALLOWED, &body);
            decision.set(ALLOW, allowed);
            decision
        }
        Refusal::Unauthorized => {
            text(StatusCode::UNAUTHORIZED, "this store needs a token\n").challenge(true)
        }
        Refusal::Forbidden => text(StatusCode::FORBIDDEN, "the token is not for this\n"),
        Refusal::Body => {
            let mut decision = text(StatusCode::BAD_REQUEST, "a request here has no body\n");
            decision.set(CONNECTION, "close");
            decision
        }
        Refusal::Busy => unavailable("too busy, try again\n"),
        Refusal::NoSuchAddress => text(StatusCode::NOT_FOUND, "not found\n"),
        Refusal::Store { status, reason } => match *status {
            StatusCode::SERVICE_UNAVAILABLE => unavailable(&format!("{reason}\n")),
            status => text(status, &format!("{reason}\n")),
        },
    }
}

/// Turns a failure of the store into what the client may know of it: no file names of the
/// server's machine, which the log has.
pub(crate) fn refusal(error: &StoreError) -> Refusal {
    let reason = match error {
        StoreError::NotFound => "not found".to_owned(),
        StoreError::NoSuchImage { .. } => error.to_string(),
        StoreError::Exhausted { .. } => "too busy, try again".to_owned(),
        StoreError::Unreadable { .. }
        | StoreError::Image { .. }
        | StoreError::Names(_)
        | StoreError::Stopped(_) => "the store cannot be read, see the server's log".to_owned(),
    };
    Refusal::Store {
        status: status(error),
        reason,
    }
}

/// The one table from failures of the store to statuses.
pub(crate) fn status(error: &StoreError) -> StatusCode {
    match error {
        // Nothing there; it may be published later, so nobody keeps the answer.
        StoreError::NotFound | StoreError::NoSuchImage { .. } => StatusCode::NOT_FOUND,
        // Out of file descriptors or memory: passes by itself.
        StoreError::Exhausted { .. } => StatusCode::SERVICE_UNAVAILABLE,
        // Damaged or unreadable: somebody has to look.
        StoreError::Unreadable { .. }
        | StoreError::Image { .. }
        | StoreError::Names(_)
        | StoreError::Stopped(_) => StatusCode::INTERNAL_SERVER_ERROR,
    }
}

fn text(status: StatusCode, body: &str) -> Decision {
    let mut decision = Decision::new(status, Caching::Never);
    decision.set(CONTENT_TYPE, ContentType::Text.header());
    decision.with_segments([Segment::Literal(Bytes::copy_from_slice(body.as_bytes()))])
}

/// An answer of the upload router: JSON, never kept.
pub(crate) fn json(status: StatusCode, body: String) -> Decision {
    let mut decision = Decision::new(status, Caching::Never);
    decision.set(CONTENT_TYPE, ContentType::Json.header());
    match status {
        StatusCode::UNAUTHORIZED => decision = decision.challenge(false),
        StatusCode::SERVICE_UNAVAILABLE => decision.set(RETRY_AFTER, "1"),
        _ => {}
    }
    decision.with_segments([Segment::Literal(body.into())])
}

fn unavailable(body: &str) -> Decision {
    let mut decision = text(StatusCode::SERVICE_UNAVAILABLE, body);
    decision.set(RETRY_AFTER, "1");
    decision
}

fn success(status: StatusCode, found: &Representation) -> Decision {
    let mut decision = Decision::new(status, found.caching);
    describe(&mut decision, found);
    if found.content_type == ContentType::Html {
        let policy = "default-src 'none'; style-src 'unsafe-inline'; frame-ancestors 'none'";
        decision.set(CONTENT_SECURITY_POLICY, policy);
    }
    decision
}

fn describe(decision: &mut Decision, found: &Representation) {
    if let Some(tag) = &found.validators.tag {
        decision.set_text(ETAG, &tag.quoted());
    }
    if let Some(modified) = found.validators.modified {
        decision.set_text(LAST_MODIFIED, &httpdate::fmt_http_date(modified));
    }
}

fn content_range(range: ByteRange, length: u64) -> String {
    format!("bytes {}-{}/{length}", range.start(), range.last())
}

/// The boundary contains the tag, so it depends on the bytes that it must not occur in:
/// nobody can publish an object that holds its own digest.
fn multipart(found: &Representation, ranges: &[ByteRange]) -> Decision {
    let tag = found.validators.tag.as_ref().map_or("", |tag| tag.as_str());
    let boundary: String = "circular-".chars().chain(tag.chars()).take(70).collect();
    let mut segments = Vec::with_capacity(ranges.len() * 2 + 1);
    for (index, range) in ranges.iter().enumerate() {
        let head = format!(
            "{}--{boundary}\r\nContent-Type: {}\r\nContent-Range: {}\r\n\r\n",
            if index == 0 { "" } else { "\r\n" },
            found.content_type.header(),
            content_range(*range, found.length),
        );
        segments.push(Segment::Literal(head.into()));
        segments.push(Segment::Part(*range));
    }
    segments.push(Segment::Literal(format!("\r\n--{boundary}--\r\n").into()));
    let mut decision = success(StatusCode::PARTIAL_CONTENT, found);
    let content_type = format!("multipart/byteranges; boundary={boundary}");
    decision.set_text(CONTENT_TYPE, &content_type);
    decision.with_segments(segments)
}

#[cfg(test)]
mod tests;
