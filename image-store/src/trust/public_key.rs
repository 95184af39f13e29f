//! Public keys as files: what a key holder gives to the others, and how a key is named.

use std::collections::HashMap;
use std::fmt;

use image_format::Digest;
use serde::{Deserialize, Serialize};
use tough::schema::decoded::{Decoded, Hex};
use tough::schema::key::{Ed25519Key, Ed25519Scheme, Key};

/// The longest file with a public key, in bytes; one has some 150.
pub const PUBLIC_KEY_BYTES_MAX: usize = 4096;

/// Bytes of an ed25519 public key (RFC 8032, section 5.1.5).
const ED25519_BYTES: usize = 32;

/// Why a file is no public key.
#[derive(Debug, thiserror::Error)]
#[expect(missing_docs, reason = "the messages are the docs")]
pub enum PublicKeyError {
    #[error("it is no public key: `circular key show ROLE` prints one")]
    Decode(#[source] serde_json::Error),
    #[error("it is longer than {PUBLIC_KEY_BYTES_MAX} bytes: no public key is")]
    TooLong,
    #[error("it is no ed25519 key, the one kind that is used here")]
    Kind,
}

/// Names a key: the SHA-256 of its canonical public form (TUF 1.0.30, section 4.2).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize)]
#[serde(transparent)]
pub struct KeyId(Digest);

/// Writes 64 lower-case hex digits: the form in a root document.
impl fmt::Display for KeyId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

impl KeyId {
    /// Returns the first 16 digits: enough for people and file names.
    pub fn short(&self) -> String {
        self.to_string()[..16].to_owned()
    }

    /// Reads an identifier of a root document; `None`: it is no SHA-256.
    pub(super) fn decoded(id: &Decoded<Hex>) -> Option<Self> {
        let bytes: &[u8] = id;
        Some(Self(Digest::from_bytes(bytes.try_into().ok()?)))
    }

    /// Returns the form that root documents hold.
    pub(super) fn to_decoded(self) -> Decoded<Hex> {
        self.0.as_bytes().to_vec().into()
    }
}

/// The public half of an ed25519 key.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct PublicKey(Key);

impl PublicKey {
    /// Takes the 32 bytes of an ed25519 key.
    pub(super) fn of(public: &[u8]) -> Self {
        Self(Key::Ed25519 {
            keyval: Ed25519Key {
                public: public.to_vec().into(),
                _extra: HashMap::new(),
            },
            scheme: Ed25519Scheme::Ed25519,
            _extra: HashMap::new(),
        })
    }

    /// Takes a key of a root document, if it is an ed25519 key without anything beside.
    pub(super) fn checked(key: &Key) -> Option<Self> {
        let Key::Ed25519 {
            keyval,
            scheme: Ed25519Scheme::Ed25519,
            _extra,
        } = key
        else {
            return None;
        };
        let public: &[u8] = &keyval.public;
        let plain = public.len() == ED25519_BYTES && _extra.is_empty() && keyval._extra.is_empty();
        plain.then(|| Self(key.clone()))
    }

    /// Decodes the file that `circular key show` writes.
    ///
    /// # Errors
    /// It is something else, or a key of another kind.
    pub fn decode(bytes: &[u8]) -> Result<Self, PublicKeyError> {
        if bytes.len() > PUBLIC_KEY_BYTES_MAX {
            return Err(PublicKeyError::TooLong);
        }
        let key: Key = serde_json::from_slice(bytes).map_err(PublicKeyError::Decode)?;
        Self::checked(&key).ok_or(PublicKeyError::Kind)
    }

    /// Returns the name of the key.
    ///
    /// # Panics
    /// Never: an ed25519 key has a canonical form, and SHA-256 has 32 bytes.
    pub fn id(&self) -> KeyId {
        let id = self.0.key_id().expect("an ed25519 key can be encoded");
        KeyId::decoded(&id).expect("a key is named by its SHA-256")
    }

    pub(super) fn to_key(&self) -> Key {
        self.0.clone()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_public_key_comes_back_from_its_file() {
        let key = PublicKey::of(&[7; 32]);
        let file = serde_json::to_vec(&key).unwrap();
        assert_eq!(PublicKey::decode(&file).unwrap(), key);
        assert_eq!(key.id().short().len(), 16);
        assert_ne!(key.id(), PublicKey::of(&[8; 32]).id());
    }

    #[test]
    fn what_is_no_ed25519_key_is_refused() {
        let rsa = br#"{"keytype":"rsa","scheme":"rsassa-pss-sha256","keyval":{"public":"x"}}"#;
        let short = br#"{"keytype":"ed25519","scheme":"ed25519","keyval":{"public":"00ff"}}"#;
        assert!(matches!(
            PublicKey::decode(rsa),
            Err(PublicKeyError::Decode(_) | PublicKeyError::Kind)
        ));
        assert!(matches!(
            PublicKey::decode(short),
            Err(PublicKeyError::Kind)
        ));
        assert!(matches!(
            PublicKey::decode(&vec![b' '; PUBLIC_KEY_BYTES_MAX + 1]),
            Err(PublicKeyError::TooLong)
        ));
    }
}
