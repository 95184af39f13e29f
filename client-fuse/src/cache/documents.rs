//! Keeps what describes disks: catalogues, manifests, region tables, pages, heads of boot packs, and
//! the signed metadata that leads to them. With these and the chunks no server is needed.
//!
//! A document is named by its digest and verified each time it is read; the head of a boot pack is
//! checked by whoever decodes it; signed metadata is believed no more than if it came over the
//! network. What is damaged is removed. An error means that nothing is kept, not that nothing works.
//!
//! Bounds: a small part of the bound of the directory; what was unused for longest goes first.

use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::SystemTime;

use bytes::Bytes;
use image_format::digest::Digest;

use crate::cache::desk;
use crate::cache::directory::{Directory, Patience, Room, open_ours, replace};
use crate::config::DiskCacheConfig;
use crate::trust::read_bounded;

/// Files take whole blocks.
const BLOCK_BYTES: u64 = 4096;

/// Documents of a cache directory.
#[derive(Debug, Default)]
pub struct Documents {
    directory: Option<Directory>,
    /// Whether the log says that nothing can be kept.
    told: AtomicBool,
    /// One at a time: they would only be in each other's way.
    writing: Mutex<()>,
}

/// The name of a document.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Name {
    /// What has this digest.
    Whole(Digest),
    /// The head of the boot pack with this digest.
    Head(Digest),
}

impl Name {
    fn file(self) -> String {
        match self {
            Self::Whole(digest) => digest.to_string(),
            Self::Head(digest) => format!("{digest}.head"),
        }
    }
}

impl Documents {
    /// Documents of the directory that `config` names. Blocks on the disk.
    ///
    /// # Errors
    ///
    /// When there is no such directory, and it cannot be made.
    pub fn open(config: &DiskCacheConfig) -> io::Result<Self> {
        Ok(Self::of(Directory::open(config)?))
    }

    /// What is in `directory`; nothing is made.
    #[must_use]
    pub const fn of(directory: Directory) -> Self {
        Self {
            directory: Some(directory),
            told: AtomicBool::new(false),
            writing: Mutex::new(()),
        }
    }

    /// Keeps nothing.
    #[must_use]
    pub const fn none() -> Self {
        Self {
            directory: None,
            told: AtomicBool::new(false),
            writing: Mutex::new(()),
        }
    }

    /// Whether anything can be kept.
    #[must_use]
    pub fn is_on(&self) -> bool {
        self.directory.is_some() && !desk::is_silent()
    }

    /// The document `name`, of at most `bytes_max` bytes. Blocks on the disk.
    #[must_use]
    pub fn find(&self, name: Name, bytes_max: u64) -> Option<Bytes> {
        let path = self.path(name)?;
        let _busy = desk::begin();
        let bytes = read_bounded(&path, bytes_max).ok()?;
        if let Name::Whole(digest) = name
            && Digest::of(&bytes) != digest
        {
            tracing::debug!(path = %path.display(), "a document of the cache is damaged");
            let _ = fs::remove_file(&path);
            return None;
        }
        touch(&path);
        Some(bytes.into())
    }

    /// Keeps a document. Blocks on the disk.
    pub fn keep(&self, name: Name, bytes: &[u8]) {
        if let Some(path) = self.path(name) {
            self.write(Room::Documents, &path, bytes);
        }
    }

    /// The signed metadata that was kept of the store `store`, by file name. Blocks on the disk.
    #[must_use]
    pub fn metadata(&self, store: &str, bytes_max: u64) -> Vec<(String, Bytes)> {
        let mut found = Vec::new();
        let Some(directory) = &self.directory else {
            return found;
        };
        let _busy = desk::begin();
        let visited = directory.each(Room::Metadata, |name, path, _| {
            if let Some((of, file)) = name.split_once('.')
                && of == store
                && let Ok(bytes) = read_bounded(path, bytes_max)
            {
                found.push((file.to_owned(), bytes.into()));
            }
        });
        if let Err(error) = visited {
            tracing::debug!(%error, "cached metadata is not read");
        }
        found
    }

    /// Keeps a file of signed metadata of the store `store`. Blocks on the disk.
    pub fn keep_metadata(&self, store: &str, file: &str, bytes: &[u8]) {
        let Some(directory) = &self.directory else {
            return;
        };
        let path = directory.of(Room::Metadata).join(format!("{store}.{file}"));
        if read_bounded(&path, bytes.len() as u64).is_ok_and(|known| known == bytes) {
            return;
        }
        self.write(Room::Metadata, &path, bytes);
    }

    /// Forgets files of signed metadata of the store `store`. Blocks on the disk.
    pub fn forget_metadata(&self, store: &str, forget: impl Fn(&str) -> bool) {
        let Some(directory) = &self.directory else {
            return;
        };
        let visited = directory.each(Room::Metadata, |name, path, _| {
            if let Some((of, file)) = name.split_once('.')
                && of == store
                && forget(file)
            {
                let _ = fs::remove_file(path);
            }
        });
        if let Err(error) = visited {
            tracing::debug!(%error, "cached metadata is not looked through");
        }
    }

