//! The kernel's side of [`Tree`]: every request is a task, because any may have to ask the store.

use std::ffi::OsStr;
use std::io;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use fuser::{
    Errno, FileAttr, FileHandle, FileType, Filesystem, FopenFlags, Generation, INodeNo,
    KernelConfig, LockOwner, OpenAccMode, OpenFlags, ReplyAttr, ReplyData, ReplyDirectory,
    ReplyEmpty, ReplyEntry, ReplyOpen, ReplyStatfs, Request, Session,
};
use image_format::BLOCK_BYTES;
use tokio::runtime::Handle;

use super::{CONSTANT, errno as errno_of_file, mount, negotiate};
use crate::config::Access;
use crate::fetch::Source;
use crate::fs::Kind;
use crate::tasks::Tasks;
use crate::tree::{Looks, Tree, TreeError};

/// How long the kernel may believe that a name leads where it led: tags move, names come and go.
const NAMES: Duration = Duration::from_secs(60);

/// What a directory entry has for a number that nobody was told; libfuse uses the same.
const UNKNOWN: INodeNo = INodeNo(0xffff_ffff);

/// A tree behind a mount point.
#[derive(Debug)]
pub struct TreeAdapter<S> {
    tree: Arc<Tree<S>>,
    tasks: Tasks,
    owner: (u32, u32),
    access: Access,
}

impl<S: Source> TreeAdapter<S> {
    /// Serves `tree` with tasks on `runtime`; its files belong to user and group `owner`, and `access`
    /// says who else may read.
    #[must_use]
    pub fn new(tree: Arc<Tree<S>>, runtime: Handle, owner: (u32, u32), access: Access) -> Self {
        Self {
            tree,
            tasks: Tasks::new(runtime),
            owner,
            access,
        }
    }

    /// Mounts. The kernel's requests are answered once the session runs.
    ///
    /// # Errors
    ///
    /// When the kernel or `fusermount3` refuses.
    pub fn mount(self, mountpoint: &Path, source: &str) -> io::Result<Session<Self>> {
        let access = self.access;
        mount(self, mountpoint, source, false, access)
    }
}

fn attributes(looks: &Looks, (uid, gid): (u32, u32)) -> FileAttr {
    let (kind, perm, nlink) = match looks.kind {
        Kind::Directory => (FileType::Directory, 0o555, 2),
        Kind::File => (FileType::RegularFile, 0o444, 1),
    };
    FileAttr {
        ino: INodeNo(looks.number),
        size: looks.length,
        blocks: looks.length.div_ceil(512),
        atime: looks.time,
        mtime: looks.time,
        ctime: looks.time,
        crtime: looks.time,
        kind,
        perm,
        nlink,
        uid,
        gid,
        rdev: 0,
        blksize: BLOCK_BYTES,
        flags: 0,
    }
}

/// What a reader is told; an image or a catalogue that cannot be opened is `EIO`.
fn errno(error: &TreeError) -> Errno {
    match error {
        TreeError::Missing => Errno::ENOENT,
        TreeError::NotADirectory => Errno::ENOTDIR,
        TreeError::TooManyOpen => Errno::EMFILE,
        TreeError::Open(_) => Errno::EIO,
        TreeError::Fs(error) => errno_of_file(error),
    }
}

impl<S: Source> Filesystem for TreeAdapter<S> {
    fn init(&mut self, _req: &Request, config: &mut KernelConfig) -> io::Result<()> {
        negotiate(config, None);
        Ok(())
    }

    fn lookup(&self, _req: &Request, parent: INodeNo, name: &OsStr, reply: ReplyEntry) {
        let Some(name) = name.to_str().map(str::to_owned) else {
            return reply.error(Errno::ENOENT);
        };
        let (tree, owner) = (Arc::clone(&self.tree), self.owner);
        self.tasks.spawn(async move {
            match tree.child(parent.0, &name).await {
                Ok(looks) => reply.entry(&NAMES, &attributes(&looks, owner), Generation(0)),
                Err(error) => reply.error(errno(&error)),
            }
        });
    }

    fn forget(&self, _req: &Request, ino: INodeNo, nlookup: u64) {
        self.tree.forget(ino.0, nlookup);
    }

    fn getattr(&self, _req: &Request, ino: INodeNo, _fh: Option<FileHandle>, reply: ReplyAttr) {
        let (tree, owner) = (Arc::clone(&self.tree), self.owner);
        self.tasks.spawn(async move {
            match tree.look(ino.0).await {
                Ok(looks) => reply.attr(&CONSTANT, &attributes(&looks, owner)),
                Err(error) => reply.error(errno(&error)),
            }
        });
    }

    fn open(&self, _req: &Request, ino: INodeNo, flags: OpenFlags, reply: ReplyOpen) {
        if flags.acc_mode() != OpenAccMode::O_RDONLY {
            return reply.error(Errno::EROFS);
        }
        let tree = Arc::clone(&self.tree);
        self.tasks.spawn(async move {
            match tree.open(ino.0).await {
                Ok((handle, is_constant)) => {
                    let flags = if is_constant {
                        FopenFlags::FOPEN_KEEP_CACHE
                    } else {
                        FopenFlags::FOPEN_DIRECT_IO
                    };
                    reply.opened(FileHandle(handle), flags);
                }
                Err(error) => reply.error(errno(&error)),
            }
        });
    }

    fn read(
        &self,
        _req: &Request,
        _ino: INodeNo,
        fh: FileHandle,
        offset: u64,
        size: u32,
        _flags: OpenFlags,
        _lock_owner: Option<LockOwner>,
        reply: ReplyData,
    ) {
        let tree = Arc::clone(&self.tree);
        self.tasks.spawn(async move {
            match tree.read(fh.0, offset, size).await {
                Ok(bytes) => reply.data(&bytes),
                Err(error) => reply.error(errno(&error)),
            }
        });
    }

    fn flush(
        &self,
        _req: &Request,
        _ino: INodeNo,
        _fh: FileHandle,
        _lock_owner: LockOwner,
        reply: ReplyEmpty,
    ) {
        reply.ok();
    }

    fn release(
        &self,
        _req: &Request,
        _ino: INodeNo,
        fh: FileHandle,
        _flags: OpenFlags,
        _lock_owner: Option<LockOwner>,
        _flush: bool,
        reply: ReplyEmpty,
    ) {
        self.tree.release(fh.0);
        reply.ok();
    }

    fn readdir(
        &self,
        _req: &Request,
        ino: INodeNo,
        _fh: FileHandle,
        offset: u64,
        mut reply: ReplyDirectory,
    ) {
        let tree = Arc::clone(&self.tree);
        self.tasks.spawn(async move {
            let entries = match tree.list(ino.0).await {
                Ok(entries) => entries,
                Err(error) => return reply.error(errno(&error)),
            };
            let dots = [".", ".."].map(|name| (name.to_owned(), Kind::Directory));
            let skip = usize::try_from(offset).unwrap_or(usize::MAX);
            let all = (1..).zip(dots.into_iter().chain(entries));
            for (position, (name, kind)) in all.skip(skip) {
                let kind = match kind {
                    Kind::Directory => FileType::Directory,
                    Kind::File => FileType::RegularFile,
                };
                if reply.add(UNKNOWN, position, kind, name) {
                    break;
                }
            }
            reply.ok();
        });
    }

    fn statfs(&self, _req: &Request, _ino: INodeNo, reply: ReplyStatfs) {
        reply.statfs(0, 0, 0, 0, 0, BLOCK_BYTES, 255, BLOCK_BYTES);
    }
}
