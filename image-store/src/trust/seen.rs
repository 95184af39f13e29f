//! What a publisher saw of its store, kept beside its keys.
//!
//! Whoever signs on top of what a store shows vouches for all of it. A server that shows its
//! publisher an old state would get that signed with new numbers, until they are higher than those
//! that machines saw: what was published since would be gone, and old versions current, with good
//! signatures. So a publisher holds what the store shows against what it saw, as machines do.
//!
//! ```text
//! KEYS/seen.json   the newest root, timestamp and snapshot that were seen, as one document
//! ```
//!
//! Only what was current is kept: metadata on its way to a server is not, until it landed. A ring
//! that was just copied to a machine remembers nothing yet.

use std::fs::{self, File};
use std::io::{self, Write as _};
use std::path::{Path, PathBuf};

use nix::fcntl::{Flock, FlockArg};
use serde::{Deserialize, Serialize};
use tempfile::{NamedTempFile, TempDir};
use tough::error::Error;
use tough::schema::{Root, Signed, Snapshot, Timestamp};

use super::keys::{KeyError, KeyRing};
use super::sign::Signer;
use super::{Current, TrustError, load};
use crate::store::{Store, StoreError};

/// What it is called beside the keys.
const SEEN_FILE: &str = "seen.json";

/// The newest state of a store that a publisher saw.
#[derive(Clone, Debug, Serialize, Deserialize)]
struct Seen {
    root: Signed<Root>,
    timestamp: Signed<Timestamp>,
    snapshot: Signed<Snapshot>,
}

impl Seen {
    /// Tells which of two states is newer: new keys may begin with lower numbers, so roots go first.
    fn order(&self) -> (u64, u64) {
        let (root, timestamp) = (&self.root.signed, &self.timestamp.signed);
        (root.version.get(), timestamp.version.get())
    }

    /// Lays out what was seen for `tough`.
    fn unpack(&self) -> io::Result<TempDir> {
        let scratch = TempDir::with_prefix("circular-seen-")?;
        let write = |name, bytes: Vec<u8>| fs::write(scratch.path().join(name), bytes);
        write("timestamp.json", serde_json::to_vec(&self.timestamp)?)?;
        write("snapshot.json", serde_json::to_vec(&self.snapshot)?)?;
        Ok(scratch)
    }
}

impl KeyRing {
    fn seen_path(&self) -> PathBuf {
        self.directory().join(SEEN_FILE)
    }

    /// Returns what was seen; `None` where nothing is remembered. What is damaged is an error: to go
    /// on without it would be to forget.
    fn seen(&self) -> Result<Option<Seen>, TrustError> {
        if !self.remembers() {
            return Ok(None);
        }
        let path = self.seen_path();
        match fs::read(&path) {
            Ok(bytes) => match serde_json::from_slice(&bytes) {
                Ok(seen) => Ok(Some(seen)),
                Err(source) => Err(TrustError::Seen { path, source }),
            },
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(source) => Err(KeyError::File { path, source }.into()),
        }
    }

    /// Remembers what is current, unless something newer is remembered. Where that cannot be, it is
    /// logged: keys may lie on what cannot be written.
    fn keep_seen(&self, current: &Current) {
        let seen = Seen {
            root: current.root.clone(),
            timestamp: current.timestamp.clone(),
            snapshot: current.snapshot.clone(),
        };
        if let Err(error) = self.replace_seen(&seen) {
            tracing::warn!(
                %error,
                path = %self.seen_path().display(),
                "cannot remember what this store shows: an older state would not be noticed"
            );
        }
    }

    fn replace_seen(&self, seen: &Seen) -> io::Result<()> {
        let directory: &Path = self.directory();
        let lock = Flock::lock(File::open(directory)?, FlockArg::LockExclusive);
        let lock = lock.map_err(|(_, errno)| io::Error::from(errno))?;
        if let Ok(Some(kept)) = self.seen()
            && kept.order() >= seen.order()
        {
            return Ok(());
        }
        let mut file = NamedTempFile::with_prefix_in(".new-", directory)?;
        file.write_all(&serde_json::to_vec(seen)?)?;
        file.as_file().sync_all()?;
        file.persist(self.seen_path())?;
        lock.sync_all()
    }
}

impl Signer<'_> {
    /// Reads what is current, for signing on top of it: held against the root beside the keys, and
    /// against what this ring saw, if it remembers.
    ///
    /// # Errors
    /// It is missing, not signed as the root demands, or older than what was seen.
    pub async fn current(&self, store: &Store) -> Result<Current, StoreError> {
        let first = self.keys.root().map_err(TrustError::from)?;
        let Some(seen) = self.keys.seen()? else {
            let current = store.current(&first).await?;
            if self.keys.remembers() {
                self.keys.keep_seen(&current);
            }
            return Ok(current);
        };
        let scratch = seen.unpack().map_err(|source| {
            let path = std::env::temp_dir();
            TrustError::from(KeyError::File { path, source })
        })?;
        let root = serde_json::to_vec(&seen.root).map_err(TrustError::Root)?;
        let loaded = load::load_after(store.backend.clone(), &root, scratch.path()).await;
        let current = loaded.map_err(|error| self.told(error))?;
        self.keys.keep_seen(&current);
        Ok(current)
    }

    /// Remembers what was just made current. On a server nothing is until it landed there.
    pub(super) async fn note(&self, store: &Store) {
        if !self.keys.remembers() || store.staged().is_some() {
            return;
        }
        if let Err(error) = self.current(store).await {
            tracing::warn!(%error, "cannot read what was just signed");
        }
    }

    /// Checks that nothing was seen of a store that shows nothing.
    pub(super) fn check_unseen(&self) -> Result<(), TrustError> {
        match self.keys.seen()? {
            None => Ok(()),
            Some(_) => Err(TrustError::Emptied {
                path: self.keys.seen_path(),
            }),
        }
    }

    fn told(&self, error: TrustError) -> TrustError {
        match error {
            TrustError::Load(source) if is_older(&source) => TrustError::Rollback {
                path: self.keys.seen_path(),
                source,
            },
            error => error,
        }
    }
}

fn is_older(error: &Error) -> bool {
    matches!(
        error,
        Error::OlderMetadata { .. }
            | Error::OlderSnapshotInTimestamp { .. }
            | Error::SnapshotRoleRollback { .. }
            | Error::SnapshotRoleMissing { .. }
    )
}
