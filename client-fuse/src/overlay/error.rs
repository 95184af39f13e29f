//! What can be wrong with an overlay.

use std::io;
use std::path::{Path, PathBuf};

use image_format::DecodeError;

/// What was tried on the file, as in "cannot … FILE".
pub(super) type Attempt = &'static str;

/// Why an overlay cannot be opened, read or written.
#[derive(Debug, thiserror::Error)]
#[expect(missing_docs, reason = "the messages are the docs")]
pub enum OverlayError {
    #[error("cannot {attempt} the overlay {}", path.display())]
    Io {
        attempt: &'static str,
        path: PathBuf,
        source: io::Error,
    },
    #[error("no space left on the file system of the overlay {}", path.display())]
    Full { path: PathBuf, source: io::Error },
    #[error("the overlay {} is not a regular file", path.display())]
    NotAFile { path: PathBuf },
    #[error(
        "the overlay {} is in use by another mount; unmount that one, or give another file",
        path.display()
    )]
    Locked { path: PathBuf },
    #[error(
        "the file system of {} has no sparse files; put the overlay on ext4, xfs, btrfs or a tmpfs",
        path.display()
    )]
    NotSparse { path: PathBuf },
    #[error("{} is no overlay that can be used; give another file to begin anew", path.display())]
    Header { path: PathBuf, source: DecodeError },
    #[error(
        "the overlay {} belongs to {base} (disk {disk}); mount that version to go on with it, or give another file to begin anew",
        path.display()
    )]
    OtherBase {
        path: PathBuf,
        base: String,
        disk: String,
    },
    #[error(
        "the overlay {} is damaged: {reason}; restore it from a copy, or give another file to begin anew",
        path.display()
    )]
    Damaged { path: PathBuf, reason: &'static str },
    #[error(
        "the overlay {} is damaged; restore it from a copy, or give another file to begin anew",
        path.display()
    )]
    Log { path: PathBuf, source: DecodeError },
    #[error(
        "block {block} of the disk does not match its checksum in the overlay {}; writing all of it mends it",
        path.display()
    )]
    Checksum { block: u64, path: PathBuf },
    #[error(
        "the overlay {} is out of use since it could not be synced; mount again",
        path.display()
    )]
    OutOfUse { path: PathBuf },
    #[error("a file operation of the overlay panicked")]
    Panicked,
}

impl OverlayError {
    /// An error of the system; a full disk is one of its own.
    pub(super) fn io(attempt: Attempt, path: &Path, source: io::Error) -> Self {
        let path = path.to_owned();
        match source.kind() {
            io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => {
                Self::Full { path, source }
            }
            _ => Self::Io {
                attempt,
                path,
                source,
            },
        }
    }
}
