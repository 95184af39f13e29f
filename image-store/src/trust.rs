//! The signed half of a store: a TUF repository (The Update Framework, specification 1.0).
//!
//! `metadata/` and `targets/` can be checked by any TUF client. Each image name is one target: its
//! catalogue. What a store offers is therefore what `timestamp.json` leads to, signed at each step:
//! timestamp → snapshot → targets → catalogue → manifest → everything else, by digest.
//!
//! - [`keys`]: who may sign; kept outside the store
//! - [`load`]: reads what is current, held against a trusted root
//! - [`sign`]: writes what is current next
//! - [`resign`]: writes what is current once more, to last longer or with other keys
//! - [`root`]: who may sign what, as a document; [`rotate`]: makes it the current one
//! - [`seen`]: what a publisher saw before, so that it signs nothing on top of an older state
//! - [`accept`]: takes what somebody else signed, after it was checked
//!
//! The cryptography and the order of checks are `tough`'s; this module adds no rule of its own.

pub mod accept;
pub mod keys;
pub mod load;
pub mod public_key;
pub mod resign;
pub mod root;
pub mod rotate;
pub mod seen;
pub mod sign;

use std::collections::BTreeMap;
use std::path::PathBuf;

use image_format::{ImageName, ObjectRef};
use tough::schema::{Root, Signed, Snapshot, Targets, Timestamp};

/// The target that lists the chunk indexes. No image can have this name: words begin with a letter
/// or digit.
pub const CHUNK_INDEXES_TARGET: &str = "_chunk-indexes";

/// Where the metadata lies in a store.
pub const METADATA_DIRECTORY: &str = "metadata";

/// Where the targets lie in a store.
pub const TARGETS_DIRECTORY: &str = "targets";

/// Where the first root lies; what readers of a local store trust if they are given nothing else.
pub const FIRST_ROOT_PATH: &str = "metadata/1.root.json";

/// Where the one mutable document lies.
pub const TIMESTAMP_PATH: &str = "metadata/timestamp.json";

/// The longest `targets.json`: some 4,000 names.
pub const TARGETS_BYTES_MAX: u64 = 1024 * 1024;

/// The longest of the other metadata files.
pub const ROLE_BYTES_MAX: u64 = 64 * 1024;

/// What a store offers at one moment: every name, and the current catalogue of each.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Names {
    /// The catalogue of each name.
    pub names: BTreeMap<ImageName, ObjectRef>,
    /// The chunk indexes that together list every chunk of the store.
    pub chunk_indexes: Vec<ObjectRef>,
}

/// The signed metadata that was found to be current and valid.
#[derive(Clone, Debug)]
pub struct Current {
    /// The newest root.
    pub root: Signed<Root>,
    /// The timestamp.
    pub timestamp: Signed<Timestamp>,
    /// The snapshot that it names.
    pub snapshot: Signed<Snapshot>,
    /// The targets that the snapshot names.
    pub targets: Signed<Targets>,
}

/// Why metadata cannot be trusted, or cannot be signed.
#[derive(Debug, thiserror::Error)]
#[expect(missing_docs, reason = "the messages are the docs")]
pub enum TrustError {
    #[error("the store's metadata is not signed as the trusted root demands")]
    Load(#[source] Box<tough::error::Error>),
    #[error(
        "cannot write the temporary files with which metadata is checked; TMPDIR says where they lie"
    )]
    Temporary(#[source] Box<tough::error::Error>),
    #[error(
        "rollback: the store shows an older state than this publisher saw. To sign on top of it would take away what was published since. Find out who put it there; if you did, remove `{}` and run this again", .path.display()
    )]
    Rollback {
        path: PathBuf,
        source: Box<tough::error::Error>,
    },
    #[error(
        "rollback: the store lacks version {version} of its root, which this publisher saw. Find out who took it away; if you did, remove `{}` and run this again", .path.display()
    )]
    RootGone { version: u64, path: PathBuf },
    #[error(
        "the store shows nothing, but this publisher saw it signed. If it is another store, give it keys of its own (--keys DIR). Else to begin anew would take away what was published: find out who emptied it; if you did, remove `{}` and run this again", .path.display()
    )]
    Emptied { path: PathBuf },
    #[error(
        "what was seen of the store is damaged in `{}`: remove it to forget that (an older state of the store is then not noticed)", .path.display()
    )]
    Seen {
        path: PathBuf,
        source: serde_json::Error,
    },
    #[error("cannot sign the store's metadata: a key is missing, or is not one of this store")]
    Sign(#[source] Box<tough::error::Error>),
    #[error("signed metadata names a target `{name}` that is no image")]
    Target { name: String },
    #[error("signed metadata cannot be encoded")]
    Encode(#[source] Box<tough::schema::Error>),
    #[error("the root is not signed as it demands itself")]
    Schema(#[source] Box<tough::schema::Error>),
    #[error("the root cannot be decoded")]
    Root(#[source] serde_json::Error),
    #[error(
        "the store is full: no more than {TARGETS_BYTES_MAX} bytes of names; nothing was published. Publish into another store"
    )]
    Full,
    #[error(transparent)]
    Keys(#[from] keys::KeyError),
    #[error(transparent)]
    Rule(#[from] root::RootError),
    #[error("cannot use the {role} key")]
    Key {
        role: String,
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    #[error("the metadata numbers are used up")]
    Numbers,
}
