//! nginx over the plain files of a store: the server that knows nothing of Circular.

use std::fs;
use std::net::{TcpListener, TcpStream};
use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use tempfile::TempDir;

use crate::daemon::Daemon;
use crate::require;

/// Longest start before the test counts as hung.
const DEADLINE: Duration = Duration::from_secs(20);

/// A running nginx.
#[derive(Debug)]
pub struct Nginx {
    _daemon: Daemon,
    _directory: TempDir,
    url: String,
}

impl Nginx {
    /// Serves the files below `root`.
    ///
    /// # Errors
    /// nginx does not come up.
    pub fn start(root: &Path) -> Result<Self> {
        let directory =
            TempDir::with_prefix("circular-nginx-").context("cannot make a directory")?;
        let port = free_port()?;
        let configuration = directory.path().join("nginx.conf");
        fs::write(
            &configuration,
            configuration_of(directory.path(), root, port),
        )?;
        let program = require::find("nginx").context("no nginx")?;
        let mut command = Command::new(program);
        command.arg("-c").arg(&configuration).args(["-e", "stderr"]);
        let mut daemon = Daemon::start(&mut command)?;
        let until = Instant::now() + DEADLINE;
        while TcpStream::connect(("127.0.0.1", port)).is_err() {
            if Instant::now() > until {
                bail!("nginx does not answer:\n{}", daemon.output());
            }
            std::thread::yield_now();
        }
        Ok(Self {
            _daemon: daemon,
            _directory: directory,
            url: format!("http://127.0.0.1:{port}/"),
        })
    }

    /// Returns the address of the files, with a slash at its end.
    pub fn url(&self) -> &str {
        &self.url
    }
}

/// nginx cannot pick a port itself.
fn free_port() -> Result<u16> {
    let listener = TcpListener::bind("127.0.0.1:0").context("no free port")?;
    Ok(listener.local_addr()?.port())
}

/// One process, all its files in `own`, nothing set that a static host would not have.
fn configuration_of(own: &Path, root: &Path, port: u16) -> String {
    let (own, root) = (own.display(), root.display());
    format!(
        "daemon off; master_process off; pid {own}/pid; error_log stderr;\n\
         events {{}}\n\
         http {{\n\
           access_log off;\n\
           client_body_temp_path {own}/body; proxy_temp_path {own}/proxy;\n\
           fastcgi_temp_path {own}/fastcgi; uwsgi_temp_path {own}/uwsgi; scgi_temp_path {own}/scgi;\n\
           server {{ listen 127.0.0.1:{port}; root {root}; }}\n\
         }}\n"
    )
}
