//! What is served: an image, a store with it, and the boot that is replayed.

use std::collections::HashSet;
use std::fs::{self, File};
use std::io::Write;
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant, UNIX_EPOCH};

use anyhow::{Context, Result, ensure};
use image_format::BLOCK_BYTES;
use nix::errno::Errno;
use nix::mount::{MntFlags, umount2};
use nix::unistd::{Whence, lseek};
use tempfile::TempDir;

use super::disks::Shown;
use super::turns::bytes;
use super::{Options, say};
use crate::replay::{self, Plan, Read, record};
use crate::server::Server;
use crate::store::TestStore;
use crate::{binaries, images};

/// Where what is served lies: memory.
const MEMORY: &str = "/dev/shm";

/// Begins the name of the directory there; the ID of the process follows.
const PREFIX: &str = "circular-bench-";

/// Bytes of the file that a plain download takes its bytes from.
pub const NOISE_BYTES: usize = 256 << 20;

/// The same with `--quick`.
const NOISE_BYTES_QUICK: usize = 32 << 20;

/// All of it; gone when this is dropped.
#[derive(Debug)]
pub struct Site {
    /// The store that our server serves.
    pub store: TestStore,
    /// Bytes of the disk.
    pub length: u64,
    /// The reads that are replayed.
    pub reads: Vec<Read>,
    /// Of which boot the boot pack is, in words.
    pub learned: String,
    memory: TempDir,
}

impl Site {
    /// The image with a boot pack.
    pub const PACKED: &'static str = "packed:1";

    /// The same disk without one.
    pub const PLAIN: &'static str = "plain:1";

    /// The same with the boot pack of a machine that booted from a mount, once somebody has recorded one.
    pub const RECORDED: &'static str = "recorded:1";

    /// The version that follows [`Self::PACKED`], once somebody has published it.
    pub const UPDATED: &'static str = "packed:2";

    /// Copies the image to memory, publishes it, and has a boot of it recorded.
    ///
    /// # Errors
    /// There is no such image, too little memory, or no QEMU to record with.
    pub fn new(options: &Options) -> Result<Self> {
        let parent = Some(PathBuf::from(MEMORY)).filter(|memory| memory.is_dir());
        let parent = parent.unwrap_or_else(std::env::temp_dir);
        sweep(&parent);
        let memory = TempDir::with_prefix_in(format!("{PREFIX}{}-", std::process::id()), parent)
            .context("cannot make a directory")?;
        let store = TestStore::new_in(memory.path())?;
        let length = fs::metadata(&options.image)
            .with_context(|| format!("cannot read {}", options.image.display()))?
            .len();
        let [learned, reads] = reads_of(&options.image, options.reads.as_ref())?;
        let site = Self {
            store,
            length,
            learned: told(&learned, &reads),
            reads,
            memory,
        };
        say(&format!("== publish {}", options.image.display()));
        fs::create_dir(site.www())?;
        let noise = match options.quick {
            true => NOISE_BYTES_QUICK,
            false => NOISE_BYTES,
        };
        fs::write(site.www().join("noise"), images::noise(1, noise))?;
        copy_sparse(&options.image, &site.image())?;
        for reference in [Self::PACKED, Self::PLAIN] {
            site.store.publish(&site.image(), reference)?;
        }
        site.learn(&learned)?;
        Ok(site)
    }

    /// Returns the directory that nginx serves.
    pub fn www(&self) -> PathBuf {
        self.memory.path().join("www")
    }

