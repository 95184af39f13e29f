//! The servers at their end of a line: ours with the store, nginx with plain files.

use std::fs;
use std::net::TcpStream;
use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use nix::sys::signal::Signal;
use tempfile::TempDir;

use super::disks::pinned;
use super::line::Line;
use super::site::Site;
use crate::daemon::Daemon;
use crate::{binaries, require};

/// Ports in a namespace where nobody else listens.
const FILES_PORT: u16 = 80;
const STORE_PORT: u16 = 8080;
const MIRROR_PORT: u16 = 8081;

/// Longest start before a server counts as hung.
const DEADLINE: Duration = Duration::from_secs(20);

/// Both servers; they end with this.
#[derive(Debug)]
pub struct Servers {
    store: String,
    files: String,
    ours: Daemon,
    nginx: Daemon,
    _directory: TempDir,
}

impl Servers {
    /// Starts both at the server's end of `line`, on one CPU if one is given.
    ///
    /// # Errors
    /// One is missing or does not come up.
    pub fn start(site: &Site, line: &Line, cpu: Option<usize>) -> Result<Self> {
        let address = line.address();
        let ours = serve(site, line, STORE_PORT, cpu)?;
        let directory =
            TempDir::with_prefix("circular-nginx-").context("cannot make a directory")?;
        let configuration = directory.path().join("nginx.conf");
        let listen = format!("{address}:{FILES_PORT}");
        fs::write(
            &configuration,
            nginx(directory.path(), &site.www(), &listen),
        )?;
        let mut command = pinned(cpu, &require::find("nginx").context("no nginx")?);
        command.arg("-c").arg(&configuration).args(["-e", "stderr"]);
        let mut nginx = line.server().within(|| Daemon::start(&mut command))??;
        let until = Instant::now() + DEADLINE;
        while line
            .server()
            .within(|| TcpStream::connect((address, FILES_PORT)))?
            .is_err()
        {
            if Instant::now() > until {
                bail!("nginx does not answer:\n{}", nginx.output());
            }
        }
        Ok(Self {
            store: format!("http://{address}:{STORE_PORT}/"),
            files: format!("http://{address}:{FILES_PORT}/"),
            ours,
            nginx,
            _directory: directory,
        })
    }

    /// Returns the address of the store.
    pub fn store(&self) -> &str {
        &self.store
    }

    /// Returns the address of the plain files.
    pub fn files(&self) -> &str {
        &self.files
    }

    /// Returns the processes: ours, then nginx.
    pub fn ids(&self) -> [u32; 2] {
        [self.ours.id(), self.nginx.id()]
    }

    /// Starts another server of ours with the same store; returns it and its address.
    ///
    /// # Errors
    /// It does not come up.
    pub fn mirror(site: &Site, line: &Line, cpu: Option<usize>) -> Result<(Daemon, String)> {
        let daemon = serve(site, line, MIRROR_PORT, cpu)?;
        Ok((daemon, format!("http://{}:{MIRROR_PORT}/", line.address())))
    }

    /// Sends `signal` to the server of the store.
    ///
    /// # Errors
    /// It has ended.
    pub fn signal_ours(&mut self, signal: Signal) -> Result<()> {
        self.ours.signal(signal)
    }

    /// Sends `signal` to both.
    ///
    /// # Errors
    /// One has ended.
    pub fn signal(&mut self, signal: Signal) -> Result<()> {
        self.ours.signal(signal)?;
        self.nginx.signal(signal)
    }
}

/// Starts a server of ours at the server's end of `line`.
fn serve(site: &Site, line: &Line, port: u16, cpu: Option<usize>) -> Result<Daemon> {
    let mut command = pinned(cpu, &binaries::host("circular-server")?);
    command
        .args([
            "--listen",
            &format!("{}:{port}", line.address()),
            "--no-access-log",
            "--store",
        ])
        .arg(site.store.path());
    let mut server = line.server().within(|| Daemon::start(&mut command))??;
    server.wait_for(DEADLINE, |line| line.contains(" on http://").then_some(()))?;
    Ok(server)
}

/// One process, all its files in `own`, nothing set but what every static host has.
fn nginx(own: &Path, root: &Path, listen: &str) -> String {
    let (own, root) = (own.display(), root.display());
    format!(
        "daemon off; master_process off; pid {own}/pid; error_log stderr;\n\
         events {{ worker_connections 4096; }}\n\
         http {{\n\
           access_log off; sendfile on; tcp_nopush on; keepalive_requests 1000000;\n\
           client_body_temp_path {own}/body; proxy_temp_path {own}/proxy;\n\
           fastcgi_temp_path {own}/fastcgi; uwsgi_temp_path {own}/uwsgi; scgi_temp_path {own}/scgi;\n\
           server {{ listen {listen}; root {root}; }}\n\
         }}\n"
    )
}
