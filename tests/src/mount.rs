//! `circular-mount` in the foreground, on a directory of its own.

use std::path::PathBuf;
use std::process::{Command, ExitStatus};
use std::time::Duration;

use anyhow::{Context, Result};
use nix::mount::{MntFlags, umount2};
use nix::sys::signal::Signal;
use tempfile::TempDir;

use crate::binaries;
use crate::daemon::Daemon;
use crate::store::TestStore;

/// Longest mount and longest unmount before the test counts as hung.
const DEADLINE: Duration = Duration::from_secs(30);

/// What a test may want of a mount.
#[derive(Clone, Debug, Default)]
pub struct Options {
    /// Where the disk cache is; `None`: nothing is kept on disk.
    pub cache: Option<PathBuf>,
    /// The root that is trusted; `None`: that of the keys that a test's store is made with.
    pub root: Option<PathBuf>,
    /// More arguments.
    pub arguments: Vec<String>,
}

/// A mounted disk.
#[derive(Debug)]
pub struct Mount {
    daemon: Daemon,
    directory: TempDir,
}

impl Mount {
    /// Mounts `reference` of `store`, which is served at `url`, with no disk cache.
    ///
    /// # Errors
    /// It cannot be mounted; the message has what the client said.
    pub fn start(store: &TestStore, url: &str, reference: &str) -> Result<Self> {
        Self::start_with(store, url, reference, &Options::default())
    }

    /// Mounts `reference` of `store`, which is served at `url`. Nothing is remembered of it.
    ///
    /// # Errors
    /// It cannot be mounted; the message has what the client said.
    pub fn start_with(
        store: &TestStore,
        url: &str,
        reference: &str,
        options: &Options,
    ) -> Result<Self> {
        Self::begin(store, &[], &[url, reference], options)
    }

    /// Mounts all of `store`, which is served at `url`. Nothing is remembered of it.
    ///
    /// # Errors
    /// It cannot be mounted; the message has what the client said.
    pub fn tree(store: &TestStore, url: &str, options: &Options) -> Result<Self> {
        Self::begin(store, &["tree"], &[url], options)
    }

    fn begin(store: &TestStore, kind: &[&str], what: &[&str], options: &Options) -> Result<Self> {
        let directory =
            TempDir::with_prefix("circular-mount-").context("cannot make a directory")?;
        // The shell gives it descriptor 3 to say that the mount is there: our end of its output.
        let mut command = Command::new("sh");
        command
            .args(["-c", "exec \"$@\" 3>&1", "sh"])
            .arg(binaries::host("circular-mount")?)
            .args(kind)
            .args(["--foreground", "--ready-fd", "3", "--no-state", "--root"])
            .arg(options.root.clone().unwrap_or_else(|| store.trusted_root()))
            .args(&options.arguments);
        match &options.cache {
            Some(cache) => command.arg("--cache").arg(cache),
            None => command.arg("--no-cache"),
        };
        command.args(what).arg(directory.path());
        let mut daemon = Daemon::start(&mut command)?;
        daemon.wait_for(DEADLINE, |line| (line == "READY").then_some(()))?;
        Ok(Self { daemon, directory })
    }

    /// Returns the disk.
    pub fn disk(&self) -> PathBuf {
        self.directory.path().join("disk.raw")
    }

    /// Returns the disk of an image in a tree.
    pub fn disk_of(&self, name: &str, tag: &str) -> PathBuf {
        let image = self.directory.path().join(name).join(tag);
        image.join("disk.raw")
    }

    /// Returns what the client said so far.
    pub fn output(&mut self) -> String {
        self.daemon.output()
    }

    /// Asks the client to end, and does not wait for it.
    ///
    /// # Errors
    /// It is gone already.
    pub fn terminate(&mut self) -> Result<()> {
        self.daemon.signal(Signal::SIGTERM)
    }

    /// Waits for a line of what the client says.
    ///
    /// # Errors
    /// It does not come in time.
    pub fn wait_for_line(&mut self, part: &str) -> Result<()> {
        let found = |line: &str| line.contains(part).then_some(());
        self.daemon.wait_for(DEADLINE, found)
    }

    /// Waits for the client to end by itself.
    ///
    /// # Errors
    /// It does not end.
    pub fn wait(mut self) -> Result<ExitStatus> {
        self.daemon.wait(DEADLINE)
    }

    /// Kills the client as a crash would, and takes away what is left of the mount.
    ///
    /// # Errors
    /// It is gone already, or the mount stays.
    pub fn kill(mut self) -> Result<()> {
        self.daemon.signal(Signal::SIGKILL)?;
        self.daemon.wait(DEADLINE)?;
        let path = self.directory.path();
        umount2(path, MntFlags::MNT_DETACH)
            .with_context(|| format!("cannot unmount {}", path.display()))
    }

    /// Returns the process ID of the client.
    pub fn id(&self) -> u32 {
        self.daemon.id()
    }

    /// Unmounts as a signal does and returns how the client ended.
    ///
    /// # Errors
    /// It does not end.
    pub fn stop(mut self) -> Result<ExitStatus> {
        self.daemon.signal(Signal::SIGTERM)?;
        self.daemon.wait(DEADLINE)
    }
}

impl Drop for Mount {
    fn drop(&mut self) {
        // Not waiting here would leave a mounted directory behind, one that cannot be removed.
        // A client that was stopped has unmounted already.
        let ended = self
            .daemon
            .signal(Signal::SIGTERM)
            .and_then(|()| self.daemon.wait(DEADLINE));
        if ended.is_err() {
            let _ = umount2(self.directory.path(), MntFlags::MNT_DETACH);
        }
    }
}
