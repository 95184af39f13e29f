//! The work directory of a publish to a server: what it holds survives until it is published.
//!
//! It belongs to one server and, while it is locked, to one publisher. A marker in it says so; a
//! directory that holds anything else is not touched.

use std::fs::{self, DirBuilder, File};
use std::io::{self, Read as _, Write as _};
use std::os::unix::fs::DirBuilderExt as _;
use std::path::{Path, PathBuf};

use image_format::Digest;
use nix::errno::Errno;
use nix::fcntl::{Flock, FlockArg};

use super::address::StoreUrl;

/// What makes a directory a work directory: holds the address of the server, and is what is locked.
const MARKER_FILE: &str = ".server";

/// Longer than any address.
const MARKER_BYTES_MAX: u64 = 8192;

/// Why a directory cannot be used.
#[derive(Debug, thiserror::Error)]
#[expect(missing_docs, reason = "the messages are the docs")]
pub enum WorkError {
    #[error("no home directory for what is to be published: say where with --work DIR")]
    NoHome,
    #[error("cannot use the work directory `{}`", .path.display())]
    Directory { path: PathBuf, source: io::Error },
    #[error("`{}` is not empty and no work directory: give an empty or new directory with --work", .path.display())]
    Foreign { path: PathBuf },
    #[error("`{}` is the work directory for {server}: give another with --work", .path.display())]
    OtherServer { path: PathBuf, server: String },
    #[error("another publish uses the work directory `{}`: wait for it, or give another with --work", .path.display())]
    Busy { path: PathBuf },
}

/// A work directory that nobody else uses. The kernel releases it when its holder dies.
#[derive(Debug)]
pub struct WorkDirectory {
    path: PathBuf,
    _lock: Flock<File>,
}

impl WorkDirectory {
    /// Takes the directory `asked` for publishing to `server`, or one in the user's cache.
    ///
    /// # Errors
    /// It cannot be used, or another publisher uses it.
    pub fn open(asked: Option<&Path>, server: &StoreUrl) -> Result<Self, WorkError> {
        let path = match asked {
            Some(path) => path.to_owned(),
            None => cache_directory()?
                .join(&Digest::of(server.to_string().as_bytes()).to_string()[..16]),
        };
        let failed = |source| WorkError::Directory {
            path: path.clone(),
            source,
        };
        DirBuilder::new()
            .recursive(true)
            .mode(0o700)
            .create(&path)
            .map_err(failed)?;
        let marker = path.join(MARKER_FILE);
        if !marker.is_file() && fs::read_dir(&path).map_err(failed)?.next().is_some() {
            return Err(WorkError::Foreign { path });
        }
        let file = File::options()
            .create(true)
            .truncate(false)
            .read(true)
            .write(true)
            .open(&marker)
            .map_err(failed)?;
        let mut lock = Flock::lock(file, FlockArg::LockExclusiveNonblock).map_err(
            |(_, errno)| match errno {
                Errno::EWOULDBLOCK => WorkError::Busy { path: path.clone() },
                errno => failed(errno.into()),
            },
        )?;
        let mut marked = String::new();
        (&mut *lock)
            .take(MARKER_BYTES_MAX)
            .read_to_string(&mut marked)
            .map_err(failed)?;
        if marked.is_empty() {
            lock.write_all(server.to_string().as_bytes())
                .map_err(failed)?;
        } else if marked != server.to_string() {
            return Err(WorkError::OtherServer {
                path,
                server: marked,
            });
        }
        Ok(Self { path, _lock: lock })
    }

    /// Returns where it is.
    pub fn path(&self) -> &Path {
        &self.path
    }
}

fn cache_directory() -> Result<PathBuf, WorkError> {
    let directory = |name| {
        std::env::var_os(name)
            .map(PathBuf::from)
            .filter(|path| path.is_absolute())
    };
    let cache =
        directory("XDG_CACHE_HOME").or_else(|| directory("HOME").map(|home| home.join(".cache")));
    let cache = cache.ok_or(WorkError::NoHome)?;
    Ok(cache.join("circular").join("publish"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_work_directory_is_of_one_server_and_one_publisher() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("work");
        let (one, two) = (
            "http://one/".parse().unwrap(),
            "http://two/".parse().unwrap(),
        );
        let held = WorkDirectory::open(Some(&path), &one).unwrap();
        let busy = WorkDirectory::open(Some(&path), &one);
        assert!(matches!(busy, Err(WorkError::Busy { .. })));
        drop(held);
        let other = WorkDirectory::open(Some(&path), &two);
        assert!(
            matches!(other, Err(WorkError::OtherServer { server, .. }) if server == "http://one/")
        );
        assert_eq!(WorkDirectory::open(Some(&path), &one).unwrap().path(), path);
    }

    #[test]
    fn a_directory_with_something_else_is_not_touched() {
        let directory = tempfile::tempdir().unwrap();
        fs::write(directory.path().join("circular.json"), "{}").unwrap();
        let store = WorkDirectory::open(Some(directory.path()), &"http://one/".parse().unwrap());
        assert!(matches!(store, Err(WorkError::Foreign { .. })));
    }
}
