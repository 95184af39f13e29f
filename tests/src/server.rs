//! `circular-server` on a free port.

use std::ffi::OsStr;
use std::path::Path;
use std::process::{Command, ExitStatus};
use std::time::Duration;

use anyhow::Result;
use nix::sys::signal::Signal;

use crate::binaries;
use crate::daemon::Daemon;

/// Longest start and longest stop before the test counts as hung.
const DEADLINE: Duration = Duration::from_secs(20);

/// A running server.
#[derive(Debug)]
pub struct Server {
    daemon: Daemon,
    url: String,
}

impl Server {
    /// Serves the store at `store`.
    ///
    /// # Errors
    /// The server does not come up; the message has what it said.
    pub fn start(store: &Path) -> Result<Self> {
        Self::start_with(store, &[])
    }

    /// Serves the store at `store`, with further arguments.
    ///
    /// # Errors
    /// The server does not come up; the message has what it said.
    pub fn start_with(store: &Path, arguments: &[&OsStr]) -> Result<Self> {
        let mut command = Command::new(binaries::host("circular-server")?);
        command
            .args(["--listen", "127.0.0.1:0", "--store"])
            .arg(store)
            .args(arguments);
        let mut daemon = Daemon::start(&mut command)?;
        let url = daemon.wait_for(DEADLINE, |line| {
            let (_, url) = line.split_once(" on http")?;
            let (secure, address) = url.split_once("://")?;
            Some(format!("http{secure}://{}/", address.split('/').next()?))
        })?;
        Ok(Self { daemon, url })
    }

    /// Returns the address of the store, with a slash at its end.
    pub fn url(&self) -> &str {
        &self.url
    }

    /// Stops the server where it is: connections stay, and nothing comes over them any more.
    ///
    /// # Errors
    /// It is gone.
    pub fn freeze(&mut self) -> Result<()> {
        self.daemon.signal(Signal::SIGSTOP)
    }

    /// Lets it go on.
    ///
    /// # Errors
    /// It is gone.
    pub fn thaw(&mut self) -> Result<()> {
        self.daemon.signal(Signal::SIGCONT)
    }

    /// Asks the server to stop and returns how it ended.
    ///
    /// # Errors
    /// It does not stop.
    pub fn stop(mut self) -> Result<ExitStatus> {
        self.daemon.signal(Signal::SIGTERM)?;
        self.daemon.wait(DEADLINE)
    }
}
