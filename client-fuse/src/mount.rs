//! The life of a mount: made, tuned, checked, and ended by a signal or from outside.

use std::fs;
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, mpsc};
use std::thread::JoinHandle;

use fuser::{Filesystem, Session};
use nix::sys::stat::{major, minor};
use tokio::sync::oneshot;

use crate::config::{MountConfig, Role};
use crate::fetch::Source;
use crate::fs::{ImageFs, Node};
use crate::fuse::Adapter;
use crate::fuse::tree::TreeAdapter;
use crate::passthrough::Lender;
use crate::tree::Tree;

pub mod signals;
pub(crate) mod spot;

use crate::top::mounts::unescape;
use signals::Signals;
use spot::{Left, Spot};

/// Read-ahead of the kernel on the mounted files. With the default of 128 KiB, a loop device on top that reads through the
/// page cache has a third of the speed. With 2 MiB, a file that we serve from a warm cache is read up to a sixth faster, but a
/// virtual machine that boots from it waits longer: the kernel answers no read before all that it read ahead is
/// here. What is ahead of a reader, we fetch ourselves.
const READ_AHEAD_KIB: u32 = 256;

/// Why there is no mount.
#[derive(Debug, thiserror::Error)]
#[expect(missing_docs, reason = "the messages are the docs")]
pub enum MountError {
    #[error("mount point {} does not exist; make it with: mkdir -p {}", path.display(), path.display())]
    Missing { path: PathBuf },
    #[error("mount point {} is a dead mount; free it with: umount {}", path.display(), path.display())]
    Dead { path: PathBuf },
    #[error("mount point {} is neither a directory nor a regular file", path.display())]
    NotAPlace { path: PathBuf },
    #[error("mount point {} is a file; a tree needs a directory", path.display())]
    NoDirectory { path: PathBuf },
    #[error("mount point {} is not empty", path.display())]
    NotEmpty { path: PathBuf },
    #[error("something is mounted on {} already; free it with: umount {}", path.display(), path.display())]
    InUse { path: PathBuf },
    #[error("cannot use mount point {}", path.display())]
    Unusable { path: PathBuf, source: io::Error },
    #[error("cannot mount on {}; FUSE needs /dev/fuse (modprobe fuse) and root or fusermount3", path.display())]
    Refused { path: PathBuf, source: io::Error },
    #[error("the mount on {} does not answer", path.display())]
    Silent { path: PathBuf, source: io::Error },
    #[error("the FUSE session of {} failed", path.display())]
    Session { path: PathBuf, source: io::Error },
    #[error("the mount on {} was not handed over", path.display())]
    NotHandedOver { path: PathBuf, source: io::Error },
}

/// An empty directory or file, by its absolute path.
#[derive(Clone, Debug)]
pub struct Mountpoint {
    path: PathBuf,
    /// What the mount begins with: the directory, or the disk itself.
    root: Node,
}

impl Mountpoint {
    /// Checks that `path` can be mounted on.
    ///
    /// # Errors
    ///
    /// Says what is wrong with it.
    pub fn check(path: &Path) -> Result<Self, MountError> {
        let look = || -> io::Result<(Self, bool)> {
            let path = path.canonicalize()?;
            let metadata = fs::metadata(&path)?;
            let (root, empty) = if metadata.is_file() {
                (Node::Disk, metadata.len() == 0)
            } else {
                (Node::Root, fs::read_dir(&path)?.next().is_none())
            };
            Ok((Self { path, root }, empty))
        };
        let path = path.to_owned();
        match look() {
            Ok((found, true)) => Ok(found),
            Ok((_, false)) if is_mounted_on(&path) => Err(MountError::InUse { path }),
            Ok((_, false)) => Err(MountError::NotEmpty { path }),
            Err(error) => Err(match error.kind() {
                io::ErrorKind::NotFound => MountError::Missing { path },
                io::ErrorKind::NotADirectory => MountError::NotAPlace { path },
                io::ErrorKind::NotConnected => MountError::Dead { path },
                _ => MountError::Unusable {
                    path,
                    source: error,
                },
            }),
        }
    }
}

