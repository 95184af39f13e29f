//! Where a disk appears: at a mount point, or on a socket.

use std::path::PathBuf;
use std::sync::Arc;

use anyhow::Context as _;

use crate::config::{Config, Purpose};
use crate::fetch::http::HttpSource;
use crate::fs::ImageFs;
use crate::mount::signals::Signals;
use crate::mount::{Mount, MountError, Mountpoint};
use crate::nbd::{Export, Socket};
use crate::open::OpenImage;
use crate::passthrough::Lender;
use crate::supervise::Stand;
use crate::supervise::seat::{First, LastStep};

/// Where it shall appear.
pub(super) enum Front {
    /// At a mount point.
    Mount(Mountpoint),
    /// At a mount point, with all others of the store.
    Tree(Mountpoint),
    /// On a socket.
    Socket(PathBuf),
}

/// By which a mount is found in lists of mounts.
pub(super) fn name(config: &Config, image: &OpenImage) -> String {
    let name = format!("{}{}", config.base, image.reference);
    config.mount.source.clone().unwrap_or(name)
}

/// What appears.
pub(super) struct Shown<'a> {
    pub(super) fs: Arc<ImageFs<HttpSource>>,
    pub(super) lender: Arc<Lender>,
    pub(super) image: &'a OpenImage,
    /// What the first worker of a supervisor leaves to the others.
    pub(super) first: Option<First>,
    /// What a later one does right before it serves.
    pub(super) last_step: Option<LastStep>,
}

impl Front {
    /// Checks what can be checked before the process becomes a daemon, which has another directory.
    pub(super) fn check(config: &Config) -> anyhow::Result<Self> {
        if let Some(socket) = &config.nbd {
            let path = std::path::absolute(socket);
            let path = path.with_context(|| format!("{} is no path", socket.display()))?;
            return Ok(Self::Socket(path));
        }
        let mountpoint = Mountpoint::check(&config.mount.mountpoint)?;
        Ok(match config.purpose {
            Purpose::MountAll => Self::Tree(mountpoint),
            _ => Self::Mount(mountpoint),
        })
    }

    /// Whether the kernel may come to read the cache file itself. The supervisor cannot let it: what the
    /// kernel was lent would end with the worker that lent it.
    pub(super) const fn may_lend(&self, stand: &Stand) -> bool {
        matches!((self, stand), (Self::Mount(_), Stand::Alone(_)))
    }

    /// Has a disk appear there, and serves it until it is gone. The outer error says that it did not
    /// appear.
    pub(super) async fn serve(
        self,
        config: &Config,
        stand: Stand,
        shown: Shown<'_>,
        signals: &mut Signals,
    ) -> anyhow::Result<Result<(), MountError>> {
        let Shown {
            fs,
            lender,
            image,
            first,
            last_step,
        } = shown;
        let process = &config.process;
        let name = name(config, image);
        let serving = || tracing::info!(image = %image.reference, disk = %image.disk_digest(), bytes = image.manifest.disk.length, "serving");
        let told = "cannot leave the terminal";
        Ok(match (self, stand) {
            (Self::Mount(mountpoint) | Self::Tree(mountpoint), Stand::Alone(readiness)) => {
                let mount =
                    Mount::start(mountpoint, &config.mount, fs, &name, Some(lender)).await?;
                serving();
                readiness.announce().context(told)?;
                mount.serve(process.role, signals).await
            }
            (Self::Mount(mountpoint) | Self::Tree(mountpoint), Stand::Supervised(seat)) => {
                let taken = seat.take(
                    first,
                    mountpoint,
                    &config.mount,
                    fs,
                    last_step,
                    process.style,
                );
                let taken = taken.await?;
                serving();
                taken.serve(process.role).await
            }
            (Self::Socket(path), Stand::Alone(readiness)) => {
                let socket = Socket::listen(&path, config.mount.access).await?;
                let export = Export::new(fs, &image.reference.to_string());
                serving();
                readiness.announce().context(told)?;
                socket.serve(export, signals).await;
                Ok(())
            }
            (Self::Socket(_), Stand::Supervised(_)) => {
                anyhow::bail!("a supervisor holds mounts, no sockets")
            }
        })
    }
}
