//! Packs: many chunks in one object.
//!
//! A pack is an 8-byte magic followed by the stored bytes of chunks, one behind the other, in the
//! order of the disk. It has no table of its own: index pages say what lies where. Neighbours on
//! the disk are neighbours in the pack, so one range request brings a whole run.

/// What a pack begins with, so that a stray file is not taken for one.
pub const PACK_MAGIC: &[u8; 8] = b"CIRCPACK";

/// Bytes in front of the first chunk.
pub const PACK_HEADER_BYTES: u32 = 8;

/// A pack is closed once it has this many bytes: 16 MiB.
pub const PACK_BYTES_TARGET: u32 = 16 * 1024 * 1024;

/// No pack is longer: the target and one chunk of the largest size, rounded up.
pub const PACK_BYTES_MAX: u32 = 64 * 1024 * 1024;
