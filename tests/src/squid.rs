//! squid: an HTTP proxy that knows nothing of Circular, and that keeps nothing.

use std::fs;
use std::net::{TcpListener, TcpStream};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use tempfile::TempDir;

use crate::daemon::Daemon;
use crate::require;

/// Longest start before the test counts as hung.
const DEADLINE: Duration = Duration::from_secs(20);

/// A running squid.
#[derive(Debug)]
pub struct Squid {
    daemon: Daemon,
    directory: TempDir,
    url: String,
}

impl Squid {
    /// Passes on whatever it is asked for.
    ///
    /// # Errors
    /// squid does not come up.
    pub fn start() -> Result<Self> {
        let directory =
            TempDir::with_prefix("circular-squid-").context("cannot make a directory")?;
        // As root it becomes another user, who writes the log.
        fs::set_permissions(directory.path(), fs::Permissions::from_mode(0o777))?;
        let listener = TcpListener::bind("127.0.0.1:0").context("no free port")?;
        let port = listener.local_addr()?.port();
        drop(listener);
        let configuration = directory.path().join("squid.conf");
        fs::write(&configuration, configuration_of(directory.path(), port))?;
        let program = require::find("squid").context("no squid")?;
        let mut command = Command::new(program);
        command.args(["-N", "-d", "1", "-f"]).arg(&configuration);
        let mut daemon = Daemon::start(&mut command)?;
        let until = Instant::now() + DEADLINE;
        while TcpStream::connect(("127.0.0.1", port)).is_err() {
            if Instant::now() > until || daemon.has_ended()? {
                bail!("squid does not answer:\n{}", daemon.output());
            }
            std::thread::yield_now();
        }
        Ok(Self {
            daemon,
            directory,
            url: format!("http://127.0.0.1:{port}/"),
        })
    }

    /// Returns its address.
    pub fn url(&self) -> &str {
        &self.url
    }

    /// Returns the lines of its log, one for each request that has ended.
    ///
    /// # Errors
    /// The log cannot be read.
    pub fn log(&self) -> Result<Vec<String>> {
        let log = fs::read_to_string(log_of(self.directory.path()))?;
        Ok(log.lines().map(str::to_owned).collect())
    }

    /// Returns what it said.
    pub fn output(&mut self) -> String {
        self.daemon.output()
    }
}

fn log_of(directory: &Path) -> PathBuf {
    directory.join("access.log")
}

/// One process, all its files in `own`, nothing kept.
fn configuration_of(own: &Path, port: u16) -> String {
    let log = log_of(own);
    format!(
        "http_port 127.0.0.1:{port}\n\
         http_access allow all\n\
         cache deny all\n\
         cache_mem 1 MB\n\
         access_log stdio:{}\n\
         cache_log {}\n\
         pid_filename none\n\
         pinger_enable off\n\
         coredump_dir {}\n\
         visible_hostname squid\n\
         max_filedescriptors 1024\n\
         shutdown_lifetime 0 seconds\n",
        log.display(),
        own.join("cache.log").display(),
        own.display()
    )
}
