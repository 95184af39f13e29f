//! Remembers what was seen of a store, so that nothing older is taken later. Outside of every cache.
//!
//! ```text
//! STATE/<16 digits of the digest of the first root>/   lock root.json timestamp.json snapshot.json targets.json
//! STATE/first-use/<16 digits of the digest of the address>.root.json
//! ```
//!
//! A file is replaced as a whole (written beside, synced, renamed), under a lock. A crash in between
//! leaves a newer snapshot beside an older timestamp, never the other way round: what is remembered
//! is then stricter than need be, which the next success mends. The root comes last: only with the
//! old one does `tough` see that keys changed and forget what the old keys had signed.

use std::fs::{self, DirBuilder, File};
use std::io::{self, Write as _};
use std::os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};

use image_format::digest::Digest;
use nix::fcntl::{Flock, FlockArg};
use serde::de::DeserializeOwned;
use tempfile::TempDir;
use tough::schema::{Root, Signed, Snapshot, Targets, Timestamp};

use super::{ROLE_BYTES_MAX, TARGETS_BYTES_MAX, TrustError, read_bounded};
use crate::config::BaseUrl;

const ROOT: &str = "root.json";
const TIMESTAMP: &str = "timestamp.json";
const SNAPSHOT: &str = "snapshot.json";
const TARGETS: &str = "targets.json";
const LOCK: &str = "lock";

/// `tough` writes documents anew, with other white space; twice the length is plenty.
const KEPT_BYTES_MAX: u64 = 2 * if TARGETS_BYTES_MAX > ROLE_BYTES_MAX {
    TARGETS_BYTES_MAX
} else {
    ROLE_BYTES_MAX
};

/// What is remembered of the store with one first root.
#[derive(Clone, Debug)]
pub(super) struct State {
    directory: PathBuf,
}

/// What was seen of a store.
#[derive(Debug, Default)]
pub(super) struct Seen {
    /// The newest root.
    pub(super) root: Option<Vec<u8>>,
    /// The others, by file name.
    others: Vec<(&'static str, Vec<u8>)>,
}

/// Which of two states of one store is newer.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Order {
    /// New keys may begin with lower numbers, so that roots go first.
    root: u64,
    timestamp: u64,
}

impl Order {
    pub(super) fn of(root: &Signed<Root>, timestamp: &Signed<Timestamp>) -> Self {
        Self {
            root: root.signed.version.get(),
            timestamp: timestamp.signed.version.get(),
        }
    }
}

impl Seen {
    /// Lays out what was seen in a directory of its own, for `tough`.
    pub(super) fn unpack(&self) -> Result<TempDir, TrustError> {
        let unpack = || {
            let scratch = TempDir::with_prefix("circular-trust-")?;
            for (name, bytes) in &self.others {
                fs::write(scratch.path().join(name), bytes)?;
            }
            Ok(scratch)
        };
        unpack().map_err(TrustError::Scratch)
    }
}

impl State {
    /// What is remembered below `state` of the store with this first root.
    pub(super) fn of(state: &Path, first_root: &[u8]) -> Self {
        Self {
            directory: state.join(short(first_root)),
        }
    }

    /// Where that is.
    pub(super) fn directory(&self) -> &Path {
        &self.directory
    }

    /// Reads what was seen.
    pub(super) fn read(&self) -> Result<Seen, TrustError> {
        let path = self.directory.join(LOCK);
        let lock = match File::open(&path) {
            Ok(lock) => Some(Flock::lock(lock, FlockArg::LockShared)),
            // Nothing was seen yet; or somebody tidied up, and what was seen is there all the same.
            Err(error) if error.kind() == io::ErrorKind::NotFound => None,
            Err(error) => return Err(failed("read", &path)(error)),
        };
        let _lock = lock
            .transpose()
            .map_err(|(_, errno)| failed("lock", &path)(errno.into()))?;
        let others = [
            self.document::<Timestamp>(TIMESTAMP)?
                .map(|bytes| (TIMESTAMP, bytes)),
            self.document::<Snapshot>(SNAPSHOT)?
                .map(|bytes| (SNAPSHOT, bytes)),
            self.document::<Targets>(TARGETS)?
                .map(|bytes| (TARGETS, bytes)),
        ];
        Ok(Seen {
            root: self.document::<Root>(ROOT)?,
            others: others.into_iter().flatten().collect(),
        })
    }

    /// A document, as it is. One that is damaged is an error: to go on without it would be to
    /// forget.
    fn document<T>(&self, name: &str) -> Result<Option<Vec<u8>>, TrustError>
    where
        Signed<T>: DeserializeOwned,
    {
        let Some(bytes) = read_if_there(&self.directory.join(name))? else {
            return Ok(None);
        };
        self.parse::<T>(&bytes)?;
        Ok(Some(bytes))
    }

