//! Chunks: the unit that is named by digest, stored, fetched and verified.

use std::fmt;

use bytes::Bytes;
use serde::{Deserialize, Serialize};

use crate::digest::{DIGEST_BYTES, Digest, DigestMismatch};

/// The most blocks that a chunk of any store may have: 1 MiB. The default maximum is 64 (256 KiB).
pub const CHUNK_BLOCKS_MAX: u32 = 256;

/// Names a chunk by the digest of its uncompressed bytes.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(transparent)]
pub struct ChunkId(Digest);

impl ChunkId {
    /// Computes the name of a chunk of these plain bytes.
    pub fn of(plain: &[u8]) -> Self {
        Self(Digest::of(plain))
    }

    /// Takes 32 bytes that are known to be a chunk's digest.
    pub const fn from_bytes(bytes: [u8; DIGEST_BYTES]) -> Self {
        Self(Digest::from_bytes(bytes))
    }

    /// Returns the 32 bytes.
    pub const fn as_bytes(&self) -> &[u8; DIGEST_BYTES] {
        self.0.as_bytes()
    }
}

/// Writes 64 lower-case hex digits.
impl fmt::Display for ChunkId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(&self.0, f)
    }
}

impl fmt::Debug for ChunkId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(&self.0, f)
    }
}

/// Plain bytes that were found to match their name. Whoever holds one need not check again.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Chunk {
    id: ChunkId,
    plain: Bytes,
}

impl Chunk {
    /// Accepts `plain` as the chunk `id` if it is that.
    ///
    /// # Errors
    /// The bytes have another digest.
    pub fn verify(id: ChunkId, plain: Bytes) -> Result<Self, DigestMismatch> {
        let actual = Digest::of(&plain);
        if actual == id.0 {
            Ok(Self { id, plain })
        } else {
            Err(DigestMismatch {
                expected: id.0,
                actual,
            })
        }
    }

    /// Returns the name of the chunk.
    pub const fn id(&self) -> ChunkId {
        self.id
    }

    /// Returns its plain bytes, a multiple of 4096 of them.
    pub const fn bytes(&self) -> &Bytes {
        &self.plain
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_matching_bytes_become_a_chunk() {
        let id = ChunkId::of(b"one");
        assert_eq!(
            Chunk::verify(id, Bytes::from_static(b"one")).unwrap().id(),
            id
        );
        assert!(Chunk::verify(id, Bytes::from_static(b"two")).is_err());
    }
}
