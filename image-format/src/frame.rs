//! One chunk as it lies in a pack: a zstd frame (RFC 8878), or raw where that is not smaller.
//!
//! There is no flag: a stored length equal to the plain length means raw. Only plain bytes are
//! hashed, so zstd gets untrusted input: it writes into a buffer of just the expected length, with
//! a bounded window, and nothing leaves [`decode`] without its digest.

use std::collections::VecDeque;
use std::io;
use std::sync::{Mutex, MutexGuard, PoisonError};

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
        Self::with_dictionary(level, &[])
    }

    /// The same; frames are made with `dictionary`, any bytes, and cannot be decoded without it.
    ///
    /// # Errors
    /// There is no memory for the context, or no such level.
    pub(crate) fn with_dictionary(level: i32, dictionary: &[u8]) -> io::Result<Self> {
        Compressor::with_dictionary(level, dictionary).map(|zstd| Self { zstd })
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

/// What decoding needs, kept for whoever decodes next, on whichever thread: a runtime has more threads that may decode
/// than it lets decode at once, and one of these for each of them is memory that nobody uses.
#[derive(Default)]
struct Workspace {
    /// A context costs 160 KiB to make.
    decoder: Option<Decompressor<'static>>,
    /// What a frame of a boot pack was unpacked to last.
    scratch: Vec<u8>,
    /// How often the workspace was lent since the scratch was used.
    unused: u32,
}

/// As many workspaces are kept; there are no more than ever decoded at once.
const WORKSPACES_MAX: usize = 64;

/// As much memory a workspace keeps: more than the usual frame of a boot pack has.
const SCRATCH_BYTES_MAX: usize = 2 << 20;

/// A scratch that was not used as often is given back: the boot pack is over.
const UNUSED_MAX: u32 = 16;

static WORKSPACES: Workspaces = Workspaces::new();

/// Those that nobody has; the one that has waited longest is lent next, so that none is forgotten with its scratch.
struct Workspaces(Mutex<VecDeque<Workspace>>);

impl Workspaces {
    const fn new() -> Self {
        Self(Mutex::new(VecDeque::new()))
    }

    fn lend<T>(&self, work: impl FnOnce(&mut Workspace) -> T) -> T {
        let mut workspace = self.free().pop_front().unwrap_or_default();
        workspace.unused = workspace.unused.saturating_add(1);
        let done = work(&mut workspace);
        if workspace.scratch.capacity() > SCRATCH_BYTES_MAX || workspace.unused > UNUSED_MAX {
            workspace.scratch = Vec::new();
        }
        let mut free = self.free();
        if free.len() < WORKSPACES_MAX {
            free.push_back(workspace);
        }
        done
    }

    fn free(&self) -> MutexGuard<'_, VecDeque<Workspace>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

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
    WORKSPACES
        .lend(|workspace| unpack_into(&mut workspace.decoder, &mut plain, expected, stored))?;
    Ok(Bytes::from(plain))
}

/// Returns the `expected` plain bytes of a frame that was made with `dictionary`; not yet verified.
pub(crate) fn unpack_with(
    dictionary: &[u8],
    expected: usize,
    stored: &[u8],
) -> Result<Bytes, UnpackError> {
    let mut decoder = Some(decompressor(dictionary)?);
    let mut plain = Vec::new();
    unpack_into(&mut decoder, &mut plain, expected, stored)?;
    Ok(Bytes::from(plain))
}

/// Makes a decoder that takes frames of bounded windows only.
fn decompressor(dictionary: &[u8]) -> Result<Decompressor<'static>, UnpackError> {
    let mut made = Decompressor::with_dictionary(dictionary).map_err(UnpackError::Zstd)?;
    made.set_parameter(DParameter::WindowLogMax(WINDOW_LOG_MAX))
        .map_err(UnpackError::Zstd)?;
    Ok(made)
}

/// What `read` makes of the plain bytes, which are in memory that is used again: fresh memory costs more
/// than what is written to it.
pub(crate) fn unpacked<T>(
    expected: usize,
    stored: &[u8],
    read: impl FnOnce(&[u8]) -> T,
) -> Result<T, UnpackError> {
    if stored.len() == expected {
        return Ok(read(stored));
    }
    WORKSPACES.lend(|workspace| {
        workspace.unused = 0;
        let Workspace {
            decoder, scratch, ..
        } = workspace;
        unpack_into(decoder, scratch, expected, stored)?;
        Ok(read(scratch))
    })
}

/// Makes `plain` the `expected` plain bytes of a frame.
fn unpack_into(
    decoder: &mut Option<Decompressor<'static>>,
    plain: &mut Vec<u8>,
    expected: usize,
    stored: &[u8],
) -> Result<(), UnpackError> {
    let shape = UnpackError::Shape { expected };
    if get_frame_content_size(stored).ok().flatten() != Some(expected as u64)
        || find_frame_compressed_size(stored) != Ok(stored.len())
    {
        return Err(shape);
    }
    let decoder = match decoder {
        Some(decoder) => decoder,
        None => decoder.insert(decompressor(&[])?),
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

    #[test]
    fn a_scratch_is_used_again_and_given_back_when_nobody_needs_it() {
        let spaces = Workspaces::new();
        let unpack = |bytes| {
            spaces.lend(|workspace| {
                workspace.unused = 0;
                workspace.scratch.reserve_exact(bytes);
            });
        };
        let kept = || -> usize { spaces.free().iter().map(|it| it.scratch.capacity()).sum() };
        unpack(1000);
        // One that is lent meanwhile is another one.
        spaces.lend(|_| unpack(2000));
        assert_eq!(spaces.free().len(), 2);
        assert!(kept() >= 2000);
        for _ in 0..2 * UNUSED_MAX {
            assert!(kept() > 0);
            spaces.lend(|_| ());
        }
        spaces.lend(|_| ());
        spaces.lend(|_| ());
        assert_eq!(kept(), 0);
        unpack(SCRATCH_BYTES_MAX + 1);
        assert_eq!(kept(), 0, "no frame is as long as to keep that");
    }
}
