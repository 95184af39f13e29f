//! The upload protocol: what requests ask for, and what answers say. See `docs/UPLOAD.md`.
//!
//! Pure. An error becomes a status and JSON here, in one table.

use std::error::Error;
use std::io;

use http::{Method, StatusCode};
use image_format::{DecodeError, Digest, DigestMismatch};
use image_store::trust::TARGETS_BYTES_MAX;
use image_store::trust::accept::{AcceptError, Accepted, ProposedFile};
use serde::Deserialize;
use serde_json::json;

use crate::route::{Route, StorePath, route};

/// The longest object: longer than any pack, page or initramfs, shorter than a disk.
pub(crate) const OBJECT_BYTES_MAX: u64 = 4 << 30;

/// Most names in a question for what is missing.
pub(crate) const QUESTION_NAMES_MAX: usize = 10_000;

/// The longest such question: that many of the longest names, twice.
pub(crate) const QUESTION_BYTES_MAX: u64 = 6 << 20;

/// What an upload request asks for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Asked {
    /// To store a file.
    Put(Item),
    /// Which files the store lacks.
    Missing,
    /// To make metadata current.
    Commit,
    /// Something that only these methods can ask.
    Other(&'static str),
}

/// A file to be stored under its digest.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Item {
    /// Where it goes.
    pub(crate) path: StorePath,
    /// What its bytes must hash to.
    pub(crate) digest: Digest,
    /// How long it may be.
    pub(crate) bytes_max: u64,
}

/// Tells whether a request is for the upload router, and what it asks for.
pub(crate) fn asked(method: &Method, path: &str) -> Option<Asked> {
    let post = |asked| match *method {
        Method::POST => Some(asked),
        _ => Some(Asked::Other("POST")),
    };
    match path {
        "/upload/missing" => return post(Asked::Missing),
        "/upload/commit" => return post(Asked::Commit),
        _ if matches!(*method, Method::GET | Method::HEAD) => return None,
        _ => {}
    }
    let Some(Route::File(path)) = route(path) else {
        return None;
    };
    let bytes_max = match path {
        StorePath::Object(_) => OBJECT_BYTES_MAX,
        StorePath::Target { .. } => TARGETS_BYTES_MAX,
        _ => return None,
    };
    if *method != Method::PUT {
        return Some(Asked::Other("GET, HEAD, PUT"));
    }
    let digest = *path.digest()?;
    Some(Asked::Put(Item {
        path,
        digest,
        bytes_max,
    }))
}

/// The question for what the store lacks.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Question {
    /// Objects, in the order of the question.
    pub(crate) objects: Vec<Digest>,
    /// Targets, if they were asked for: file names as they stand in addresses.
    pub(crate) targets: Option<Vec<(String, StorePath)>>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct QuestionWire {
    #[serde(default)]
    objects: Vec<Digest>,
    targets: Option<Vec<String>>,
}

impl Question {
    /// Decodes a question.
    ///
    /// # Errors
    /// It is none, or asks for too much at once.
    pub(crate) fn decode(json: &[u8]) -> Result<Self, UploadError> {
        let wire: QuestionWire = serde_json::from_slice(json).map_err(UploadError::Json)?;
        let n_targets = wire.targets.as_ref().map_or(0, Vec::len);
        if wire.objects.len() > QUESTION_NAMES_MAX || n_targets > QUESTION_NAMES_MAX {
            return Err(UploadError::TooMany);
        }
        let target = |name: String| match StorePath::target(&name) {
            Some(path) => Ok((name, path)),
            None => Err(UploadError::Target { name }),
        };
        let targets = wire
            .targets
            .map(|names| names.into_iter().map(target).collect::<Result<_, _>>());
        Ok(Self {
            objects: wire.objects,
            targets: targets.transpose()?,
        })
    }
}

/// An answer that is no error.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Reply {
    /// The file was stored.
    Stored,
    /// The file was there.
    Existed,
    /// What the store lacks.
    Missing {
        objects: Vec<Digest>,
        targets: Option<Vec<String>>,
    },
    /// The metadata is current.
    Accepted(Accepted),
}

impl Reply {
    /// Returns status and JSON.
    pub(crate) fn render(&self) -> (StatusCode, String) {
        match self {
            Self::Stored => (StatusCode::CREATED, json!({"stored": true}).to_string()),
            Self::Existed => (StatusCode::OK, json!({"stored": false}).to_string()),
            Self::Missing { objects, targets } => {
                let mut reply = json!({"missing": objects});
                if let Some(targets) = targets {
                    reply["missing_targets"] = json!(targets);
                }
                (StatusCode::OK, reply.to_string())
            }
            Self::Accepted(accepted) => {
                let reply = json!({
                    "timestamp": accepted.timestamp,
                    "boot_files": accepted.boot_files,
                });
                (StatusCode::OK, reply.to_string())
            }
        }
    }
}

