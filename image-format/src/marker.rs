//! The store marker, `circular.json`: says that a directory or bucket is a store, and of which format.

use serde::{Deserialize, Serialize};

use crate::chunker::ChunkerParams;
use crate::codec::{self, DecodeError};

/// Where the marker lies in a store.
pub const MARKER_PATH: &str = "circular.json";

/// The longest marker, in bytes.
pub const MARKER_BYTES_MAX: usize = 4096;

/// What kind of store this is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Marker {
    /// Version of the store's layout; 1. Programs refuse a version that they do not know.
    pub circular_store: u32,
    /// How new images are cut, unless the publisher says otherwise.
    pub chunker: ChunkerParams,
}

impl Marker {
    /// What a new store gets.
    pub const DEFAULT: Self = Self {
        circular_store: 1,
        chunker: ChunkerParams::DEFAULT,
    };

    /// Decodes and checks a marker.
    ///
    /// # Errors
    /// The bytes are no marker, or that of a newer format.
    pub fn decode(bytes: &[u8]) -> Result<Self, DecodeError> {
        const WHAT: &str = "store marker circular.json";
        let marker: Self = codec::json(WHAT, bytes, MARKER_BYTES_MAX)?;
        if marker.circular_store != 1 {
            return Err(DecodeError::Version {
                what: WHAT,
                version: u64::from(marker.circular_store),
            });
        }
        marker.chunker.check()?;
        Ok(marker)
    }

    /// Encodes the marker.
    pub fn encode(&self) -> Vec<u8> {
        codec::to_json(self)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_newer_store_is_refused_by_name() {
        let newer = Marker {
            circular_store: 7,
            ..Marker::DEFAULT
        };
        let error = Marker::decode(&newer.encode()).unwrap_err().to_string();
        assert!(error.contains("version 7"), "{error}");
        assert_eq!(
            Marker::decode(&Marker::DEFAULT.encode()).unwrap(),
            Marker::DEFAULT
        );
    }
}
