//! SHA-256 digests: what names every object, and what every byte from outside is held against.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Deserializer, Serialize, Serializer};
use sha2::{Digest as _, Sha256};

/// Bytes in a digest.
pub const DIGEST_BYTES: usize = 32;

/// The SHA-256 (FIPS 180-4) of some bytes: the name of an object in a store.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Digest([u8; DIGEST_BYTES]);

impl Digest {
    /// Computes the digest of `bytes`.
    pub fn of(bytes: &[u8]) -> Self {
        Self(Sha256::digest(bytes).into())
    }

    /// Takes 32 bytes that are known to be a digest.
    pub const fn from_bytes(bytes: [u8; DIGEST_BYTES]) -> Self {
        Self(bytes)
    }

    /// Returns the 32 bytes.
    pub const fn as_bytes(&self) -> &[u8; DIGEST_BYTES] {
        &self.0
    }

    /// Returns the path of the object of this name in a store: `objects/ab/<64 hex digits>`.
    pub fn object_path(&self) -> String {
        format!("objects/{:02x}/{self}", self.0[0])
    }
}

/// Writes 64 lower-case hex digits: the form in URLs, paths and logs.
impl fmt::Display for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

impl fmt::Debug for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// A text that is not 64 lower-case hex digits.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("not a digest of 64 lower-case hex digits")]
pub struct NotADigest;

impl FromStr for Digest {
    type Err = NotADigest;

    fn from_str(text: &str) -> Result<Self, NotADigest> {
        let (pairs, rest) = text.as_bytes().as_chunks::<2>();
        if pairs.len() != DIGEST_BYTES || !rest.is_empty() {
            return Err(NotADigest);
        }
        let mut bytes = [0; DIGEST_BYTES];
        for (byte, [high, low]) in bytes.iter_mut().zip(pairs) {
            *byte = nibble(*high)? << 4 | nibble(*low)?;
        }
        Ok(Self(bytes))
    }
}

const fn nibble(digit: u8) -> Result<u8, NotADigest> {
    match digit {
        b'0'..=b'9' => Ok(digit - b'0'),
        b'a'..=b'f' => Ok(digit - b'a' + 10),
        _ => Err(NotADigest),
    }
}

impl Serialize for Digest {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for Digest {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = std::borrow::Cow::<'de, str>::deserialize(deserializer)?;
        text.parse().map_err(serde::de::Error::custom)
    }
}

/// Computes a digest of bytes that arrive in parts.
#[derive(Clone, Debug, Default)]
pub struct Hasher(Sha256);

impl Hasher {
    /// Starts with no bytes.
    pub fn new() -> Self {
        Self::default()
    }

    /// Takes the next bytes.
    pub fn update(&mut self, bytes: &[u8]) {
        self.0.update(bytes);
    }

    /// Returns the digest of all bytes taken.
    pub fn finish(self) -> Digest {
        Digest(self.0.finalize().into())
    }
}

/// Bytes that are not what their name says.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the bytes have the digest {actual}, not {expected}")]
pub struct DigestMismatch {
    /// What the name promised.
    pub expected: Digest,
    /// What came.
    pub actual: Digest,
}

/// Names an object and bounds it: its digest and its exact length in bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub struct ObjectRef {
    /// SHA-256 of the whole object.
    pub digest: Digest,
    /// Its length in bytes.
    pub length: u64,
}

/// Why some bytes are not the object that a reference names.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[expect(missing_docs, reason = "the messages are the docs")]
pub enum ObjectMismatch {
    #[error("object {digest} has {actual} bytes, not {expected}")]
    Length {
        digest: Digest,
        expected: u64,
        actual: u64,
    },
    #[error(transparent)]
    Digest(#[from] DigestMismatch),
}

impl ObjectRef {
    /// Names `bytes`.
    pub fn of(bytes: &[u8]) -> Self {
        Self {
            digest: Digest::of(bytes),
            length: bytes.len() as u64,
        }
    }

    /// Checks that `bytes` are the object named.
    ///
    /// # Errors
    /// Says whether length or digest differ.
    pub fn verify(&self, bytes: &[u8]) -> Result<(), ObjectMismatch> {
        if bytes.len() as u64 != self.length {
            return Err(ObjectMismatch::Length {
                digest: self.digest,
                expected: self.length,
                actual: bytes.len() as u64,
            });
        }
        let actual = Digest::of(bytes);
        if actual != self.digest {
            return Err(DigestMismatch {
                expected: self.digest,
                actual,
            }
            .into());
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn text_form_is_lower_case_hex_and_round_trips() {
        let digest = Digest::of(b"abc");
        // The first test vector of FIPS 180-4.
        let text = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad";
        assert_eq!(digest.to_string(), text);
        assert_eq!(text.parse(), Ok(digest));
        assert_eq!(digest.object_path(), format!("objects/ba/{text}"));
    }

    #[test]
    fn other_texts_are_refused() {
        for text in [
            "",
            "ba",
            &"g".repeat(64),
            &"A".repeat(64),
            &"a".repeat(63),
            &"a".repeat(65),
        ] {
            assert_eq!(text.parse::<Digest>(), Err(NotADigest), "{text}");
        }
    }

    #[test]
    fn an_object_is_held_against_length_and_digest() {
        let object = ObjectRef::of(b"abc");
        assert_eq!(object.verify(b"abc"), Ok(()));
        assert!(matches!(
            object.verify(b"abcd"),
            Err(ObjectMismatch::Length { .. })
        ));
        assert!(matches!(
            object.verify(b"abd"),
            Err(ObjectMismatch::Digest(_))
        ));
    }
}
