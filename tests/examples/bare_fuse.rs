//! The least that a FUSE file system can do: one file, read from a local file. The mark for ours where the disk cache is
//! not whole; see `circular_tests::bench::warm`.

use std::cell::RefCell;
use std::fs::File;
use std::io;
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::PathBuf;
use std::time::{Duration, UNIX_EPOCH};

use anyhow::{Context, Result};
use clap::Parser;
use fuser::{
    Config, Errno, FileAttr, FileHandle, FileType, Filesystem, FopenFlags, INodeNo, InitFlags,
    KernelConfig, LockOwner, MountOption, OpenFlags, ReplyAttr, ReplyData, ReplyOpen, Request,
    Session,
};
use nix::mount::{MntFlags, umount2};
use nix::sys::signal::{SigSet, Signal};
use nix::sys::stat::{major, minor};

/// Threads and requests at once: as many as ours has.
const THREADS: usize = 2;
const BACKGROUND_MAX: u16 = 32;

/// Read-ahead of the kernel, as ours sets it.
const READ_AHEAD_KIB: &str = "256";

const TTL: Duration = Duration::from_secs(86_400);

/// Show a file as another, through FUSE and nothing else, until it is unmounted
#[derive(Debug, Parser)]
#[command(name = "bare_fuse")]
struct Args {
    /// File to show
    file: PathBuf,
    /// Empty file to show it at
    mountpoint: PathBuf,
}

/// The file.
#[derive(Debug)]
struct Bare {
    file: File,
    length: u64,
}

thread_local! {
    static BUFFER: RefCell<Vec<u8>> = const { RefCell::new(Vec::new()) };
}

impl Filesystem for Bare {
    fn init(&mut self, _req: &Request, config: &mut KernelConfig) -> io::Result<()> {
        // As far as this kernel goes; ours asks for the same.
        let _ = config.add_capabilities(InitFlags::FUSE_ASYNC_DIO);
        let _ = config.set_max_background(BACKGROUND_MAX);
        Ok(())
    }

    fn getattr(&self, _req: &Request, ino: INodeNo, _fh: Option<FileHandle>, reply: ReplyAttr) {
        let attributes = FileAttr {
            ino,
            size: self.length,
            blocks: self.length.div_ceil(512),
            atime: UNIX_EPOCH,
            mtime: UNIX_EPOCH,
            ctime: UNIX_EPOCH,
            crtime: UNIX_EPOCH,
            kind: FileType::RegularFile,
            perm: 0o444,
            nlink: 1,
            uid: 0,
            gid: 0,
            rdev: 0,
            blksize: 4096,
            flags: 0,
        };
        reply.attr(&TTL, &attributes);
    }

    fn open(&self, _req: &Request, _ino: INodeNo, _flags: OpenFlags, reply: ReplyOpen) {
        reply.opened(FileHandle(0), FopenFlags::FOPEN_KEEP_CACHE);
    }

    fn read(
        &self,
        _req: &Request,
        _ino: INodeNo,
        _fh: FileHandle,
        offset: u64,
        size: u32,
        _flags: OpenFlags,
        _lock_owner: Option<LockOwner>,
        reply: ReplyData,
    ) {
        let left = self.length.saturating_sub(offset).min(u64::from(size));
        let length = usize::try_from(left).unwrap_or_default();
        BUFFER.with_borrow_mut(|buffer| {
            if buffer.len() < length {
                buffer.resize(length, 0);
            }
            let bytes = buffer.get_mut(..length).unwrap_or_default();
            match self.file.read_exact_at(bytes, offset) {
                Ok(()) => reply.data(bytes),
                Err(_) => reply.error(Errno::EIO),
            }
        });
    }
}

fn main() -> Result<()> {
    let args = Args::parse();
    let file = File::open(&args.file).context("cannot open the file")?;
    let length = file.metadata()?.len();
    let mut config = Config::default();
    config.mount_options = vec![
        MountOption::RO,
        MountOption::NoAtime,
        MountOption::DefaultPermissions,
        MountOption::FSName("bare".to_owned()),
    ];
    config.n_threads = Some(THREADS);
    config.clone_fd = true;
    // Taken here: the threads of the session inherit it.
    let mut ends = SigSet::empty();
    ends.add(Signal::SIGTERM);
    ends.add(Signal::SIGINT);
    ends.thread_block()?;
    let session = Session::new(Bare { file, length }, &args.mountpoint, &config)
        .context("cannot mount")?
        .spawn()?;
    let device = std::fs::metadata(&args.mountpoint)?.dev();
    let bdi = format!("/sys/class/bdi/{}:{}", major(device), minor(device));
    std::fs::write(format!("{bdi}/read_ahead_kb"), READ_AHEAD_KIB)
        .context("cannot set read-ahead")?;
    ends.wait()?;
    umount2(&args.mountpoint, MntFlags::MNT_DETACH).context("cannot unmount")?;
    Ok(session.join()?)
}
