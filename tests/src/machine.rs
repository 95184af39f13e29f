//! A machine without a disk: QEMU, whose own iPXE boots from a URL.
//!
//! Emulated, never virtualised, so that it runs in the same way everywhere. QEMU's user network
//! shows this machine's loopback as 10.0.2.2.

use std::fs::{self, File};
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitStatus};
use std::time::Duration;

use anyhow::{Context, Result};

use crate::binaries::checkout;
use crate::console::Console;
use crate::daemon::Daemon;

/// What a test may want of a machine.
#[derive(Clone, Debug)]
pub struct Options {
    /// Names the log of the console, `build/logs/<name>.log`.
    pub name: String,
    /// Memory in MiB.
    pub memory_mib: u32,
    /// Whether the console appears on the standard output, too.
    pub show: Show,
    /// More arguments for QEMU.
    pub arguments: Vec<String>,
}

/// Who sees the console besides the log.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Show {
    /// Nobody.
    Nothing,
    /// Whoever reads the standard output.
    Console,
}

impl Options {
    /// A machine as the tests like it: 1 GiB.
    pub fn named(name: &str) -> Self {
        Self {
            name: name.to_owned(),
            memory_mib: 1024,
            show: Show::Nothing,
            arguments: Vec::new(),
        }
    }
}

/// A running machine.
#[derive(Debug)]
pub struct Machine {
    /// Its serial console.
    pub console: Console,
    log: PathBuf,
    daemon: Daemon,
}

impl Machine {
    /// Switches a machine on that boots from `path` on the server at `url` of this machine's loopback.
    ///
    /// # Errors
    /// QEMU does not start.
    pub fn boot(url: &str, path: &str, options: &Options) -> Result<Self> {
        let seen_from_inside = url.replacen("127.0.0.1", "10.0.2.2", 1);
        let script = format!("{seen_from_inside}{path}").replace(',', ",,");
        let netdev = format!("user,id=net,bootfile={script}");
        let mut options = options.clone();
        options.arguments.extend(
            [
                "-netdev",
                &netdev,
                "-device",
                "virtio-net-pci,netdev=net",
                "-boot",
                "n",
            ]
            .map(str::to_owned),
        );
        Self::switch_on(&options)
    }

    /// Switches a machine on that has and boots what `options` say.
    ///
    /// # Errors
    /// QEMU does not start.
    pub fn switch_on(options: &Options) -> Result<Self> {
        let logs = checkout().join("build/logs");
        fs::create_dir_all(&logs).with_context(|| format!("cannot make {}", logs.display()))?;
        let log = logs.join(format!("{}.log", options.name));
        let (ours, theirs) = UnixStream::pair().context("cannot make the console's line")?;

        let mut command = Command::new("qemu-system-x86_64");
        command
            .args(["-accel", "tcg,thread=multi", "-cpu", "max", "-smp", "2"])
            .args(["-m", &options.memory_mib.to_string()])
            // Without a screen the firmware and iPXE, too, talk to the serial line.
            .args([
                "-machine",
                "graphics=off",
                "-display",
                "none",
                "-vga",
                "none",
            ])
            .args(["-nodefaults", "-no-reboot"])
            .arg("-chardev")
            .arg(format!(
                "stdio,id=console,signal=off,logfile={}",
                log.display()
            ))
            .args(["-serial", "chardev:console"])
            .args(&options.arguments)
            .stdin(OwnedFd::from(theirs.try_clone()?))
            .stdout(OwnedFd::from(theirs));
        let daemon = Daemon::start_on(&mut command)?;
        // The command still holds the machine's end of the line: its end would never be seen.
        drop(command);
        let mirror = match options.show {
            Show::Nothing => None,
            Show::Console => Some(File::from(io::stdout().as_fd().try_clone_to_owned()?)),
        };
        Ok(Self {
            console: Console::new(ours, mirror)?,
            log,
            daemon,
        })
    }

    /// Returns the file that has all of the console, escape sequences included.
    pub fn log(&self) -> &Path {
        &self.log
    }

    /// Returns whether the machine has switched itself off.
    ///
    /// # Errors
    /// The system does not tell.
    pub fn is_off(&mut self) -> Result<bool> {
        self.daemon.has_ended()
    }

    /// Waits until the machine has switched itself off.
    ///
    /// # Errors
    /// It is still on after `deadline`.
    pub fn wait_until_off(&mut self, deadline: Duration) -> Result<ExitStatus> {
        self.daemon
            .wait(deadline)
            .with_context(|| format!("see {}", self.log.display()))
    }
}
