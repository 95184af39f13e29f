//! Says whether a test can run on this machine; never lets it pass silently where it must run.
//!
//! `CIRCULAR_REQUIRE=fuse,qemu,nginx,tuf` turns what would be skipped into a failure. What the boots
//! are made from (the Debian disks, the guest's binaries) is required with `qemu`.

use std::fs::OpenOptions;
use std::path::{Path, PathBuf};

use anyhow::{Result, bail};

use crate::torture::tools;
use crate::{binaries, images, python};

/// What lets QEMU read disks over HTTP.
const HTTP_DRIVER: &str = "/usr/lib/x86_64-linux-gnu/qemu/block-curl.so";

/// Something that a machine may lack.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Need {
    /// Mounts.
    Fuse,
    /// `qemu-system-x86_64`.
    Qemu,
    /// `qemu-img` with its HTTP driver.
    QemuImg,
    /// Network namespaces and TUN devices, for [`crate::link`].
    Link,
    /// `nginx`.
    Nginx,
    /// `squid`.
    Squid,
    /// The client of `make python-tuf`.
    PythonTuf,
    /// The exerciser of `make fsx`.
    Fsx,
    /// The disks of `make image`.
    Debian,
    /// The static binaries of `make guest`, and the busybox that goes with them.
    Guest,
}

impl Need {
    /// Returns the word in `CIRCULAR_REQUIRE`.
    fn word(self) -> &'static str {
        match self {
            Self::Fuse => "fuse",
            Self::Link => "link",
            Self::Nginx => "nginx",
            Self::Squid => "squid",
            Self::PythonTuf => "tuf",
            Self::Fsx => "fsx",
            Self::Qemu | Self::QemuImg | Self::Debian | Self::Guest => "qemu",
        }
    }

    /// Returns what is missing, if it is.
    fn lack(self) -> Option<String> {
        let program = |name: &str| find(name).is_none().then(|| format!("no {name}"));
        match self {
            Self::Fuse => OpenOptions::new()
                .read(true)
                .write(true)
                .open("/dev/fuse")
                .is_err()
                .then(|| "no /dev/fuse".to_owned()),
            Self::Link => (!nix::unistd::geteuid().is_root())
                .then(|| "not root".to_owned())
                .or_else(|| {
                    (!Path::new("/dev/net/tun").exists()).then(|| "no /dev/net/tun".to_owned())
                })
                .or_else(|| program("ip")),
            Self::Qemu => program("qemu-system-x86_64"),
            Self::QemuImg => (!Path::new(HTTP_DRIVER).is_file())
                .then(|| format!("no {HTTP_DRIVER}"))
                .or_else(|| program("qemu-img")),
            Self::Nginx => program("nginx"),
            Self::Squid => program("squid"),
            Self::PythonTuf => (!python::installed().is_file())
                .then(|| "no python-tuf; `make python-tuf` installs it".to_owned()),
            Self::Fsx => (!tools::fsx_program().is_file())
                .then(|| "no fsx; `make fsx` installs it".to_owned()),
            Self::Debian => images::debian("debian.raw")
                .err()
                .map(|error| error.to_string()),
            Self::Guest => binaries::guest("circular-mount")
                .err()
                .map(|error| error.to_string()),
        }
    }
}

/// Returns whether one of `needs` is missing here, after saying so.
///
/// # Errors
/// It is missing, and `CIRCULAR_REQUIRE` names it.
#[expect(clippy::print_stderr, reason = "the runner shows what a test prints")]
pub fn missing(needs: &[Need]) -> Result<bool> {
    let required = std::env::var("CIRCULAR_REQUIRE").unwrap_or_default();
    for need in needs {
        let Some(lack) = need.lack() else { continue };
        if required.split(',').any(|word| word.trim() == need.word()) {
            bail!("{lack}, and CIRCULAR_REQUIRE={required} asks for it");
        }
        eprintln!("skipped: {lack}");
        return Ok(true);
    }
    Ok(false)
}

/// Finds a program, also where only root's `PATH` looks.
pub fn find(program: &str) -> Option<PathBuf> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    std::env::split_paths(&path)
        .chain(["/usr/sbin", "/sbin"].map(PathBuf::from))
        .map(|directory| directory.join(program))
        .find(|candidate| Path::is_file(candidate))
}
