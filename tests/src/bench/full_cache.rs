//! P13 with a disk cache that has all of a large disk: what is cached is not looked at before it is read.

use std::fs::{self, File};
use std::io::{BufWriter, Write as _};
use std::os::unix::fs::FileExt as _;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Instant;

use anyhow::{Context, Result, ensure};

use super::Bench;
use super::disks::{Shown, pinned};
use super::site::drop_caches;
use super::table::{Mark, Row, Series, Unit};
use super::turns::bytes;
use crate::binaries;
use crate::server::Server;
use crate::store::TestStore;

/// MiB of the disk, and of what is cached of it.
const MIB: u64 = 10 << 10;

/// The same with `--quick`.
const MIB_QUICK: u64 = 64;

/// Of the cache; more than the disk.
const CACHE_SIZE: &str = "12G";

/// What it may take, in seconds.
const LIMIT: f64 = 0.5;

/// How the rows are to be understood.
pub const NOTE: &str = "a full cache lies on the disk of this machine, and the kernel has forgotten what it read of it; server and client are on one machine, without a line between them";

/// Fills a cache, and mounts with it and without a cache, in turns.
///
/// # Errors
/// There is no room for it on the disk, or a mount shows other bytes.
pub fn rows(bench: &Bench<'_>) -> Result<Vec<Row>> {
    let mib = if bench.options.quick { MIB_QUICK } else { MIB };
    let store = TestStore::new()?;
    let image = store.beside("image");
    write_distinct_blocks(&image, mib << 20).context("cannot write a large disk")?;
    store.publish(&image, "large:1")?;
    fs::remove_file(&image)?;
    let server = Server::start(&store.path())?;
    let mount = store.beside("mnt");
    fs::create_dir(&mount)?;
    let cache = store.beside("cache");
    let cache = cache.to_str().context("test paths are plain")?;
    let with_cache = ["--cache", cache, "--cache-size", CACHE_SIZE];
    let client = |arguments: &[&str]| -> Result<Command> {
        let mut command = pinned(bench.client_cpu(), &binaries::host("circular-mount")?);
        command
            .args(arguments)
            .args(["--no-state", "--root"])
            .arg(store.trusted_root())
            .args([server.url(), "large:1"]);
        Ok(command)
    };
    let filled = client(&[&["fetch"][..], &with_cache].concat())?
        .stdout(Stdio::null())
        .status()?;
    ensure!(filled.success(), "the cache is not filled: {filled}");

    let turn = |arguments: &[&str]| -> Result<f64> {
        if !bench.options.quick {
            drop_caches()?;
        }
        let mut command = client(arguments)?;
        command.arg("--foreground").arg(&mount);
        let began = Instant::now();
        let shown = Shown::start(&mut command, &mount.join("disk.raw"), mib << 20, None)?;
        let mut found = [0; 4096];
        File::open(shown.disk())?.read_exact_at(&mut found, (mib << 20) - 4096)?;
        let seconds = began.elapsed().as_secs_f64();
        ensure!(found == block((mib << 8) - 1), "the last block is wrong");
        Ok(seconds)
    };
    let (mut full, mut none) = (Vec::new(), Vec::new());
    for _ in 0..bench.repeats() {
        full.push(turn(&with_cache)?);
        none.push(turn(&["--no-cache"])?);
    }
    let title = format!("a disk of {:.1} GiB, all of it cached", bytes(mib) / 1024.0);
    let ours = Series::new("circular-mount, full cache", full.iter().copied());
    let limit = full.iter().map(|_| LIMIT);
    Ok(vec![
        Row::new(
            &title,
            Unit::Seconds,
            ours.clone(),
            Series::new("half a second", limit),
        )
        .marked(Mark::AtMost(1.0)),
        Row::new(
            &title,
            Unit::Seconds,
            ours,
            Series::new("circular-mount, no cache", none),
        ),
    ])
}

/// Writes a disk with no two equal blocks and no holes, which compresses to nearly nothing.
fn write_distinct_blocks(path: &Path, length: u64) -> Result<()> {
    let mut file = BufWriter::with_capacity(1 << 20, File::create_new(path)?);
    for number in 0..length / 4096 {
        file.write_all(&block(number))?;
    }
    file.flush()?;
    Ok(())
}

/// Returns the block of this number; none is a hole.
fn block(number: u64) -> [u8; 4096] {
    let mut block = [0; 4096];
    for word in block.chunks_exact_mut(8) {
        word.copy_from_slice(&(number + 1).to_le_bytes());
    }
    block
}
