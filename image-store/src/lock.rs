//! The commit lock: one publisher at a time changes what a store shows.

use std::fs::File;
use std::path::PathBuf;
use std::time::Duration;

use nix::fcntl::{Flock, FlockArg};

use crate::store::{Store, StoreError};

/// Where the lock file lies; its content means nothing, and it is never served.
const LOCK_FILE: &str = ".lock";

/// A commit takes less, unless it waits for a disk.
const TELL_AFTER: Duration = Duration::from_secs(2);

/// Held while what a store shows is changed. The kernel releases it when its holder dies.
#[derive(Debug)]
pub(crate) struct CommitLock(#[expect(dead_code, reason = "held for its drop")] Flock<File>);

impl CommitLock {
    /// Waits until no other publisher holds the lock.
    pub(crate) async fn acquire(store: &Store) -> Result<Self, StoreError> {
        let path = store.root().join(LOCK_FILE);
        let failed = |path: PathBuf| move |source| StoreError::Lock { path, source };
        let file = File::options()
            .create(true)
            .truncate(false)
            .write(true)
            .open(&path)
            .map_err(failed(path.clone()))?;
        let file = match Flock::lock(file, FlockArg::LockExclusiveNonblock) {
            Ok(lock) => return Ok(Self(lock)),
            Err((file, _)) => file,
        };
        let locking =
            tokio::task::spawn_blocking(move || Flock::lock(file, FlockArg::LockExclusive));
        tokio::pin!(locking);
        let locked = tokio::select! {
            locked = &mut locking => locked,
            () = tokio::time::sleep(TELL_AFTER) => {
                let path = path.display();
                tracing::warn!(%path, "another process changes this store: waiting until it has finished");
                locking.await
            }
        };
        locked
            .map_err(|panic| failed(path.clone())(std::io::Error::other(panic)))?
            .map(Self)
            .map_err(|(_, errno)| failed(path)(errno.into()))
    }
}
