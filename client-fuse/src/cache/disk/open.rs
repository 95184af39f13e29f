//! Opens a cache file: directory, lock, self-test. What is in it is not looked at.

use std::collections::HashMap;
use std::fs::OpenOptions;
use std::io;
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::PathBuf;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize};

use image_format::BLOCK_BYTES;
use image_format::digest::Digest;
use nix::errno::Errno;
use nix::fcntl::{Flock, FlockArg};
use nix::libc::{O_CLOEXEC, O_NOFOLLOW, O_NONBLOCK};

use super::budget::Budget;
use super::parts::is_in_memory;
use super::{CacheFile, DiskCache, Evicted, Known, Proof, Seals};
use crate::cache::desk;
use crate::cache::directory::{Directory, HINTS, Patience, Room};
use crate::cache::hints::Hints;
use crate::cache::recency::{RECENCY_BYTES_MAX, Recency};
use crate::cache::sparse;
use crate::config::DiskCacheConfig;
use crate::trust::read_bounded;

/// Why the disk cache cannot be used.
#[derive(Debug, thiserror::Error)]
#[expect(missing_docs, reason = "the messages are the docs")]
pub enum CacheError {
    #[error("cannot {attempt} {}", path.display())]
    Io {
        attempt: &'static str,
        path: PathBuf,
        source: io::Error,
    },
    #[error("{} is not a regular file", path.display())]
    NotAFile { path: PathBuf },
    #[error("{} is being cleaned up by another process", path.display())]
    Locked { path: PathBuf },
    #[error("the file system of {} has no sparse files", path.display())]
    NotSparse { path: PathBuf },
}

impl DiskCache {
    /// The cache of the disk that `disk` names, or none: whatever is wrong with it, a mount works
    /// without, and says so once.
    pub async fn open_or_off(config: DiskCacheConfig, disk: Digest, disk_bytes: u64) -> Self {
        let path = config.directory.clone();
        let opened = desk::ask_patiently(move || Self::open(&config, disk, disk_bytes));
        match opened.await {
            Some(Ok(cache)) => cache,
            Some(Err(error)) => {
                let cause: &dyn std::error::Error = &error;
                tracing::warn!(error = cause, "no disk cache");
                Self::off()
            }
            None => {
                tracing::warn!(directory = %path.display(), "no disk cache: its disk does not answer");
                Self::off()
            }
        }
    }

    /// Opens the cache file of the disk that `disk` names. Blocks on the disk, for a number of system
    /// calls that does not depend on how much is cached.
    ///
    /// # Errors
    ///
    /// When the directory cannot hold such a file; the caller goes on without a disk cache.
    pub fn open(
        config: &DiskCacheConfig,
        disk: Digest,
        disk_bytes: u64,
    ) -> Result<Self, CacheError> {
        let path = config.directory.join(Room::Disks.name());
        let path = path.join(format!("{disk}.raw"));
        let at = |attempt| {
            let path = path.clone();
            move |source| CacheError::Io {
                attempt,
                path,
                source,
            }
        };
        let directory = Directory::open(config).map_err(at("make the directory of"))?;
        let disks = directory.of(Room::Disks);
        if !sparse::self_test(&disks).map_err(at("test the file system of"))? {
            return Err(CacheError::NotSparse { path: disks });
        }
        // While somebody makes room nobody can have the file; if that takes long, so be it.
        let lock = directory.lock(Patience::Long).map_err(at("lock"))?;
        let file = OpenOptions::new()
            .read(true)
            .write(true)
            .create(true)
            .truncate(false)
            .mode(0o600)
            .custom_flags(O_NOFOLLOW | O_CLOEXEC | O_NONBLOCK)
            .open(&path)
            .map_err(at("open"))?;
        let metadata = file.metadata().map_err(at("look at"))?;
        if !metadata.is_file() {
            return Err(CacheError::NotAFile { path });
        }
        let file =
            Flock::lock(file, FlockArg::LockSharedNonblock).map_err(|(_, errno)| match errno {
                Errno::EWOULDBLOCK => CacheError::Locked { path: path.clone() },
                _ => at("lock")(errno.into()),
            })?;
        drop(lock);
        let bytes = disk_bytes.next_multiple_of(u64::from(BLOCK_BYTES));
        if metadata.len() != bytes {
            file.set_len(bytes).map_err(at("set the length of"))?;
        }
        let saved = read_bounded(&directory.recency(&disk), RECENCY_BYTES_MAX).ok();
        let recency = saved.and_then(|saved| Recency::decode(&saved));
        let hints = Hints::open(&disks.join(HINTS), directory.disks_max())
            .inspect_err(|error| tracing::warn!(%error, "chunks of other versions are not found"));
        let in_memory = is_in_memory(&file);
        let room = AtomicU64::new(directory.disks_max() / 2);
        Ok(Self(Some(CacheFile {
            file,
            path,
            disk,
            disk_bytes,
            directory,
            off: AtomicBool::new(false),
            budget: Mutex::new(Budget::default()),
            unwritten: AtomicU64::new(0),
            wanted_whole: AtomicUsize::new(0),
            room,
            known: Mutex::new(Known::default()),
            recency: Mutex::new(recency.unwrap_or_else(Recency::new)),
            touches: AtomicU64::new(0),
            saved: AtomicU64::new(0),
            hints: hints.ok(),
            others: Mutex::new(HashMap::new()),
            evicted: Evicted::default(),
            proof: Proof::default(),
            seals: Seals::new(),
            in_memory,
        })))
    }
}
