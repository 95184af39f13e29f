//! Where a server is, and what opens it: checked values from the command line.

use std::fmt;
use std::fs::{self, File};
use std::io::Read as _;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::str::FromStr;

use url::Url;

/// The longest token file: tokens have some 70 bytes.
const TOKEN_BYTES_MAX: u64 = 4096;

/// The address of a store: http or https, ends in a slash, holds no password.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StoreUrl(Url);

/// Why text is not the address of a store.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
#[expect(missing_docs, reason = "the messages are the docs")]
pub enum StoreUrlError {
    #[error("not an address like https://host/path/")]
    Parse(#[from] url::ParseError),
    #[error("a store is reached by http:// or https://, not {0}:")]
    Scheme(String),
    #[error("the address of a store has no '?' or '#' part")]
    Query,
    #[error("no user or password in the address: others see command lines; use --token-file")]
    Password,
}

impl FromStr for StoreUrl {
    type Err = StoreUrlError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let mut url = Url::parse(text)?;
        if !matches!(url.scheme(), "http" | "https") {
            return Err(StoreUrlError::Scheme(url.scheme().to_owned()));
        }
        if url.query().is_some() || url.fragment().is_some() {
            return Err(StoreUrlError::Query);
        }
        if !url.username().is_empty() || url.password().is_some() {
            return Err(StoreUrlError::Password);
        }
        if !url.path().ends_with('/') {
            url.set_path(&format!("{}/", url.path()));
        }
        Ok(Self(url))
    }
}

impl fmt::Display for StoreUrl {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(formatter)
    }
}

impl StoreUrl {
    /// Returns the address of a file of the store; its path is made by this program.
    pub fn file(&self, path: &str) -> Url {
        let mut url = self.0.clone();
        url.set_path(&format!("{}{path}", self.0.path()));
        url
    }

    /// Tells whether what is sent there can be read on the way.
    pub fn is_in_clear(&self) -> bool {
        let here = match self.0.host() {
            Some(url::Host::Domain(name)) => name == "localhost",
            Some(url::Host::Ipv4(address)) => address.is_loopback(),
            Some(url::Host::Ipv6(address)) => address.is_loopback(),
            None => false,
        };
        self.is_http() && !here
    }

    /// Tells whether there is no TLS.
    pub fn is_http(&self) -> bool {
        self.0.scheme() == "http"
    }
}

/// A bearer token. It is sent to the server and shown nowhere.
#[derive(Clone, PartialEq, Eq)]
pub struct Token(String);

/// Why a file holds no token.
#[derive(Debug, thiserror::Error)]
#[expect(missing_docs, reason = "the messages are the docs")]
pub enum TokenError {
    #[error("cannot read the token file `{}`", .path.display())]
    Read {
        path: PathBuf,
        source: std::io::Error,
    },
    #[error("the token file `{}` does not hold one token on one line", .path.display())]
    Form { path: PathBuf },
}

/// Whether others on this machine can read a file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Privacy {
    /// Only its owner can.
    Private,
    /// Others can too.
    Open,
}

impl Token {
    /// Reads a token from a file, and tells who else can.
    ///
    /// # Errors
    /// The file cannot be read, or holds something else.
    pub fn from_file(path: &Path) -> Result<(Self, Privacy), TokenError> {
        let read = || {
            let mut text = Vec::new();
            File::open(path)?
                .take(TOKEN_BYTES_MAX)
                .read_to_end(&mut text)?;
            Ok((text, fs::metadata(path)?.permissions().mode()))
        };
        let (text, mode) = read().map_err(|source| TokenError::Read {
            path: path.to_owned(),
            source,
        })?;
        let text = text.trim_ascii();
        if text.is_empty() || !text.iter().all(u8::is_ascii_graphic) {
            return Err(TokenError::Form {
                path: path.to_owned(),
            });
        }
        let privacy = match mode & 0o077 {
            0 => Privacy::Private,
            _ => Privacy::Open,
        };
        Ok((Self(String::from_utf8_lossy(text).into_owned()), privacy))
    }

    /// Returns the token itself, to be sent.
    pub(super) fn reveal(&self) -> &str {
        &self.0
    }
}

impl fmt::Debug for Token {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str("Token(…)")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_end_in_a_slash_and_hold_no_secret() {
        let url = |text: &str| text.parse::<StoreUrl>();
        let one = url("https://host/a/b").unwrap();
        assert_eq!(one.to_string(), "https://host/a/b/");
        assert_eq!(one, url("https://host/a/b/").unwrap());
        assert_eq!(
            one.file("objects/ab/cd").as_str(),
            "https://host/a/b/objects/ab/cd"
        );
        assert_eq!(
            one.file("targets/ab.lab,debian").as_str(),
            "https://host/a/b/targets/ab.lab,debian"
        );
        assert_eq!(url("https://me:secret@host/"), Err(StoreUrlError::Password));
        assert_eq!(url("https://host/?a"), Err(StoreUrlError::Query));
        assert!(url("ftp://host/").is_err() && url("host").is_err());
    }

    #[test]
    fn only_http_to_another_machine_is_in_clear() {
        let clear = |text: &str| text.parse::<StoreUrl>().unwrap().is_in_clear();
        assert!(clear("http://host/") && clear("http://10.0.0.1:8080/"));
        assert!(!clear("https://host/") && !clear("http://localhost:1/"));
        assert!(!clear("http://127.0.0.1/") && !clear("http://[::1]/"));
    }

    #[test]
    fn a_token_is_read_and_never_shown() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("token");
        fs::write(&path, "circular_abc\n").unwrap();
        fs::set_permissions(&path, fs::Permissions::from_mode(0o640)).unwrap();
        let (token, privacy) = Token::from_file(&path).unwrap();
        assert_eq!((token.reveal(), privacy), ("circular_abc", Privacy::Open));
        assert_eq!(format!("{token:?}"), "Token(…)");
        fs::set_permissions(&path, fs::Permissions::from_mode(0o600)).unwrap();
        assert_eq!(Token::from_file(&path).unwrap().1, Privacy::Private);
        for bad in ["", "two words", "two\nlines"] {
            fs::write(&path, bad).unwrap();
            assert!(
                matches!(Token::from_file(&path), Err(TokenError::Form { .. })),
                "{bad}"
            );
        }
    }
}
