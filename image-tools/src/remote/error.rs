//! What can go wrong between a publisher and a server, and what the publisher can do about it.

use std::io;
use std::path::PathBuf;
use std::time::Duration;

use reqwest::StatusCode;

/// How much of what a server says goes into a message.
const SAID_CHARS_MAX: usize = 400;

/// Why a server did not do what it was asked.
#[derive(Debug, thiserror::Error)]
#[expect(missing_docs, reason = "the messages are the docs")]
pub enum HttpError {
    #[error("cannot set up the HTTP client")]
    Setup(#[source] reqwest::Error),
    #[error("cannot reach `{url}`")]
    Unreachable { url: String, source: reqwest::Error },
    #[error(
        "the certificate behind `{url}` is not believed; name the authority that signed it with --ca FILE, and check the clock of this machine"
    )]
    Certificate { url: String, source: reqwest::Error },
    #[error("`{url}` broke off")]
    Broken { url: String, source: reqwest::Error },
    #[error("`{url}` made no progress for {} s", .after.as_secs())]
    Stalled { url: String, after: Duration },
    #[error("`{url}` answered {status}{said}")]
    Status {
        url: String,
        status: StatusCode,
        said: Said,
    },
    #[error("the answer of `{url}` makes no sense: {reason}")]
    Answer { url: String, reason: &'static str },
    #[error("cannot read `{}`", .path.display())]
    File { path: PathBuf, source: io::Error },
    #[error(
        "the server wants a token: give a file that holds it with --token-file FILE (or CIRCULAR_TOKEN_FILE)"
    )]
    NoToken,
    #[error("the server does not know the token: ask its operator for a new one")]
    UnknownToken,
    #[error(
        "the token may not publish: ask the operator of the server for one with the scope `publish`"
    )]
    Scope,
    #[error("`{url}` is redirected to `{to}`: give that address with --to")]
    Redirected { url: String, to: String },
    #[error("the server takes no uploads: start it with `circular-server --upload --tokens FILE`")]
    NoUploads,
    #[error("the server takes no file as long as `{url}`{said}")]
    TooLong { url: String, said: Said },
    #[error("the server refuses `{url}`; nothing became visible{said}")]
    Refused { url: String, said: Said },
    #[error(
        "the disk of the server is full; nothing became visible. Make room there and publish again: what it has is not sent again"
    )]
    Full,
    #[error("another publisher was faster{said}")]
    Conflict { said: Said },
}

impl HttpError {
    /// Tells whether time may heal it.
    pub fn is_transient(&self) -> bool {
        match self {
            Self::Unreachable { source, .. } => !source.is_builder(),
            Self::Broken { .. } | Self::Stalled { .. } => true,
            Self::Status { status, .. } => matches!(status.as_u16(), 408 | 429 | 500 | 502..=504),
            _ => false,
        }
    }
}

/// Tells whether the certificate of the server is the reason. An `io::Error` hides what it wraps
/// from [`source`](std::error::Error::source), so it is opened.
fn is_certificate_refused(error: &reqwest::Error) -> bool {
    let mut cause: Option<&(dyn std::error::Error + 'static)> = Some(error);
    while let Some(error) = cause {
        if let Some(rustls::Error::InvalidCertificate(_)) = error.downcast_ref() {
            return true;
        }
        cause = match error
            .downcast_ref::<io::Error>()
            .and_then(io::Error::get_ref)
        {
            Some(wrapped) => Some(wrapped),
            None => error.source(),
        };
    }
    false
}

impl HttpError {
    /// Why a request got no answer.
    pub fn of_request(url: String, source: reqwest::Error) -> Self {
        if is_certificate_refused(&source) {
            Self::Certificate { url, source }
        } else {
            Self::Unreachable { url, source }
        }
    }
}

/// What a server says about an error, fit to be shown: one line, without control characters.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Said(String);

impl Said {
    /// Takes the text out of the body of an error, `{"error": "…"}`.
    pub fn from_body(body: &[u8]) -> Self {
        #[derive(serde::Deserialize)]
        struct Body {
            error: String,
        }
        let text =
            serde_json::from_slice(body).map_or_else(|_| String::new(), |body: Body| body.error);
        let shown = text
            .chars()
            .map(|char| if char.is_control() { ' ' } else { char });
        Self(shown.take(SAID_CHARS_MAX).collect())
    }
}

impl std::fmt::Display for Said {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self.0.trim() {
            "" => Ok(()),
            said => write!(formatter, "; it says: {said}"),
        }
    }
}

