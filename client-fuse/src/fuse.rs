//! The kernel's side of [`ImageFs`]: a request becomes a call, the answer a reply or an errno.
//!
//! FUSE threads only translate. A read of the disk whose bytes are in memory is answered at once; any
//! other becomes a task that sends the reply when it has the bytes, so that a slow server never keeps a
//! FUSE thread from other requests. Writing, syncing and discarding are in [`write`](mod@write); the
//! kernel writes through, it keeps no dirty pages but those of shared maps.

use std::cell::RefCell;
use std::ffi::OsStr;
use std::io;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use bytes::Bytes;
use fuser::{
    BsdFileFlags, Config, Errno, FileAttr, FileHandle, FileType, Filesystem, FopenFlags,
    Generation, INodeNo, InitFlags, KernelConfig, LockOwner, MountOption, OpenAccMode, OpenFlags,
    ReplyAttr, ReplyData, ReplyDirectory, ReplyEmpty, ReplyEntry, ReplyOpen, ReplyStatfs,
    ReplyWrite, Request, Session, SessionACL, TimeOrNow, WriteFlags,
};
use image_format::BLOCK_BYTES;
use tokio::runtime::Handle;

use crate::config::Access;
use crate::disk::near::Near;
use crate::fetch::Source;
use crate::fs::{FsError, ImageFs, Kind, Node};
use crate::passthrough::Lender;
use crate::supervise::gate::Behind;
use crate::supervise::wire::NO_NODE;
use crate::tasks::Tasks;

mod partitions;
mod passthrough;
mod reply;
pub mod tree;
mod write;

use passthrough::DiskOpens;
use reply::Reply;

/// Threads that read requests; each has a buffer of 16 MiB, of which it touches only the start.
pub(crate) const THREADS: usize = 2;

/// Requests of read-ahead and direct I/O that the kernel may have under way: at 1 MiB each, twice the
/// bytes that the fetches behind them may have in flight.
const BACKGROUND_MAX: u16 = 32;

/// The longest read that is answered by the thread that took it: the longest that kernels send unless
/// they are told to. Each thread keeps a buffer of this length, once it was needed.
const NEAR_BYTES_MAX: u32 = 1 << 20;

thread_local! {
    static NEAR: RefCell<Vec<u8>> = const { RefCell::new(Vec::new()) };
}

/// The kernel may keep names and attributes for long: nothing ever changes.
const CONSTANT: Duration = Duration::from_secs(86_400);

/// A file system behind a mount point.
#[derive(Debug)]
pub struct Adapter<S> {
    fs: Arc<ImageFs<S>>,
    tasks: Tasks,
    owner: (u32, u32),
    access: Access,
    /// What is mounted: the directory, or the disk as a file.
    root: Node,
    opens: DiskOpens,
    /// What there is between the kernel and us, if something is.
    behind: Option<Behind>,
}

/// How sessions read: alike in whoever mounts and in whoever serves.
///
/// Without descriptors of their own for the threads: what was read from one is lost when the process
/// that has it dies.
pub(crate) fn session_config() -> Config {
    let mut config = Config::default();
    config.n_threads = Some(THREADS);
    config
}

/// Options of the mount that is called `source`.
pub(crate) fn mount_options(writable: bool, source: &str) -> Vec<MountOption> {
    vec![
        if writable {
            MountOption::RW
        } else {
            MountOption::RO
        },
        MountOption::NoAtime,
        MountOption::NoExec,
        MountOption::DefaultPermissions,
        // A comma would end the option.
        MountOption::FSName(source.replace(',', "%2C")),
        // As text, because fuser keeps `Subtype` from the kernel: without it, the type of the mount
        // would not be that of its line in fstab.
        MountOption::CUSTOM("subtype=circular".to_owned()),
    ]
}

/// Whose requests are answered.
pub(crate) const fn acl(access: Access) -> SessionACL {
    match access {
        Access::Owner => SessionACL::Owner,
        Access::Everybody => SessionACL::All,
    }
}

/// The longest write to a supervised disk, in bytes. The memory for it is touched before a worker begins, by a message on a
/// socket, which this is short enough for.
pub(crate) const SUPERVISED_WRITE_BYTES: u32 = 128 << 10;

/// What we want of the kernel, of what it offers; writes no longer than `write_bytes`, if that is said.
pub(crate) fn negotiate(config: &mut KernelConfig, write_bytes: Option<u32>) {
    if let Some(Err(most)) = write_bytes.map(|bytes| config.set_max_write(bytes)) {
        tracing::debug!(most, "the length of writes cannot be bounded");
    }
    // Without it a loop device with direct I/O has one request in flight instead of a dozen.
    for wish in [InitFlags::FUSE_ASYNC_DIO, InitFlags::FUSE_PARALLEL_DIROPS] {
        if config.add_capabilities(wish).is_err() {
            tracing::debug!(?wish, "this kernel lacks a FUSE capability");
        }
    }
    if let Err(most) = config.set_max_background(BACKGROUND_MAX) {
        tracing::debug!(most, "this kernel allows fewer background requests");
    }
}

