//! Why a store is not believed, in words that say what to do.

use std::io;
use std::path::{Path, PathBuf};

use image_format::minimum::Below;
use jiff::Timestamp;
use tough::error::Error;
use tough::schema::RoleType;

use super::transport::File;
use crate::fetch::retry::{Blame, Fault};
use crate::fetch::{FetchError, each};

/// Why a store is not believed.
#[derive(Debug, thiserror::Error)]
#[expect(missing_docs, reason = "the messages are the docs")]
pub enum TrustError {
    #[error(
        "nothing says whom to trust for {base}: give --root root.json (the publisher has it beside the signing keys), or --trust-on-first-use"
    )]
    Nobody { base: String },
    #[error(
        "--trust-on-first-use needs a place to remember whom it trusted: say where with --state DIR"
    )]
    NoMemory,
    #[error("the trusted root is no TUF root document; the publisher has it as root.json")]
    Root(#[source] serde_json::Error),
    #[error("the trusted root is not signed by its own keys; get it from the publisher again")]
    RootSignature(#[source] Box<tough::schema::Error>),
    #[error("cannot fetch the store's {} metadata", .file.role())]
    Fetch { file: File, source: FetchError },
    #[error("the store's {role} metadata is damaged")]
    Damaged {
        role: RoleType,
        source: serde_json::Error,
    },
    #[error(
        "bad signature: the store's {role} metadata is not signed by whom the trusted root names. Either this is another store than the root was made for (compare both with the publisher's), or somebody changes what it sends"
    )]
    Signature {
        role: RoleType,
        source: Box<tough::schema::Error>,
    },
    #[error(
        "the store's {file} is not what the signed metadata before it names: it is damaged, or two states of the store were mixed. If the publisher is not writing just now, somebody changes what the store sends"
    )]
    Mismatch { file: File },
    #[error(
        "rollback: the store offers {role} metadata of version {offered}, but version {seen} was seen before. Somebody shows an old copy of the store; if the publisher restored one on purpose, forget what was seen{}", within(.memory.as_deref())
    )]
    Rollback {
        role: String,
        offered: u64,
        seen: u64,
        memory: Option<PathBuf>,
    },
    #[error(
        "rollback: the store offers {} metadata of version {}, but this machine was told to take none below {} (--minimum). Somebody shows an old copy of the store; if the publisher restored one on purpose, circular refresh tells machines that boot from it", .0.role, .0.offered, .0.minimum
    )]
    BelowMinimum(Below),
    #[error(
        "the store's {role} metadata expired on {on}: newer versions may be kept from this machine. The publisher renews it with circular refresh; check the clock; --expiry warn goes on nevertheless"
    )]
    Expired { role: &'static str, on: Timestamp },
    #[error("no mirror of the store can be believed: {}", each(.failures))]
    Everywhere { failures: Vec<(String, Self)> },
    #[error("the store's metadata cannot be used")]
    Unusable(#[source] Box<Error>),
    #[error(
        "what was seen of this store is damaged in {}: remove that directory to forget it (an older state of the store is then not noticed)", path.display()
    )]
    Memory {
        path: PathBuf,
        source: serde_json::Error,
    },
    #[error("cannot {attempt} {}: say where to remember what was seen with --state DIR, or go without by --no-state", path.display())]
    State {
        attempt: &'static str,
        path: PathBuf,
        source: io::Error,
    },
    #[error("cannot make a directory for unverified metadata")]
    Scratch(#[source] io::Error),
}

fn within(memory: Option<&Path>) -> String {
    memory.map_or_else(String::new, |path| {
        format!(" by removing {}", path.display())
    })
}

