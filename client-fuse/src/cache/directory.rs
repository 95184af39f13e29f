//! The cache directory: what is in it, whose it is, how much it holds.
//!
//! ```text
//! DIR/disks-v1/      <disk digest>.raw   chunks in the layout of the disk; each mount holds a shared flock on it
//!                    <disk digest>.use   hint: which parts were used when
//!                    chunks.hints        hint: where chunks are
//!                    <number>.grant      bytes that a mount may still fill in; locked while it lives
//!                    lock                held while the bytes are counted and room is made
//! DIR/documents-v1/  <digest>[.head]     what is named by its digest: catalogues, manifests, tables, pages
//! DIR/metadata-v1/   <16 digits>.<file>  signed metadata as it came
//! ```
//!
//! The bound holds over all of it. Nothing is counted from memory: whoever wants room takes the lock,
//! adds up what the files occupy and what other mounts were granted, and grants itself a part of the
//! rest. A process that dies leaves nothing that is wrong, only a grant without a lock.
//! Nobody waits long for the lock: a stopped process must not stop others.

use std::fs::{self, DirBuilder, File, Metadata, OpenOptions};
use std::io::{self, Read as _};
use std::os::unix::fs::{DirBuilderExt as _, MetadataExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};
use std::time::Duration;

use image_format::digest::Digest;
use nix::fcntl::{Flock, FlockArg};
use nix::libc::{O_CLOEXEC, O_NOFOLLOW, O_NONBLOCK};

use crate::config::DiskCacheConfig;

pub(super) const LOCK: &str = "lock";
pub(super) const HINTS: &str = "chunks.hints";

/// Of the bound, this part is for documents and metadata: pages take 1.6 MB for each GB of disk.
const DOCUMENTS_SHARE: u64 = 32;

/// The parts of a cache directory. Files of another layout are in directories of another name.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Room {
    /// Chunks.
    Disks,
    /// What is named by its digest.
    Documents,
    /// Signed metadata.
    Metadata,
}

impl Room {
    /// All of them.
    pub const ALL: [Self; 3] = [Self::Disks, Self::Documents, Self::Metadata];

    /// The name of its directory.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Disks => "disks-v1",
            Self::Documents => "documents-v1",
            Self::Metadata => "metadata-v1",
        }
    }

    /// Whether a file of this name is one of ours.
    #[must_use]
    pub fn owns(self, name: &str) -> bool {
        match self {
            Self::Disks => {
                name == LOCK
                    || name == HINTS
                    || of_digest(name, ".raw").is_some()
                    || of_digest(name.strip_suffix(PARTIAL).unwrap_or(name), ".use").is_some()
                    || is_grant(name)
            }
            Self::Documents => {
                let name = name.strip_suffix(PARTIAL).unwrap_or(name);
                of_digest(name, "").is_some() || of_digest(name, ".head").is_some()
            }
            Self::Metadata => {
                let name = name.strip_suffix(PARTIAL).unwrap_or(name);
                let split = name.split_once('.');
                split.is_some_and(|(store, file)| is_hex(store, 16) && file.ends_with("json"))
            }
        }
    }
}

/// Ends the name of a file that is still being written.
const PARTIAL: &str = ".new";

fn of_digest(name: &str, suffix: &str) -> Option<Digest> {
    name.strip_suffix(suffix)?.parse().ok()
}

fn is_hex(text: &str, digits: usize) -> bool {
    text.len() == digits && text.bytes().all(|byte| byte.is_ascii_hexdigit())
}

fn is_grant(name: &str) -> bool {
    name.strip_suffix(".grant")
        .is_some_and(|number| number.parse::<u64>().is_ok())
}

/// A cache directory with its bound.
#[derive(Clone, Debug)]
pub struct Directory {
    path: PathBuf,
    bytes_max: u64,
}

/// The right to count and to make room.
pub type DirectoryLock = Flock<File>;

/// What the files of a directory occupy, in bytes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Used {
    /// Chunks, with their hints.
    pub disks: u64,
    /// What mounts were granted and may have filled in.
    pub granted: u64,
    /// Documents and metadata.
    pub documents: u64,
}

impl Used {
    /// All of it.
    #[must_use]
    pub const fn total(&self) -> u64 {
        self.disks + self.granted + self.documents
    }
}