impl<S: Source> Adapter<S> {
    /// Serves `fs` with tasks on `runtime`; its files belong to user and group `owner`, and `access`
    /// says who else may read. `root` is what appears at the mount point.
    #[must_use]
    pub fn new(
        fs: Arc<ImageFs<S>>,
        runtime: Handle,
        owner: (u32, u32),
        access: Access,
        root: Node,
    ) -> Self {
        Self {
            fs,
            tasks: Tasks::new(runtime),
            owner,
            access,
            root,
            opens: DiskOpens::default(),
            behind: None,
        }
    }

    /// Makes it the file system of a worker that is handed a mount.
    #[must_use]
    pub(crate) fn behind(self, behind: Behind) -> Self {
        let behind = Some(behind);
        Self { behind, ..self }
    }

    /// Tells whoever watches that a thread took a request.
    fn take(&self) {
        if let Some(behind) = &self.behind {
            behind.gate.take();
        }
    }

    /// Lets the kernel read the cache file itself while `lender` allows it.
    #[must_use]
    pub fn with_passthrough(mut self, lender: Arc<Lender>) -> Self {
        self.opens = DiskOpens::with(lender);
        self
    }

    /// Mounts. The kernel's requests are answered once the session runs.
    ///
    /// # Errors
    ///
    /// When the kernel or `fusermount3` refuses.
    pub fn mount(self, mountpoint: &Path, source: &str) -> io::Result<Session<Self>> {
        let writable = self.fs.is_writable(Node::Disk);
        let access = self.access;
        mount(self, mountpoint, source, writable, access)
    }

    fn attributes(&self, node: Node) -> FileAttr {
        let (time, size) = (self.fs.created(), self.fs.length(node));
        let (kind, perm, nlink) = match node.kind() {
            Kind::Directory => (FileType::Directory, 0o555, 2),
            Kind::File => (FileType::RegularFile, self.permissions(node), 1),
        };
        let modified = self.fs.modified(node);
        FileAttr {
            ino: self.number(node),
            size,
            blocks: size.div_ceil(512),
            atime: time,
            mtime: modified,
            ctime: modified,
            crtime: time,
            kind,
            perm,
            nlink,
            uid: self.owner.0,
            gid: self.owner.1,
            rdev: 0,
            blksize: BLOCK_BYTES,
            flags: 0,
        }
    }

    /// The node that the kernel means; whatever is mounted has its number for a root.
    fn node(&self, ino: INodeNo) -> Option<Node> {
        match Node::of_number(ino.0)? {
            Node::Root => Some(self.root),
            node => Some(node).filter(|_| self.root == Node::Root),
        }
    }

    /// Answers a read of the disk at once, if its bytes are at hand; else the reply is still to be sent.
    fn read_near(&self, node: Node, offset: u64, size: u32, reply: Reply) -> Option<Reply> {
        if node != Node::Disk || size > NEAR_BYTES_MAX {
            return Some(reply);
        }
        // In a task a panic costs one read, here it would cost the mount. The caches are whole after it: what
        // they lock, they lock for lines that do not panic.
        let find = |buffer: &mut Vec<u8>| self.fs.disk().read_near(offset, size, buffer);
        NEAR.with_borrow_mut(|buffer| {
            let found = catch_unwind(AssertUnwindSafe(|| find(buffer)));
            match found.unwrap_or_default() {
                Some(Near::Buffer(within)) => {
                    reply.data(buffer.get(within).unwrap_or_default());
                    None
                }
                Some(Near::Bytes(bytes)) => {
                    reply.data(&bytes);
                    None
                }
                None => Some(reply),
            }
        })
    }

    fn number(&self, node: Node) -> INodeNo {
        INodeNo(if node == self.root {
            Node::Root.number()
        } else {
            node.number()
        })
    }

    /// What the owner and others may do with a file.
    fn permissions(&self, node: Node) -> u16 {
        match (self.fs.is_writable(node), self.access) {
            (false, _) => 0o444,
            (true, Access::Owner) => 0o600,
            (true, Access::Everybody) => 0o644,
        }
    }

    /// How long the kernel may keep what it knows of `node`.
    fn ttl(node: Node) -> Duration {
        if node.is_constant() {
            CONSTANT
        } else {
            Duration::ZERO
        }
    }
}