/// Why an upload is refused. Nothing was stored then.
#[derive(Debug, thiserror::Error)]
pub(crate) enum UploadError {
    #[error("this needs a token that the server knows")]
    Unauthorized,
    #[error("the token is not for publishing")]
    Forbidden,
    #[error("only {0}")]
    Method(&'static str),
    #[error("too busy, try again")]
    Busy,
    #[error("the request has no Content-Length")]
    NoLength,
    #[error("at most {max} bytes can be sent here")]
    TooLong { max: u64 },
    #[error("at most {QUESTION_NAMES_MAX} names in one question")]
    TooMany,
    #[error("{name:?} is no name of a target")]
    Target { name: String },
    #[error("the body is not the JSON that it should be")]
    Json(#[source] serde_json::Error),
    #[error("the body ended too early")]
    Gone,
    #[error("the body did not come in time")]
    Stalled,
    #[error(transparent)]
    Digest(#[from] DigestMismatch),
    #[error("cannot write to the store")]
    Write(#[source] io::Error),
    #[error(transparent)]
    Accept(#[from] AcceptError),
    #[error("the body is no trace of a boot")]
    Trace(#[source] DecodeError),
    #[error("the trace lists nothing")]
    EmptyTrace,
    #[error("there are as many traces as may be kept: somebody has to take some away")]
    TracesFull,
    #[error("a thread of the server stopped")]
    Stopped(#[from] tokio::task::JoinError),
}

impl UploadError {
    /// Returns the status. The one table from failures of uploads to statuses.
    pub(crate) fn status(&self) -> StatusCode {
        match self {
            Self::Unauthorized => StatusCode::UNAUTHORIZED,
            Self::Forbidden => StatusCode::FORBIDDEN,
            Self::Method(_) => StatusCode::METHOD_NOT_ALLOWED,
            Self::Busy => StatusCode::SERVICE_UNAVAILABLE,
            Self::NoLength => StatusCode::LENGTH_REQUIRED,
            Self::TooLong { .. } | Self::TooMany => StatusCode::PAYLOAD_TOO_LARGE,
            Self::Gone => StatusCode::BAD_REQUEST,
            Self::Stalled => StatusCode::REQUEST_TIMEOUT,
            Self::Target { .. }
            | Self::Json(_)
            | Self::Digest(_)
            | Self::Trace(_)
            | Self::EmptyTrace => StatusCode::UNPROCESSABLE_ENTITY,
            Self::TracesFull => StatusCode::INSUFFICIENT_STORAGE,
            Self::Accept(AcceptError::Conflict | AcceptError::Taken { .. }) => StatusCode::CONFLICT,
            Self::Accept(AcceptError::Refused(_)) => StatusCode::UNPROCESSABLE_ENTITY,
            Self::Write(_) | Self::Accept(AcceptError::Store(_)) | Self::Stopped(_) => {
                if is_full(self) {
                    StatusCode::INSUFFICIENT_STORAGE
                } else {
                    StatusCode::INTERNAL_SERVER_ERROR
                }
            }
        }
    }

    /// Returns the JSON: what was wrong with the request in full, and of the server's own troubles
    /// only that there are some.
    pub(crate) fn render(&self) -> String {
        let message = match self.status() {
            StatusCode::INSUFFICIENT_STORAGE if matches!(self, Self::TracesFull) => chain(self),
            StatusCode::INSUFFICIENT_STORAGE => "the server's disk is full".to_owned(),
            StatusCode::INTERNAL_SERVER_ERROR => {
                "the store cannot be read or written, see the server's log".to_owned()
            }
            _ => chain(self),
        };
        match self {
            Self::Accept(AcceptError::Conflict) => {
                json!({"error": message, "code": "conflict"}).to_string()
            }
            Self::Accept(AcceptError::Taken { files }) => {
                let files: Vec<_> = files.iter().map(ProposedFile::to_string).collect();
                json!({"error": message, "code": "taken", "files": files}).to_string()
            }
            _ => json!({"error": message}).to_string(),
        }
    }
}

/// Most bytes of a message: a name in it may be as long as a request.
const MESSAGE_LEN_MAX: usize = 2000;

fn chain(error: &dyn Error) -> String {
    let mut chain = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        let cause_text = cause.to_string();
        if !chain.ends_with(&cause_text) {
            chain = format!("{chain}: {cause_text}");
        }
        source = cause.source();
    }
    match chain.char_indices().nth(MESSAGE_LEN_MAX) {
        Some((end, _)) => format!("{}…", &chain[..end]),
        None => chain,
    }
}

fn is_full(error: &dyn Error) -> bool {
    let mut source = error.source();
    while let Some(cause) = source {
        if let Some(cause) = cause.downcast_ref::<io::Error>() {
            let full = [
                io::ErrorKind::StorageFull,
                io::ErrorKind::QuotaExceeded,
                io::ErrorKind::FileTooLarge,
            ];
            return full.contains(&cause.kind());
        }
        source = cause.source();
    }
    false
}

#[cfg(test)]
mod tests {
    use proptest::prelude::{any, prop_assert, proptest};

    use super::*;

    const HEX: &str = "ab5f00112233445566778899aabbccddeeff00112233445566778899aabbccdd";

    #[test]
    fn a_request_is_told_by_method_and_path() {
        let (object, target) = (format!("/objects/ab/{HEX}"), format!("/targets/{HEX}.a"));
        let kind = |method: &str, path: &str| {
            let method = Method::from_bytes(method.as_bytes()).unwrap();
            asked(&method, path).map(|asked| match asked {
                Asked::Put(item) => item.bytes_max.to_string(),
                Asked::Missing => "missing".to_owned(),
                Asked::Commit => "commit".to_owned(),
                Asked::Other(allowed) => allowed.to_owned(),
            })
        };
        #[rustfmt::skip]
        let table = [
            ("PUT",    object.as_str(),         Some("4294967296")),
            ("PUT",    target.as_str(),         Some("1048576")),
            ("GET",    object.as_str(),         None),
            ("HEAD",   target.as_str(),         None),
            ("DELETE", object.as_str(),         Some("GET, HEAD, PUT")),
            ("POST",   target.as_str(),         Some("GET, HEAD, PUT")),
            ("POST",   "/upload/missing",       Some("missing")),
            ("POST",   "/upload/commit",        Some("commit")),
            ("GET",    "/upload/commit",        Some("POST")),
            ("PUT",    "/upload/commit/",       None),
            ("PUT",    "/metadata/1.root.json", None),
            ("PUT",    "/circular.json",        None),
            ("PUT",    "/boot.ipxe",            None),
            ("PUT",    "/objects/ab/../x",      None),
            ("POST",   "/upload/missing/..",    None),
        ];
        for (method, path, expected) in table {
            assert_eq!(kind(method, path).as_deref(), expected, "{method} {path}");
        }
    }

    #[test]
    fn a_question_names_objects_and_targets() {
        let json = json!({"objects": [HEX], "targets": [format!("{HEX}.lab,a")]}).to_string();
        let question = Question::decode(json.as_bytes()).unwrap();
        assert_eq!(question.objects, [HEX.parse().unwrap()]);
        assert_eq!(question.targets.unwrap().len(), 1);
        assert_eq!(Question::decode(b"{}").unwrap().targets, None);
        #[rustfmt::skip]
        let table = [
            (json!({"objects": ["../x"]}),                    422),
            (json!({"targets": ["../x"]}),                    422),
            (json!({"targets": [format!("{HEX}.a/../b")]}),   422),
            (json!({"targets": [format!("{HEX}")]}),          422),
            (json!({"everything": true}),                     422),
            (json!({"objects": vec![HEX; 10_001]}),           413),
        ];
        for (json, expected) in table {
            let error = Question::decode(json.to_string().as_bytes()).unwrap_err();
            assert_eq!(error.status(), expected, "{error}");
        }
    }

    #[test]
    fn a_full_disk_is_told_from_a_broken_one() {
        let full = UploadError::Write(io::Error::from(io::ErrorKind::StorageFull));
        let broken = UploadError::Write(io::Error::other("secret path"));
        assert_eq!(full.status(), 507);
        assert_eq!(broken.status(), 500);
        assert!(!broken.render().contains("secret"), "{}", broken.render());
    }

    proptest! {
        /// Any bytes at all are a question or an error of the client.
        #[test]
        fn any_bytes_are_a_question_or_an_error(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
            if let Err(error) = Question::decode(&bytes) {
                prop_assert!(error.status().is_client_error());
            }
        }
    }
}
