//! Who may do what: a table of tokens, by their digests.
//!
//! Pure. A line is `SCOPE SHA256-HEX NAME`; `#` begins a comment. The file holds no token, so
//! whoever reads it can do nothing with it; a token has 256 random bits, so its digest needs no
//! salt and no slow hash.

use std::fmt;
use std::sync::Arc;

use aws_lc_rs::constant_time::verify_slices_are_equal;
use image_format::Digest;

/// What every token begins with: it can be found where it should not lie.
pub const PREFIX: &str = "circular_";

/// Most tokens in a file: all of them are compared, for each request.
pub const TOKENS_MAX: usize = 1000;

/// The longest name of a token.
pub const NAME_LEN_MAX: usize = 64;

/// The longest token taken from a request; ours have 73 bytes.
pub(crate) const TOKEN_LEN_MAX: usize = 256;

/// What a token allows. Each allows what stands before it too.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, clap::ValueEnum)]
pub enum Scope {
    /// To read a private store
    Read,
    /// To publish into the store
    Publish,
}

/// The word in the table.
impl fmt::Display for Scope {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Read => "read",
            Self::Publish => "publish",
        })
    }
}

/// A token as its owner has it. No debug output shows it.
#[derive(Clone, PartialEq, Eq)]
pub struct Secret(String);

impl Secret {
    /// Takes what a request brought.
    pub(crate) fn new(text: String) -> Self {
        Self(text)
    }

    /// Makes a token of random bytes.
    pub fn from_random(bytes: [u8; 32]) -> Self {
        // A digest is written as the hex digits of its 32 bytes.
        Self(format!("{PREFIX}{}", Digest::from_bytes(bytes)))
    }

    /// Returns the token itself, for its owner.
    pub fn reveal(&self) -> &str {
        &self.0
    }

    /// Returns the line of the table that lets this token in.
    pub fn line(&self, scope: Scope, name: &TokenName) -> String {
        format!("{scope} {} {name}", self.digest())
    }

    fn digest(&self) -> Digest {
        Digest::of(self.0.as_bytes())
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Secret")
    }
}

/// What a token is called in the table and in logs: 1 to 64 of `A-Z a-z 0-9 . _ - @`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TokenName(Arc<str>);

impl fmt::Display for TokenName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// A text that is no name for a token.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("a token's name has 1 to {NAME_LEN_MAX} of A-Z a-z 0-9 . _ - @")]
pub struct NotAName;

impl std::str::FromStr for TokenName {
    type Err = NotAName;

    fn from_str(text: &str) -> Result<Self, NotAName> {
        let allowed = |byte: u8| byte.is_ascii_alphanumeric() || b"._-@".contains(&byte);
        let valid = (1..=NAME_LEN_MAX).contains(&text.len()) && text.bytes().all(allowed);
        valid.then(|| Self(text.into())).ok_or(NotAName)
    }
}

/// What a known token allows.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Grant {
    /// What may be done.
    pub(crate) scope: Scope,
    /// For the log.
    pub(crate) name: TokenName,
}

/// The table.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Tokens(Vec<(Digest, Grant)>);

/// Why a table cannot be used.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum TokensError {
    #[error("line {line} is not UTF-8")]
    Text { line: usize },
    #[error("line {line} is not `SCOPE SHA256-HEX NAME`")]
    Words { line: usize },
    #[error("line {line}: the scope is `read` or `publish`")]
    Scope { line: usize },
    #[error("line {line}: the second word is the SHA-256 of a token, 64 lower-case hex digits")]
    Digest { line: usize },
    #[error("line {line}: {source}")]
    Name { line: usize, source: NotAName },
    #[error("line {line}: the same token stands in line {first}")]
    Twice { line: usize, first: usize },
    #[error("line {line}: a table has at most {TOKENS_MAX} tokens")]
    TooMany { line: usize },
}

impl Tokens {
    /// Reads a table; one line that cannot be read makes all of it unusable.
    ///
    /// # Errors
    /// Says which line, and what is wrong with it. The line itself is not repeated: it may hold a
    /// token, by mistake.
    pub(crate) fn parse(bytes: &[u8]) -> Result<Self, TokensError> {
        let mut tokens: Vec<(Digest, Grant)> = Vec::new();
        let mut lines = Vec::new();
        for (line, bytes) in (1..).zip(bytes.split(|byte| *byte == b'\n')) {
            let text = std::str::from_utf8(bytes).map_err(|_| TokensError::Text { line })?;
            let Some((digest, grant)) = parse_line(line, text)? else {
                continue;
            };
            if let Some(first) = tokens.iter().position(|(known, _)| *known == digest) {
                let first = lines[first];
                return Err(TokensError::Twice { line, first });
            }
            if tokens.len() == TOKENS_MAX {
                return Err(TokensError::TooMany { line });
            }
            tokens.push((digest, grant));
            lines.push(line);
        }
        Ok(Self(tokens))
    }