/// Mounts a file system.
fn mount<F: Filesystem>(
    filesystem: F,
    mountpoint: &Path,
    source: &str,
    writable: bool,
    access: Access,
) -> io::Result<Session<F>> {
    let mut config = session_config();
    config.mount_options = mount_options(writable, source);
    config.acl = acl(access);
    // A descriptor for each thread spares them a common lock; where /dev/fuse cannot be opened
    // again (mounts by fusermount3 in some sandboxes) they share one.
    config.clone_fd = std::fs::File::options()
        .read(true)
        .write(true)
        .open("/dev/fuse")
        .is_ok();
    Session::new(filesystem, mountpoint, &config)
}

/// What a reader is told.
///
/// - a directory read as a file: `EISDIR`
/// - too many open snapshots: `EMFILE`
/// - a snapshot of a process that is gone: `ESTALE`
/// - the disk cannot be read or written there: as [`write::errno`] says
fn errno(error: &FsError) -> Errno {
    match error {
        FsError::IsDirectory => Errno::EISDIR,
        FsError::TooManyOpen => Errno::EMFILE,
        FsError::Stale => Errno::ESTALE,
        FsError::Disk(error) => write::errno(error),
    }
}

impl<S: Source> Filesystem for Adapter<S> {
    fn init(&mut self, _req: &Request, config: &mut KernelConfig) -> io::Result<()> {
        let is_bounded = self.behind.is_some() && self.fs.is_writable(Node::Disk);
        negotiate(config, is_bounded.then_some(SUPERVISED_WRITE_BYTES));
        self.opens.negotiate(config);
        Ok(())
    }

    /// The kernel forgets what it knew; only the gate, where there is one, wants to know.
    fn forget(&self, _req: &Request, ino: INodeNo, _nlookup: u64) {
        self.take();
        if ino.0 == NO_NODE
            && let Some(behind) = &self.behind
        {
            behind.gate.pass();
        }
    }

    fn lookup(&self, _req: &Request, parent: INodeNo, name: &OsStr, reply: ReplyEntry) {
        self.take();
        let parent = self.node(parent);
        match parent.and_then(|parent| parent.child(name.to_str()?)) {
            Some(node) => reply.entry(&Self::ttl(node), &self.attributes(node), Generation(0)),
            None if parent == Some(Node::Root) => self.look_up_partition(name, reply),
            None => reply.error(Errno::ENOENT),
        }
    }

    fn getattr(&self, _req: &Request, ino: INodeNo, _fh: Option<FileHandle>, reply: ReplyAttr) {
        self.take();
        match self.node(ino) {
            Some(node @ Node::Partition(_)) => self.look_at_partition(node, reply),
            Some(node) => reply.attr(&Self::ttl(node), &self.attributes(node)),
            None => reply.error(Errno::ENOENT),
        }
    }

    fn open(&self, _req: &Request, ino: INodeNo, flags: OpenFlags, reply: ReplyOpen) {
        self.take();
        let Some(node) = self.node(ino) else {
            return reply.error(Errno::ENOENT);
        };
        // Modes do not keep root from it.
        if flags.acc_mode() != OpenAccMode::O_RDONLY && !self.fs.is_writable(node) {
            return reply.error(Errno::EROFS);
        }
        if node == Node::Disk {
            return self.opens.open(reply);
        }
        // Whatever length a snapshot has, direct I/O reads up to its end. The kernel does not know that
        // a partition changes with the disk, so it may not keep one that can.
        let is_stale = matches!(node, Node::Partition(_)) && self.fs.is_writable(Node::Disk);
        let flags = if node.is_constant() && !is_stale {
            FopenFlags::FOPEN_KEEP_CACHE
        } else {
            FopenFlags::FOPEN_DIRECT_IO
        };
        match self.fs.open(node) {
            Ok(handle) => reply.opened(FileHandle(handle), flags),
            Err(error) => reply.error(errno(&error)),
        }
    }

    fn read(
        &self,
        req: &Request,
        ino: INodeNo,
        fh: FileHandle,
        offset: u64,
        size: u32,
        _flags: OpenFlags,
        _lock_owner: Option<LockOwner>,
        reply: ReplyData,
    ) {
        self.take();
        let Some(node) = self.node(ino) else {
            return reply.error(Errno::ENOENT);
        };
        let device = self
            .behind
            .as_ref()
            .and_then(|behind| behind.device.clone());
        let reply = Reply {
            reply,
            unique: req.unique().0,
            device,
        };
        let Some(reply) = self.read_near(node, offset, size, reply) else {
            return;
        };
        let fs = Arc::clone(&self.fs);
        let reading = fs.watch(node, offset, size);
        self.tasks.spawn(async move {
            match reading.of(fs.read(node, fh.0, offset, size)).await {
                Ok(bytes) => {
                    // First, so that whoever has the bytes finds them counted.
                    reading.answered();
                    reply.data(&bytes);
                }
                Err(error) => {
                    let cause: &dyn std::error::Error = &error;
                    tracing::error!(offset, size, error = cause, "a read fails");
                    reply.error(errno(&error));
                }
            }
        });
    }

