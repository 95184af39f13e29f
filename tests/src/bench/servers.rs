//! The servers at their end of a line: ours with the store, nginx with plain files.

use std::fs;
use std::net::TcpStream;
use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
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
const DAMAGED_PORT: u16 = 8082;
const SLOW_PORT: u16 = 8083;

/// What makes an nginx slow: so much of each answer in a second.
const SLOW: &str = "limit_rate 256k;";

/// Of so many bytes of an object one has a flipped bit: no range of chunks is right.
const DAMAGED_EVERY: usize = 16 << 10;

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
        let nginx = serve_files(directory.path(), &site.www(), "", line, FILES_PORT, cpu)?;
        Ok(Self {
            store: format!("http://{address}:{STORE_PORT}/"),
            files: format!("http://{address}:{FILES_PORT}/"),
            ours,
            nginx,
            _directory: directory,
        })
    }

    /// Starts an nginx with a copy of the store that is damaged wherever chunks are; returns it, its
    /// address, and the directory that it serves.
    ///
    /// # Errors
    /// There is no room, or it does not come up.
    pub fn damaged(
        site: &Site,
        line: &Line,
        cpu: Option<usize>,
    ) -> Result<(Daemon, String, TempDir)> {
        let directory = site.scratch()?;
        let root = directory.path().join("store");
        let mut command = Command::new("cp");
        command.arg("--recursive").arg(site.store.path()).arg(&root);
        ensure!(command.status()?.success(), "cannot copy the store");
        damage(&root.join("objects"))?;
        let nginx = serve_files(directory.path(), &root, "", line, DAMAGED_PORT, cpu)?;
        let url = format!("http://{}:{DAMAGED_PORT}/", line.address());
        Ok((nginx, url, directory))
    }

    /// Starts an nginx with the same store that is slow; returns it, its address, and the directory of its own files.
    ///
    /// # Errors
    /// It does not come up.
    pub fn slow(site: &Site, line: &Line, cpu: Option<usize>) -> Result<(Daemon, String, TempDir)> {
        let directory = site.scratch()?;
        let root = site.store.path();
        let nginx = serve_files(directory.path(), &root, SLOW, line, SLOW_PORT, cpu)?;
        let url = format!("http://{}:{SLOW_PORT}/", line.address());
        Ok((nginx, url, directory))
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

/// Starts an nginx that serves `root`, with some more `settings`, at the server's end of `line`.
fn serve_files(
    own: &Path,
    root: &Path,
    settings: &str,
    line: &Line,
    port: u16,
    cpu: Option<usize>,
) -> Result<Daemon> {
    let address = line.address();
    let configuration = own.join("nginx.conf");
    let listen = format!("{address}:{port}");
    fs::write(&configuration, nginx(own, root, settings, &listen))?;
    let mut command = pinned(cpu, &require::find("nginx").context("no nginx")?);
    command.arg("-c").arg(&configuration).args(["-e", "stderr"]);
    let mut nginx = line.server().within(|| Daemon::start(&mut command))??;
    let until = Instant::now() + DEADLINE;
    while line
        .server()
        .within(|| TcpStream::connect((address, port)))?
        .is_err()
    {
        if Instant::now() > until {
            bail!("nginx does not answer:\n{}", nginx.output());
        }
    }
    Ok(nginx)
}

/// Flips bits in all files below `directory` that are as long as packs are.
fn damage(directory: &Path) -> Result<()> {
    for entry in fs::read_dir(directory)? {
        let path = entry?.path();
        if path.is_dir() {
            damage(&path)?;
            continue;
        }
        let mut bytes = fs::read(&path)?;
        if bytes.len() > 1 << 20 {
            for byte in bytes.iter_mut().step_by(DAMAGED_EVERY) {
                *byte ^= 1;
            }
            fs::write(&path, bytes)?;
        }
    }
    Ok(())
}

/// One process, all its files in `own`, nothing set but what every static host has, and `settings`.
fn nginx(own: &Path, root: &Path, settings: &str, listen: &str) -> String {
    let (own, root) = (own.display(), root.display());
    format!(
        "daemon off; master_process off; pid {own}/pid; error_log stderr;\n\
         events {{ worker_connections 4096; }}\n\
         http {{\n\
           access_log off; sendfile on; tcp_nopush on; keepalive_requests 1000000;\n\
           client_body_temp_path {own}/body; proxy_temp_path {own}/proxy;\n\
           fastcgi_temp_path {own}/fastcgi; uwsgi_temp_path {own}/uwsgi; scgi_temp_path {own}/scgi;\n\
           server {{ listen {listen}; root {root}; {settings} }}\n\
         }}\n"
    )
}
