//! The read side of a published tree in a local directory: opens a [`StorePath`], nothing else.
//!
//! A file is opened one directory after the other without following a symbolic link, so what
//! is served lies beneath the root whatever stands in the tree. The root itself may be a link, and so
//! may the directories right beneath it, which only its operator can make: objects may lie on
//! another disk. All are looked up anew for each file.
//!
//! The calls here block; [`crate::handle`] runs them on tokio's blocking threads.

use std::fs::File;
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use image_format::ImageRef;
use nix::errno::Errno;
use nix::fcntl::{OFlag, openat};
use nix::sys::stat::Mode;

use crate::decide::{Caching, Representation};
use crate::precondition::{EntityTag, Validators};
use crate::route::StorePath;

/// Why something of the store cannot be served.
#[derive(Debug, thiserror::Error)]
pub(crate) enum StoreError {
    #[error("the store has no such file")]
    NotFound,
    #[error("{reason}")]
    NoSuchImage { reason: String },
    #[error("out of resources opening {}", path.display())]
    Exhausted { path: PathBuf, source: io::Error },
    #[error("cannot open {}", path.display())]
    Unreadable { path: PathBuf, source: io::Error },
    #[error("cannot open image {image}")]
    Image {
        image: ImageRef,
        source: Box<image_store::ReadError>,
    },
    #[error("cannot list the images")]
    Names(#[source] image_store::StoreError),
    #[error("the thread that opens files stopped")]
    Stopped(#[source] tokio::task::JoinError),
}

/// An open file of the store and all that is known of it.
#[derive(Debug)]
pub(crate) struct OpenFile {
    /// For [`crate::decide`].
    pub(crate) representation: Representation,
    /// For [`crate::body`].
    pub(crate) file: File,
}

/// A directory that holds a store.
#[derive(Clone, Debug)]
pub(crate) struct Tree {
    root: Arc<Path>,
}

impl Tree {
    /// Names the directory; nothing is opened yet.
    pub(crate) fn new(root: &Path) -> Self {
        Self { root: root.into() }
    }

    /// Opens a file. Blocks.
    ///
    /// # Errors
    /// [`StoreError::NotFound`] where there is no regular file of that name beneath the root.
    pub(crate) fn open(&self, path: &StorePath) -> Result<OpenFile, StoreError> {
        let relative = path.relative();
        let failed = |source| failure(self.root.join(&relative), source);
        let file = self.open_beneath(&relative)?;
        let metadata = file.metadata().map_err(failed)?;
        if !metadata.is_file() {
            return Err(StoreError::NotFound);
        }
        let tag = path.digest().map_or_else(
            || {
                // Whoever writes a mutable file renames a new one into place: a new inode.
                format!(
                    "{:x}-{:x}-{:x}.{:x}",
                    metadata.ino(),
                    metadata.len(),
                    metadata.mtime(),
                    metadata.mtime_nsec()
                )
            },
            ToString::to_string,
        );
        let representation = Representation {
            length: metadata.len(),
            validators: Validators {
                tag: Some(EntityTag::new(&tag)),
                modified: metadata.modified().ok(),
                immutable: path.caching() == Caching::Immutable,
            },
            content_type: path.content_type(),
            caching: path.caching(),
        };
        Ok(OpenFile {
            representation,
            file,
        })
    }

    fn open_beneath(&self, relative: &Path) -> Result<File, StoreError> {
        let directory = OFlag::O_PATH | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC;
        // O_NONBLOCK: a FIFO in the tree must not hold a thread.
        let file = OFlag::O_RDONLY | OFlag::O_NOFOLLOW | OFlag::O_NONBLOCK | OFlag::O_CLOEXEC;
        let mut at = nix::fcntl::open(&*self.root, directory, Mode::empty())
            .map_err(|errno| failure(self.root.to_path_buf(), errno.into()))?;
        let mut names = relative.iter().enumerate().peekable();
        while let Some((depth, name)) = names.next() {
            let flags = match (names.peek(), depth) {
                (Some(_), 0) => directory,
                (Some(_), _) => directory | OFlag::O_NOFOLLOW,
                (None, _) => file,
            };
            at = openat(&at, name, flags, Mode::empty()).map_err(|errno| match errno {
                // ENXIO: a socket. ELOOP: a symbolic link.
                Errno::ENOENT | Errno::ENOTDIR | Errno::ELOOP | Errno::ENXIO => {
                    StoreError::NotFound
                }
                errno => failure(self.root.join(relative), errno.into()),
            })?;
        }
        Ok(at.into())
    }
}

fn failure(path: PathBuf, source: io::Error) -> StoreError {
    match source.raw_os_error().map(Errno::from_raw) {
        Some(Errno::EMFILE | Errno::ENFILE | Errno::ENOMEM) => {
            StoreError::Exhausted { path, source }
        }
        _ => StoreError::Unreadable { path, source },
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::symlink;

    use super::{StoreError, Tree};
    use crate::route::{Route, StorePath, route};

    fn path(text: &str) -> StorePath {
        match route(text) {
            Some(Route::File(path)) => path,
            other => panic!("{text} is {other:?}"),
        }
    }

    fn tree() -> (tempfile::TempDir, Tree) {
        let scratch = tempfile::tempdir().unwrap();
        std::fs::create_dir_all(scratch.path().join("store/boot/dir")).unwrap();
        std::fs::write(scratch.path().join("store/boot/x.ipxe"), "#!ipxe\n").unwrap();
        std::fs::write(scratch.path().join("secret"), "canary").unwrap();
        let tree = Tree::new(&scratch.path().join("store"));
        (scratch, tree)
    }

    #[test]
    fn a_file_is_opened_with_its_length() {
        let (_scratch, tree) = tree();
        assert_eq!(
            tree.open(&path("/boot/x.ipxe"))
                .unwrap()
                .representation
                .length,
            7
        );
    }

    #[test]
    fn a_directory_of_the_store_may_lie_elsewhere() {
        let (scratch, tree) = tree();
        let store = scratch.path().join("store");
        std::fs::rename(store.join("boot"), scratch.path().join("elsewhere")).unwrap();
        symlink("../elsewhere", store.join("boot")).unwrap();
        assert!(tree.open(&path("/boot/x.ipxe")).is_ok());
        symlink("boot/x.ipxe", store.join("boot.ipxe")).unwrap();
        let got = tree.open(&path("/boot.ipxe"));
        assert!(matches!(got, Err(StoreError::NotFound)), "{got:?}");
    }

    #[test]
    fn links_directories_and_fifos_are_not_found() {
        let (scratch, tree) = tree();
        let boot = scratch.path().join("store/boot");
        symlink("../../secret", boot.join("link.ipxe")).unwrap();
        symlink("..", boot.join("up")).unwrap();
        symlink(scratch.path(), boot.join("out")).unwrap();
        nix::unistd::mkfifo(&boot.join("fifo"), nix::sys::stat::Mode::S_IRUSR).unwrap();
        for name in [
            "missing",
            "link.ipxe",
            "up/up",
            "out/secret",
            "dir",
            "fifo",
            "x.ipxe/y",
        ] {
            let got = tree.open(&path(&format!("/boot/{name}")));
            assert!(matches!(got, Err(StoreError::NotFound)), "{name}: {got:?}");
        }
    }

    #[test]
    fn a_store_that_went_away_is_not_mistaken_for_a_missing_file() {
        let (scratch, tree) = tree();
        std::fs::rename(scratch.path().join("store"), scratch.path().join("gone")).unwrap();
        let got = tree.open(&path("/boot/x.ipxe"));
        assert!(matches!(got, Err(StoreError::Unreadable { .. })), "{got:?}");
    }

    #[test]
    fn a_rewritten_file_has_another_tag() {
        let (scratch, tree) = tree();
        let tag = || {
            tree.open(&path("/boot/x.ipxe"))
                .unwrap()
                .representation
                .validators
                .tag
        };
        let before = tag();
        assert_eq!(tag(), before);
        let fresh = scratch.path().join("store/boot/y");
        std::fs::write(&fresh, "#!ipxe\n").unwrap();
        std::fs::rename(fresh, scratch.path().join("store/boot/x.ipxe")).unwrap();
        assert_ne!(tag(), before);
    }
}