    fn setattr(
        &self,
        _req: &Request,
        ino: INodeNo,
        mode: Option<u32>,
        uid: Option<u32>,
        gid: Option<u32>,
        size: Option<u64>,
        _atime: Option<TimeOrNow>,
        _mtime: Option<TimeOrNow>,
        _ctime: Option<SystemTime>,
        _fh: Option<FileHandle>,
        _crtime: Option<SystemTime>,
        _chgtime: Option<SystemTime>,
        _bkuptime: Option<SystemTime>,
        _flags: Option<BsdFileFlags>,
        reply: ReplyAttr,
    ) {
        self.take();
        let Some(node) = self.node(ino) else {
            return reply.error(Errno::ENOENT);
        };
        // A disk has the length that it has, and whom it belongs to is decided by who mounts.
        let resized = size.is_some_and(|size| size != self.fs.length(node));
        if resized || mode.is_some() || uid.is_some() || gid.is_some() {
            return reply.error(Errno::EPERM);
        }
        // Times are accepted, as of any file, and are those of the last write nevertheless.
        reply.attr(&Self::ttl(node), &self.attributes(node));
    }

    fn write(
        &self,
        _req: &Request,
        ino: INodeNo,
        _fh: FileHandle,
        offset: u64,
        data: &[u8],
        _write_flags: WriteFlags,
        _flags: OpenFlags,
        _lock_owner: Option<LockOwner>,
        reply: ReplyWrite,
    ) {
        self.take();
        if self.node(ino) != Some(Node::Disk) {
            return reply.error(Errno::EROFS);
        }
        self.write_disk(offset, Bytes::copy_from_slice(data), reply);
    }

    fn fallocate(
        &self,
        _req: &Request,
        ino: INodeNo,
        _fh: FileHandle,
        offset: u64,
        length: u64,
        mode: i32,
        reply: ReplyEmpty,
    ) {
        self.take();
        if self.node(ino) != Some(Node::Disk) {
            return reply.error(Errno::EROFS);
        }
        self.allocate_on_disk(offset, length, mode, reply);
    }

    fn fsync(
        &self,
        _req: &Request,
        _ino: INodeNo,
        _fh: FileHandle,
        _datasync: bool,
        reply: ReplyEmpty,
    ) {
        self.take();
        self.sync_disk(reply);
    }

    fn flush(
        &self,
        _req: &Request,
        _ino: INodeNo,
        _fh: FileHandle,
        _lock_owner: LockOwner,
        reply: ReplyEmpty,
    ) {
        self.take();
        // To close a file says nothing about the disk, here as elsewhere.
        reply.ok();
    }

    fn fsyncdir(
        &self,
        _req: &Request,
        _ino: INodeNo,
        _fh: FileHandle,
        _datasync: bool,
        reply: ReplyEmpty,
    ) {
        self.take();
        reply.ok();
    }

    fn release(
        &self,
        _req: &Request,
        ino: INodeNo,
        fh: FileHandle,
        _flags: OpenFlags,
        _lock_owner: Option<LockOwner>,
        _flush: bool,
        reply: ReplyEmpty,
    ) {
        self.take();
        if self.node(ino) == Some(Node::Disk) {
            self.opens.close();
        } else {
            self.fs.release(fh.0);
        }
        reply.ok();
    }

    fn opendir(&self, _req: &Request, _ino: INodeNo, _flags: OpenFlags, reply: ReplyOpen) {
        self.take();
        reply.opened(FileHandle(0), FopenFlags::empty());
    }

    fn releasedir(
        &self,
        _req: &Request,
        _ino: INodeNo,
        _fh: FileHandle,
        _flags: OpenFlags,
        reply: ReplyEmpty,
    ) {
        self.take();
        reply.ok();
    }

    fn readdir(
        &self,
        _req: &Request,
        ino: INodeNo,
        _fh: FileHandle,
        offset: u64,
        reply: ReplyDirectory,
    ) {
        self.take();
        match self.node(ino) {
            Some(node) => self.list(node, offset, reply),
            None => reply.error(Errno::ENOENT),
        }
    }

    fn statfs(&self, _req: &Request, _ino: INodeNo, reply: ReplyStatfs) {
        self.take();
        let blocks = self.fs.length(Node::Disk).div_ceil(u64::from(BLOCK_BYTES));
        reply.statfs(blocks, 0, 0, 6, 0, BLOCK_BYTES, 255, BLOCK_BYTES);
    }
}
