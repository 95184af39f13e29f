//! Where a disk appears: at a mount point, or on a socket.

use std::path::PathBuf;
use std::sync::Arc;

use anyhow::Context as _;

use crate::config::{Config, Purpose, Role};
use crate::fetch::Source;
use crate::fs::ImageFs;
use crate::mount::signals::Signals;
use crate::mount::{Mount, Mountpoint};
use crate::nbd::{Export, Socket};
use crate::open::OpenImage;
use crate::overlay::layered::Layered;
use crate::stats::Stats;

/// Where it shall appear.
pub(super) enum Front {
    /// At a mount point.
    Mount(Mountpoint),
    /// At a mount point, with all others of the store.
    Tree(Mountpoint),
    /// On a socket.
    Socket(PathBuf),
}

/// Where it does.
pub(super) enum Opened<S> {
    Mount(Mount),
    Socket(Socket, Export<S>),
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

    /// Has `disk`, opened as `image`, appear there.
    pub(super) async fn open<S: Source>(
        self,
        config: &Config,
        disk: Layered<S>,
        image: &OpenImage,
        stats: Arc<Stats>,
    ) -> anyhow::Result<Opened<S>> {
        match self {
            Self::Socket(path) => {
                let socket = Socket::listen(&path, config.mount.access).await?;
                let export = Export::new(disk, &image.reference.to_string());
                Ok(Opened::Socket(socket, export))
            }
            Self::Mount(mountpoint) | Self::Tree(mountpoint) => {
                let fs = ImageFs::new(disk, image, &config.base, stats);
                let name = format!("{}{}", config.base, image.reference);
                let name = config.mount.source.as_ref().unwrap_or(&name);
                let mount = Mount::start(mountpoint, &config.mount, fs, name).await?;
                Ok(Opened::Mount(mount))
            }
        }
    }
}

impl<S: Source> Opened<S> {
    /// Serves until it is ended.
    pub(super) async fn serve(self, role: Role, signals: &mut Signals) -> anyhow::Result<()> {
        match self {
            Self::Mount(mount) => Ok(mount.serve(role, signals).await?),
            Self::Socket(socket, export) => {
                socket.serve(export, signals).await;
                Ok(())
            }
        }
    }
}
