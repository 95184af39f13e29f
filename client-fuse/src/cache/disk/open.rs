//! Opens a cache file: directory, lock, self-test, and what is already there.

use std::fs::{DirBuilder, File, OpenOptions};
use std::io;
use std::os::unix::fs::{DirBuilderExt, FileExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicU64};

use image_format::BLOCK_BYTES;
use image_format::digest::Digest;
use nix::errno::Errno;
use nix::fcntl::{Flock, FlockArg};
use nix::libc::{O_CLOEXEC, O_NOFOLLOW, O_TMPFILE};
use nix::unistd::{Whence, lseek};

use super::{CacheFile, DiskCache, Known};
use crate::cache::blocks::BlockSet;
use crate::config::DiskCacheConfig;

/// Files of another layout are in directories of another name.
const LAYOUT: &str = "disks-v1";

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
    /// Opens the cache file of the disk that `disk` names. Blocks on the disk.
    ///
    /// # Errors
    ///
    /// When the directory cannot hold such a file; the caller goes on without a disk cache.
    pub fn open(
        config: &DiskCacheConfig,
        disk: Digest,
        disk_bytes: u64,
    ) -> Result<Self, CacheError> {
        let directory = config.directory.join(LAYOUT);
        let path = directory.join(format!("{disk}.raw"));
        let at = |attempt| {
            let path = path.clone();
            move |source| CacheError::Io {
                attempt,
                path,
                source,
            }
        };
        DirBuilder::new()
            .recursive(true)
            .mode(0o700)
            .create(&directory)
            .map_err(at("make the directory of"))?;
        self_test(&directory)
            .map_err(at("test the file system of"))?
            .ok_or_else(|| CacheError::NotSparse {
                path: directory.clone(),
            })?;
        let file = OpenOptions::new()
            .read(true)
            .write(true)
            .create(true)
            .truncate(false)
            .mode(0o600)
            .custom_flags(O_NOFOLLOW | O_CLOEXEC)
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
        let file_bytes = disk_bytes.next_multiple_of(u64::from(BLOCK_BYTES));
        if metadata.len() != file_bytes {
            file.set_len(file_bytes).map_err(at("set the length of"))?;
        }
        let present = find_data(&file, file_bytes).map_err(at("look for data in"))?;
        let room = room(config, &directory).map_err(at("count the bytes beside"))?;
        Ok(Self(Some(CacheFile {
            file,
            path,
            off: AtomicBool::new(false),
            room: AtomicU64::new(room),
            full: AtomicBool::new(false),
            known: Mutex::new(Known {
                present,
                verified: BlockSet::default(),
            }),
        })))
    }
}

/// Whether a file here has holes, and tells where: write a block amid a hole, find it, read it.
fn self_test(directory: &Path) -> io::Result<Option<()>> {
    const AT: u64 = 512 << 10;
    let file = OpenOptions::new()
        .read(true)
        .write(true)
        .mode(0o600)
        .custom_flags(O_TMPFILE | O_CLOEXEC)
        .open(directory)?;
    let block = [0xA5; BLOCK_BYTES as usize];
    file.set_len(1 << 20)?;
    file.write_all_at(&block, AT)?;
    let data = lseek(&file, 0, Whence::SeekData)?;
    let mut back = [0; BLOCK_BYTES as usize];
    file.read_exact_at(&mut back, AT)?;
    let sparse = data > 0 && u64::try_from(data).is_ok_and(|data| data <= AT);
    Ok((sparse && back == block).then_some(()))
}

/// The blocks that are not in holes: one system call for each run.
fn find_data(file: &File, file_bytes: u64) -> io::Result<BlockSet> {
    let seek = |from: u64, whence| match lseek(
        file,
        i64::try_from(from).map_err(io::Error::other)?,
        whence,
    ) {
        Ok(found) => u64::try_from(found).map_err(io::Error::other),
        Err(Errno::ENXIO) => Ok(file_bytes),
        Err(errno) => Err(errno.into()),
    };
    let block = u64::from(BLOCK_BYTES);
    let mut present = BlockSet::default();
    let mut position = 0;
    while position < file_bytes {
        let data = seek(position, Whence::SeekData)?;
        let hole = seek(data, Whence::SeekHole)?;
        present.insert(data / block..hole.div_ceil(block));
        position = hole.max(position + block);
    }
    Ok(present)
}

/// How many bytes may still be filled in.
fn room(config: &DiskCacheConfig, directory: &Path) -> io::Result<u64> {
    let mut used = 0;
    for entry in std::fs::read_dir(directory)? {
        used += entry?.metadata()?.blocks() * 512;
    }
    let bytes_max = match config.bytes_max {
        Some(bytes_max) => bytes_max.0,
        None => {
            let system = nix::sys::statvfs::statvfs(directory)?;
            let free = system.blocks_available() * system.fragment_size();
            (used + free / 2).min(DiskCacheConfig::BYTES_MAX.0)
        }
    };
    Ok(bytes_max.saturating_sub(used))
}
