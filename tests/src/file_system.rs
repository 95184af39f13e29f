//! A file system of a test's own, taken away when its guard is.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, ensure};
use nix::mount::{MntFlags, MsFlags, mount, umount2};

use crate::loop_device::LoopDevice;

/// A mounted file system.
#[derive(Debug)]
pub struct FileSystem {
    path: PathBuf,
    device: Option<LoopDevice>,
}

impl FileSystem {
    /// Mounts a file system in memory at `path`, which is made, of a size as `64m`.
    ///
    /// # Errors
    /// Only root can.
    pub fn in_memory(path: &Path, size: &str) -> Result<Self> {
        Self::mount("tmpfs", path, "tmpfs", &format!("size={size}"))
    }

    /// Makes an ext4 of `bytes` in `file`, and mounts it beside that. It has no journal, so that what fails is what
    /// was written to it; it turns read-only when something is wrong with it.
    ///
    /// # Errors
    /// There is no `mkfs.ext4`, or we are not root.
    pub fn in_file(file: &Path, bytes: u64) -> Result<Self> {
        fs::File::create(file)?.set_len(bytes)?;
        Self::on(file, &file.with_extension("tree"))
    }

    /// The same in a file that is there, at `path`, which is made.
    ///
    /// # Errors
    /// There is no `mkfs.ext4`, or we are not root.
    pub fn on(file: &Path, path: &Path) -> Result<Self> {
        let made = Command::new("mkfs.ext4")
            .args(["-q", "-F", "-O", "^has_journal", "-E"])
            .arg("lazy_itable_init=0,nodiscard")
            .arg(file)
            .status()
            .context("cannot run mkfs.ext4")?;
        ensure!(made.success(), "mkfs.ext4 ended with {made}");
        let device = LoopDevice::over(file)?;
        let source = device.path().to_string_lossy();
        let mut mounted = Self::mount(&source, path, "ext4", "errors=remount-ro")?;
        mounted.device = Some(device);
        Ok(mounted)
    }

    fn mount(source: &str, path: &Path, kind: &str, options: &str) -> Result<Self> {
        fs::create_dir_all(path)?;
        let flags = MsFlags::empty();
        mount(Some(source), path, Some(kind), flags, Some(options))
            .with_context(|| format!("cannot mount {source} at {}", path.display()))?;
        Ok(Self {
            path: path.to_owned(),
            device: None,
        })
    }

    /// Returns where it is mounted.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Returns the device that it is on, if it is on one.
    pub fn device(&self) -> Option<&Path> {
        self.device.as_ref().map(LoopDevice::path)
    }

    /// Takes all of its space; the file that has it is returned.
    ///
    /// # Errors
    /// It cannot be written at all.
    pub fn fill(&self) -> Result<PathBuf> {
        let path = self.path.join("filler");
        let mut file = fs::File::create(&path)?;
        let zeros = vec![1; 64 << 10];
        while std::io::Write::write_all(&mut file, &zeros).is_ok() {}
        Ok(path)
    }
}

impl Drop for FileSystem {
    fn drop(&mut self) {
        let _ = umount2(&self.path, MntFlags::MNT_DETACH);
    }
}
