//! The file tree of the booted system, before it is `/`.
//!
//! An absolute link in it means a place in it, not one in the initramfs: every path is resolved
//! by the kernel as if this tree were the root already (`openat2`, Linux 5.6).

use std::{
    fs::{self, File},
    io::{self, Read as _, Write as _},
    os::{
        fd::{AsRawFd as _, OwnedFd},
        unix::fs::{MetadataExt as _, PermissionsExt as _},
    },
    path::Path,
};

use nix::{
    fcntl::{OFlag, OpenHow, ResolveFlag, open, openat2},
    sys::stat::Mode,
};

/// More than any configuration file; a text that is longer is left alone.
const TEXT_BYTES_MAX: u64 = 1 << 20;

/// A root to be.
#[derive(Debug)]
pub(in crate::init) struct NewRoot {
    directory: OwnedFd,
}

impl NewRoot {
    /// Opens the tree at `path`.
    pub(in crate::init) fn open(path: &Path) -> io::Result<Self> {
        let flags = OFlag::O_PATH | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC;
        let directory = open(path, flags, Mode::empty())?;
        Ok(Self { directory })
    }

    fn open_at(&self, path: &str, flags: OFlag) -> io::Result<File> {
        let mode = if flags.contains(OFlag::O_CREAT) {
            0o644
        } else {
            0
        };
        let how = OpenHow::new()
            .flags(flags | OFlag::O_CLOEXEC)
            .mode(Mode::from_bits_truncate(mode))
            .resolve(ResolveFlag::RESOLVE_IN_ROOT);
        Ok(File::from(openat2(&self.directory, path, how)?))
    }

    /// Says whether something is at `path`.
    pub(super) fn exists(&self, path: &str) -> bool {
        self.open_at(path, OFlag::O_PATH).is_ok()
    }

    /// Says whether `path` itself is a symbolic link.
    pub(super) fn is_link(&self, path: &str) -> bool {
        let file = self.open_at(path, OFlag::O_PATH | OFlag::O_NOFOLLOW);
        file.and_then(|file| file.metadata())
            .is_ok_and(|metadata| metadata.is_symlink())
    }

    /// Says whether `path` is a file that can be executed.
    pub(in crate::init) fn is_program(&self, path: &str) -> bool {
        let file = self.open_at(path, OFlag::O_PATH);
        file.and_then(|file| file.metadata())
            .is_ok_and(|metadata| metadata.is_file() && metadata.permissions().mode() & 0o111 != 0)
    }

    /// Reads a text; `None` if there is no such regular file, or no text in it.
    pub(super) fn read(&self, path: &str) -> io::Result<Option<String>> {
        let mut file = match self.open_at(path, OFlag::O_RDONLY | OFlag::O_NONBLOCK) {
            Ok(file) => file,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(error),
        };
        let metadata = file.metadata()?;
        if !metadata.is_file() || metadata.size() > TEXT_BYTES_MAX {
            return Ok(None);
        }
        let mut bytes = Vec::new();
        file.read_to_end(&mut bytes)?;
        Ok(String::from_utf8(bytes).ok())
    }

    /// Writes a file; its directory must be there.
    pub(super) fn write(&self, path: &str, bytes: &[u8]) -> io::Result<()> {
        let flags = OFlag::O_WRONLY | OFlag::O_CREAT | OFlag::O_TRUNC;
        self.open_at(path, flags)?.write_all(bytes)
    }

    /// Lists the names in a directory, sorted; none if there is no such directory.
    pub(super) fn list(&self, path: &str) -> io::Result<Vec<String>> {
        let directory = match self.open_at(path, OFlag::O_RDONLY | OFlag::O_DIRECTORY) {
            Ok(directory) => directory,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
            Err(error) => return Err(error),
        };
        let mut names = Vec::new();
        for entry in fs::read_dir(format!("/proc/self/fd/{}", directory.as_raw_fd()))? {
            names.extend(entry?.file_name().into_string());
        }
        names.sort();
        Ok(names)
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::symlink;

    use super::*;

    fn tree() -> (tempfile::TempDir, NewRoot) {
        let directory = tempfile::tempdir().unwrap();
        fs::create_dir(directory.path().join("etc")).unwrap();
        let root = NewRoot::open(directory.path()).unwrap();
        (directory, root)
    }

    #[test]
    fn an_absolute_link_stays_inside() {
        let (directory, root) = tree();
        symlink("/etc/real", directory.path().join("etc/link")).unwrap();
        root.write("/etc/link", b"text").unwrap();
        let real = fs::read_to_string(directory.path().join("etc/real")).unwrap();
        assert_eq!(real, "text");
        assert_eq!(root.read("/etc/link").unwrap().as_deref(), Some("text"));
        assert!(root.is_link("/etc/link") && !root.is_link("/etc/real"));
    }

    #[test]
    fn dots_do_not_lead_out() {
        let (_directory, root) = tree();
        assert!(!root.exists("/../../../proc/self"));
        assert!(root.exists("/../../etc"));
    }

    #[test]
    fn only_an_executable_file_is_a_program() {
        let (directory, root) = tree();
        let path = directory.path().join("etc/init");
        fs::write(&path, "").unwrap();
        assert!(!root.is_program("/etc/init"));
        fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).unwrap();
        assert!(root.is_program("/etc/init"));
        assert!(!root.is_program("/etc") && !root.is_program("/missing"));
    }

    #[test]
    fn what_is_missing_reads_as_nothing() {
        let (_directory, root) = tree();
        assert_eq!(root.read("/etc/fstab").unwrap(), None);
        assert_eq!(root.read("/etc").unwrap(), None);
        assert!(root.list("/etc/network").unwrap().is_empty());
    }
}