/// Whether a file system is mounted there.
fn is_mounted_on(path: &Path) -> bool {
    let path = path.canonicalize().unwrap_or_else(|_| path.to_owned());
    let mounts = fs::read_to_string("/proc/self/mountinfo").unwrap_or_default();
    let mut points = mounts.lines().filter_map(|line| line.split(' ').nth(4));
    points.any(|point| Path::new(&unescape(point)) == path)
}

impl Mountpoint {
    /// One that was checked before, and has a mount of ours on it: the disk itself if it `is_file`.
    #[must_use]
    pub fn taken(path: &Path, is_file: bool) -> Self {
        let path = path.to_owned();
        let root = if is_file { Node::Disk } else { Node::Root };
        Self { path, root }
    }

    /// Whether the disk itself appears here.
    #[must_use]
    pub fn is_file(&self) -> bool {
        self.root == Node::Disk
    }

    /// Where it is.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Where the disk appears.
    #[must_use]
    pub fn disk(&self) -> PathBuf {
        match self.root {
            Node::Disk => self.path.clone(),
            _ => self.path.join("disk.raw"),
        }
    }
}

/// `fs` as it is mounted there.
pub(crate) fn adapter<S: Source>(
    fs: Arc<ImageFs<S>>,
    config: &MountConfig,
    mountpoint: &Mountpoint,
) -> Adapter<S> {
    let runtime = tokio::runtime::Handle::current();
    Adapter::new(fs, runtime, owner(), config.access, mountpoint.root)
}

/// The user who mounts, and the group: whom the mounted files belong to.
fn owner() -> (u32, u32) {
    (
        nix::unistd::getuid().as_raw(),
        nix::unistd::getgid().as_raw(),
    )
}

/// A mount that serves.
#[derive(Debug)]
pub struct Mount {
    spot: Spot,
    ended: oneshot::Receiver<io::Result<()>>,
}

impl Mount {
    /// Mounts `fs` and returns when it has answered a first request. The kernel may read the cache file
    /// itself while a `lender` allows it.
    ///
    /// # Errors
    ///
    /// When it cannot be mounted or does not answer.
    pub async fn start<S: Source>(
        mountpoint: Mountpoint,
        config: &MountConfig,
        fs: Arc<ImageFs<S>>,
        source: &str,
        lender: Option<Arc<Lender>>,
    ) -> Result<Self, MountError> {
        let length = fs.length(Node::Disk);
        let adapter = adapter(fs, config, &mountpoint);
        let adapter = match lender {
            Some(lender) => adapter.with_passthrough(lender),
            None => adapter,
        };
        let disk = mountpoint.disk();
        let mount = Self::of(&mountpoint.path, |path| adapter.mount(path, source))?;
        mount.settled(disk, Some(length)).await
    }

    /// The same for all images of a store.
    ///
    /// # Errors
    ///
    /// When it cannot be mounted or does not answer.
    pub async fn start_tree<S: Source>(
        mountpoint: Mountpoint,
        config: &MountConfig,
        tree: Arc<Tree<S>>,
        source: &str,
    ) -> Result<Self, MountError> {
        let Mountpoint { path, root } = mountpoint;
        if root != Node::Root {
            return Err(MountError::NoDirectory { path });
        }
        let runtime = tokio::runtime::Handle::current();
        let adapter = TreeAdapter::new(tree, runtime, owner(), config.access);
        let mount = Self::of(&path, |path| adapter.mount(path, source))?;
        let probe = mount.spot.path().to_owned();
        mount.settled(probe, None).await
    }

    /// As [`settle`]; one that does not answer is not left there.
    async fn settled(self, probe: PathBuf, length: Option<u64>) -> Result<Self, MountError> {
        match settle(self.spot.path(), probe, length).await {
            Ok(()) => Ok(self),
            Err(error) => {
                self.spot.unmount();
                Err(error)
            }
        }
    }