/// What was asked: the same status means another thing to a reader than to a publisher.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ask {
    /// A file of the store.
    Read,
    /// Something of the upload protocol.
    Upload,
}

/// What is known of an answer that is no success.
#[derive(Clone, Debug)]
pub struct Failure {
    /// What was asked.
    pub ask: Ask,
    /// Where.
    pub url: String,
    /// The status.
    pub status: StatusCode,
    /// Whether a token was sent.
    pub with_token: bool,
    /// Where a redirect leads.
    pub location: Option<String>,
    /// What the body says.
    pub said: Said,
}

impl From<Failure> for HttpError {
    /// Translates a status: 401 and 403 are about the token; 404 and 405 to an upload mean that
    /// there is no upload router; 409, 413, 422 and 507 are the protocol's; the rest is shown.
    fn from(failure: Failure) -> Self {
        let Failure {
            ask,
            url,
            status,
            with_token,
            location,
            said,
        } = failure;
        match (status.as_u16(), ask) {
            (401, _) if with_token => Self::UnknownToken,
            (401, _) => Self::NoToken,
            (403, Ask::Upload) => Self::Scope,
            (301..=303 | 307 | 308, _) => {
                let to = Said(location.unwrap_or_default()).0;
                Self::Redirected { url, to }
            }
            (404 | 405, Ask::Upload) => Self::NoUploads,
            (409, Ask::Upload) => Self::Conflict { said },
            (413, Ask::Upload) => Self::TooLong { url, said },
            (411 | 422, Ask::Upload) => Self::Refused { url, said },
            (507, _) => Self::Full,
            _ => Self::Status { url, status, said },
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(ask: Ask, status: u16, with_token: bool) -> HttpError {
        HttpError::from(Failure {
            ask,
            url: "http://host/objects/ab/cd".to_owned(),
            status: StatusCode::from_u16(status).unwrap(),
            with_token,
            location: None,
            said: Said::from_body(br#"{"error":"no\u001b[31m room"}"#),
        })
    }

    #[test]
    fn each_status_names_its_cure() {
        for (status, with_token, cure) in [
            (401, false, "--token-file"),
            (401, true, "does not know the token"),
            (403, true, "scope `publish`"),
            (404, true, "--upload"),
            (405, true, "--upload"),
            (409, true, "faster"),
            (413, true, "as long as"),
            (422, true, "it says: no [31m room"),
            (507, true, "Make room"),
            (308, true, "give that address"),
            (418, true, "418"),
        ] {
            let error = of(Ask::Upload, status, with_token);
            assert!(error.to_string().contains(cure), "{status}: {error}");
            assert!(!error.is_transient(), "{status}");
        }
        assert!(matches!(
            of(Ask::Read, 404, false),
            HttpError::Status { .. }
        ));
    }

    #[test]
    fn what_may_pass_is_transient() {
        for status in [408, 429, 500, 502, 503, 504] {
            assert!(of(Ask::Upload, status, true).is_transient(), "{status}");
        }
    }

    #[test]
    fn a_server_cannot_flood_a_message() {
        let body = format!(r#"{{"error":"{}"}}"#, "x".repeat(10_000));
        assert!(Said::from_body(body.as_bytes()).to_string().len() < 500);
        assert_eq!(Said::from_body(b"<html>").to_string(), "");
    }
}
