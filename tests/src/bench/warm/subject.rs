//! What is measured: a disk at some path, and what has to live for it.

use std::fs;
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::rc::Rc;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use serde_json::Value;

use super::super::Bench;
use super::super::disks::{Shown, mount};
use super::super::site::Site;
use super::super::turns::Course;
use super::compare_bytes;

/// Longest verification of a cache file.
const DEADLINE: Duration = Duration::from_secs(600);

/// How often it is looked whether one has ended.
const POLL: Duration = Duration::from_millis(20);

/// Read-ahead of loop devices, in sectors: as `circular-init` sets it.
const READ_AHEAD_SECTORS: &str = "8192";

/// A disk that is read.
#[derive(Clone, Debug)]
pub(super) struct Subject {
    name: String,
    path: PathBuf,
    span: Range<u64>,
    _shown: Option<Rc<Shown>>,
    _device: Option<Rc<Loop>>,
}

impl Subject {
    /// A file.
    pub(super) fn file(name: &str, path: &Path, span: Range<u64>) -> Self {
        Self {
            name: name.to_owned(),
            path: path.to_owned(),
            span,
            _shown: None,
            _device: None,
        }
    }

    /// Returns who it is.
    pub(super) fn name(&self) -> &str {
        &self.name
    }

    /// Returns where it is.
    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    /// Returns which bytes of it are read.
    pub(super) fn span(&self) -> &Range<u64> {
        &self.span
    }

    /// Returns the same with other bytes to read.
    pub(super) fn limited(&self, span: Range<u64>) -> Self {
        Self {
            span,
            ..self.clone()
        }
    }

    /// Returns the same behind a loop device, past the page cache of the file.
    ///
    /// # Errors
    /// There is no loop device.
    pub(super) fn looped(&self) -> Result<Self> {
        let device = Loop::attach(&self.path)?;
        Ok(Self {
            path: device.0.clone(),
            _device: Some(Rc::new(device)),
            ..self.clone()
        })
    }

    /// Waits until the kernel will read the cache file itself; what it returns is why it does not.
    ///
    /// # Errors
    /// It takes too long.
    pub(super) fn wait_until_passed(&self) -> Result<Option<String>> {
        let until = Instant::now() + DEADLINE;
        loop {
            let stats = self.stats()?;
            let state = stats["passthrough"]["state"].as_str().unwrap_or_default();
            if state == "ready" {
                return Ok(None);
            }
            let on_its_way = ["not all of the disk", "not verified"];
            if !on_its_way.iter().any(|words| state.contains(words)) {
                return Ok(Some(state.to_owned()));
            }
            ensure!(Instant::now() < until, "passthrough is still {state}");
            thread::sleep(POLL);
        }
    }

    /// Makes sure that we were asked for no read.
    ///
    /// # Errors
    /// We were.
    pub(super) fn ensure_passed(&self) -> Result<()> {
        let stats = self.stats()?;
        let (reads, opens) = (&stats["reads"], &stats["passthrough"]["opens"]);
        ensure!(
            reads.as_u64() == Some(0) && opens.as_u64() > Some(0),
            "{reads} reads were served, {opens} opens passed"
        );
        Ok(())
    }

    fn stats(&self) -> Result<Value> {
        let directory = self.path.parent().context("a disk is in a directory")?;
        let text = fs::read_to_string(directory.join(".circular/stats.json"))?;
        Ok(serde_json::from_str(&text)?)
    }
}

/// A cache directory that has some of the disk.
pub(super) struct Cached<'a> {
    bench: &'a Bench<'a>,
    course: &'a Course,
    directory: PathBuf,
    span: Range<u64>,
}

impl<'a> Cached<'a> {
    /// Mounts the disk with its cache in the new `directory`, and reads the first `length` bytes of it: among them those
    /// of `span`, which will be measured.
    ///
    /// # Errors
    /// They are not those of the image.
    pub(super) fn fill(
        bench: &'a Bench<'a>,
        course: &'a Course,
        directory: &Path,
        length: u64,
        span: Range<u64>,
    ) -> Result<Self> {
        fs::create_dir(directory)?;
        let cached = Self {
            bench,
            course,
            directory: directory.to_owned(),
            span,
        };
        let mounted = cached.mount(&["--no-passthrough"])?;
        compare_bytes(mounted.path(), &bench.site.image(), length)?;
        Ok(cached)
    }

    /// Returns the file in which the cache has the disk.
    ///
    /// # Errors
    /// There is none.
    pub(super) fn file(&self) -> Result<PathBuf> {
        let disks = self.directory.join("cache/disks-v1");
        let mut files = fs::read_dir(&disks)?.filter_map(|entry| Some(entry.ok()?.path()));
        let is_disk = |path: &PathBuf| path.extension().is_some_and(|it| it == "raw");
        files.find(is_disk).context("no disk is cached")
    }

    /// Mounts the disk with this cache.
    ///
    /// # Errors
    /// It does not appear.
    pub(super) fn mount(&self, extra: &[&str]) -> Result<Subject> {
        let point = self.directory.join("mnt");
        if point.is_dir() {
            fs::remove_dir(&point).context("the last mount is still there")?;
        }
        let (site, servers) = (self.bench.site, &self.course.servers);
        let (mut command, disk) = mount(site, servers.store(), Site::PLAIN, &self.directory, None)?;
        let side = Some(self.course.line.client());
        let shown = Shown::start(command.args(extra), &disk, site.length, side)?;
        Ok(Subject {
            name: "circular-mount".to_owned(),
            path: disk,
            span: self.span.clone(),
            _shown: Some(Rc::new(shown)),
            _device: None,
        })
    }
}

/// Shows `file` through a FUSE file system that does nothing else; `span` of it will be measured.
///
/// # Errors
/// It does not appear.
pub(super) fn bare(
    bench: &Bench<'_>,
    program: &Path,
    file: &Path,
    scratch: &Path,
    span: Range<u64>,
) -> Result<Subject> {
    let path = scratch.join("bare.raw");
    fs::write(&path, "")?;
    let mut command = Command::new(program);
    let length = bench.site.length;
    let shown = Shown::start(command.arg(file).arg(&path), &path, length, None)?;
    Ok(Subject {
        name: "minimal FUSE file system".to_owned(),
        path,
        span,
        _shown: Some(Rc::new(shown)),
        _device: None,
    })
}

/// A loop device; detached when this is dropped.
#[derive(Debug)]
struct Loop(PathBuf);

impl Loop {
    fn attach(file: &Path) -> Result<Self> {
        let output = Command::new("losetup")
            .args(["--find", "--show", "--read-only", "--direct-io=on"])
            .arg(file)
            .output()
            .context("cannot run losetup")?;
        ensure!(
            output.status.success(),
            "losetup: {}",
            String::from_utf8_lossy(&output.stderr)
        );
        let device = String::from_utf8_lossy(&output.stdout).trim().to_owned();
        let device = Self(device.into());
        let status = Command::new("blockdev")
            .args(["--setra", READ_AHEAD_SECTORS])
            .arg(&device.0)
            .status()
            .context("cannot run blockdev")?;
        ensure!(status.success(), "cannot set read-ahead");
        Ok(device)
    }
}

impl Drop for Loop {
    fn drop(&mut self) {
        let _ = Command::new("losetup").arg("-d").arg(&self.0).status();
    }
}