    fn path(&self, name: Name) -> Option<PathBuf> {
        let directory = self.directory.as_ref()?;
        Some(directory.of(Room::Documents).join(name.file()))
    }

    fn write(&self, room: Room, path: &Path, bytes: &[u8]) {
        let Some(directory) = &self.directory else {
            return;
        };
        let _writing = self.writing.lock().unwrap_or_else(PoisonError::into_inner);
        let _busy = desk::begin();
        let written = admit(directory, room, bytes.len() as u64, || replace(path, bytes));
        if let Err(error) = written
            && !self.told.swap(true, Ordering::Relaxed)
        {
            tracing::warn!(path = %path.display(), %error, "documents cannot be kept; this image will need its server");
        }
    }
}

/// Runs `write` where there is room for `bytes` more, after making some.
fn admit(
    directory: &Directory,
    room: Room,
    bytes: u64,
    write: impl FnOnce() -> io::Result<()>,
) -> io::Result<()> {
    let Some(_lock) = directory.lock(Patience::Fair)? else {
        return Ok(());
    };
    let bytes = bytes.next_multiple_of(BLOCK_BYTES);
    let bytes_max = directory.documents_max();
    let mut used = directory.used(None)?.documents;
    // A few documents of metadata are never in the way.
    let enough = if room == Room::Metadata {
        u64::MAX
    } else {
        bytes_max
    };
    if used + bytes > enough {
        used -= prune(directory, used + bytes - bytes_max + bytes_max / 8)?;
    }
    if used + bytes > enough {
        return Ok(());
    }
    write()
}

/// Removes what was unused for longest, at least `need` bytes if there is so much.
fn prune(directory: &Directory, need: u64) -> io::Result<u64> {
    use std::os::unix::fs::MetadataExt as _;

    let mut all = Vec::new();
    directory.each(Room::Documents, |_, path, metadata| {
        let bytes = metadata.blocks() * 512;
        all.push((metadata.modified().ok(), path.to_owned(), bytes));
    })?;
    all.sort();
    let mut freed = 0;
    for (_, path, bytes) in all {
        if freed >= need {
            break;
        }
        fs::remove_file(path)?;
        freed += bytes;
    }
    Ok(freed)
}

/// Notes that a document is used; a hint, so that failing at it is no failure.
fn touch(path: &Path) {
    let touched =
        open_ours(path, false).and_then(|file: File| file.set_modified(SystemTime::now()));
    if let Err(error) = touched {
        tracing::debug!(%error, "the use of a document is not noted");
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::ByteSize;

    fn open(directory: &Path, bytes_max: u64) -> Documents {
        let config = DiskCacheConfig {
            directory: directory.to_owned(),
            bytes_max: Some(ByteSize(bytes_max)),
        };
        Documents::open(&config).unwrap()
    }

    #[test]
    fn a_document_is_found_until_it_is_damaged() {
        let directory = tempfile::tempdir().unwrap();
        let documents = open(directory.path(), 1 << 30);
        let name = Name::Whole(Digest::of(b"page"));
        assert_eq!(documents.find(name, 99), None);
        documents.keep(name, b"page");
        assert_eq!(documents.find(name, 99).unwrap(), &b"page"[..]);
        assert_eq!(documents.find(name, 3), None, "longer than it may be");
        fs::write(documents.path(name).unwrap(), b"pagf").unwrap();
        assert_eq!(documents.find(name, 99), None);
        assert!(!documents.path(name).unwrap().exists());
    }

    #[test]
    fn documents_have_a_bound_and_the_oldest_go_first() {
        let directory = tempfile::tempdir().unwrap();
        // A share of 64 KiB: 16 documents of one block.
        let documents = open(directory.path(), 32 * (64 << 10));
        let name = |number: u32| Name::Whole(Digest::of(&number.to_le_bytes()));
        for number in 0..50_u32 {
            documents.keep(name(number), &number.to_le_bytes());
            assert!(
                documents.find(name(0), 9).is_some(),
                "what is used stays, at {number}"
            );
            let used = Directory::existing(directory.path().to_owned())
                .used(None)
                .unwrap();
            assert!(used.documents <= 64 << 10);
        }
        assert!(documents.find(name(49), 9).is_some() && documents.find(name(1), 9).is_none());
    }

    #[test]
    fn metadata_is_kept_by_store() {
        let directory = tempfile::tempdir().unwrap();
        let documents = open(directory.path(), 1 << 20);
        let (a, b) = ("0123456789abcdef", "fedcba9876543210");
        documents.keep_metadata(a, "timestamp.json", b"1");
        documents.keep_metadata(a, "timestamp.json", b"2");
        documents.keep_metadata(b, "3.snapshot.json", b"3");
        let two = ("timestamp.json".to_owned(), Bytes::from_static(b"2"));
        assert_eq!(documents.metadata(a, 9), [two]);
        documents.forget_metadata(b, |file| file.ends_with("snapshot.json"));
        assert_eq!(documents.metadata(b, 9), []);
        documents.keep_metadata("../../etc/passwd", "x", b"");
        assert_eq!(documents.metadata("../../etc/passwd", 9), []);
    }
}
