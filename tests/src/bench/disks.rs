//! Who shows a disk that lies on the server: we, and others.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Result, bail};
use nix::mount::{MntFlags, umount2};
use nix::sys::signal::Signal;

use super::servers::Servers;
use super::site::Site;
use crate::daemon::Daemon;
use crate::link::Side;
use crate::{binaries, require};

/// Longest start and longest end before a program counts as hung.
const DEADLINE: Duration = Duration::from_secs(60);

/// How often a disk that is not there yet is looked for.
const POLL: Duration = Duration::from_micros(500);

/// What shows a disk.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reader {
    /// `circular-mount`, of an image with a boot pack.
    Packed,
    /// `circular-mount`, of an image without one.
    Plain,
    /// `circular-mount`, of an image whose boot pack it recorded itself while a machine booted from its mount.
    Recorded,
    /// `circular-mount`, of the version that follows the one with a boot pack.
    Updated,
    /// nbdkit's curl plugin behind nbdfuse.
    Nbdkit,
    /// The same with nbdkit's retry filter.
    NbdkitRetry,
    /// The same with nbdkit's cache, 256 KiB on each miss: the best of its settings.
    NbdkitCache,
    /// QEMU's HTTP driver behind its FUSE export.
    Qemu,
}

impl Reader {
    /// Those of others.
    pub const PEERS: [Self; 3] = [Self::NbdkitCache, Self::Qemu, Self::Nbdkit];

    /// Returns the name in a table.
    pub fn title(self) -> &'static str {
        match self {
            Self::Packed | Self::Recorded => "Circular, boot pack",
            Self::Plain => "Circular, no boot pack",
            Self::Updated => "Circular, next version",
            Self::Nbdkit => "nbdkit curl",
            Self::NbdkitRetry => "nbdkit curl, retry",
            Self::NbdkitCache => "nbdkit curl, cache 256K",
            Self::Qemu => "QEMU http driver",
        }
    }

    /// Returns whether its programs are here.
    pub fn is_here(self) -> bool {
        let needs: &[&str] = match self {
            Self::Packed | Self::Plain | Self::Recorded | Self::Updated => &[],
            Self::Nbdkit | Self::NbdkitRetry | Self::NbdkitCache => &["nbdkit", "nbdfuse"],
            Self::Qemu => &["qemu-storage-daemon"],
        };
        needs.iter().all(|program| require::find(program).is_some())
    }

    /// Shows the disk of `site` that `servers` serve, to be seen in the empty directory `scratch`, from `side`.
    ///
    /// # Errors
    /// It does not appear.
    pub fn show(
        self,
        site: &Site,
        servers: &Servers,
        side: &Side,
        scratch: &Path,
        cpu: Option<usize>,
    ) -> Result<Shown> {
        let (mut command, disk) = self.command(site, servers, scratch, cpu)?;
        Shown::start(&mut command, &disk, site.length, Some(side))
    }

    fn command(
        self,
        site: &Site,
        servers: &Servers,
        scratch: &Path,
        cpu: Option<usize>,
    ) -> Result<(Command, PathBuf)> {
        let raw = format!("{}{}", servers.files(), site.raw_name());
        let file = scratch.join("disk.raw");
        Ok(match self {
            Self::Packed | Self::Plain | Self::Recorded | Self::Updated => {
                mount(site, servers.store(), self.reference(), scratch, cpu)?
            }
            Self::Nbdkit | Self::NbdkitRetry | Self::NbdkitCache => {
                std::fs::write(&file, "")?;
                let mut command = pinned(cpu, Path::new("nbdfuse"));
                command.arg(&file).args(["[", "nbdkit"]);
                match self {
                    Self::NbdkitCache => command.arg("--filter=cache"),
                    Self::NbdkitRetry => command.arg("--filter=retry"),
                    _ => &mut command,
                };
                command.args(["curl", &raw]);
                if self == Self::NbdkitCache {
                    command.args(["cache-min-block-size=256K", "cache-on-read=true"]);
                }
                command.arg("]").env("TMPDIR", scratch);
                (command, file)
            }
            Self::Qemu => {
                std::fs::write(&file, "")?;
                let mut command = pinned(cpu, Path::new("qemu-storage-daemon"));
                command
                    .args([
                        "--blockdev",
                        &format!("driver=http,node-name=disk,read-only=on,url={raw}"),
                    ])
                    .arg("--export")
                    .arg(format!(
                        "type=fuse,id=disk,node-name=disk,writable=off,mountpoint={}",
                        file.display()
                    ));
                (command, file)
            }
        })
    }

    /// Returns the image that a client of ours mounts.
    fn reference(self) -> &'static str {
        match self {
            Self::Packed => Site::PACKED,
            Self::Recorded => Site::RECORDED,
            Self::Updated => Site::UPDATED,
            _ => Site::PLAIN,
        }
    }
}