impl Directory {
    /// The directory that `config` names, made if it is missing. Blocks on the disk.
    ///
    /// # Errors
    ///
    /// When it cannot be made or looked at.
    pub fn open(config: &DiskCacheConfig) -> io::Result<Self> {
        let mut directory = Self {
            path: config.directory.clone(),
            bytes_max: 0,
        };
        for room in Room::ALL {
            let path = directory.of(room);
            DirBuilder::new().recursive(true).mode(0o700).create(path)?;
        }
        directory.bytes_max = directory.bound(config)?;
        Ok(directory)
    }

    /// The directory that `config` names, with its bound, as far as it is there.
    #[must_use]
    pub fn measured(config: &DiskCacheConfig) -> Self {
        let mut directory = Self::existing(config.directory.clone());
        directory.bytes_max = directory.bound(config).unwrap_or(0);
        directory
    }

    fn bound(&self, config: &DiskCacheConfig) -> io::Result<u64> {
        if let Some(bytes_max) = config.bytes_max {
            return Ok(bytes_max.0);
        }
        let system = nix::sys::statvfs::statvfs(&self.path)?;
        let free = system.blocks_available() * system.fragment_size();
        let used = self.used(None)?.total();
        Ok((used + free / 2).min(DiskCacheConfig::BYTES_MAX.0))
    }

    /// A directory that is there; nothing is made.
    #[must_use]
    pub const fn existing(path: PathBuf) -> Self {
        Self { path, bytes_max: 0 }
    }

    /// Where it is.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Where one of its parts is.
    #[must_use]
    pub fn of(&self, room: Room) -> PathBuf {
        self.path.join(room.name())
    }

    /// The bound over all files.
    #[must_use]
    pub const fn bytes_max(&self) -> u64 {
        self.bytes_max
    }

    /// Most bytes of chunks.
    #[must_use]
    pub const fn disks_max(&self) -> u64 {
        self.bytes_max - self.documents_max()
    }

    /// Most bytes of documents and metadata.
    #[must_use]
    pub const fn documents_max(&self) -> u64 {
        self.bytes_max / DOCUMENTS_SHARE
    }

    /// The file of the chunks of a disk.
    #[must_use]
    pub fn disk(&self, disk: &Digest) -> PathBuf {
        self.of(Room::Disks).join(format!("{disk}.raw"))
    }

    /// The file that says when which parts of a disk were used.
    #[must_use]
    pub fn recency(&self, disk: &Digest) -> PathBuf {
        self.of(Room::Disks).join(format!("{disk}.use"))
    }

    /// What a file of chunks is the disk of.
    #[must_use]
    pub fn disk_of(name: &str) -> Option<Digest> {
        of_digest(name, ".raw")
    }

    /// Takes the lock; `None`: somebody else has had it for a while now.
    ///
    /// # Errors
    ///
    /// When there is no such file, and it cannot be made.
    pub fn lock(&self, patience: Patience) -> io::Result<Option<DirectoryLock>> {
        let mut file = OpenOptions::new()
            .write(true)
            .create(true)
            .truncate(false)
            .mode(0o600)
            .custom_flags(O_NOFOLLOW | O_CLOEXEC | O_NONBLOCK)
            .open(self.of(Room::Disks).join(LOCK))?;
        for _ in 0..patience.tries() {
            match Flock::lock(file, FlockArg::LockExclusiveNonblock) {
                Ok(lock) => return Ok(Some(lock)),
                Err((back, _)) => file = back,
            }
            std::thread::sleep(Patience::PAUSE);
        }
        Ok(None)
    }

    /// Counts what there is; `own` is the grant of whoever asks, which does not count.
    ///
    /// # Errors
    ///
    /// When the directory cannot be read.
    pub fn used(&self, own: Option<&Path>) -> io::Result<Used> {
        let mut used = Used::default();
        for room in Room::ALL {
            self.each(room, |name, path, metadata| {
                let bytes = metadata.blocks() * 512;
                if room != Room::Disks {
                    used.documents += bytes;
                } else if is_grant(name) {
                    used.granted += if own == Some(path) { 0 } else { granted(path) };
                } else {
                    used.disks += bytes;
                }
            })?;
        }
        Ok(used)
    }

