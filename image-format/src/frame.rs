//! One chunk as it lies in a pack: a zstd frame (RFC 8878), or raw where that is not smaller.
//!
//! There is no flag: a stored length equal to the plain length means raw. Only plain bytes are
//! hashed, so zstd gets untrusted input: it writes into a buffer of just the expected length, with
//! a bounded window, and nothing leaves [`decode`] without its digest.

use std::cell::RefCell;
use std::io;

use bytes::Bytes;
use zstd::bulk::{Compressor, Decompressor};
use zstd::zstd_safe::{DParameter, find_frame_compressed_size, get_frame_content_size};

use crate::chunk::{Chunk, ChunkId};
use crate::digest::DigestMismatch;

/// The largest window that a frame may ask for: 2^21 bytes, twice the largest chunk.
pub const WINDOW_LOG_MAX: u32 = 21;

/// Why stored bytes are not the chunk expected.
#[derive(Debug, thiserror::Error)]
#[expect(missing_docs, reason = "the messages are the docs")]
pub enum FrameError {
    #[error("chunk {chunk} does not unpack")]
    Unpack { chunk: ChunkId, source: UnpackError },
    #[error("chunk {chunk} is corrupt")]
    Corrupt {
        chunk: ChunkId,
        source: DigestMismatch,
    },
}

/// Why stored bytes do not unpack to the length expected.
#[derive(Debug, thiserror::Error)]
#[expect(missing_docs, reason = "the messages are the docs")]
pub enum UnpackError {
    #[error("it is not one zstd frame of {expected} bytes")]
    Shape { expected: usize },
    #[error("zstd cannot decompress it")]
    Zstd(#[source] io::Error),
}

/// Compresses chunks, one after another, with one context.
pub struct Encoder {
    zstd: Compressor<'static>,
}

impl std::fmt::Debug for Encoder {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Encoder").finish_non_exhaustive()
    }
}

impl Encoder {
    /// Makes an encoder of a zstd level (1 to 22).
    ///
    /// # Errors
    /// There is no memory for the context, or no such level.
    pub fn new(level: i32) -> io::Result<Self> {
        Compressor::new(level).map(|zstd| Self { zstd })
    }

    /// Returns what is stored for `plain`: a frame, or `plain` itself where that is not smaller.
    ///
    /// # Errors
    /// There is no memory.
    pub fn encode(&mut self, plain: &[u8]) -> io::Result<Vec<u8>> {
        let frame = self.zstd.compress(plain)?;
        Ok(if frame.len() < plain.len() {
            frame
        } else {
            plain.to_vec()
        })
    }
}

thread_local! {
    /// A context costs 160 KiB to make; each thread that decodes keeps its own.
    static DECODER: RefCell<Option<Decompressor<'static>>> = const { RefCell::new(None) };
    /// What a frame of a boot pack was unpacked to last.
    static SCRATCH: RefCell<Vec<u8>> = const { RefCell::new(Vec::new()) };
}

/// As much memory a thread keeps: more than the usual frame of a boot pack has.
const SCRATCH_BYTES_MAX: usize = 2 << 20;

/// Decodes and verifies the chunk `id` of `plain_len` bytes from its stored bytes.
///
/// # Errors
/// The bytes are no such frame, or not the chunk that their name promises.
pub fn decode(id: ChunkId, plain_len: usize, stored: &[u8]) -> Result<Chunk, FrameError> {
    let plain =
        unpack(plain_len, stored).map_err(|source| FrameError::Unpack { chunk: id, source })?;
    Chunk::verify(id, plain).map_err(|source| FrameError::Corrupt { chunk: id, source })
}

/// Returns the `expected` plain bytes of a frame, or of bytes stored raw; not yet verified.
pub(crate) fn unpack(expected: usize, stored: &[u8]) -> Result<Bytes, UnpackError> {
    if stored.len() == expected {
        return Ok(Bytes::copy_from_slice(stored));
    }
    let mut plain = Vec::new();
    unpack_into(&mut plain, expected, stored)?;
    Ok(Bytes::from(plain))
}

