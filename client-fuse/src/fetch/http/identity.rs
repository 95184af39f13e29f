//! Who the servers must be, and who we are to them: certificate authorities and a token.
//!
//! The files are read once, at the start: a root disk outlives the file system that they lie on.

use std::fmt;
use std::io;
use std::path::{Path, PathBuf};

use reqwest::header::HeaderValue;
use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::{self, PemObject as _};

use super::tls::Believed;
use crate::config::{Authorities, IdentityConfig};
use crate::trust::read_bounded;

/// The longest file of certificates: more than all that a system trusts.
const CA_BYTES_MAX: u64 = 1 << 20;

/// The longest file of a token.
const TOKEN_BYTES_MAX: u64 = 4096;

/// Certificate authorities and a token.
#[derive(Clone, Debug, Default)]
pub struct Identity {
    believed: Believed,
    token: Option<Token>,
}

/// Why they cannot be used.
#[derive(Debug, thiserror::Error)]
#[expect(missing_docs, reason = "the messages are the docs")]
pub enum IdentityError {
    #[error("cannot read {}", path.display())]
    Read { path: PathBuf, source: io::Error },
    #[error("{} has no certificates in it; PEM is expected: -----BEGIN CERTIFICATE-----", path.display())]
    NoCertificates { path: PathBuf },
    #[error("the certificates in {} cannot be used", path.display())]
    Certificates { path: PathBuf, source: pem::Error },
    #[error("{} has no token in it: one line of visible ASCII characters is expected", path.display())]
    Token { path: PathBuf },
}

impl Identity {
    /// Reads what `config` names.
    ///
    /// # Errors
    ///
    /// Says which file cannot be read or used. What is in a token's file is never told.
    pub fn load(config: &IdentityConfig) -> Result<Self, IdentityError> {
        let (certificates, only) = match &config.authorities {
            Authorities::System => (Vec::new(), false),
            Authorities::SystemAnd(path) => (certificates(path)?, false),
            Authorities::Only(path) => (certificates(path)?, true),
        };
        let token = config.token.as_deref().map(Token::read).transpose()?;
        Ok(Self {
            believed: Believed { certificates, only },
            token,
        })
    }

    /// Whether a token is shown to servers.
    #[must_use]
    pub const fn has_token(&self) -> bool {
        self.token.is_some()
    }

    /// The header that shows the token.
    pub(super) fn authorization(&self) -> Option<HeaderValue> {
        self.token.as_ref().map(|Token(header)| header.clone())
    }

    /// Whom TLS believes.
    pub(super) fn believed(&self) -> Believed {
        self.believed.clone()
    }
}

fn certificates(path: &Path) -> Result<Vec<CertificateDer<'static>>, IdentityError> {
    let path = path.to_owned();
    let pem = match read_bounded(&path, CA_BYTES_MAX) {
        Ok(pem) => pem,
        Err(source) => return Err(IdentityError::Read { path, source }),
    };
    match CertificateDer::pem_slice_iter(&pem).collect::<Result<Vec<_>, _>>() {
        Ok(certificates) if certificates.is_empty() => Err(IdentityError::NoCertificates { path }),
        Ok(certificates) => Ok(certificates),
        Err(source) => Err(IdentityError::Certificates { path, source }),
    }
}

/// A token, as the value of an Authorization header (RFC 6750).
#[derive(Clone)]
struct Token(HeaderValue);

impl Token {
    fn read(path: &Path) -> Result<Self, IdentityError> {
        let path = path.to_owned();
        match read_bounded(&path, TOKEN_BYTES_MAX) {
            Ok(text) => Self::parse(&text).ok_or(IdentityError::Token { path }),
            Err(source) => Err(IdentityError::Read { path, source }),
        }
    }

    fn parse(text: &[u8]) -> Option<Self> {
        let token = text.trim_ascii();
        if token.is_empty() || !token.iter().all(u8::is_ascii_graphic) {
            return None;
        }
        let mut header = HeaderValue::from_bytes(&[b"Bearer ", token].concat()).ok()?;
        header.set_sensitive(true);
        Some(Self(header))
    }
}

/// Never shows the token.
impl fmt::Debug for Token {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Token")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn load(token: &str) -> Result<Identity, IdentityError> {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("token");
        std::fs::write(&path, token).unwrap();
        Identity::load(&IdentityConfig {
            token: Some(path),
            ..IdentityConfig::default()
        })
    }

    #[test]
    fn a_token_is_one_word_and_never_shown() {
        let identity = load("circular_secret\n").unwrap();
        let header = identity.authorization().unwrap();
        assert_eq!(header, "Bearer circular_secret");
        assert!(header.is_sensitive());
        assert!(!format!("{identity:?} {header:?}").contains("secret"));
        for wrong in [
            "",
            "\n",
            "two words",
            "a\nb",
            "sch\u{f6}n",
            &"x".repeat(5000),
        ] {
            let error = load(wrong).unwrap_err();
            let told = format!("{:#}", anyhow::Error::from(error));
            assert!(wrong.is_empty() || !told.contains(wrong.trim()) || wrong == "\n");
        }
    }

    #[test]
    fn files_that_are_none_are_named() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("ca.pem");
        let load = |path: &Path| {
            let authorities = Authorities::SystemAnd(path.to_owned());
            Identity::load(&IdentityConfig {
                authorities,
                token: None,
            })
        };
        assert!(matches!(load(&path), Err(IdentityError::Read { .. })));
        for wrong in [
            "",
            "-----BEGIN PUBLIC KEY-----\nAAAA\n-----END PUBLIC KEY-----\n",
        ] {
            std::fs::write(&path, wrong).unwrap();
            let error = load(&path).unwrap_err();
            assert!(
                matches!(error, IdentityError::NoCertificates { .. }),
                "{error}"
            );
        }
    }
}