    /// Visits our files of one part; what is not ours is passed over.
    ///
    /// # Errors
    ///
    /// When the directory cannot be read.
    pub fn each(
        &self,
        room: Room,
        mut visit: impl FnMut(&str, &Path, &Metadata),
    ) -> io::Result<()> {
        for entry in fs::read_dir(self.of(room))? {
            let entry = entry?;
            let name = entry.file_name();
            let Some(name) = name.to_str().filter(|name| room.owns(name)) else {
                continue;
            };
            // It may have gone since it was listed.
            if let Ok(metadata) = entry.metadata()
                && metadata.is_file()
            {
                visit(name, &entry.path(), &metadata);
            }
        }
        Ok(())
    }

    /// A new grant of nothing. The caller holds the lock.
    ///
    /// # Errors
    ///
    /// When it cannot be made.
    pub fn grant(&self) -> io::Result<Grant> {
        let mut number = u64::from(std::process::id());
        loop {
            let path = self.of(Room::Disks).join(format!("{number}.grant"));
            let file = OpenOptions::new()
                .write(true)
                .create_new(true)
                .mode(0o600)
                .custom_flags(O_CLOEXEC)
                .open(&path);
            match file {
                Err(error) if error.kind() == io::ErrorKind::AlreadyExists => number += 1 << 32,
                file => {
                    let file = Flock::lock(file?, FlockArg::LockExclusiveNonblock)
                        .map_err(|(_, errno)| io::Error::from(errno))?;
                    return Ok(Grant { file, path });
                }
            }
        }
    }
}

/// How long to wait for the lock.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Patience {
    /// While a reader may wait for this thread: some milliseconds.
    Short,
    /// While nobody waits: some tenths of a second.
    Fair,
    /// While a mount begins: seconds.
    Long,
}

impl Patience {
    const PAUSE: Duration = Duration::from_millis(2);

    const fn tries(self) -> u32 {
        match self {
            Self::Short => 5,
            Self::Fair => 100,
            Self::Long => 1000,
        }
    }
}

/// Bytes that a mount may fill in, known to others.
#[derive(Debug)]
pub struct Grant {
    file: Flock<File>,
    path: PathBuf,
}

impl Grant {
    /// Where it is.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Says how many bytes it is for. The caller holds the lock of the directory.
    ///
    /// # Errors
    ///
    /// When that cannot be written; then nothing may be filled in.
    pub fn say(&self, bytes: u64) -> io::Result<()> {
        use std::os::unix::fs::FileExt as _;

        self.file.write_all_at(format!("{bytes:020}").as_bytes(), 0)
    }
}

impl Drop for Grant {
    fn drop(&mut self) {
        // If it stays, whoever counts next removes it.
        let _ = fs::remove_file(&self.path);
    }
}

/// What another mount was granted; the grant of a dead one is removed.
fn granted(path: &Path) -> u64 {
    let Ok(file) = open_ours(path, false) else {
        return 0;
    };
    match Flock::lock(file, FlockArg::LockExclusiveNonblock) {
        Ok(_dead) => {
            let _ = fs::remove_file(path);
            0
        }
        Err((file, _)) => {
            let mut text = String::new();
            // A grant that cannot be read is one that was not yet said.
            let read = file.take(20).read_to_string(&mut text);
            read.ok().and_then(|_| text.parse().ok()).unwrap_or(0)
        }
    }
}

/// Opens a regular file of the cache; nothing else that may be in its place.
pub(super) fn open_ours(path: &Path, write: bool) -> io::Result<File> {
    let file = OpenOptions::new()
        .read(true)
        .write(write)
        .custom_flags(O_NOFOLLOW | O_CLOEXEC | O_NONBLOCK)
        .open(path)?;
    if file.metadata()?.is_file() {
        return Ok(file);
    }
    Err(io::Error::new(
        io::ErrorKind::InvalidInput,
        "it is no regular file",
    ))
}

/// Replaces a file as a whole. What a crash leaves is found out when it is read.
pub(super) fn replace(path: &Path, bytes: &[u8]) -> io::Result<()> {
    let mut beside = path.as_os_str().to_owned();
    beside.push(PARTIAL);
    let beside = PathBuf::from(beside);
    let written = write_new(&beside, bytes).and_then(|()| fs::rename(&beside, path));
    if written.is_err() {
        let _ = fs::remove_file(&beside);
    }
    written
}

fn write_new(path: &Path, bytes: &[u8]) -> io::Result<()> {
    use std::io::Write as _;

    OpenOptions::new()
        .write(true)
        .create(true)
        .truncate(true)
        .mode(0o600)
        .custom_flags(O_NOFOLLOW | O_CLOEXEC)
        .open(path)?
        .write_all(bytes)
}