    /// Returns the name of the image on nginx.
    pub fn raw_name(&self) -> &'static str {
        "disk.raw"
    }

    /// Returns the image, in memory.
    pub fn image(&self) -> PathBuf {
        self.www().join(self.raw_name())
    }

    /// Returns a new, empty directory in memory.
    ///
    /// # Errors
    /// There is no room.
    pub fn scratch(&self) -> Result<TempDir> {
        TempDir::with_prefix_in("scratch-", self.memory.path()).context("cannot make a directory")
    }

    /// Makes the boot pack from a mount that is read as the first boot did.
    fn learn(&self, reads: &[Read]) -> Result<()> {
        self.record(Self::PACKED, |shown| {
            let plan = Plan {
                reads,
                in_flight: 1,
                since: Instant::now(),
                stall: Duration::from_secs(1),
                cpu: None,
            };
            replay::replay(shown.disk(), &self.image(), &plan).map(drop)
        })
    }

    /// Makes the boot pack of `reference` of what `boot` reads of its mount.
    ///
    /// # Errors
    /// It cannot be mounted, or `boot` fails.
    pub fn record(&self, reference: &str, boot: impl FnOnce(&Shown) -> Result<()>) -> Result<()> {
        let server = Server::start(&self.store.path())?;
        let scratch = self.scratch()?;
        let (mount, trace) = (scratch.path().join("mnt"), scratch.path().join("trace"));
        fs::create_dir(&mount)?;
        let mut command = Command::new(binaries::host("circular-mount")?);
        command
            .args(["--foreground", "--no-state", "--no-cache", "--root"])
            .arg(self.store.trusted_root())
            .arg("--record")
            .arg(&trace)
            .args([server.url(), reference])
            .arg(&mount);
        let shown = Shown::start(&mut command, &mount.join("disk.raw"), self.length, None)?;
        boot(&shown)?;
        drop(shown);
        let trace = trace.to_str().context("temporary files have plain names")?;
        self.store.json(&["profile", "add", reference, trace])?;
        Ok(())
    }
}

/// Returns the reads of two boots of an image: those that are `given`, or those in `build/bench`, recorded now if they
/// are missing or of another image.
///
/// # Errors
/// A list cannot be read, or the image does not boot.
pub fn reads_of(image: &Path, given: Option<&[PathBuf; 2]>) -> Result<[Vec<Read>; 2]> {
    let lists = match given {
        Some(lists) => lists.clone(),
        None => {
            let directory = binaries::checkout().join("build/bench");
            fs::create_dir_all(&directory)?;
            let stem = stem_of(image)?;
            [1, 2].map(|boot| directory.join(format!("{stem}-{boot}.reads")))
        }
    };
    let mut boots = Vec::new();
    for list in lists {
        if given.is_none() && !list.is_file() {
            say(&format!("== boot {} and record its reads", image.display()));
            let reads = record::boot(image)?;
            fs::write(&list, replay::format(&reads))?;
        }
        let text =
            fs::read_to_string(&list).with_context(|| format!("cannot read {}", list.display()))?;
        let reads = replay::parse(&text)?;
        ensure!(!reads.is_empty(), "{} is empty", list.display());
        boots.push(reads);
    }
    boots
        .try_into()
        .map_err(|_| anyhow::anyhow!("there are two boots"))
}

/// Says what a boot pack of the boot that read `learned` is to the one that is replayed.
fn told(learned: &[Read], reads: &[Read]) -> String {
    if learned == reads {
        return "the boot pack is of the very same boot".to_owned();
    }
    format!(
        "the boot pack is of another boot, which lacks {:.1} % of the blocks of this one",
        100.0 * lacked(learned, reads)
    )
}

/// Returns the part of the blocks of `reads` that are not among those of `learned`.
fn lacked(learned: &[Read], reads: &[Read]) -> f64 {
    let (known, read) = (blocks(learned), blocks(reads));
    bytes(read.difference(&known).count() as u64) / bytes(read.len() as u64)
}

/// Returns the blocks that `reads` touch.
fn blocks(reads: &[Read]) -> HashSet<u64> {
    let block = u64::from(BLOCK_BYTES);
    let of = |read: &Read| {
        let end = read.offset + read.length as u64;
        read.offset / block..end.div_ceil(block)
    };
    reads.iter().flat_map(of).collect()
}

