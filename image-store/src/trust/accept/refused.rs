//! Why proposed metadata is not made current.

use image_format::{DecodeError, ImageName, Version};

use super::proposal::{FILES_MAX, ProposedFile, REMOVES_MAX};
use crate::store::StoreError;
use crate::trust::TrustError;

/// Why proposed metadata was not made current. What was current still is.
#[derive(Debug, thiserror::Error)]
pub enum AcceptError {
    /// Somebody else was faster: sign again, on top of what is current now.
    #[error("the store changed meanwhile: sign again on top of what is current now")]
    Conflict,
    /// Other metadata has these numbers: sign again, with higher ones.
    #[error("other metadata has the number of {}: sign again with a higher one", list(.files))]
    Taken {
        /// The names of the files.
        files: Vec<ProposedFile>,
    },
    /// The metadata is not acceptable, ever.
    #[error(transparent)]
    Refused(#[from] RefusedBecause),
    /// The store cannot be read or written.
    #[error(transparent)]
    Store(#[from] StoreError),
}

/// What is wrong with proposed metadata.
#[derive(Debug, thiserror::Error)]
#[expect(missing_docs, reason = "the messages are the docs")]
pub enum RefusedBecause {
    #[error("the commit is not the JSON that it should be")]
    Json(#[source] serde_json::Error),
    #[error("the commit has no files")]
    Empty,
    #[error("the commit has more than {FILES_MAX} files, or removes more than {REMOVES_MAX} names")]
    TooMany,
    #[error("no metadata has the name {name:?}")]
    FileName { name: String },
    #[error("`{file}` has more than {max} bytes")]
    TooLong { file: ProposedFile, max: u64 },
    #[error("`{file}` cannot be used")]
    Marker {
        file: ProposedFile,
        source: DecodeError,
    },
    #[error(
        "the store has no root yet, and the server was given none: start it with --upload-root FILE"
    )]
    NoRoot,
    #[error(
        "a new store begins with version 1 of its root, and the server trusts a later one: give it the first with --upload-root FILE"
    )]
    NotFirstRoot,
    #[error("`1.root.json` is not the root that the server trusts")]
    OtherRoot,
    #[error(transparent)]
    Trust(#[from] TrustError),
    #[error("the root does not ask for consistent snapshots")]
    NotConsistent,
    #[error("delegated targets are not used here")]
    Delegations,
    #[error("the {role} metadata has expired: is the publisher's clock right?")]
    Expired { role: &'static str },
    #[error("{role} version {proposed} does not follow version {current}")]
    Older {
        role: &'static str,
        current: u64,
        proposed: u64,
    },
    #[error("nothing leads to `{file}`")]
    Unused { file: ProposedFile },
    #[error("`{name}` is gone: a name is only removed if the commit says so in \"removes\"")]
    Vanished { name: String },
    #[error("version {version} of `{name}` is another disk than before")]
    OtherDisk { name: ImageName, version: Version },
    #[error("what `{name}` leads to is not all there")]
    Incomplete {
        name: String,
        source: Box<StoreError>,
    },
}

fn list(files: &[ProposedFile]) -> String {
    let names: Vec<_> = files.iter().map(|file| format!("`{file}`")).collect();
    names.join(", ")
}
