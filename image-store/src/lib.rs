//! The store of Circular: plain files that any HTTP server can serve.
//!
//! [`Store`] opens or makes one and reads its objects, each held against its digest and length.
//! [`ImageWriter`] takes the chunks of a disk in their order and turns them into packs, pages and a
//! region table; [`Publication`] then makes them visible in one atomic step. [`ImageReader`] reads
//! a published disk back.
//!
//! Invariants:
//! - Objects are created, never changed: a publish that is killed at any point leaves every
//!   published version as it was.
//! - The commit order is objects, catalogue, numbered metadata, `timestamp.json`, boot files;
//!   `timestamp.json` is the one file whose change makes a publish visible.
//! - Writers hold the commit lock only while they change what is visible.
#![forbid(unsafe_code)]

mod boot_files;
pub mod boot_pack;
mod catalogue_change;
pub mod check;
pub mod gc;
pub mod index;
pub mod index_delta;
mod lock;
pub mod publication;
mod put;
pub mod reader;
pub mod retag;
pub mod revision;
pub mod staged;
pub mod store;
pub mod trust;
pub mod writer;

pub use boot_pack::{BootPackError, BuiltBootPack};
pub use index::{ChunkIndexes, IndexError};
pub use index_delta::IndexDeltaError;
pub use publication::{Known, Publication, Published, PublishedAs};
pub use reader::{ImageReader, ReadError};
pub use retag::{Retagged, Retagging, TagChange};
pub use revision::{ReviseError, Revision};
pub use staged::{Remote, RemoteError, RemoteFile, Staged};
pub use store::{Resolved, Store, StoreError};
pub use trust::keys::KeyRing;
pub use trust::sign::{Lifetimes, Signer};
pub use writer::{ImageWriter, Prepared, WriteStats, WrittenDisk};