    fn parse<T>(&self, bytes: &[u8]) -> Result<Signed<T>, TrustError>
    where
        Signed<T>: DeserializeOwned,
    {
        serde_json::from_slice(bytes).map_err(|source| TrustError::Memory {
            path: self.directory.clone(),
            source,
        })
    }

    /// Remembers the metadata that `tough` left in `found`, unless something newer is remembered:
    /// another mount may have been quicker.
    pub(super) fn keep(&self, order: Order, found: &Path) -> Result<(), TrustError> {
        let _lock = lock(&self.directory)?;
        if self.order()?.is_some_and(|kept| kept >= order) {
            return Ok(());
        }
        for name in [TARGETS, SNAPSHOT, TIMESTAMP, ROOT] {
            let bytes = fs::read(found.join(name)).map_err(TrustError::Scratch)?;
            replace(&self.directory, name, &bytes)?;
        }
        Ok(())
    }

    /// How new what is remembered is; `None`: a part of it is missing.
    fn order(&self) -> Result<Option<Order>, TrustError> {
        for name in [TARGETS, SNAPSHOT] {
            if !self.directory.join(name).exists() {
                return Ok(None);
            }
        }
        let root = read_if_there(&self.directory.join(ROOT))?;
        let timestamp = read_if_there(&self.directory.join(TIMESTAMP))?;
        let (Some(root), Some(timestamp)) = (root, timestamp) else {
            return Ok(None);
        };
        let (root, timestamp) = (self.parse(&root)?, self.parse(&timestamp)?);
        Ok(Some(Order::of(&root, &timestamp)))
    }
}

/// The memory of whom a store was first trusted to be.
#[derive(Clone, Debug)]
pub(super) struct FirstUse {
    directory: PathBuf,
    name: String,
}

impl FirstUse {
    /// The memory below `state` for the store at `base`.
    pub(super) fn of(state: &Path, base: &BaseUrl) -> Self {
        Self {
            directory: state.join("first-use"),
            name: format!("{}.{ROOT}", short(base.as_url().as_str().as_bytes())),
        }
    }

    /// The root that was trusted.
    pub(super) fn recall(&self) -> Result<Option<Vec<u8>>, TrustError> {
        read_if_there(&self.directory.join(&self.name))
    }

    /// Remembers the root; one that is remembered already stays.
    pub(super) fn remember(&self, root: &[u8]) -> Result<(), TrustError> {
        let _lock = lock(&self.directory)?;
        match self.recall()? {
            None => replace(&self.directory, &self.name, root),
            Some(known) if known == root => Ok(()),
            Some(_) => Err(failed(
                "remember a first use in",
                &self.directory.join(&self.name),
            )(io::Error::new(
                io::ErrorKind::AlreadyExists,
                "another root was trusted at the same time",
            ))),
        }
    }
}

/// Names something by its content.
fn short(content: &[u8]) -> String {
    Digest::of(content).to_string()[..16].to_owned()
}

fn read_if_there(path: &Path) -> Result<Option<Vec<u8>>, TrustError> {
    match read_bounded(path, KEPT_BYTES_MAX) {
        Ok(bytes) => Ok(Some(bytes)),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(failed("read", path)(error)),
    }
}

/// Makes `directory` if need be, and keeps others from writing in it.
fn lock(directory: &Path) -> Result<Flock<File>, TrustError> {
    DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(directory)
        .map_err(failed("make", directory))?;
    let path = directory.join(LOCK);
    let file = File::options()
        .write(true)
        .create(true)
        .truncate(false)
        .mode(0o600)
        .open(&path)
        .map_err(failed("write", &path))?;
    Flock::lock(file, FlockArg::LockExclusive)
        .map_err(|(_, errno)| failed("lock", &path)(errno.into()))
}

/// Replaces a file as a whole, for good. The caller holds the lock.
fn replace(directory: &Path, name: &str, bytes: &[u8]) -> Result<(), TrustError> {
    let path = directory.join(name);
    let beside = directory.join(format!(".{name}.new"));
    let write = || {
        let mut file = File::options()
            .write(true)
            .create(true)
            .truncate(true)
            .mode(0o600)
            .open(&beside)?;
        file.write_all(bytes)?;
        file.sync_all()?;
        fs::rename(&beside, &path)?;
        File::open(directory)?.sync_all()
    };
    write().map_err(failed("write", &path))
}

fn failed(attempt: &'static str, path: &Path) -> impl FnOnce(io::Error) -> TrustError {
    let path = path.to_owned();
    move |source| TrustError::State {
        attempt,
        path,
        source,
    }
}
