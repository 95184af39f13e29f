//! Files on their way into the store: written aside, moved into place when they are whole.
//!
//! They lie in `.upload/` of the store, on the same file system and under a name that is never
//! served. One that is given up is removed on drop; what a killed server left is removed at the next
//! start. A lock tells the ones in use, so two servers of one store leave each other's alone.
//!
//! The calls here block.

use std::fs::{self, File, Permissions};
use std::io::{self, Write};
use std::os::unix::fs::PermissionsExt;
use std::path::Path;

use image_format::digest::Hasher;
use image_format::{Digest, DigestMismatch};
use nix::errno::Errno;
use nix::fcntl::{FallocateFlags, fallocate};
use tempfile::NamedTempFile;

use super::protocol::UploadError;

/// Where the files lie, below the root of the store.
pub(super) const DIRECTORY: &str = ".upload";

/// Makes the directory, and removes from it what nobody writes any more.
pub(super) fn prepare(directory: &Path) -> io::Result<()> {
    fs::create_dir_all(directory)?;
    for entry in fs::read_dir(directory)? {
        let path = entry?.path();
        let Ok(file) = File::options().write(true).open(&path) else {
            continue;
        };
        if file.try_lock().is_ok() {
            fs::remove_file(&path)?;
        }
    }
    Ok(())
}

/// A file that is being received.
#[derive(Debug)]
pub(super) struct Staged {
    file: NamedTempFile,
    hasher: Hasher,
    length: u64,
}

/// Whether a file had to be stored.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Placed {
    /// It is new.
    New,
    /// Somebody else was faster; the bytes are the same.
    Existed,
}

impl Staged {
    /// Begins a file of `length` bytes; its room is taken now, so that a disk that is too full
    /// says so before all of it was sent.
    pub(super) fn create(directory: &Path, length: u64) -> io::Result<Self> {
        let file = tempfile::Builder::new()
            .prefix("put-")
            .rand_bytes(16)
            // As any file of a store: what the umask leaves of it.
            .permissions(Permissions::from_mode(0o666))
            .tempfile_in(directory)?;
        file.as_file().lock()?;
        reserve(file.as_file(), length)?;
        Ok(Self {
            file,
            hasher: Hasher::new(),
            length: 0,
        })
    }

    /// Takes the next bytes.
    pub(super) fn write(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.hasher.update(bytes);
        self.length += bytes.len() as u64;
        self.file.as_file_mut().write_all(bytes)
    }

    /// Moves the file to `target` if it is what `digest` names, and makes sure that it stays there.
    pub(super) fn place(self, digest: &Digest, target: &Path) -> Result<Placed, UploadError> {
        let actual = self.hasher.finish();
        if actual != *digest {
            return Err(DigestMismatch {
                expected: *digest,
                actual,
            }
            .into());
        }
        place(self.file, self.length, target).map_err(UploadError::Write)
    }
}

fn reserve(file: &File, length: u64) -> io::Result<()> {
    let length = match i64::try_from(length) {
        Ok(0) | Err(_) => return Ok(()),
        Ok(length) => length,
    };
    match fallocate(file, FallocateFlags::FALLOC_FL_KEEP_SIZE, 0, length) {
        // Not every file system can; then a full disk shows while it is written.
        Ok(()) | Err(Errno::EOPNOTSUPP | Errno::ENOSYS) => Ok(()),
        Err(errno) => Err(errno.into()),
    }
}

fn place(file: NamedTempFile, length: u64, target: &Path) -> io::Result<Placed> {
    file.as_file().sync_all()?;
    let parent = target.parent().unwrap_or(target);
    if !parent.is_dir() {
        let missing = parent.ancestors().take_while(|path| !path.is_dir());
        let missing: Vec<&Path> = missing.collect();
        fs::create_dir_all(parent)?;
        for made in missing {
            sync_directory(made.parent().unwrap_or(made))?;
        }
    }
    let placed = match file.persist_noclobber(target) {
        Ok(_) => Placed::New,
        Err(failed) if failed.error.kind() == io::ErrorKind::AlreadyExists => {
            if has_length(target, length) {
                Placed::Existed
            } else {
                // Cut short, by whatever: the right bytes replace it in one step.
                failed.file.persist(target)?;
                Placed::New
            }
        }
        Err(failed) => return Err(failed.error),
    };
    sync_directory(parent)?;
    Ok(placed)
}

/// Tells whether a regular file of this length is there.
pub(super) fn has_length(path: &Path, length: u64) -> bool {
    fs::symlink_metadata(path).is_ok_and(|meta| meta.is_file() && meta.len() == length)
}

/// Makes names in a directory last through a power cut.
pub(super) fn sync_directory(path: &Path) -> io::Result<()> {
    File::open(path)?.sync_all()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn names(directory: &Path) -> usize {
        fs::read_dir(directory).unwrap().count()
    }

    fn staged(directory: &Path, bytes: &[u8]) -> Staged {
        let mut staged = Staged::create(directory, bytes.len() as u64).unwrap();
        staged.write(bytes).unwrap();
        staged
    }

    #[test]
    fn a_whole_file_appears_under_its_name_and_only_there() {
        let scratch = tempfile::tempdir().unwrap();
        let aside = scratch.path().join(DIRECTORY);
        prepare(&aside).unwrap();
        let digest = Digest::of(b"bytes");
        let target = scratch.path().join(digest.object_path());
        let one = staged(&aside, b"bytes");
        let other = staged(&aside, b"bytes");
        assert_eq!(one.place(&digest, &target).unwrap(), Placed::New);
        assert_eq!(other.place(&digest, &target).unwrap(), Placed::Existed);
        assert_eq!(fs::read(&target).unwrap(), b"bytes");
        fs::write(&target, b"by").unwrap();
        let again = staged(&aside, b"bytes");
        assert_eq!(again.place(&digest, &target).unwrap(), Placed::New);
        assert_eq!(fs::read(&target).unwrap(), b"bytes");
        assert_eq!(names(&aside), 0);
    }

    #[test]
    fn other_bytes_leave_nothing() {
        let scratch = tempfile::tempdir().unwrap();
        let target = scratch.path().join("objects/x");
        let error = staged(scratch.path(), b"other").place(&Digest::of(b"bytes"), &target);
        assert!(matches!(error, Err(UploadError::Digest(_))));
        assert_eq!(names(scratch.path()), 0);
    }

    #[test]
    fn what_a_killed_server_left_goes_and_what_is_in_use_stays() {
        let scratch = tempfile::tempdir().unwrap();
        fs::write(scratch.path().join("put-stale"), b"x").unwrap();
        let used = staged(scratch.path(), b"bytes");
        prepare(scratch.path()).unwrap();
        assert_eq!(names(scratch.path()), 1);
        drop(used);
        assert_eq!(names(scratch.path()), 0);
    }
}