impl TrustError {
    /// Says in our words what `tough` found; `memory` is where it is remembered what was seen.
    pub(super) fn of(error: Error, memory: Option<&Path>) -> Self {
        let rollback = |role: String, offered, seen| Self::Rollback {
            role,
            offered,
            seen,
            memory: memory.map(Path::to_owned),
        };
        match error {
            Error::ParseTrustedMetadata { source, .. } => Self::Root(source),
            Error::VerifyTrustedMetadata { source, .. } => Self::RootSignature(Box::new(source)),
            Error::ParseMetadata { role, source, .. } => Self::Damaged { role, source },
            Error::VerifyMetadata { role, source, .. } => Self::Signature {
                role,
                source: Box::new(source),
            },
            // The next root must be the one after the last, so it is the number that is wrong.
            Error::OlderMetadata {
                role: RoleType::Root,
                current_version,
                ..
            } => Self::Mismatch {
                file: File::Root(current_version.saturating_add(1)),
            },
            Error::OlderMetadata {
                role,
                current_version,
                new_version,
                ..
            } => rollback(role.to_string(), new_version, current_version),
            Error::OlderSnapshotInTimestamp {
                snapshot_new,
                snapshot_old,
                ..
            } => rollback("snapshot".to_owned(), snapshot_new, snapshot_old),
            Error::SnapshotRoleRollback {
                role,
                old_role_version,
                new_role_version,
                ..
            } => {
                let role = role.trim_end_matches(".json").to_owned();
                rollback(role, new_role_version, old_role_version)
            }
            Error::VersionMismatch {
                role: RoleType::Snapshot,
                expected,
                ..
            } => Self::Mismatch {
                file: File::Snapshot(expected),
            },
            Error::VersionMismatch {
                role: RoleType::Targets,
                expected,
                ..
            } => Self::Mismatch {
                file: File::Targets(expected),
            },
            error => Self::of_transport(error),
        }
    }

    /// What `tough` finds while a file comes is its digest or its length.
    fn of_transport(error: Error) -> Self {
        let file = match &error {
            Error::Transport { url, .. } => url
                .path_segments()
                .and_then(|mut path| path.next_back())
                .and_then(File::parse),
            _ => None,
        };
        match file {
            Some(file) => Self::Mismatch { file },
            None => Self::Unusable(Box::new(error)),
        }
    }

    /// What the retry policy should make of it; `None`: it is not the store's fault.
    pub(super) fn fault(&self) -> Option<Fault> {
        match self {
            Self::Fetch { source, .. } => Some(source.fault()),
            Self::Damaged { .. }
            | Self::Signature { .. }
            | Self::Mismatch { .. }
            | Self::Rollback { .. }
            | Self::BelowMinimum(_)
            | Self::Unusable(_) => Some(Fault::Wrong),
            Self::Expired { .. } => Some(Fault::Permanent),
            Self::Everywhere { failures } => failures.iter().filter_map(|(_, e)| e.fault()).min(),
            Self::Nobody { .. }
            | Self::NoMemory
            | Self::Root(_)
            | Self::RootSignature(_)
            | Self::Memory { .. }
            | Self::State { .. }
            | Self::Scratch(_) => None,
        }
    }

    /// What is to be thought of the mirror that it came from; `None`: whoever fetched has told.
    pub(super) const fn blame(&self) -> Option<Blame> {
        match self {
            Self::Damaged { .. }
            | Self::Signature { .. }
            | Self::Mismatch { .. }
            | Self::Unusable(_) => Some(Blame::Lying),
            Self::Rollback { .. } | Self::BelowMinimum(_) | Self::Expired { .. } => {
                Some(Blame::Unable)
            }
            _ => None,
        }
    }

    /// Whether nobody answers: not one mirror said anything that could be judged.
    pub(super) fn is_outage(&self) -> bool {
        match self {
            Self::Fetch { source, .. } => source.fault() == Fault::Transient,
            Self::Everywhere { failures } => failures.iter().all(|(_, e)| e.is_outage()),
            _ => false,
        }
    }

    /// Whether the store lacks what every store has.
    #[must_use]
    pub fn is_no_store(&self) -> bool {
        match self {
            Self::Fetch {
                file: File::Timestamp | File::Root(1),
                source,
            } => source.is_missing(),
            Self::Everywhere { failures } => failures.iter().all(|(_, e)| e.is_no_store()),
            _ => false,
        }
    }
}