    /// Finds what a token allows.
    ///
    /// The time that takes does not depend on how far a digest agrees: each is compared to its end,
    /// and all of them are. It is digests that are compared, so nobody could steer a guess towards a
    /// known one anyway; this way nobody has to rely on that.
    pub(crate) fn find(&self, secret: &Secret) -> Option<&Grant> {
        let digest = secret.digest();
        let mut found = None;
        for (known, grant) in &self.0 {
            if verify_slices_are_equal(known.as_bytes(), digest.as_bytes()).is_ok() {
                found = Some(grant);
            }
        }
        found
    }
}

fn parse_line(line: usize, text: &str) -> Result<Option<(Digest, Grant)>, TokensError> {
    let text = text.split_once('#').map_or(text, |(text, _comment)| text);
    let words: Vec<_> = text.split_ascii_whitespace().take(4).collect();
    let (scope, digest, name) = match words[..] {
        [] => return Ok(None),
        [scope, digest, name] => (scope, digest, name),
        _ => return Err(TokensError::Words { line }),
    };
    let scope = match scope {
        "read" => Scope::Read,
        "publish" => Scope::Publish,
        _ => return Err(TokensError::Scope { line }),
    };
    let digest = digest.parse().map_err(|_| TokensError::Digest { line })?;
    let name = name
        .parse()
        .map_err(|source| TokensError::Name { line, source })?;
    Ok(Some((digest, Grant { scope, name })))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::{any, prop_assert, proptest};

    use super::*;

    fn secret(byte: u8) -> Secret {
        Secret::from_random([byte; 32])
    }

    fn line(byte: u8, scope: Scope, name: &str) -> String {
        secret(byte).line(scope, &name.parse().unwrap())
    }

    #[test]
    fn a_token_is_found_by_its_digest() {
        let table = format!(
            "# who may publish\n\n  {}  # until May\n{}\r\n",
            line(1, Scope::Publish, "ci"),
            line(2, Scope::Read, "lab@2")
        );
        let tokens = Tokens::parse(table.as_bytes()).unwrap();
        let grant = tokens.find(&secret(1)).unwrap();
        assert_eq!(
            (grant.scope, &*grant.name.to_string()),
            (Scope::Publish, "ci")
        );
        assert_eq!(tokens.find(&secret(2)).unwrap().scope, Scope::Read);
        assert_eq!(tokens.find(&secret(3)), None);
        let digest = Secret::new(secret(1).digest().to_string());
        assert_eq!(tokens.find(&digest), None, "the digest is no token");
    }

    #[test]
    fn publishing_is_more_than_reading() {
        assert!(Scope::Publish > Scope::Read);
    }

    #[test]
    fn a_token_has_256_bits_and_is_shown_to_nobody() {
        let token = secret(0xab);
        assert_eq!(token.reveal(), format!("circular_{}", "ab".repeat(32)));
        assert!(token.reveal().len() <= TOKEN_LEN_MAX);
        assert!(!format!("{token:?}").contains("ab"));
    }

    #[test]
    fn what_is_wrong_is_said_with_its_line_and_never_repeated() {
        let good = line(1, Scope::Read, "a");
        let hex = "ab".repeat(32);
        #[rustfmt::skip]
        let table = [
            (format!("{good}\nread {hex}"),             "line 2 is not"),
            (format!("read {hex} a b"),                 "line 1 is not"),
            (format!("\n\nwrite {hex} a"),              "line 3: the scope"),
            (format!("read {} a", secret(1).reveal()),  "line 1: the second word"),
            (format!("read {} a", hex.to_uppercase()),  "line 1: the second word"),
            (format!("read {hex} a/b"),                 "line 1: a token's name"),
            (format!("read {hex} {}", "x".repeat(65)),  "line 1: a token's name"),
            (format!("{good}\n#\n{good}"),              "line 3: the same token stands in line 1"),
        ];
        for (text, expected) in table {
            let error = Tokens::parse(text.as_bytes()).unwrap_err().to_string();
            assert!(error.starts_with(expected), "{error}");
            assert!(
                !error.contains("abab") && !error.contains(PREFIX),
                "{error}"
            );
        }
        let error = Tokens::parse(b"# ok\nread \xff").unwrap_err();
        assert_eq!(error, TokensError::Text { line: 2 });
    }

    #[test]
    fn a_table_is_bounded() {
        let line = |number: usize| format!("read {} a\n", Digest::of(&number.to_le_bytes()));
        let table: String = (0..=TOKENS_MAX).map(line).collect();
        let error = Tokens::parse(table.as_bytes()).unwrap_err();
        assert_eq!(error, TokensError::TooMany { line: 1001 });
    }

    proptest! {
        /// Any bytes at all are a table or an error, and no token is let in by accident.
        #[test]
        fn any_bytes_are_a_table_or_an_error(bytes in proptest::collection::vec(any::<u8>(), 0..300)) {
            if let Ok(tokens) = Tokens::parse(&bytes) {
                prop_assert!(tokens.find(&secret(1)).is_none());
            }
        }
    }
}