/// Removes what runs have left that were killed: it would stay in memory.
fn sweep(parent: &Path) {
    for entry in fs::read_dir(parent).into_iter().flatten().flatten() {
        let name = entry.file_name().to_string_lossy().into_owned();
        let process = name
            .strip_prefix(PREFIX)
            .and_then(|rest| rest.split('-').next());
        let Some(process) = process.and_then(|id| id.parse::<u32>().ok()) else {
            continue;
        };
        // One that is dead, and waits for a read of a mount, has no program any more.
        if fs::read_link(format!("/proc/{process}/exe")).is_err() {
            // Another run may do the same now.
            unmount_below(&entry.path());
            let _ = fs::remove_dir_all(entry.path());
        }
    }
}

/// Takes mounts away whose programs may have been killed.
fn unmount_below(directory: &Path) {
    let mounts = fs::read_to_string("/proc/self/mounts").unwrap_or_default();
    let places = mounts.lines().filter_map(|line| line.split(' ').nth(1));
    for place in places.filter(|place| Path::new(place).starts_with(directory)) {
        // Its program may do the same now. Who still reads it is told that it failed.
        let _ = umount2(place, MntFlags::MNT_FORCE | MntFlags::MNT_DETACH);
    }
}

/// Returns a name for an image that changes when it does.
fn stem_of(image: &Path) -> Result<String> {
    let data = fs::metadata(image).with_context(|| format!("cannot read {}", image.display()))?;
    let seconds = data.modified()?.duration_since(UNIX_EPOCH)?.as_secs();
    let name = image.file_stem().unwrap_or_default().to_string_lossy();
    Ok(format!("{name}-{seconds:x}"))
}

/// Copies a file with its holes.
///
/// # Errors
/// There is no room.
pub fn copy_sparse(from: &Path, to: &Path) -> Result<()> {
    let status = Command::new("cp")
        .arg("--sparse=always")
        .args([from, to])
        .status()
        .context("cannot run cp")?;
    ensure!(status.success(), "cannot copy {}", from.display());
    Ok(())
}

/// Returns where a file has data, in order: what lies between are holes.
///
/// # Errors
/// It cannot be read.
pub fn runs(image: &Path) -> Result<Vec<Range<u64>>> {
    let file = File::open(image)?;
    let end = i64::try_from(file.metadata()?.len())?;
    let (mut runs, mut at) = (Vec::new(), 0);
    while at < end {
        let start = match lseek(&file, at, Whence::SeekData) {
            Ok(start) => start,
            Err(Errno::ENXIO) => break,
            Err(error) => return Err(error.into()),
        };
        at = lseek(&file, start, Whence::SeekHole)?;
        runs.push(u64::try_from(start)?..u64::try_from(at)?);
    }
    Ok(runs)
}

/// Has the kernel forget what it has read of disks.
///
/// # Errors
/// Not root.
pub fn drop_caches() -> Result<()> {
    nix::unistd::sync();
    File::options()
        .write(true)
        .open("/proc/sys/vm/drop_caches")
        .and_then(|mut file| file.write_all(b"3"))
        .context("cannot drop the caches")
}

#[cfg(test)]
mod tests {
    use super::{Read, lacked, told};

    #[test]
    fn what_the_learned_boot_lacks_is_counted_in_blocks() {
        let read = |offset, length| Read { offset, length };
        // Blocks 0, 1, 2 and 8.
        let reads = [read(4096, 8192), read(0, 512), read(32_768, 4096)];
        // The same and more, in other reads.
        let more = [read(0, 12_288), read(32_768, 8192)];
        assert_eq!(lacked(&more, &reads), 0.0);
        assert_eq!(lacked(&more[..1], &reads), 0.25);
        assert!(told(&more[..1], &reads).contains("lacks 25.0 % of the blocks"));
        assert!(told(&reads, &reads).contains("the very same"));
    }
}
