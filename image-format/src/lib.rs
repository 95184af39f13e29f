//! The formats of Circular: what bytes mean, and nothing else.
//!
//! A disk is a sequence of 4096-byte blocks ([`geometry`]), cut into chunks ([`chunker`]) that are
//! named by the SHA-256 of their plain bytes ([`chunk`]), stored as frames ([`frame`]) in packs
//! ([`pack`]), and found again through index pages ([`page`]) and a region table
//! ([`region_table`]). A [`manifest`] describes one version of an image; a [`catalogue`] lists the
//! versions and tags of one name; a [`hint`] says what can be fetched ahead; a [`boot_pack`] holds
//! what a boot reads first, found by merging [`trace`]s into a [`profile`]; an [`index_delta`] says what
//! changed in the index since another version; a [`minimum`] says what is
//! too old; an [`overlay`] keeps what was written; a [`partition`] table says what is where on a disk; [`mod@reference`] is how people name all this.
//!
//! Invariants, held by `clippy.toml` beside this crate and by `tests/tests/architecture.rs`:
//! no I/O, no clock, no environment, no async, no unsafe code. Every length and count that comes
//! from outside is checked against a constant before it is used. Byte layouts are in
//! `docs/FORMAT.md`, with test vectors that a test reads from there.
#![forbid(unsafe_code)]

pub mod boot_pack;
pub mod boot_script;
pub mod catalogue;
pub mod chunk;
pub mod chunk_index;
pub mod chunker;
pub mod codec;
pub mod content;
pub mod digest;
pub mod frame;
pub mod fuzzing;
pub mod geometry;
pub mod hint;
pub mod index_delta;
pub mod links;
pub mod manifest;
pub mod marker;
pub mod minimum;
pub mod overlay;
pub mod pack;
pub mod page;
pub mod partition;
pub mod profile;
pub mod reference;
pub mod region_table;
pub mod trace;

pub use chunk::{Chunk, ChunkId};
pub use codec::DecodeError;
pub use digest::{Digest, DigestMismatch, ObjectRef};
pub use geometry::{BLOCK_BYTES, REGION_BLOCKS, REGION_BYTES};
pub use reference::{ImageName, ImageRef, Tag, Version};