/// Returns what mounts `reference` of the store at `base` below `scratch`, with its cache there, and the disk that will appear.
///
/// # Errors
/// The program is not built, or `scratch` has a mount point already.
pub fn mount(
    site: &Site,
    base: &str,
    reference: &str,
    scratch: &Path,
    cpu: Option<usize>,
) -> Result<(Command, PathBuf)> {
    let directory = scratch.join("mnt");
    std::fs::create_dir(&directory)?;
    let mut command = pinned(cpu, &binaries::host("circular-mount")?);
    command
        .args(["--foreground", "--no-state", "--root"])
        .arg(site.store.trusted_root())
        .arg("--cache")
        .arg(scratch.join("cache"))
        .args([base, reference])
        .arg(&directory);
    Ok((command, directory.join("disk.raw")))
}

/// Returns `program`, on one CPU if one is given.
pub fn pinned(cpu: Option<usize>, program: &Path) -> Command {
    match cpu {
        None => Command::new(program),
        Some(cpu) => {
            let mut command = Command::new("taskset");
            command.args(["-c", &cpu.to_string()]).arg(program);
            command
        }
    }
}

/// A disk that a program shows.
#[derive(Debug)]
pub struct Shown {
    daemon: Daemon,
    disk: PathBuf,
}

impl Shown {
    /// Starts `command`, in a namespace if one is given, and waits until `disk` has `length` bytes.
    ///
    /// # Errors
    /// The program ends, or it takes a minute.
    pub fn start(
        command: &mut Command,
        disk: &Path,
        length: u64,
        side: Option<&Side>,
    ) -> Result<Self> {
        let daemon = match side {
            None => Daemon::start(command)?,
            Some(side) => side.within(|| Daemon::start(command))??,
        };
        let mut shown = Self {
            daemon,
            disk: disk.to_owned(),
        };
        let until = Instant::now() + DEADLINE;
        while !std::fs::metadata(disk).is_ok_and(|disk| disk.len() == length) {
            if shown.daemon.has_ended()? || Instant::now() > until {
                bail!(
                    "{} did not appear:\n{}",
                    disk.display(),
                    shown.daemon.output()
                );
            }
            thread::sleep(POLL);
        }
        Ok(shown)
    }

    /// Returns the disk.
    pub fn disk(&self) -> &Path {
        &self.disk
    }

    /// Returns the ID of the process.
    pub fn id(&self) -> u32 {
        self.daemon.id()
    }
}

impl Drop for Shown {
    fn drop(&mut self) {
        let ended = self
            .daemon
            .signal(Signal::SIGTERM)
            .and_then(|()| self.daemon.wait(DEADLINE));
        if ended.is_err() {
            // The mount is the disk itself or the directory that it is in.
            let _ = umount2(&self.disk, MntFlags::MNT_DETACH);
            if let Some(directory) = self.disk.parent() {
                let _ = umount2(directory, MntFlags::MNT_DETACH);
            }
        }
    }
}
