//! The life of a mount: made, tuned, checked, and ended by a signal or from outside.

use std::fs;
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use fuser::{Session, SessionUnmounter};
use nix::mount::{MntFlags, umount2};
use nix::sys::stat::{major, minor};
use tokio::sync::oneshot;

use crate::config::{MountConfig, Role};
use crate::fetch::Source;
use crate::fs::{ImageFs, Node};
use crate::fuse::Adapter;
use crate::passthrough::Gate;

pub mod signals;

use signals::Signals;

/// Read-ahead of the kernel on the mounted files: one of the largest FUSE requests is 1 MiB, and
/// the default of 128 KiB costs most of the speed of a loop device on top.
const READ_AHEAD_KIB: u32 = 2048;

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
    #[error("mount point {} is not empty", path.display())]
    NotEmpty { path: PathBuf },
    #[error("cannot use mount point {}", path.display())]
    Unusable { path: PathBuf, source: io::Error },
    #[error("cannot mount on {}; FUSE needs /dev/fuse (modprobe fuse) and root or fusermount3", path.display())]
    Refused { path: PathBuf, source: io::Error },
    #[error("the mount on {} does not answer", path.display())]
    Silent { path: PathBuf, source: io::Error },
    #[error("the FUSE session of {} failed", path.display())]
    Session { path: PathBuf, source: io::Error },
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

/// A mount that serves.
#[derive(Debug)]
pub struct Mount {
    path: PathBuf,
    unmounter: SessionUnmounter,
    ended: oneshot::Receiver<io::Result<()>>,
}

impl Mount {
    /// Mounts `fs` and returns when it has answered a first request.
    ///
    /// # Errors
    ///
    /// When it cannot be mounted or does not answer.
    pub async fn start<S: Source>(
        mountpoint: Mountpoint,
        config: &MountConfig,
        fs: ImageFs<S>,
        source: &str,
        gate: Arc<Gate>,
    ) -> Result<Self, MountError> {
        let Mountpoint { path, root } = mountpoint;
        let owner = (
            nix::unistd::getuid().as_raw(),
            nix::unistd::getgid().as_raw(),
        );
        let length = fs.length(Node::Disk);
        let runtime = tokio::runtime::Handle::current();
        let adapter =
            Adapter::new(Arc::new(fs), runtime, owner, config.access, root).with_passthrough(gate);
        let refused = |source| MountError::Refused {
            path: path.clone(),
            source,
        };
        let mut session = adapter.mount(&path, source).map_err(refused)?;
        let unmounter = session.unmount_callable();
        let ended = run(session).map_err(refused)?;
        let mount = Self {
            path,
            unmounter,
            ended,
        };
        let disk = match root {
            Node::Disk => mount.path.clone(),
            _ => mount.path.join("disk.raw"),
        };
        mount.settle(disk, length).await?;
        Ok(mount)
    }

    /// Waits for a first answer, then raises the kernel's read-ahead where we may.
    async fn settle(&self, disk: PathBuf, length: u64) -> Result<(), MountError> {
        let silent = |source| MountError::Silent {
            path: self.path.clone(),
            source,
        };
        let looked = tokio::task::spawn_blocking(move || {
            let metadata = fs::metadata(disk)?;
            raise_read_ahead(metadata.dev());
            Ok(metadata.len())
        });
        let found = looked
            .await
            .map_err(|error| silent(io::Error::other(error)))?
            .map_err(silent)?;
        if found == length {
            return Ok(());
        }
        Err(silent(io::Error::other(format!(
            "the disk has {found} bytes, not {length}"
        ))))
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
        let mut detached = false;
        loop {
            let signal = tokio::select! {
                ended = &mut self.ended => return self.outcome(ended),
                signal = signals.next() => signal,
            };
            if role == Role::RootDisk {
                tracing::info!(
                    signal,
                    "not ending: this is a root disk (unmount it to end)"
                );
            } else if detached {
                tracing::warn!(
                    signal,
                    "ending while the mount is still used; its users will see errors"
                );
                return Ok(());
            } else {
                tracing::info!(signal, "unmounting");
                detached = !self.unmount();
            }
        }
    }

    /// Unmounts, or detaches what is in use. Returns whether the mount is gone.
    fn unmount(&mut self) -> bool {
        let Err(error) = self.unmounter.unmount() else {
            return true;
        };
        match umount2(&self.path, MntFlags::MNT_DETACH) {
            Ok(()) => tracing::warn!(
                mountpoint = %self.path.display(),
                "still in use: detached, serving until the last user closes (a second signal ends it now)"
            ),
            Err(errno) => {
                tracing::error!(mountpoint = %self.path.display(), %error, %errno, "cannot unmount");
            }
        }
        false
    }

    fn outcome(
        &self,
        ended: Result<io::Result<()>, oneshot::error::RecvError>,
    ) -> Result<(), MountError> {
        let outcome = ended.unwrap_or_else(|_| Err(io::Error::other("its thread panicked")));
        outcome.map_err(|source| MountError::Session {
            path: self.path.clone(),
            source,
        })
    }
}

/// Runs a session on a thread of its own.
fn run<S: Source>(session: Session<Adapter<S>>) -> io::Result<oneshot::Receiver<io::Result<()>>> {
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
