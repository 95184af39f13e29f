//! `circular-server` on a free port.

use std::ffi::{OsStr, OsString};
use std::path::Path;
use std::process::{Command, ExitStatus};
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
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
    arguments: Vec<OsString>,
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
        let store = ["--store".as_ref(), store.as_os_str()];
        let arguments: Vec<OsString> = [&store, arguments]
            .concat()
            .into_iter()
            .map(OsStr::to_owned)
            .collect();
        let (daemon, url) = launch("127.0.0.1:0", &arguments)?;
        Ok(Self {
            daemon,
            url,
            arguments,
        })
    }

    /// Returns the address of the store, with a slash at its end.
    pub fn url(&self) -> &str {
        &self.url
    }

    /// Kills the server; nobody answers at its address until [`Self::restart`].
    ///
    /// # Errors
    /// It is gone already.
    pub fn kill(&mut self) -> Result<()> {
        self.daemon.signal(Signal::SIGKILL)?;
        self.daemon.wait(DEADLINE)?;
        Ok(())
    }

    /// Starts a server that was killed again, at the same address.
    ///
    /// # Errors
    /// It does not come up, or somebody else has its port by now.
    pub fn restart(&mut self) -> Result<()> {
        let (_, address) = self.url.split_once("://").context("it has an address")?;
        let address = address.trim_end_matches('/').to_owned();
        let until = Instant::now() + DEADLINE;
        // A connection that somebody else began may have the port for a moment.
        self.daemon = loop {
            match launch(&address, &self.arguments) {
                Ok((daemon, _)) => break daemon,
                Err(error) if Instant::now() > until => return Err(error),
                Err(_) => std::thread::yield_now(),
            }
        };
        Ok(())
    }

    /// Stops the server where it is; who asks it gets no answer until [`Self::thaw`].
    ///
    /// # Errors
    /// It is gone.
    pub fn freeze(&mut self) -> Result<()> {
        self.daemon.signal(Signal::SIGSTOP)
    }

    /// Lets a server that was frozen go on.
    ///
    /// # Errors
    /// It is gone.
    pub fn thaw(&mut self) -> Result<()> {
        self.daemon.signal(Signal::SIGCONT)
    }

    /// Returns what the server has logged.
    pub fn output(&mut self) -> String {
        self.daemon.output()
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

/// Starts a server at `address` and returns it with the address that it says.
fn launch(address: &str, arguments: &[OsString]) -> Result<(Daemon, String)> {
    let mut command = Command::new(binaries::host("circular-server")?);
    command.args(["--listen", address]).args(arguments);
    let mut daemon = Daemon::start(&mut command)?;
    let url = daemon.wait_for(DEADLINE, |line| {
        let (_, url) = line.split_once(" on http")?;
        let (secure, address) = url.split_once("://")?;
        Some(format!("http{secure}://{}/", address.split('/').next()?))
    })?;
    Ok((daemon, url))
}
