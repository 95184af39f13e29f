//! A block device over a file, gone when its guard is.

use std::ops::Range;
use std::path::Path;
use std::process::Command;

use anyhow::{Context, Result, bail};

/// A block device.
#[derive(Debug)]
pub struct LoopDevice(String);

impl LoopDevice {
    /// Makes a device of all of `file`, past its page cache.
    ///
    /// # Errors
    /// Only root can, and not everywhere.
    pub fn over(file: &Path) -> Result<Self> {
        Self::attach(file, &[])
    }

    /// Makes a device of a part of `file`, past its page cache.
    ///
    /// # Errors
    /// Only root can, and not everywhere.
    pub fn over_part(file: &Path, part: &Range<u64>) -> Result<Self> {
        let offset = format!("--offset={}", part.start);
        let limit = format!("--sizelimit={}", part.end - part.start);
        Self::attach(file, &[&offset, &limit])
    }

    fn attach(file: &Path, options: &[&str]) -> Result<Self> {
        let mut command = Command::new("losetup");
        command
            .args(["--direct-io=on", "--find", "--show"])
            .args(options)
            .arg(file);
        let output = command.output().context("cannot run losetup")?;
        if !output.status.success() {
            bail!("losetup: {}", String::from_utf8_lossy(&output.stderr));
        }
        Ok(Self(
            String::from_utf8_lossy(&output.stdout).trim().to_owned(),
        ))
    }

    /// Returns its path.
    pub fn path(&self) -> &Path {
        Path::new(&self.0)
    }
}

impl Drop for LoopDevice {
    fn drop(&mut self) {
        let _ = Command::new("losetup").args(["--detach", &self.0]).status();
    }
}