    fn of<F: Filesystem + Send + 'static>(
        path: &Path,
        mount: impl FnOnce(&Path) -> io::Result<Session<F>>,
    ) -> Result<Self, MountError> {
        let refused = |source| MountError::Refused {
            path: path.to_owned(),
            source,
        };
        let session = mount(path).map_err(refused)?;
        let spot = Spot::of(path);
        let ended = run_mounted(session).map_err(refused)?;
        Ok(Self { spot, ended })
    }

    /// Serves until the mount is gone: unmounted from outside, or by a signal.
    ///
    /// A root disk lets no signal end it. While something still uses the mount it is detached and
    /// serves on; a second signal ends the process nevertheless.
    ///
    /// # Errors
    ///
    /// When the FUSE session broke.
    pub async fn serve(mut self, role: Role, signals: &mut Signals) -> Result<(), MountError> {
        let mut told = false;
        loop {
            let signal = tokio::select! {
                ended = &mut self.ended => {
                    // Its connection was aborted, or broke: nobody serves it any more.
                    if self.spot.is_there() {
                        self.spot.unmount();
                    }
                    return outcome(self.spot.path(), ended);
                }
                signal = signals.next() => signal,
            };
            if role == Role::RootDisk {
                tracing::info!(
                    signal,
                    "not ending: this is a root disk (unmount it to end)"
                );
            } else if told {
                tracing::warn!(
                    signal,
                    "ending while the mount is still used; its users will see errors"
                );
                return Ok(());
            } else {
                tracing::info!(signal, "unmounting");
                told = self.spot.unmount() != Left::Gone;
            }
        }
    }
}

/// Waits until `probe` can be looked at, which is the disk if a `length` is given; then raises the
/// kernel's read-ahead where we may.
pub(crate) async fn settle(
    path: &Path,
    probe: PathBuf,
    length: Option<u64>,
) -> Result<(), MountError> {
    let silent = |source| MountError::Silent {
        path: path.to_owned(),
        source,
    };
    let looked = tokio::task::spawn_blocking(move || {
        let metadata = fs::metadata(probe)?;
        raise_read_ahead(metadata.dev());
        Ok(metadata.len())
    });
    let found = looked
        .await
        .map_err(|error| silent(io::Error::other(error)))?
        .map_err(silent)?;
    match length {
        Some(length) if found != length => Err(silent(io::Error::other(format!(
            "the disk has {found} bytes, not {length}"
        )))),
        _ => Ok(()),
    }
}

/// How a session ended.
pub(crate) fn outcome(
    path: &Path,
    ended: Result<io::Result<()>, oneshot::error::RecvError>,
) -> Result<(), MountError> {
    let outcome = ended.unwrap_or_else(|_| Err(io::Error::other("its thread panicked")));
    outcome.map_err(|source| MountError::Session {
        path: path.to_owned(),
        source,
    })
}

/// Runs a session that has made its mount, and keeps the session's hold on that for ever: when a session ends, fuser unmounts
/// whatever is at the path of its mount by then.
fn run_mounted<F: Filesystem + Send + 'static>(
    session: Session<F>,
) -> io::Result<oneshot::Receiver<io::Result<()>>> {
    type Thread = JoinHandle<io::Result<()>>;
    let (sender, receiver) = oneshot::channel();
    let (give, take) = mpsc::channel::<Thread>();
    let wait = move || {
        let serving = take.recv().map_err(io::Error::other)?;
        let panicked = |_| Err(io::Error::other("its thread panicked"));
        // Nobody listens any more only when the process is ending.
        let _ = sender.send(serving.join().unwrap_or_else(panicked));
        Ok(())
    };
    let waiting: Thread = std::thread::Builder::new()
        .name("fuse".to_owned())
        .spawn(wait)?;
    let session = Box::leak(Box::new(session.spawn()?));
    // It waits for just this.
    let _ = give.send(std::mem::replace(&mut session.guard, waiting));
    Ok(receiver)
}

/// Runs a session on a thread of its own.
pub(crate) fn run<F: Filesystem + Send + 'static>(
    session: Session<F>,
) -> io::Result<oneshot::Receiver<io::Result<()>>> {
    let (sender, receiver) = oneshot::channel();
    let serve = move || {
        // Nobody listens any more only when the process is ending.
        let _ = sender.send(session.run());
    };
    std::thread::Builder::new()
        .name("fuse".to_owned())
        .spawn(serve)?;
    Ok(receiver)
}

fn raise_read_ahead(device: u64) {
    let path = format!(
        "/sys/class/bdi/{}:{}/read_ahead_kb",
        major(device),
        minor(device)
    );
    if let Err(error) = fs::write(&path, READ_AHEAD_KIB.to_string()) {
        tracing::debug!(%error, path, "the kernel keeps its read-ahead");
    }
}