/// What `read` makes of the plain bytes, which are in memory that the thread uses again: fresh memory
/// costs more than what is written to it.
pub(crate) fn unpacked<T>(
    expected: usize,
    stored: &[u8],
    read: impl FnOnce(&[u8]) -> T,
) -> Result<T, UnpackError> {
    if stored.len() == expected {
        return Ok(read(stored));
    }
    SCRATCH.with_borrow_mut(|plain| {
        unpack_into(plain, expected, stored)?;
        let made = read(plain);
        if plain.capacity() > SCRATCH_BYTES_MAX {
            *plain = Vec::new();
        }
        Ok(made)
    })
}

/// Makes `plain` the `expected` plain bytes of a frame.
fn unpack_into(plain: &mut Vec<u8>, expected: usize, stored: &[u8]) -> Result<(), UnpackError> {
    let shape = UnpackError::Shape { expected };
    if get_frame_content_size(stored).ok().flatten() != Some(expected as u64)
        || find_frame_compressed_size(stored) != Ok(stored.len())
    {
        return Err(shape);
    }
    DECODER.with_borrow_mut(|slot| {
        let decoder = match slot {
            Some(decoder) => decoder,
            None => {
                let mut decoder = Decompressor::new().map_err(UnpackError::Zstd)?;
                decoder
                    .set_parameter(DParameter::WindowLogMax(WINDOW_LOG_MAX))
                    .map_err(UnpackError::Zstd)?;
                slot.insert(decoder)
            }
        };
        plain.clear();
        plain.reserve_exact(expected);
        let length = decoder
            .decompress_to_buffer(stored, plain)
            .map_err(UnpackError::Zstd)?;
        if length == expected && plain.len() == expected {
            Ok(())
        } else {
            Err(shape)
        }
    })
}

#[cfg(test)]
mod tests {
    use proptest::collection::vec;
    use proptest::prelude::*;

    use super::*;

    proptest! {
        /// What is encoded decodes to itself, and never grows.
        #[test]
        fn round_trip(seed in vec(any::<u8>(), 1..300), repeat in 1..40_usize, level in 1..20) {
            let plain = seed.repeat(repeat);
            let stored = Encoder::new(level).unwrap().encode(&plain).unwrap();
            prop_assert!(stored.len() <= plain.len());
            let chunk = decode(ChunkId::of(&plain), plain.len(), &stored).unwrap();
            prop_assert_eq!(&chunk.bytes()[..], &plain[..]);
        }

        /// A damaged frame is an error, never other bytes.
        #[test]
        fn damage_is_seen(at in any::<prop::sample::Index>(), bit in 0..8_u32) {
            let plain: Vec<u8> = b"circular ".repeat(1000);
            let id = ChunkId::of(&plain);
            let mut stored = Encoder::new(3).unwrap().encode(&plain).unwrap();
            let at = at.index(stored.len());
            stored[at] ^= 1 << bit;
            if let Ok(chunk) = decode(id, plain.len(), &stored) {
                prop_assert_eq!(&chunk.bytes()[..], &plain[..]);
            }
        }
    }

    #[test]
    fn a_frame_of_another_length_is_refused() {
        let plain = vec![7; 8192];
        let id = ChunkId::of(&plain);
        let mut stored = Encoder::new(3).unwrap().encode(&plain).unwrap();
        let no_such_frame = |length, stored: &[u8]| {
            let error = decode(id, length, stored).unwrap_err();
            matches!(
                error,
                FrameError::Unpack {
                    source: UnpackError::Shape { .. },
                    ..
                }
            )
        };
        assert!(no_such_frame(4096, &stored));
        stored.push(0);
        assert!(no_such_frame(8192, &stored));
        assert!(no_such_frame(8192, &[]));
    }
}
